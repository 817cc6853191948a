/* What the kernels share. A source that is written once for float and double includes itself with REAL and NAME. */
#ifndef RHEOBASE_NATIVE_H
#define RHEOBASE_NATIVE_H

#include <stdint.h>
#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

/* One body for several widths of vector, among which the loader chooses. No width changes a bit: nothing is fused.
 * Clang 14 leaves out functions that others call; 19 was seen to make them all. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && (!defined(__clang__) || __clang_major__ > 18)
#define ANY_WIDTH __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define ANY_WIDTH
#endif

/* LIF and WKV go through arrays [batch, steps, units] tile by tile, UNITS wide and EVERY steps high, so that what a
 * tile finds again stays in registers or in the first-level cache. Of the batch x ceil(units / UNITS) blocks of units
 * none knows another; up to BLOCKS of them are gone through side by side, for rows long enough for the memory.
 */
enum { UNITS = 64, EVERY = 16, BLOCKS = 16, ASKS = 2 };

/* Of the blocks from `block` to `end` those that are gone through side by side, of one item of the batch. */
typedef struct {
    int64_t item, column, blocks;
} tile_part;

INLINE tile_part part_of(int64_t block, int64_t end, int64_t units)
{
    const int64_t a_row = (units + UNITS - 1) / UNITS, column = block % a_row;
    const int64_t parts = (a_row + BLOCKS - 1) / BLOCKS, even = (a_row + parts - 1) / parts;
    const int64_t rest = end - block < a_row - column ? end - block : a_row - column;
    return (tile_part){block / a_row, column, rest < even ? rest : even};
}

/* How many units a part has. */
INLINE int64_t width_of(tile_part part, int64_t units)
{
    const int64_t n = part.blocks * UNITS, rest = units - part.column * UNITS;
    return n < rest ? n : rest;
}

typedef struct {
    int64_t count, n;       /* steps and units */
    int64_t stretch, block; /* of EVERY steps, from the first; of the part, from its first */
    int64_t blocks;         /* of the part */
    int64_t item, first;    /* of the batch; the first unit */
    int64_t at;             /* of the first unit and step in an array [batch, steps, units] */
} one_tile;

/* Tiles of a part in the order of steps, and of units within a stretch. */
INLINE one_tile tile_of(tile_part part, int64_t number, int64_t steps, int64_t units)
{
    const int64_t stretch = number / part.blocks, block = number % part.blocks;
    const int64_t rest = steps - stretch * EVERY, first = (part.column + block) * UNITS;
    return (one_tile){
        .count = rest < EVERY ? rest : EVERY,
        .n = units - first < UNITS ? units - first : UNITS,
        .stretch = stretch,
        .block = block,
        .blocks = part.blocks,
        .item = part.item,
        .first = first,
        .at = (part.item * steps + stretch * EVERY) * units + first,
    };
}

INLINE int64_t tiles(tile_part part, int64_t steps)
{
    return part.blocks * ((steps + EVERY - 1) / EVERY);
}

/* Asks for what is needed soon, past the first-level cache, which has no room for it: a processor cannot guess which
 * row of a tile is next. On EPYCs of Zen 3 and 4 asking again is quicker than once where what is written goes into the
 * caches, as if a request that finds no room in a queue were dropped. */
INLINE void ask(const void *row, size_t size, int times)
{
    for (size_t at = 0; at < size; at += 64)
        for (int again = 0; again < times; again++)
            __builtin_prefetch((const char *)row + at, 0, 2);
}

/* Where a tile asks for numbers of the next stretch at step i of its own: how far from the tile's own place in that
 * stretch. The tiles of a stretch together ask for the next one in the order of addresses. A Zen 3's memory gives that
 * nearly twice as fast as each tile's rows in turn, which lie a row of the array apart. */
INLINE int64_t soon(const one_tile tile, int64_t i, int64_t units)
{
    const uint32_t piece = (uint32_t)(tile.block * EVERY + i), blocks = (uint32_t)tile.blocks;
    return piece / blocks * units + ((int64_t)(piece % blocks) - tile.block) * UNITS;
}

/* How many numbers, for a tile of n units. */
INLINE int64_t width_asked(int64_t n, int64_t units)
{
    return n == UNITS || units > UNITS ? UNITS : n;
}

/* Writes whole lines of a cache, 64 bytes from each multiple of 64, past the caches: a store into them reads first what
 * it writes over. `passed` ends a call that did so, for those who read it in other threads. */
INLINE void write_past(void *to, const void *from, size_t size)
{
#ifdef __SSE2__
    for (size_t at = 0; at < size; at += 16)
        _mm_stream_si128((__m128i *)((char *)to + at), _mm_loadu_si128((const __m128i *)((const char *)from + at)));
#else
    memcpy(to, from, size);
#endif
}

INLINE void passed(void)
{
#ifdef __SSE2__
    _mm_sfence();
#endif
}

/* e^x = 2^n e^r with n = round(x / ln 2), so that |r| <= ln 2 / 2, and the Taylor polynomial of e^r. Unlike libm's, a
 * compiler runs it on several units at once. `power` is for x where 2^n is a normal number, `exp` holds x there; a
 * sigmoid cannot tell. Adding 1.5 x 2^(bits of the mantissa) rounds to n and leaves n in the lowest bits. ln 2 is
 * subtracted in two parts, the first short enough that n times it is exact (Cody and Waite, Software Manual for the
 * Elementary Functions, 1980).
 */
INLINE float power_f32(float x)
{
    const float shifted = x * 0x1.715476p+0f + 0x1.8p23f;
    const float n = shifted - 0x1.8p23f;
    const float r = x - n * 0x1.62e4p-1f - n * 0x1.7f7d1cp-20f;
    float e = 1.f / 5040;
    e = e * r + 1.f / 720;
    e = e * r + 1.f / 120;
    e = e * r + 1.f / 24;
    e = e * r + 1.f / 6;
    e = e * r + 1.f / 2;
    e = e * r + 1;
    e = e * r + 1;
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 127) << 23;
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return e * scale;
}

INLINE float exp_f32(float x)
{
    x = x > 87 ? 87 : x;
    return power_f32(x < -87 ? -87 : x);
}

INLINE float sigmoid_f32(float x)
{
    return 1 / (1 + exp_f32(-x));
}

INLINE double power_f64(double x)
{
    const double shifted = x * 0x1.71547652b82fep+0 + 0x1.8p52;
    const double n = shifted - 0x1.8p52;
    const double r = x - n * 0x1.62e42fefap-1 - n * 0x1.cf79abc9e3b39p-40;
    double e = 1. / 6227020800;
    e = e * r + 1. / 479001600;
    e = e * r + 1. / 39916800;
    e = e * r + 1. / 3628800;
    e = e * r + 1. / 362880;
    e = e * r + 1. / 40320;
    e = e * r + 1. / 5040;
    e = e * r + 1. / 720;
    e = e * r + 1. / 120;
    e = e * r + 1. / 24;
    e = e * r + 1. / 6;
    e = e * r + 1. / 2;
    e = e * r + 1;
    e = e * r + 1;
    uint64_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 1023) << 52;
    double scale;
    memcpy(&scale, &bits, sizeof scale);
    return e * scale;
}

INLINE double exp_f64(double x)
{
    x = x > 708 ? 708 : x;
    return power_f64(x < -708 ? -708 : x);
}

INLINE double sigmoid_f64(double x)
{
    return 1 / (1 + exp_f64(-x));
}

#endif
