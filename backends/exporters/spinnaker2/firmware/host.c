/* All processing elements of an image on the host: stage after stage, token after token. */
#include <stddef.h>

#include "pe.h"

typedef struct {
    event_t *at;
} queue_t;

static void push(void *to, uint32_t key, int32_t payload)
{
    queue_t *queue = to;
    *queue->at++ = (event_t){key, payload};
}

int64_t host_pe_bytes(void)
{
    return sizeof(pe_t);
}

/* Bytes of an image before use: opened in place. The error of pe_open. */
int32_t host_open(pe_t *pe, uint8_t *image, uint32_t room)
{
    return pe_open(pe, image, room);
}

void host_reset(pe_t *pe, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        pe_reset(pe + i);
}

/* A tick of one PE: how many events it sent to `room`, and its hash. */
int64_t host_tick(pe_t *pe, event_t *room, uint32_t *hash)
{
    queue_t queue = {room};
    pe_tick(pe, push, &queue);
    *hash = pe->hash;
    return queue.at - room;
}

static void deliver(pe_t *pe, const event_t *from, const event_t *end, const int32_t *first, const int32_t *listener)
{
    while (from < end) {
        const uint32_t base = from->key >> 16;
        const event_t *next = from;
        while (next < end && next->key >> 16 == base)
            next++;
        for (int32_t i = first[base]; i < first[base + 1]; i++)
            pe_receive(pe + listener[i], from, (uint32_t)(next - from));
        from = next;
    }
}

/* Runs some tokens.
 *
 * last      of each stage, the number of its last PE plus one         vectors  [V][width] of DRAM, or NULL
 * first     where the listeners of each upper half of a key begin     listener the numbers of PEs
 * logits    [T][V], or NULL                                           hashes   [T][n_pes]
 * room      for the events of any stage
 * Returns how many events were sent, those of the embedding and the head not counted.
 */
int64_t host_run(pe_t *pe, const int64_t *last, int64_t n_stages, const int32_t *vectors, int64_t width,
                 const int32_t *first, const int32_t *listener, const int64_t *tokens, int64_t n_tokens,
                 int32_t *logits, int64_t vocabulary, uint32_t *hashes, event_t *room)
{
    const int64_t n_pes = last[n_stages - 1];
    int64_t n_events = 0;
    for (int64_t t = 0; t < n_tokens; t++) {
        queue_t queue = {room};
        if (vectors) {
            const int32_t *x = vectors + tokens[t] * width;
            for (int64_t j = 0; j < width; j++)
                if (x[j])
                    push(&queue, (uint32_t)j, x[j]);
        } else {
            push(&queue, S2LM_TOKEN, (int32_t)tokens[t]);
        }
        deliver(pe, room, queue.at, first, listener);
        for (int64_t stage = 0, from = 0; stage < n_stages; from = last[stage++]) {
            queue.at = room;
            for (int64_t i = from; i < last[stage]; i++) {
                pe_tick(pe + i, push, &queue);
                hashes[t * n_pes + i] = pe[i].hash;
            }
            if (pe[from].kind == S2LM_EGRU || pe[from].kind == S2LM_PROGRAM)
                n_events += queue.at - room;
            deliver(pe, room, queue.at, first, listener);
        }
        for (int64_t j = 0; logits && j < vocabulary; j++)
            logits[t * vocabulary + j] = room[j].payload;
    }
    return n_events;
}
