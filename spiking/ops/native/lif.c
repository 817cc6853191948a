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
 * A call does the blocks of units from `block` to `end`, as `native.h` says.
 */
#ifndef REAL

#include "native.h"

typedef struct {
    double v_reset;
    double inverse; /* 1 / tau, where that is one power of two for all units */
    double first, second; /* the surrogate's settings, in their order */
    int32_t hard, decay_input, strict, ternary, detach_reset;
    int32_t learns; /* whether the gradients of tau and theta are wanted; set where ternary is */
    int32_t by_inverse; /* whether to multiply by `inverse`, which rounds the same, and not divide by tau */
    int32_t surrogate;
    int32_t past; /* whether spikes and the gradients of x are written past the caches; rows are whole lines then */
    int32_t known; /* what of these the compiler knows, as `usual_step_back` says; set in this file alone */
} lif_settings;

enum { GIVEN, ATAN, TRIANGLE, SIGMOID, FAST_SIGMOID, STRAIGHT_THROUGH }; /* surrogates; GIVEN: slopes in an array */
enum { LITTLE, KIND, SURROGATE_TOO };

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
    const REAL at_zero = strict ? 0 : 1;
    return u > 0 ? 1 : u == 0 ? at_zero : 0;
}

INLINE REAL NAME(size)(REAL u)
{
    return u < 0 ? -u : u;
}

INLINE REAL NAME(above)(REAL u)
{
    return u < 0 ? 0 : u; /* what is no number stays so */
}

INLINE REAL NAME(over)(REAL x, REAL tau, lif_settings set)
{
    return set.by_inverse ? x * (REAL)set.inverse : x / tau;
}

/* Slopes of a surrogate at side h - theta, of n units; equations: `surrogates`. */
#define SLOPES(EXPRESSION)                     \
    for (int64_t d = 0; d < n; d++) {          \
        const REAL u = side * h[d] - theta[d]; \
        to[d] = (EXPRESSION);                  \
    }

/* All but the arctangent's, each in a loop of its own; called, since it takes long to compile. */
static ANY_WIDTH void NAME(other_slopes)(const lif_settings *set, REAL side, const REAL *restrict h,
                                         const REAL *restrict theta, const REAL *restrict given, REAL *restrict to,
                                         int64_t n)
{
    const REAL first = (REAL)set->first, second = (REAL)set->second;
    if (set->surrogate == TRIANGLE)
        SLOPES(first * NAME(above)(1 - second * NAME(size)(u)))
    else if (set->surrogate == SIGMOID)
        SLOPES(first * NAME(sigmoid)(first * u) * (1 - NAME(sigmoid)(first * u)))
    else if (set->surrogate == FAST_SIGMOID)
        SLOPES(1 / ((1 + first * NAME(size)(u)) * (1 + first * NAME(size)(u))))
    else if (set->surrogate == STRAIGHT_THROUGH)
        for (int64_t d = 0; d < n; d++)
            to[d] = 1;
    else
        memcpy(to, given, (size_t)n * sizeof(REAL));
}

INLINE REAL NAME(arctangent)(const lif_settings set, REAL u)
{
    const REAL half = (REAL)set.first / 2, steep = (REAL)1.5707963267948966 * (REAL)set.first;
    return half / (1 + steep * u * (steep * u));
}

INLINE void NAME(slopes)(const lif_settings set, REAL side, const REAL *restrict h, const REAL *restrict theta,
                         const REAL *restrict given, REAL *restrict to, int64_t n)
{
    if (set.surrogate == ATAN)
        SLOPES(NAME(arctangent)(set, u))
    else
        NAME(other_slopes)(&set, side, h, theta, given, to, n);
}
#undef SLOPES

/* One step of n units. v: the membrane before, then after it. drive, what is divided by tau; h, the membrane before
 * the reset; and s may be NULL. Here and below, what hangs on a setting or on an array that may be NULL lies outside
 * the loop over units: with the choice inside, clang and GCC 14 and 16 make no vectors of it. */
INLINE void NAME(step)(const lif_settings set, const REAL *restrict x, const REAL *restrict tau,
                       const REAL *restrict theta, REAL *restrict v, REAL *restrict drive, REAL *restrict h,
                       REAL *restrict s, int64_t n)
{
    const REAL v_reset = set.hard ? (REAL)set.v_reset : 0;
    REAL unread[3][UNITS];
    REAL *restrict drives = drive ? drive : unread[0], *restrict hs = h ? h : unread[1];
    REAL *restrict spikes = s ? s : unread[2];
    for (int64_t d = 0; d < n; d++) {
        const REAL above = v[d] - v_reset, driven = set.decay_input ? x[d] - above : -above;
        const REAL charged = v[d] + NAME(over)(driven, tau[d], set), now = set.decay_input ? charged : charged + x[d];
        const REAL up = NAME(fired)(now - theta[d], set.strict);
        const REAL down = set.ternary ? NAME(fired)(-now - theta[d], set.strict) : 0;
        v[d] = now - (set.hard ? (up + down) * (now - v_reset) : (up - down) * theta[d]);
        drives[d] = driven;
        hs[d] = now;
        spikes[d] = up - down;
    }
}

typedef struct {
    const REAL *x, *v0, *tau, *theta;
    REAL *s, *h, *v, *last, *kept;
} NAME(lif_forth);

/* count steps of n units: the tile's own numbers; those of a whole one are known to the compiler, which may then keep
 * membranes in registers from step to step. */
INLINE void NAME(tile_forth)(const lif_settings set, const NAME(lif_forth) a, const one_tile tile, int64_t steps,
                             int64_t units, int64_t count, int64_t n)
{
    REAL v[UNITS], s[UNITS], *last = a.last + tile.item * units + tile.first;
    const size_t size = (size_t)n * sizeof(REAL), wide = (size_t)width_asked(n, units) * sizeof(REAL);
    memcpy(v, last, size);
    for (int64_t t = 0; t < count; t++) {
        const int64_t at = tile.at + t * units, next = tile.at + EVERY * units + soon(tile, t, units);
        if (count == EVERY) {
            ask(a.x + next, wide, ASKS);
            if (!set.past)
                ask(a.s + next, wide, ASKS);
        }
        NAME(step)(set, a.x + at, a.tau + tile.first, a.theta + tile.first, v, NULL, a.h ? a.h + at : NULL,
                   set.past ? s : a.s + at, n);
        if (set.past)
            write_past(a.s + at, s, size);
        if (a.v)
            memcpy(a.v + at, v, size);
    }
    memcpy(last, v, size);
    if (a.kept && count == EVERY)
        memcpy(a.kept + (tile.item * (steps / EVERY) + tile.stretch) * units + tile.first, v, size);
}

/* One step of n units back. g_s, g_h, g_v may be NULL. carried: the gradient of the membrane after the step, then of
 * that before. */
INLINE void NAME(step_back)(const lif_settings set, const REAL *restrict tau, const REAL *restrict theta,
                            const REAL *restrict drive, const REAL *restrict h, const REAL *restrict slope_up,
                            const REAL *restrict slope_down, const REAL *restrict g_s, const REAL *restrict g_h,
                            const REAL *restrict g_v, REAL *restrict carried, REAL *restrict g_x,
                            REAL *restrict g_tau, REAL *restrict g_theta, int64_t n)
{
    const REAL v_reset = (REAL)set.v_reset, side = set.hard ? -1 : 1, resets = set.hard ? 1 : 0;
    const size_t size = (size_t)n * sizeof(REAL);
    static const REAL none[UNITS];
    const REAL *restrict of_s = g_s ? g_s : none;
    REAL of_reset[UNITS], at_up[UNITS], at_down[UNITS], g_now[UNITS], of_theta[UNITS];
    if (g_v)
        for (int64_t d = 0; d < n; d++)
            carried[d] += g_v[d];
    if (set.detach_reset)
        memset(of_reset, 0, size);
    else if (set.hard)
        for (int64_t d = 0; d < n; d++)
            of_reset[d] = carried[d] * (h[d] - v_reset);
    else
        for (int64_t d = 0; d < n; d++)
            of_reset[d] = carried[d] * theta[d];
    NAME(slopes)(set, 1, h, theta, slope_up, at_up, n);
    if (set.ternary)
        NAME(slopes)(set, -1, h, theta, slope_down, at_down, n);
    for (int64_t d = 0; d < n; d++) {
        const REAL g = carried[d], up = NAME(fired)(h[d] - theta[d], set.strict);
        const REAL down = set.ternary ? NAME(fired)(-h[d] - theta[d], set.strict) : 0;
        const REAL g_up = (of_s[d] - of_reset[d]) * at_up[d];
        const REAL g_down = set.ternary ? (side * of_reset[d] - of_s[d]) * at_down[d] : 0;
        g_now[d] = g * (1 - resets * (up + down)) + g_up - g_down;
        if (set.learns)
            of_theta[d] = g_up + g_down;
    }
    if (set.learns && !set.hard)
        for (int64_t d = 0; d < n; d++) {
            const REAL up = NAME(fired)(h[d] - theta[d], set.strict);
            const REAL down = set.ternary ? NAME(fired)(-h[d] - theta[d], set.strict) : 0;
            of_theta[d] += carried[d] * (up - down);
        }
    if (g_h)
        for (int64_t d = 0; d < n; d++)
            g_now[d] += g_h[d];
    for (int64_t d = 0; d < n; d++) {
        const REAL g_drive = NAME(over)(g_now[d], tau[d], set);
        g_x[d] = set.decay_input ? g_drive : g_now[d];
        carried[d] = g_now[d] - g_drive;
        if (set.learns) {
            g_tau[d] -= g_drive * drive[d] / tau[d];
            g_theta[d] -= of_theta[d];
        }
    }
}

/* The same of a usual kind of neuron, from g_s alone, in one loop: which kind it is has to be known to the compiler, and
 * with SURROGATE_TOO, that the surrogate is ATAN and the reset is not detached. */
INLINE void NAME(usual_step_back)(const lif_settings set, const REAL *restrict tau, const REAL *restrict theta,
                                  const REAL *restrict h, const REAL *restrict g_s, REAL *restrict carried,
                                  REAL *restrict g_x, int64_t n)
{
    REAL slopes[UNITS];
    if (set.known != SURROGATE_TOO)
        NAME(slopes)(set, 1, h, theta, NULL, slopes, n);
    for (int64_t d = 0; d < n; d++) {
        const REAL g = carried[d], u = h[d] - theta[d], kept = set.hard ? 1 - NAME(fired)(u, 0) : 1;
        const REAL of_reset = set.detach_reset ? 0 : g * (set.hard ? h[d] : theta[d]);
        const REAL slope = set.known == SURROGATE_TOO ? NAME(arctangent)(set, u) : slopes[d];
        const REAL g_now = g * kept + (g_s[d] - of_reset) * slope, g_drive = NAME(over)(g_now, tau[d], set);
        g_x[d] = set.decay_input ? g_drive : g_now;
        carried[d] = g_now - g_drive;
    }
}

typedef struct {
    const REAL *x, *v0, *kept, *tau, *theta, *slope_up, *slope_down, *g_s, *g_h, *g_v;
    REAL *g_x, *g_last, *g_tau, *g_theta;
} NAME(lif_back);

/* As `tile_forth`. */
INLINE void NAME(tile_back)(const lif_settings set, const NAME(lif_back) a, const one_tile tile, int64_t steps,
                            int64_t units, int64_t count, int64_t n)
{
    const int64_t row = tile.item * units + tile.first;
    const int64_t kept = (tile.item * (steps / EVERY) + tile.stretch - 1) * units + tile.first;
    REAL v[UNITS], carried[UNITS], g_x[UNITS], h[EVERY][UNITS], drive[EVERY][UNITS];
    const REAL *tau = a.tau + tile.first, *theta = a.theta + tile.first;
    REAL *g_tau = set.learns ? a.g_tau + row : NULL, *g_theta = set.learns ? a.g_theta + row : NULL;
    const size_t size = (size_t)n * sizeof(REAL), wide = (size_t)width_asked(n, units) * sizeof(REAL);
    memcpy(v, tile.stretch ? a.kept + kept : a.v0 + row, size);
    if (tile.stretch > 1)
        ask(a.kept + kept - units, size, ASKS);
    for (int64_t t = 0; t < count; t++) {
        const int64_t at = tile.at + t * units;
        if (t >= steps - (tile.stretch + 1) * EVERY) { /* the stretch behind has asked for the rows before */
            if (!set.past)
                ask(a.g_x + at, size, 1);
            if (a.g_s)
                ask(a.g_s + at, size, 1);
        }
        NAME(step)(set, a.x + at, tau, theta, v, set.learns ? drive[t] : NULL, h[t], NULL, n);
    }
    memcpy(carried, a.g_last + row, size);
    for (int64_t t = count - 1; t >= 0; t--) {
        const int64_t at = tile.at + t * units, next = tile.at - EVERY * units + soon(tile, count - 1 - t, units);
        if (tile.stretch) {
            ask(a.x + next, wide, ASKS);
            if (!set.past)
                ask(a.g_x + next, wide, ASKS);
            if (a.g_s)
                ask(a.g_s + next, wide, ASKS);
        }
        REAL *to = set.past ? g_x : a.g_x + at;
        if (set.known)
            NAME(usual_step_back)(set, tau, theta, h[t], a.g_s + at, carried, to, n);
        else
            NAME(step_back)(set, tau, theta, drive[t], h[t], a.slope_up ? a.slope_up + at : NULL,
                            a.slope_down ? a.slope_down + at : NULL, a.g_s ? a.g_s + at : NULL,
                            a.g_h ? a.g_h + at : NULL, a.g_v ? a.g_v + at : NULL, carried, to, g_tau, g_theta, n);
        if (set.past)
            write_past(a.g_x + at, g_x, size);
    }
    memcpy(a.g_last + row, carried, size);
}

/* The usual kinds of neuron; a compiler leaves out of each what others need. Best known are SpikeGPT's, which resets and
 * decays its input, and snnTorch's, which subtracts and does not. Float64 has none: they are half of the time that this
 * file takes to compile. */
INLINE int NAME(is_usual)(const lif_settings *set)
{
    return sizeof(REAL) == sizeof(float) && (!set->hard || set->v_reset == 0) && !set->strict && !set->ternary;
}
#define USUAL(HARD, DECAY_INPUT, BY_INVERSE, KNOWN)                                                           \
    ((lif_settings){0, set->inverse, set->first, set->second, .hard = HARD, .decay_input = DECAY_INPUT,       \
                    .detach_reset = set->detach_reset, .by_inverse = BY_INVERSE, .surrogate = set->surrogate, \
                    .past = set->past, .known = KNOWN})
#define ANY_USUAL USUAL(set->hard, set->decay_input, set->by_inverse, LITTLE)
#define EACH_USUAL(DO)                                                         \
    if (set->hard && set->decay_input)                                         \
        set->by_inverse ? DO(USUAL(1, 1, 1, KIND)) : DO(USUAL(1, 1, 0, KIND)); \
    else if (!set->hard && !set->decay_input)                                  \
        set->by_inverse ? DO(USUAL(0, 0, 1, KIND)) : DO(USUAL(0, 0, 0, KIND)); \
    else                                                                       \
        DO(ANY_USUAL)
#define SPIKEGPTS                                                                                              \
    ((lif_settings){.inverse = set->inverse, .first = set->first, .hard = 1, .decay_input = 1, .by_inverse = 1, \
                    .surrogate = ATAN, .past = set->past, .known = SURROGATE_TOO})

/* v0, last: membranes before the first and after the last step, [batch, units]. h: before each reset, v: after it, or
 * NULL. kept: after steps EVERY - 1, 2 EVERY - 1 ..., [batch, steps / EVERY, units], or NULL. */
ANY_WIDTH void NAME(lif_forward)(const lif_settings *set, const REAL *x, const REAL *v0, const REAL *tau,
                                 const REAL *theta, REAL *s, REAL *h, REAL *v, REAL *last, REAL *kept,
                                 int64_t steps, int64_t units, int64_t block, int64_t end)
{
    const NAME(lif_forth) all = {x, v0, tau, theta, s, h, v, last, kept};
    const NAME(lif_forth) few = {x, v0, tau, theta, s, .last = last, .kept = kept};
    const int usual = NAME(is_usual)(set) && !h && !v;
#define FORTH(SET, ARRAYS, COUNT, N) NAME(tile_forth)(SET, ARRAYS, tile, steps, units, COUNT, N)
#define WHOLE(SET) FORTH(SET, few, EVERY, UNITS)
    for (tile_part part; block < end; block += part.blocks) {
        part = part_of(block, end, units);
        const int64_t row = part.item * units + part.column * UNITS;
        memcpy(last + row, v0 + row, (size_t)width_of(part, units) * sizeof(REAL));
        for (int64_t i = 0; i < tiles(part, steps); i++) {
            const one_tile tile = tile_of(part, i, steps, units);
            const int whole = tile.count == EVERY && tile.n == UNITS;
            if (usual && whole) {
                EACH_USUAL(WHOLE);
            } else if (usual) {
                FORTH(ANY_USUAL, few, tile.count, tile.n);
            } else if (whole) {
                FORTH(*set, all, EVERY, UNITS);
            } else {
                FORTH(*set, all, tile.count, tile.n);
            }
        }
    }
    if (set->past)
        passed();
#undef WHOLE
#undef FORTH
}

/* slope_up, slope_down: slopes at h - theta and at -h - theta that are GIVEN, or NULL. g_s, g_h, g_v: gradients, NULL
 * where there are none. g_last: on entry the gradient of the last membrane, on return that of the first. g_tau,
 * g_theta: [batch, units], added to. */
ANY_WIDTH void NAME(lif_backward)(const lif_settings *set, const REAL *x, const REAL *v0, const REAL *kept,
                                  const REAL *tau, const REAL *theta, const REAL *slope_up, const REAL *slope_down,
                                  const REAL *g_s, const REAL *g_h, const REAL *g_v, REAL *g_x, REAL *g_last,
                                  REAL *g_tau, REAL *g_theta, int64_t steps, int64_t units, int64_t block, int64_t end)
{
    const NAME(lif_back) all = {x,   v0,  kept, tau, theta,  slope_up, slope_down,
                                g_s, g_h, g_v,  g_x, g_last, g_tau,    g_theta};
    const NAME(lif_back) few = {x, v0, kept, tau, theta, .g_s = g_s, .g_x = g_x, .g_last = g_last};
    const int usual = NAME(is_usual)(set) && !set->learns && set->surrogate != GIVEN && g_s && !g_h && !g_v;
    const int spikegpts = usual && set->hard && set->decay_input && set->by_inverse && set->surrogate == ATAN &&
                          !set->detach_reset;
#define BACK(SET, ARRAYS, COUNT, N) NAME(tile_back)(SET, ARRAYS, tile, steps, units, COUNT, N)
#define WHOLE(SET) BACK(SET, few, EVERY, UNITS)
#define ONE_KIND(TERNARY, LEARNS)                                                                                       \
    ((lif_settings){set->v_reset, set->inverse, set->first, set->second, set->hard, set->decay_input, set->strict, \
                    TERNARY, set->detach_reset, LEARNS, set->by_inverse, set->surrogate, set->past, LITTLE})
#define EACH_KIND(COUNT, N)              \
    if (set->ternary)                    \
        BACK(ONE_KIND(1, 1), all, COUNT, N); \
    else if (set->learns)                \
        BACK(ONE_KIND(0, 1), all, COUNT, N); \
    else                                 \
        BACK(ONE_KIND(0, 0), all, COUNT, N)
    for (tile_part part; block < end; block += part.blocks) {
        part = part_of(block, end, units);
        for (int64_t i = tiles(part, steps) - 1; i >= 0; i--) {
            const one_tile tile = tile_of(part, i, steps, units);
            const int whole = tile.count == EVERY && tile.n == UNITS;
            if (spikegpts && whole) {
                WHOLE(SPIKEGPTS);
            } else if (usual && whole) {
                EACH_USUAL(WHOLE);
            } else if (usual) {
                BACK(ANY_USUAL, few, tile.count, tile.n);
            } else if (whole) {
                EACH_KIND(EVERY, UNITS);
            } else {
                EACH_KIND(tile.count, tile.n);
            }
        }
    }
    if (set->past)
        passed();
#undef EACH_KIND
#undef ONE_KIND
#undef WHOLE
#undef BACK
}

#undef SPIKEGPTS
#undef EACH_USUAL
#undef ANY_USUAL
#undef USUAL
#endif
