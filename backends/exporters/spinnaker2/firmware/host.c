/* All processing elements of an image on the host: stage after stage, token after token. */
#include <stddef.h>

#include "host.h"

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

int32_t host_open(pe_t *pe, uint8_t *image, uint32_t room)
{
    return pe_open(pe, image, room);
}

void host_reset(pe_t *pe, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        pe_reset(pe + i);
}

int64_t host_tick(pe_t *pe, event_t *room, uint32_t *hash)
{
    queue_t queue = {room};
    pe_tick(pe, push, &queue);
    *hash = pe->hash;
    return queue.at - room;
}

/* What a PE does with events of a slice, if a sparse product hears them. */
static const uint32_t *sparse_entry(const pe_t *pe, uint32_t base)
{
    for (const uint32_t *entry = pe->keys, *end = entry + 4 * pe->listens; entry < end; entry += 4)
        if (*entry == base)
            return entry[3] < pe->products && pe->product[entry[3]].start ? entry : NULL;
    return NULL;
}

int32_t host_joins(const pe_t *pe, uint32_t base)
{
    return sparse_entry(pe, base) != NULL;
}

int64_t host_join(const pe_t *pe, int64_t n_pes, uint32_t base, uint32_t units, const int32_t *sums, int64_t *start,
                  int32_t *at, int8_t *weight)
{
    int64_t kept = 0;
    for (uint32_t unit = 0; unit < units; unit++) {
        start[unit] = kept;
        for (const pe_t *to = pe; to < pe + n_pes; to++) {
            const uint32_t *entry = sparse_entry(to, base);
            if (!entry || unit >= entry[2])
                continue;
            const product_t *product = &to->product[entry[3]];
            const int32_t *sum = product->sum;
            for (uint32_t i = product->start[entry[1] + unit]; i < product->start[entry[1] + unit + 1]; i++) {
                sum += product->gap[i];
                if (at) {
                    at[kept] = (int32_t)(sum - sums);
                    weight[kept] = product->weight[i];
                }
                kept++;
            }
        }
    }
    start[units] = kept;
    return kept;
}

static void deliver(pe_t *pe, int32_t *restrict sums, const event_t *from, const event_t *end, const slice_t *slice,
                    const int32_t *of_base)
{
    while (from < end) {
        const uint32_t base = from->key >> 16;
        const slice_t *to = slice + of_base[base];
        const event_t *next = from;
        for (; next < end && next->key >> 16 == base; next++) {
            const uint32_t unit = next->key & ~S2LM_KEY_MASK;
            if (unit >= to->units)
                continue;
#pragma GCC unroll 8 /* a tenth faster */
            for (int64_t i = to->start[unit]; i < to->start[unit + 1]; i++)
                sums[to->at[i]] = add32(sums[to->at[i]], multiply32(next->payload, to->weight[i]));
        }
        for (int64_t i = 0; i < to->listeners; i++)
            pe_receive(pe + to->listener[i], from, (uint32_t)(next - from));
        from = next;
    }
}

int64_t host_run(pe_t *pe, const int64_t *last, int64_t n_stages, const int32_t *vectors, int64_t width,
                 const slice_t *slice, const int32_t *of_base, int32_t *sums, const int64_t *tokens,
                 int64_t n_tokens, int32_t *logits, int64_t vocabulary, uint32_t *hashes, event_t *room,
                 event_t *sent, int64_t *n_sent)
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
        deliver(pe, sums, room, queue.at, slice, of_base);
        for (int64_t stage = 0, from = 0; stage < n_stages; from = last[stage++]) {
            queue.at = room;
            for (int64_t i = from; i < last[stage]; i++) {
                pe_tick(pe + i, push, &queue);
                hashes[t * n_pes + i] = pe[i].hash;
            }
            if (pe[from].kind == S2LM_EGRU || pe[from].kind == S2LM_PROGRAM) {
                for (const event_t *event = room; sent && event < queue.at; event++)
                    sent[n_events + (event - room)] = *event;
                n_events += queue.at - room;
            }
            deliver(pe, sums, room, queue.at, slice, of_base);
        }
        for (int64_t j = 0; logits && j < vocabulary; j++)
            logits[t * vocabulary + j] = room[j].payload;
        if (sent)
            n_sent[t] = n_events;
    }
    return n_events;
}
