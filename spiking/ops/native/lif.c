/* LIF over a sequence, forward and backward; equations: `ops.lif`. Arrays are [batch, steps, units], row-major.
 *
 * Forward performs the reference's operations in the reference's order, so that spikes and membranes are the same to
 * the last bit (compile with -ffp-contract=off). Backward finds h_t again from v_{t-1} and x_t and walks back:
 *
 *     g_up = g_s + g_f      g_down = g_f - g_s       of the spikes at theta and at -theta; g_s is the gradient of
 *                                                    up - down, g_f, through the hard reset, that of up + down
 *     g_h  = g_v dv/dh + g_up slope(h - theta) - g_down slope(-h - theta)
 *
 * g_v0 holds what is carried back. UNITS at a time go through a row, so that what is found again of them stays in the
 * first-level cache, and STEPS rows are asked for at a time.
 */
#ifndef REAL

#include "native.h"

enum { UNITS = 256, STEPS = 16 };

typedef struct {
    double v_reset;
    double alpha; /* steepness of the arctangent surrogate, for a backward pass that is given no slopes */
    int32_t hard, decay_input, strict, ternary, detach_reset;
    int32_t learns; /* whether the gradients of tau and theta are wanted */
} lif_settings;

#define REAL float
#define NAME(name) name##_f32
#include "lif.c"
#undef REAL
#undef NAME
#define REAL double
#define NAME(name) name##_f64
#include "lif.c"

#else

/* The part of h - v that is divided by tau. */
INLINE REAL NAME(drive)(REAL x, REAL v, REAL rest, int decay_input)
{
    return decay_input ? x - (v - rest) : -(v - rest);
}

INLINE REAL NAME(charge)(REAL x, REAL v, REAL drive, REAL tau, int decay_input)
{
    const REAL h = v + drive / tau;
    return decay_input ? h : h + x;
}

INLINE REAL NAME(fired)(REAL u, int strict)
{
    return (REAL)((u > 0) | ((u == 0) & !strict));
}

INLINE REAL NAME(slope)(REAL u, REAL alpha)
{
    const REAL z = (REAL)1.5707963267948966 * alpha * u;
    return alpha / 2 / (1 + z * z);
}

ANY_WIDTH void NAME(lif_forward)(const lif_settings *set, const REAL *restrict x, const REAL *restrict v0,
                              const REAL *restrict tau, const REAL *restrict theta, REAL *restrict s,
                              REAL *restrict v, int64_t batch, int64_t steps, int64_t units)
{
    const int hard = set->hard, decay_input = set->decay_input, strict = set->strict;
    const REAL ternary = set->ternary;
    const REAL v_reset = (REAL)set->v_reset, rest = hard ? v_reset : 0;
    for (int64_t b = 0; b < batch; b++) {
        const REAL *before = v0 + b * units;
        for (int64_t t = 0; t < steps; t++, x += units, s += units, before = v, v += units) {
            for (int64_t d = 0; d < units; d++) {
                const REAL now = x[d], was = before[d], threshold = theta[d];
                const REAL h = NAME(charge)(now, was, NAME(drive)(now, was, rest, decay_input), tau[d], decay_input);
                const REAL up = NAME(fired)(h - threshold, strict);
                const REAL down = ternary * NAME(fired)(-h - threshold, strict);
                const REAL hard_reset = (up + down) * (h - v_reset), soft_reset = (up - down) * threshold;
                s[d] = up - down;
                v[d] = h - (hard ? hard_reset : soft_reset);
            }
        }
    }
}

/* Ask for what is read soon. */
INLINE void NAME(fetch)(const REAL *row, int64_t count)
{
    for (int64_t i = 0; row && i < count; i += 64 / (int64_t)sizeof(REAL))
        __builtin_prefetch(row + i);
}

/* `lif_backward` for one kind of neuron: inlined, so that what another kind needs is left out. */
INLINE void NAME(walk_back)(const int hard, const int ternary, const int learns, const lif_settings *set,
                            const REAL *restrict x, const REAL *restrict v0, const REAL *restrict v,
                            const REAL *restrict tau, const REAL *restrict theta, const REAL *restrict slope_up,
                            const REAL *restrict slope_down, const REAL *restrict g_s, const REAL *restrict g_v,
                            REAL *restrict g_x, REAL *restrict g_v0, REAL *restrict g_tau, REAL *restrict g_theta,
                            int64_t batch, int64_t steps, int64_t units)
{
    const int decay_input = set->decay_input, strict = set->strict;
    const REAL v_reset = (REAL)set->v_reset, rest = hard ? v_reset : 0, alpha = (REAL)set->alpha;
    const REAL through = !set->detach_reset, none[UNITS] = {0};
    REAL drive[UNITS], h[UNITS], near_up[UNITS], near_down[UNITS] = {0};
    for (int64_t b = 0; b < batch; b++) {
        for (int64_t d = 0; d < units; d++)
            g_v0[b * units + d] = 0;
        for (int64_t t = steps - 1; t >= 0; t--) {
            if ((t + 1) % STEPS == 0 || t == steps - 1) { /* forwards, as memory is fastest */
                const int64_t from = t / STEPS * STEPS, count = (t + 1 - from) * units;
                const int64_t at = (b * steps + from) * units;
                NAME(fetch)(x + at, count);
                NAME(fetch)(v + at, count);
                NAME(fetch)(g_s ? g_s + at : NULL, count);
                NAME(fetch)(g_x + at, count);
            }
            for (int64_t first = 0; first < units; first += UNITS) {
                const int64_t n = units - first < UNITS ? units - first : UNITS;
                const int64_t at = (b * steps + t) * units + first;
                const REAL *tau_n = tau + first, *theta_n = theta + first;
                const REAL *x_t = x + at, *before = t ? v + at - units : v0 + b * units + first;
                const REAL *g_s_t = g_s ? g_s + at : none, *g_v_t = g_v ? g_v + at : none;
                const REAL *up_slope = slope_up ? slope_up + at : near_up;
                const REAL *down_slope = slope_down ? slope_down + at : near_down;
                REAL *restrict g_x_t = g_x + at, *restrict carried = g_v0 + b * units + first;
                for (int64_t d = 0; d < n; d++) {
                    drive[d] = NAME(drive)(x_t[d], before[d], rest, decay_input);
                    h[d] = NAME(charge)(x_t[d], before[d], drive[d], tau_n[d], decay_input);
                }
                if (!slope_up)
                    for (int64_t d = 0; d < n; d++)
                        near_up[d] = NAME(slope)(h[d] - theta_n[d], alpha);
                if (!slope_up && ternary)
                    for (int64_t d = 0; d < n; d++)
                        near_down[d] = NAME(slope)(-h[d] - theta_n[d], alpha);
                for (int64_t d = 0; d < n; d++) {
                    const REAL now = h[d], threshold = theta_n[d], g = carried[d] + g_v_t[d];
                    const REAL up = NAME(fired)(now - threshold, strict);
                    const REAL down = ternary ? NAME(fired)(-now - threshold, strict) : 0;
                    const REAL of_spike = g_s_t[d] - (hard ? 0 : through * g * threshold);
                    const REAL of_fired = hard ? -through * g * (now - v_reset) : 0;
                    const REAL g_up = (of_spike + of_fired) * up_slope[d];
                    const REAL g_down = ternary ? (of_fired - of_spike) * down_slope[d] : 0;
                    const REAL g_h = (hard ? g * (1 - (up + down)) : g) + g_up - g_down, g_drive = g_h / tau_n[d];
                    g_x_t[d] = decay_input ? g_drive : g_h;
                    carried[d] = g_h - g_drive;
                    if (learns) {
                        g_tau[first + d] -= g_drive * drive[d] / tau_n[d];
                        g_theta[first + d] -= g_up + g_down + (hard ? 0 : g * (up - down));
                    }
                }
            }
        }
    }
}

/* v0, v: membranes before the first and after each step. slope_up, slope_down: the surrogate's slope at h - theta
 * and at -h - theta, or NULL for the arctangent's. g_s, g_v: gradients of s and v, NULL where there are none.
 * g_tau, g_theta: [units], added to. */
ANY_WIDTH void NAME(lif_backward)(const lif_settings *set, const REAL *x, const REAL *v0, const REAL *v,
                                  const REAL *tau, const REAL *theta, const REAL *slope_up, const REAL *slope_down,
                                  const REAL *g_s, const REAL *g_v, REAL *g_x, REAL *g_v0, REAL *g_tau,
                                  REAL *g_theta, int64_t batch, int64_t steps, int64_t units)
{
#define WALK_BACK(HARD, TERNARY, LEARNS)                                                                      \
    NAME(walk_back)(HARD, TERNARY, LEARNS, set, x, v0, v, tau, theta, slope_up, slope_down, g_s, g_v, g_x,    \
                    g_v0, g_tau, g_theta, batch, steps, units)
    if (set->ternary)
        set->hard ? WALK_BACK(1, 1, 1) : WALK_BACK(0, 1, 1);
    else if (set->learns)
        set->hard ? WALK_BACK(1, 0, 1) : WALK_BACK(0, 0, 1);
    else
        set->hard ? WALK_BACK(1, 0, 0) : WALK_BACK(0, 0, 0);
#undef WALK_BACK
}

#endif
