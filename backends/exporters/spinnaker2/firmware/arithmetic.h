/* The arithmetic of arithmetic.py, operation by operation. Two's complement wraps where a damaged image overflows; a
 * sound one is proven not to. */
#ifndef S2LM_ARITHMETIC_H
#define S2LM_ARITHMETIC_H

#include <stdint.h>

#include "layout.h"

static inline int32_t add32(int32_t a, int32_t b)
{
    return (int32_t)((uint32_t)a + (uint32_t)b);
}

static inline int32_t multiply32(int32_t a, int32_t b)
{
    return (int32_t)((uint32_t)a * (uint32_t)b);
}

/* floor((x + 2^(s-1)) / 2^s), and x where s = 0; s < 32 */
static inline int32_t shift_right(int32_t x, uint32_t s)
{
    return add32(x, (int32_t)((1u << s) >> 1)) >> s;
}

/* x 2^-s, exactly to the left; -15 <= s < 32 */
static inline int32_t rescale(int32_t x, int32_t s)
{
    return s < 0 ? (int32_t)((uint32_t)x << -s) : shift_right(x, (uint32_t)s);
}

static inline int32_t saturate16(int32_t x)
{
    return x > 32767 ? 32767 : x < -32768 ? -32768 : x;
}

/* Linear interpolation in a table of S2LM_TABLE_SIZE values at x. */
static inline int32_t look_up(const int16_t *table, int32_t x)
{
    const uint32_t u = (uint32_t)(saturate16(x) + 32768);
    const uint32_t i = u >> S2LM_TABLE_STEP, f = u & ((1u << S2LM_TABLE_STEP) - 1);
    const int32_t low = table[i];
    return low + shift_right((table[i + 1] - low) * (int32_t)f, S2LM_TABLE_STEP);
}

#endif
