/* The logits of some tokens of the vocabulary, sent to the host. */
#include "pe.h"

void head_tick(pe_t *pe, send_t *send, void *to)
{
    uint32_t hash = 0;
    for (uint32_t j = 0; j < pe->units; j++) {
        const int32_t logit = rescale(pe->product[0].sum[j], pe->shift[0][j]);
        hash = fold(hash, logit);
        send(to, pe->own_key + j, logit);
    }
    pe->hash = hash;
    product_begin(&pe->product[0], pe->bias[0]);
}
