/* Event-driven matrix products with a matrix x that is mostly zero; a product reads nothing for a zero of x.
 *
 * Rows are read four at a time, but each element of a result is added up one row after the other, in their order.
 */
#ifndef REAL

#include <stddef.h>

#include "native.h"

enum { ROWS = 4, STRETCH = 128 };

#define REAL float
#define NAME(name) name##_f32
#include "gather.c"
#undef REAL
#undef NAME
#define REAL double
#define NAME(name) name##_f64
#include "gather.c"

#else

/* Rows that wait to be added to a result. */
typedef struct {
    const REAL *row[ROWS];
    REAL value[ROWS];
    int count;
} NAME(waiting);

/* out[n] += the waiting rows, each times its value. */
INLINE void NAME(add)(NAME(waiting) *wait, REAL *restrict out, int64_t n)
{
    if (wait->count == ROWS) {
        const REAL *restrict a = wait->row[0], *restrict b = wait->row[1];
        const REAL *restrict c = wait->row[2], *restrict d = wait->row[3];
        const REAL of_a = wait->value[0], of_b = wait->value[1], of_c = wait->value[2], of_d = wait->value[3];
        for (int64_t j = 0; j < n; j++)
            out[j] = (((out[j] + of_a * a[j]) + of_b * b[j]) + of_c * c[j]) + of_d * d[j];
    } else {
        for (int i = 0; i < wait->count; i++) {
            const REAL *restrict row = wait->row[i];
            const REAL value = wait->value[i];
            for (int64_t j = 0; j < n; j++)
                out[j] += value * row[j];
        }
    }
    wait->count = 0;
}

INLINE void NAME(push)(NAME(waiting) *wait, const REAL *row, REAL value, REAL *restrict out, int64_t n)
{
    wait->row[wait->count] = row;
    wait->value[wait->count] = value;
    if (++wait->count == ROWS)
        NAME(add)(wait, out, n);
}

INLINE void NAME(start)(REAL *restrict out, const REAL *restrict bias, int64_t n)
{
    if (bias)
        memcpy(out, bias, (size_t)n * sizeof(REAL));
    else
        memset(out, 0, (size_t)n * sizeof(REAL));
}

/* out[n] = bias + x[n] weight: x [n_items, n_in], weight [n_in, n_out], bias [n_out] or NULL. Returns the number of
 * weight rows read. */
ANY_WIDTH int64_t NAME(gather)(const REAL *restrict x, const REAL *restrict weight, const REAL *restrict bias,
                               REAL *restrict out, int64_t n_items, int64_t n_in, int64_t n_out)
{
    int64_t rows = 0;
    for (int64_t n = 0; n < n_items; n++, x += n_in, out += n_out) {
        NAME(waiting) wait = {.count = 0};
        NAME(start)(out, bias, n_out);
        for (int64_t k = 0; k < n_in; k++) {
            if (x[k] == 0)
                continue;
            NAME(push)(&wait, weight + k * n_out, x[k], out, n_out);
            rows++;
        }
        NAME(add)(&wait, out, n_out);
    }
    return rows;
}

/* The same with every row read. A result is added up in that one order whatever items stand beside it, which no BLAS
 * promises; of many items some sums each are in registers. */
ANY_WIDTH void NAME(dense)(const REAL *restrict x, const REAL *restrict weight, const REAL *restrict bias,
                           REAL *restrict out, int64_t n_items, int64_t n_in, int64_t n_out)
{
    enum { ITEMS = sizeof(REAL) == 4 ? 6 : 4, WIDE = 32 };
    const int64_t in_blocks = n_items - n_items % ITEMS, in_tiles = n_out - n_out % WIDE;
    for (int64_t j = 0; j < in_tiles; j += WIDE)
        for (int64_t n = 0; n < in_blocks; n += ITEMS) {
            REAL sum[ITEMS][WIDE];
            for (int i = 0; i < ITEMS; i++)
                for (int o = 0; o < WIDE; o++)
                    sum[i][o] = bias ? bias[j + o] : 0;
            for (int64_t k = 0; k < n_in; k++)
                for (int i = 0; i < ITEMS; i++)
                    for (int o = 0; o < WIDE; o++)
                        sum[i][o] += x[(n + i) * n_in + k] * weight[k * n_out + j + o];
            for (int i = 0; i < ITEMS; i++)
                for (int o = 0; o < WIDE; o++)
                    out[(n + i) * n_out + j + o] = sum[i][o];
        }
    for (int64_t n = in_tiles < n_out ? 0 : in_blocks; n < n_items; n++) {
        const int64_t first = n < in_blocks ? in_tiles : 0;
        NAME(waiting) wait = {.count = 0};
        NAME(start)(out + n * n_out + first, bias ? bias + first : NULL, n_out - first);
        for (int64_t k = 0; k < n_in; k++)
            NAME(push)(&wait, weight + k * n_out + first, x[n * n_in + k], out + n * n_out + first, n_out - first);
        NAME(add)(&wait, out + n * n_out + first, n_out - first);
    }
}

/* out += x^T g: x [n_items, n_in], g [n_items, n_out], out [n_in, n_out]. A stretch of g at a time is in the cache. */
ANY_WIDTH void NAME(scatter)(const REAL *restrict x, const REAL *restrict g, REAL *restrict out, int64_t n_items,
                             int64_t n_in, int64_t n_out)
{
    for (int64_t first = 0; first < n_items; first += STRETCH) {
        const int64_t last = n_items - first < STRETCH ? n_items : first + STRETCH;
        for (int64_t k = 0; k < n_in; k++) {
            NAME(waiting) wait = {.count = 0};
            for (int64_t n = first; n < last; n++)
                if (x[n * n_in + k] != 0)
                    NAME(push)(&wait, g + n * n_out, x[n * n_in + k], out + k * n_out, n_out);
            NAME(add)(&wait, out + k * n_out, n_out);
        }
    }
}

#endif
