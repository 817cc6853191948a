/* Event-driven matrix products: out[n] = bias + sum of x x weight row over the non-zero elements of item n only.
 *
 * x is [n_items, n_in] and mostly zero; weight is [n_in, n_out], row-major, so that an event reads one contiguous
 * row; bias may be NULL. Returns the number of rows read.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define GATHER(NAME, REAL)                                                                                    \
    int64_t NAME(const REAL *restrict x, const REAL *restrict weight, const REAL *restrict bias,              \
                 REAL *restrict out, int64_t n_items, int64_t n_in, int64_t n_out)                            \
    {                                                                                                         \
        int64_t rows = 0;                                                                                     \
        for (int64_t n = 0; n < n_items; n++, x += n_in, out += n_out) {                                      \
            if (bias)                                                                                         \
                memcpy(out, bias, (size_t)n_out * sizeof(REAL));                                              \
            else                                                                                              \
                memset(out, 0, (size_t)n_out * sizeof(REAL));                                                 \
            for (int64_t k = 0; k < n_in; k++) {                                                              \
                const REAL value = x[k];                                                                      \
                if (value == 0)                                                                               \
                    continue;                                                                                 \
                const REAL *row = weight + k * n_out;                                                         \
                for (int64_t j = 0; j < n_out; j++)                                                           \
                    out[j] += value * row[j];                                                                 \
                rows++;                                                                                       \
            }                                                                                                 \
        }                                                                                                     \
        return rows;                                                                                          \
    }

GATHER(gather_f32, float)
GATHER(gather_f64, double)
