/* Event-driven matrix products: out[n] = bias + sum of value x weight row, over the events of item n only.
 *
 * The events of N items come in compressed rows: those of item n are at first[n] .. first[n + 1] - 1.
 * weight is [in, out], row-major, so that an event reads one contiguous row. bias may be NULL.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define GATHER(NAME, REAL)                                                                                    \
    void NAME(const int64_t *restrict first, const int64_t *restrict unit, const REAL *restrict value,        \
              const REAL *restrict weight, const REAL *restrict bias, REAL *restrict out, int64_t n_items,    \
              int64_t n_out)                                                                                  \
    {                                                                                                         \
        for (int64_t n = 0; n < n_items; n++, out += n_out) {                                                 \
            if (bias)                                                                                         \
                memcpy(out, bias, (size_t)n_out * sizeof(REAL));                                              \
            else                                                                                              \
                memset(out, 0, (size_t)n_out * sizeof(REAL));                                                 \
            for (int64_t k = first[n]; k < first[n + 1]; k++) {                                               \
                const REAL *row = weight + unit[k] * n_out;                                                   \
                const REAL x = value[k];                                                                      \
                for (int64_t j = 0; j < n_out; j++)                                                           \
                    out[j] += x * row[j];                                                                     \
            }                                                                                                 \
        }                                                                                                     \
    }

GATHER(gather_f32, float)
GATHER(gather_f64, double)
