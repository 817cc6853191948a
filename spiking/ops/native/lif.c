/* LIF over a sequence, forward and backward; equations: `ops.lif`. Arrays are [batch, steps, units], row-major.
 *
 * Forward performs the reference's operations in the reference's order, so that spikes and membranes are the same to
 * the last bit (compile with -ffp-contract=off). Backward finds h_t again from v_{t-1} and x_t and walks back:
 *
 *     g_up = g_s + g_f      g_down = g_f - g_s       of the spikes at theta and at -theta; g_s is the gradient of
 *                                                    up - down, g_f, through the hard reset, that of up + down
 *     g_h  = g_v dv/dh + g_up slope(h - theta) - g_down slope(-h - theta)
 *
 * It takes BLOCK units at a time, so that what they carry from step to step stays in the first-level cache.
 */
#ifndef REAL

#include "native.h"

enum { BLOCK = 256 };

typedef struct {
    double v_reset;
    double alpha; /* steepness of the arctangent surrogate, for a backward pass that is given no slopes */
    int32_t hard, decay_input, strict, ternary, detach_reset;
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

CLONES void NAME(lif_forward)(const lif_settings *set, const REAL *restrict x, const REAL *restrict v0,
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

/* v0, v: membranes before the first and after each step. slope_up, slope_down: the surrogate's slope at h - theta
 * and at -h - theta, or NULL for the arctangent's. g_s, g_v: gradients of s and v, NULL where there are none.
 * g_tau, g_theta: [units], added to. */
CLONES void NAME(lif_backward)(const lif_settings *set, const REAL *restrict x, const REAL *restrict v0,
                               const REAL *restrict v, const REAL *restrict tau, const REAL *restrict theta,
                               const REAL *restrict slope_up, const REAL *restrict slope_down,
                               const REAL *restrict g_s, const REAL *restrict g_v, REAL *restrict g_x,
                               REAL *restrict g_v0, REAL *restrict g_tau, REAL *restrict g_theta, int64_t batch,
                               int64_t steps, int64_t units)
{
    const int decay_input = set->decay_input, strict = set->strict;
    const REAL hard = set->hard, ternary = set->ternary;
    const REAL v_reset = (REAL)set->v_reset, rest = hard ? v_reset : 0, alpha = (REAL)set->alpha;
    const REAL soft = !hard, through_hard = hard && !set->detach_reset, through_soft = !hard && !set->detach_reset;
    const REAL none[BLOCK] = {0};
    for (int64_t b = 0; b < batch; b++) {
        for (int64_t first = 0; first < units; first += BLOCK) {
            const int64_t n = units - first < BLOCK ? units - first : BLOCK;
            REAL carried[BLOCK] = {0}, of_tau[BLOCK] = {0}, of_theta[BLOCK] = {0};
            REAL drive[BLOCK], h[BLOCK], near_up[BLOCK], near_down[BLOCK] = {0}, rate[BLOCK];
            const REAL *tau_n = tau + first, *theta_n = theta + first;
            for (int64_t d = 0; d < n; d++)
                rate[d] = 1 / tau_n[d];
            for (int64_t t = steps - 1; t >= 0; t--) {
                const int64_t at = (b * steps + t) * units + first;
                const REAL *x_t = x + at, *before = t ? v + at - units : v0 + b * units + first;
                const REAL *g_s_t = g_s ? g_s + at : none, *g_v_t = g_v ? g_v + at : none;
                const REAL *up_slope = slope_up ? slope_up + at : near_up;
                const REAL *down_slope = slope_down ? slope_down + at : near_down;
                REAL *restrict g_x_t = g_x + at;
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
                    const REAL down = ternary * NAME(fired)(-now - threshold, strict);
                    const REAL of_spike = g_s_t[d] - through_soft * g * threshold;
                    const REAL of_fired = -through_hard * g * (now - v_reset);
                    const REAL g_up = (of_spike + of_fired) * up_slope[d];
                    const REAL g_down = (of_fired - of_spike) * down_slope[d];
                    const REAL g_h = g - hard * g * (up + down) + g_up - g_down, g_drive = g_h * rate[d];
                    g_x_t[d] = decay_input ? g_drive : g_h;
                    carried[d] = g_h - g_drive;
                    of_tau[d] -= g_drive * drive[d];
                    of_theta[d] -= g_up + g_down + soft * g * (up - down);
                }
            }
            for (int64_t d = 0; d < n; d++) {
                g_v0[b * units + first + d] = carried[d];
                g_tau[first + d] += of_tau[d] * rate[d];
                g_theta[first + d] += of_theta[d];
            }
        }
    }
}

#endif
