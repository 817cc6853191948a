/* LIF over a sequence, forward and backward; equations: `ops.lif`. Arrays are [batch, steps, units], row-major.
 *
 * Forward performs the reference's operations in the reference's order, so that spikes and membranes are the same to
 * the last bit (compile with -ffp-contract=off). It keeps the membrane after every EVERYth step; backward runs each
 * stretch of EVERY steps again, which gives h_t to the last bit, and walks back through it:
 *
 *     g_up = g_s + g_f      g_down = g_f - g_s       of the spikes at theta and at -theta; g_s is the gradient of
 *                                                    up - down, g_f, through the hard reset, that of up + down
 *     g_h  = g_v dv/dh + g_up slope(h - theta) - g_down slope(-h - theta) + the gradient of h as an output
 *
 * A call does some of the batch x ceil(units / UNITS) blocks, of which none knows another. It goes through them tile by
 * tile, UNITS wide and a stretch high, so that what a tile finds again stays in the first-level cache, and asks for
 * the next stretch's rows as it goes: the gaps between rows keep a processor from guessing them.
 */
#ifndef REAL

#include "native.h"

enum { UNITS = 128, EVERY = 16 };

typedef struct {
    double v_reset;
    double inverse; /* 1 / tau, where that is one power of two for all units */
    double alpha;   /* steepness of the arctangent surrogate, for a backward pass that is given no slopes */
    int32_t hard, decay_input, strict, ternary, detach_reset;
    int32_t learns; /* whether the gradients of tau and theta are wanted; set where ternary is */
    int32_t by_inverse; /* whether to multiply by `inverse`, which rounds the same, and not divide by tau */
} lif_settings;

/* What of the blocks from `block` to `end` is of one item of the batch. */
typedef struct {
    int64_t item, column, blocks;
} lif_part;

INLINE lif_part part_of(int64_t block, int64_t end, int64_t units)
{
    const int64_t a_row = (units + UNITS - 1) / UNITS, column = block % a_row;
    return (lif_part){block / a_row, column, end - block < a_row - column ? end - block : a_row - column};
}

typedef struct {
    int64_t count, n;  /* steps and units */
    int64_t first;     /* unit */
    int64_t row;       /* of the first unit in an array [batch, units] */
    int64_t at;        /* of the first unit and step in an array [batch, steps, units] */
    int64_t kept;      /* of the first unit in what is kept after the tile */
    int begins, whole; /* whether it has the first step; whether it has EVERY steps */
} lif_tile;

/* Tiles of a part in the order of steps, and of units within a stretch. */
INLINE lif_tile tile_of(lif_part part, int64_t tile, int64_t steps, int64_t units)
{
    const int64_t from = tile / part.blocks * EVERY, first = (part.column + tile % part.blocks) * UNITS;
    return (lif_tile){
        .count = steps - from < EVERY ? steps - from : EVERY,
        .n = units - first < UNITS ? units - first : UNITS,
        .first = first,
        .row = part.item * units + first,
        .at = (part.item * steps + from) * units + first,
        .kept = (part.item * (steps / EVERY) + from / EVERY) * units + first,
        .begins = from == 0,
        .whole = from + EVERY <= steps,
    };
}

INLINE int64_t tiles(lif_part part, int64_t steps)
{
    return part.blocks * ((steps + EVERY - 1) / EVERY);
}

#define REAL float
#define NAME(name) name##_f32
#include "lif.c"
#undef REAL
#undef NAME
#define REAL double
#define NAME(name) name##_f64
#include "lif.c"

#else

INLINE REAL NAME(fired)(REAL u, int strict)
{
    return (REAL)((u > 0) | ((u == 0) & !strict));
}

INLINE REAL NAME(over)(REAL x, REAL tau, lif_settings set)
{
    return set.by_inverse ? x * (REAL)set.inverse : x / tau;
}

INLINE REAL NAME(slope)(REAL u, REAL alpha)
{
    const REAL z = (REAL)1.5707963267948966 * alpha * u;
    return alpha / 2 / (1 + z * z);
}

/* Ask for a row that is used soon, up to the second-level cache. */
INLINE void NAME(fetch)(const REAL *row, int64_t n)
{
    for (int64_t d = 0; d < n; d += 64 / (int64_t)sizeof(REAL))
        __builtin_prefetch(row + d, 0, 2);
}

/* One step of n units. v: the membrane before, then after it. drive, what is divided by tau; h, the membrane before
 * the reset; and s may be NULL. */
INLINE void NAME(step)(const lif_settings set, const REAL *restrict x, const REAL *restrict tau,
                       const REAL *restrict theta, REAL *restrict v, REAL *restrict drive, REAL *restrict h,
                       REAL *restrict s, int64_t n)
{
    const REAL v_reset = set.hard ? (REAL)set.v_reset : 0;
    for (int64_t d = 0; d < n; d++) {
        const REAL above = v[d] - v_reset, driven = set.decay_input ? x[d] - above : -above;
        const REAL charged = v[d] + NAME(over)(driven, tau[d], set), now = set.decay_input ? charged : charged + x[d];
        const REAL up = NAME(fired)(now - theta[d], set.strict);
        const REAL down = set.ternary ? NAME(fired)(-now - theta[d], set.strict) : 0;
        v[d] = now - (set.hard ? (up + down) * (now - v_reset) : (up - down) * theta[d]);
        if (drive)
            drive[d] = driven;
        if (h)
            h[d] = now;
        if (s)
            s[d] = up - down;
    }
}

INLINE void NAME(forward)(const lif_settings set, const REAL *x, const REAL *v0, const REAL *tau, const REAL *theta,
                          REAL *s, REAL *h, REAL *v, REAL *last, REAL *kept, int64_t steps, int64_t units,
                          int64_t block, int64_t end)
{
    for (lif_part part; block < end; block += part.blocks) {
        part = part_of(block, end, units);
        const int64_t row = part.item * units + part.column * UNITS;
        const int64_t n = part.blocks * UNITS, rest = units - part.column * UNITS;
        memcpy(last + row, v0 + row, (size_t)(n < rest ? n : rest) * sizeof(REAL));
        for (int64_t i = 0; i < tiles(part, steps); i++) {
            const lif_tile tile = tile_of(part, i, steps, units);
            const size_t size = (size_t)tile.n * sizeof(REAL);
            REAL *now = last + tile.row;
            for (int64_t t = 0; t < tile.count; t++) {
                const int64_t at = tile.at + t * units, soon = at + EVERY * units;
                if (tile.whole) {
                    NAME(fetch)(x + soon, tile.n);
                    NAME(fetch)(s + soon, tile.n);
                }
                NAME(step)(set, x + at, tau + tile.first, theta + tile.first, now, NULL, h ? h + at : NULL, s + at,
                           tile.n);
                if (v)
                    memcpy(v + at, now, size);
            }
            if (kept && tile.whole)
                memcpy(kept + tile.kept, now, size);
        }
    }
}

/* One step of n units back. g_s, g_h, g_v may be NULL, and the slopes, for the arctangent's. carried: the gradient of
 * the membrane after the step, then of that before. */
INLINE void NAME(step_back)(const lif_settings set, const REAL *restrict tau, const REAL *restrict theta,
                            const REAL *restrict drive, const REAL *restrict h, const REAL *restrict slope_up,
                            const REAL *restrict slope_down, const REAL *restrict g_s, const REAL *restrict g_h,
                            const REAL *restrict g_v, REAL *restrict carried, REAL *restrict g_x,
                            REAL *restrict g_tau, REAL *restrict g_theta, int64_t n)
{
    const REAL none[UNITS] = {0}, *restrict of_s = g_s ? g_s : none, *restrict of_h = g_h ? g_h : none;
    const REAL v_reset = (REAL)set.v_reset, through = !set.detach_reset, alpha = (REAL)set.alpha;
    if (g_v)
        for (int64_t d = 0; d < n; d++)
            carried[d] += g_v[d];
    for (int64_t d = 0; d < n; d++) {
        const REAL g = carried[d], up = NAME(fired)(h[d] - theta[d], set.strict);
        const REAL down = set.ternary ? NAME(fired)(-h[d] - theta[d], set.strict) : 0;
        const REAL of_spike = of_s[d] - (set.hard ? 0 : through * g * theta[d]);
        const REAL of_fired = set.hard ? -through * g * (h[d] - v_reset) : 0;
        const REAL at_up = slope_up ? slope_up[d] : NAME(slope)(h[d] - theta[d], alpha);
        const REAL at_down = slope_down ? slope_down[d] : NAME(slope)(-h[d] - theta[d], alpha);
        const REAL g_up = (of_spike + of_fired) * at_up, g_down = set.ternary ? (of_fired - of_spike) * at_down : 0;
        const REAL stays = set.hard ? g * (1 - (up + down)) : g;
        const REAL g_now = stays + g_up - g_down + of_h[d], g_drive = NAME(over)(g_now, tau[d], set);
        g_x[d] = set.decay_input ? g_drive : g_now;
        carried[d] = g_now - g_drive;
        if (set.learns) {
            g_tau[d] -= g_drive * drive[d] / tau[d];
            g_theta[d] -= g_up + g_down + (set.hard ? 0 : g * (up - down));
        }
    }
}

INLINE void NAME(backward)(const lif_settings set, const REAL *x, const REAL *v0, const REAL *kept, const REAL *tau,
                           const REAL *theta, const REAL *slope_up, const REAL *slope_down, const REAL *g_s,
                           const REAL *g_h, const REAL *g_v, REAL *g_x, REAL *g_last, REAL *g_tau, REAL *g_theta,
                           int64_t steps, int64_t units, int64_t block, int64_t end)
{
    REAL v[UNITS], h[EVERY][UNITS], drive[EVERY][UNITS];
    for (lif_part part; block < end; block += part.blocks) {
        part = part_of(block, end, units);
        for (int64_t i = tiles(part, steps) - 1; i >= 0; i--) {
            const lif_tile tile = tile_of(part, i, steps, units);
            const REAL *tau_n = tau + tile.first, *theta_n = theta + tile.first;
            memcpy(v, tile.begins ? v0 + tile.row : kept + tile.kept - units, (size_t)tile.n * sizeof(REAL));
            for (int64_t t = 0; t < tile.count; t++)
                NAME(step)(set, x + tile.at + t * units, tau_n, theta_n, v, set.learns ? drive[t] : NULL, h[t], NULL,
                           tile.n);
            for (int64_t t = tile.count - 1; t >= 0; t--) {
                const int64_t at = tile.at + t * units, soon = at - EVERY * units;
                if (!tile.begins) {
                    NAME(fetch)(x + soon, tile.n);
                    NAME(fetch)(g_x + soon, tile.n);
                    if (g_s)
                        NAME(fetch)(g_s + soon, tile.n);
                }
                NAME(step_back)(set, tau_n, theta_n, drive[t], h[t], slope_up ? slope_up + at : NULL,
                                slope_down ? slope_down + at : NULL, g_s ? g_s + at : NULL,
                                g_h ? g_h + at : NULL, g_v ? g_v + at : NULL, g_last + tile.row, g_x + at,
                                set.learns ? g_tau + tile.row : NULL, set.learns ? g_theta + tile.row : NULL, tile.n);
            }
        }
    }
}

/* SpikeGPT's kind of neuron, known to the compiler, which leaves out what others need. */
INLINE int NAME(is_plain)(const lif_settings *set)
{
    return set->hard && set->v_reset == 0 && set->decay_input && !set->strict && !set->ternary && !set->learns;
}
#define PLAIN(BY_INVERSE)                                                                                     \
    ((lif_settings){0, set->inverse, set->alpha, .hard = 1, .decay_input = 1,                                \
                    .detach_reset = set->detach_reset, .by_inverse = BY_INVERSE})

/* v0, last: membranes before the first and after the last step, [batch, units]. h: before each reset, v: after it, or
 * NULL. kept: after steps EVERY - 1, 2 EVERY - 1 ..., [batch, steps / EVERY, units], or NULL. */
ANY_WIDTH void NAME(lif_forward)(const lif_settings *set, const REAL *x, const REAL *v0, const REAL *tau,
                                 const REAL *theta, REAL *s, REAL *h, REAL *v, REAL *last, REAL *kept,
                                 int64_t steps, int64_t units, int64_t block, int64_t end)
{
#define FORWARD(SET) NAME(forward)(SET, x, v0, tau, theta, s, h, v, last, kept, steps, units, block, end)
    if (NAME(is_plain)(set))
        set->by_inverse ? FORWARD(PLAIN(1)) : FORWARD(PLAIN(0));
    else
        FORWARD(*set);
#undef FORWARD
}

/* slope_up, slope_down: the surrogate's slope at h - theta and at -h - theta, or NULL for the arctangent's. g_s, g_h,
 * g_v: gradients, NULL where there are none. g_last: on entry the gradient of the last membrane, on return that of
 * the first. g_tau, g_theta: [batch, units], added to. */
ANY_WIDTH void NAME(lif_backward)(const lif_settings *set, const REAL *x, const REAL *v0, const REAL *kept,
                                  const REAL *tau, const REAL *theta, const REAL *slope_up, const REAL *slope_down,
                                  const REAL *g_s, const REAL *g_h, const REAL *g_v, REAL *g_x, REAL *g_last,
                                  REAL *g_tau, REAL *g_theta, int64_t steps, int64_t units, int64_t block, int64_t end)
{
#define BACKWARD(SET)                                                                                         \
    NAME(backward)(SET, x, v0, kept, tau, theta, slope_up, slope_down, g_s, g_h, g_v, g_x, g_last, g_tau,     \
                   g_theta, steps, units, block, end)
#define OF_KIND(HARD, TERNARY, LEARNS)                                                                        \
    BACKWARD(((lif_settings){set->v_reset, set->inverse, set->alpha, HARD, set->decay_input, set->strict,     \
                             TERNARY, set->detach_reset, LEARNS, set->by_inverse}))
    if (NAME(is_plain)(set))
        set->by_inverse ? BACKWARD(PLAIN(1)) : BACKWARD(PLAIN(0));
    else if (set->ternary)
        set->hard ? OF_KIND(1, 1, 1) : OF_KIND(0, 1, 1);
    else if (set->learns)
        set->hard ? OF_KIND(1, 0, 1) : OF_KIND(0, 0, 1);
    else
        set->hard ? OF_KIND(1, 0, 0) : OF_KIND(0, 0, 0);
#undef OF_KIND
#undef BACKWARD
}

#undef PLAIN
#endif
