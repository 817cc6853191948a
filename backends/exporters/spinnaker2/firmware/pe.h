/* A processing element: an image in its memory, an event handler and a tick. No allocation, no library. */
#ifndef S2LM_PE_H
#define S2LM_PE_H

#include "arithmetic.h"

typedef struct {
    uint32_t key;
    int32_t payload;
} event_t;

typedef void send_t(void *to, uint32_t key, int32_t payload);

/* Rows of weights, one a source. Dense: weight [rows][width]. Else the weights kept of row r are start[r] to
 * start[r + 1], and their targets are the running sums of the gaps there. */
typedef struct {
    uint32_t rows, width;
    const int8_t *weight;
    const uint16_t *start;
    const uint8_t *gap;
    int32_t *sum;
} product_t;

/* What other elements send, unit by unit, until the next tick. */
typedef struct {
    uint32_t length;
    int16_t *at;
} vector_t;

typedef struct {
    uint32_t kind, units, own_key;
    const uint32_t *field;
    uint32_t products;
    product_t product[S2LM_MOST_PRODUCTS];
    const int32_t *bias[S2LM_MOST_PRODUCTS];
    const int8_t *shift[S2LM_MOST_PRODUCTS];
    vector_t vector[S2LM_MOST_VECTORS];
    int16_t *cell;
    const int16_t *thr, *sigmoid, *tanh;
    const int8_t *exponent;
    int32_t *registers;
    const int32_t *factors, *initial, *power, *program;
    uint32_t instructions;
    const uint32_t *keys;
    uint32_t listens, heard;
    int32_t token;
    uint32_t strays;
    uint32_t hash;
} pe_t;

enum {
    PE_OK,
    PE_NO_IMAGE,
    PE_OTHER_VERSION,
    PE_BAD_REGION,
    PE_BAD_SIZE,
    PE_BAD_FIELD,
    PE_BAD_ROWS,
    PE_BAD_SHIFT,
    PE_BAD_PROGRAM,
};

/* Take a PE's image, of at most `room` bytes and on a boundary of 4. Everything that a kernel relies on is checked
 * here once; PE_OK, or what is wrong. */
int pe_open(pe_t *pe, uint8_t *image, uint32_t room);

/* Add events of one slice to the sums of what listens to it; those of no known key are counted in `strays`. */
void pe_receive(pe_t *pe, const event_t *event, uint32_t count);

/* Update all units, send their events, begin new sums, and set `hash`: over pre-activations, events and state. */
void pe_tick(pe_t *pe, send_t *send, void *to);

/* Begin a new stream of tokens: state and sums as in the image's first use. */
void pe_reset(pe_t *pe);

void product_begin(const product_t *product, const int32_t *bias);
/* Add value x row for events whose units, below `units`, are rows from `first` on; how many were of no such unit. */
uint32_t product_add(const product_t *product, uint32_t first, uint32_t units, const event_t *event, uint32_t count);

void egru_tick(pe_t *pe, send_t *send, void *to);
void head_tick(pe_t *pe, send_t *send, void *to);
void embedding_tick(pe_t *pe, send_t *send, void *to);
void program_tick(pe_t *pe, send_t *send, void *to);

/* hash' = hash x 16777619 + value, modulo 2^32 */
static inline uint32_t fold(uint32_t hash, int32_t value)
{
    return hash * 16777619u + (uint32_t)value;
}

#endif
