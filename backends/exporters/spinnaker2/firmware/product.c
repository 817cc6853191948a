/* Products driven by events: one row of weights each. */
#include "pe.h"

void product_begin(const product_t *product, const int32_t *bias)
{
    for (uint32_t j = 0; j < product->width; j++)
        product->sum[j] = bias[j];
}

/* On a host, one body for several widths of vector. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && (!defined(__clang__) || __clang_major__ > 18)
__attribute__((target_clones("avx512f", "avx2", "default")))
#endif
static void add_dense(int32_t *restrict sum, const int8_t *restrict weight, uint32_t width, int32_t value)
{
    for (uint32_t j = 0; j < width; j++)
        sum[j] = add32(sum[j], multiply32(value, weight[j]));
}

static inline void add_sparse(int32_t *sum, const int8_t *weight, const uint8_t *gap, uint32_t kept, int32_t value)
{
    for (uint32_t i = 0; i < kept; i++) {
        sum += gap[i];
        *sum = add32(*sum, multiply32(value, weight[i]));
    }
}

uint32_t product_add(const product_t *product, uint32_t first, uint32_t units, const event_t *event, uint32_t count)
{
    uint32_t strays = 0;
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t unit = event[i].key & ~S2LM_KEY_MASK, row = first + unit;
        if (unit >= units) {
            strays++;
            continue;
        }
        if (!product->start) {
            add_dense(product->sum, product->weight + row * product->width, product->width, event[i].payload);
            continue;
        }
        const uint32_t from = product->start[row], kept = product->start[row + 1] - from;
        add_sparse(product->sum, product->weight + from, product->gap + from, kept, event[i].payload);
    }
    return strays;
}
