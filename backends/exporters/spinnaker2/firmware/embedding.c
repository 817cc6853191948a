/* The vectors of some tokens of the vocabulary: the one of the token received is sent, if it is among them. */
#include "pe.h"

void embedding_tick(pe_t *pe, send_t *send, void *to)
{
    uint32_t hash = 0;
    if (pe->token >= 0) {
        const uint32_t row = (uint32_t)pe->token;
        const int32_t up = (int32_t)pe->field[EMBEDDING_X_FRAC] - pe->exponent[row];
        const product_t *table = &pe->product[0];
        const uint32_t from = table->start ? table->start[row] : row * table->width;
        const uint32_t kept = table->start ? table->start[row + 1] - from : table->width;
        uint32_t unit = 0;
        for (uint32_t i = 0; i < kept; i++) {
            unit = table->start ? unit + table->gap[from + i] : i;
            const int32_t w = table->weight[from + i];
            const int32_t x = up >= 0 ? multiply32(w, (int32_t)(1u << up)) : shift_right(w, (uint32_t)-up);
            hash = fold(fold(hash, (int32_t)unit), x);
            if (x)
                send(to, pe->own_key + unit, x);
        }
    }
    pe->token = -1;
    pe->hash = hash;
}
