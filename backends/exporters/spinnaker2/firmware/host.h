/* All processing elements of an image on the host: what Python calls, and the tests. */
#ifndef S2LM_HOST_H
#define S2LM_HOST_H

#include "pe.h"

/* Who hears the events of a slice: PEs, and a row of weights each of its units. */
typedef struct {
    const int32_t *listener, *at;
    const int8_t *weight;
    const int64_t *start;
    int64_t listeners, units;
} slice_t;

int64_t host_pe_bytes(void);

/* Bytes of an image before use: opened in place. The error of pe_open. */
int32_t host_open(pe_t *pe, uint8_t *image, uint32_t room);

void host_reset(pe_t *pe, int64_t n);

/* A tick of one PE: how many events it sent to `room`, and its hash. */
int64_t host_tick(pe_t *pe, event_t *room, uint32_t *hash);

/* Whether a PE hears a slice by sparse weights. */
int32_t host_joins(const pe_t *pe, uint32_t base);

/* The rows of a slice's units through all PEs: `start` [units + 1] of each in `at`, where a sum lies from `sums` on, and
 * `weight`. Returns how many weights those are; only that where `at` is NULL. */
int64_t host_join(const pe_t *pe, int64_t n_pes, uint32_t base, uint32_t units, const int32_t *sums, int64_t *start,
                  int32_t *at, int8_t *weight);

/* Runs some tokens.
 *
 * last      of each stage, the number of its last PE plus one         vectors  [V][width] of DRAM, or NULL
 * slice     who hears a slice        of_base  the number of the slice of each upper half of a key
 * sums      from where on `slice` counts
 * logits    [T][V], or NULL                                           hashes   [T][n_pes]
 * room      for the events of any stage
 * sent      NULL, or room for all events that are sent; n_sent [T] how many were after each token
 * Returns how many events were sent, those of the embedding and the head not counted.
 */
int64_t host_run(pe_t *pe, const int64_t *last, int64_t n_stages, const int32_t *vectors, int64_t width,
                 const slice_t *slice, const int32_t *of_base, int32_t *sums, const int64_t *tokens,
                 int64_t n_tokens, int32_t *logits, int64_t vocabulary, uint32_t *hashes, event_t *room,
                 event_t *sent, int64_t *n_sent);

#endif
