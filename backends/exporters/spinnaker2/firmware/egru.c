/* One step of the units of an EGRU layer: arithmetic.egru_tick. */
#include "pe.h"

void egru_tick(pe_t *pe, send_t *send, void *to)
{
    const uint32_t n = pe->units;
    const int32_t zoneout = (int32_t)pe->field[EGRU_ZONEOUT];
    uint32_t hash = 0;
    for (uint32_t j = 0; j < n; j++) {
        int32_t a[3], q[3];
        for (uint32_t gate = 0; gate < 3; gate++) {
            const uint32_t at = gate * n + j;
            hash = fold(hash, a[gate] = shift_right(pe->product[0].sum[at], pe->shift[0][at]));
            hash = fold(hash, q[gate] = shift_right(pe->product[1].sum[at], pe->shift[1][at]));
        }
        const int32_t z = look_up(pe->sigmoid, add32(a[0], q[0]));
        const int32_t r = look_up(pe->sigmoid, add32(a[1], q[1]));
        const int32_t g = look_up(pe->tanh, add32(a[2], shift_right(r * saturate16(q[2]), S2LM_EVENT_FRAC)));
        const int32_t c = pe->cell[j], thr = pe->thr[j];
        int32_t p = shift_right(add32(z * c, (S2LM_ONE - z) * g), S2LM_EVENT_FRAC);
        if (zoneout)
            p = shift_right(add32(multiply32(zoneout, c), multiply32(S2LM_ONE - zoneout, p)), S2LM_EVENT_FRAC);
        const int32_t fires = p > thr, y = fires ? p : 0;
        pe->cell[j] = (int16_t)(fires ? p - thr : p);
        hash = fold(fold(hash, y), pe->cell[j]);
        if (y)
            send(to, pe->own_key + j, y);
    }
    pe->hash = hash;
    product_begin(&pe->product[0], pe->bias[0]);
    product_begin(&pe->product[1], pe->bias[1]);
}
