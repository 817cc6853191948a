/* All processing elements of an image on the host: stage after stage, token after token. */
#include <stddef.h>

#include "pe.h"

typedef struct {
    uint32_t key;
    int32_t payload;
} event_t;

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

/* Runs some tokens.
 *
 * last     of each stage, the number of its last PE plus one          vectors  [V][width] of DRAM, or NULL
 * logits   [T][V], or NULL                                            hashes   [T][n_pes], or NULL
 * room     two queues of `most` events each
 * Returns how many events were sent, embedding and head not counted.
 */
int64_t host_run(pe_t *pe, const int64_t *last, int64_t n_stages, const int32_t *vectors, int64_t width,
                 const int64_t *tokens, int64_t n_tokens, int32_t *logits, int64_t vocabulary, uint32_t *hashes,
                 event_t *room, int64_t most)
{
    const int64_t n_pes = last[n_stages - 1];
    int64_t n_events = 0;
    for (int64_t t = 0; t < n_tokens; t++) {
        queue_t queue = {room};
        event_t *events = room;
        if (vectors) {
            const int32_t *x = vectors + tokens[t] * width;
            for (int64_t j = 0; j < width; j++)
                if (x[j])
                    push(&queue, (uint32_t)j, x[j]);
        } else {
            push(&queue, S2LM_TOKEN, (int32_t)tokens[t]);
        }
        for (int64_t stage = 0, first = 0; stage < n_stages; first = last[stage++]) {
            const event_t *end = queue.at;
            event_t *sent = events == room ? room + most : room;
            queue.at = sent;
            for (int64_t i = first; i < last[stage]; i++) {
                for (const event_t *e = events; e < end; e++)
                    pe_receive(pe + i, e->key, e->payload);
                pe_tick(pe + i, push, &queue);
                if (hashes)
                    hashes[t * n_pes + i] = pe[i].hash;
            }
            events = sent;
            if (pe[first].kind != S2LM_EGRU)
                continue;
            n_events += queue.at - sent;
            for (int64_t i = first; i < last[stage]; i++)
                for (const event_t *e = sent; e < queue.at; e++)
                    pe_receive(pe + i, e->key, e->payload);
        }
        for (int64_t j = 0; logits && j < vocabulary; j++)
            logits[t * vocabulary + j] = events[j].payload;
    }
    return n_events;
}
