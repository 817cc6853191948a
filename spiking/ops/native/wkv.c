/* WKV over a sequence, forward and backward; equations: `ops.wkv`. Arrays are [batch, steps, channels], row-major.
 *
 * Of the two exponentials of e^(x1 - n) and e^(x2 - n), n = max(x1, x2), one is always 1: each step takes one.
 *
 * The state is kept before every EVERYth step; backward runs each such stretch again before it walks back through it.
 * Neither y nor the next step's values change when p, q are scaled by e^-c and o rises by c. So with the gradients
 * P, Q, O of a state, rest = O - P p - Q q is not touched by any y: a step passes it on to the o before, to k where k
 * is the larger exponent, or half to each where they are equal, as torch's maximum does. It is 0 wherever the last
 * state has no gradient, and never comes out of a difference of large numbers.
 */
#ifndef REAL

#include "native.h"

enum { CHANNELS = 64, EVERY = 16, AHEAD = 8 };

#define REAL float
#define NAME(name) name##_f32
#define LEAST -87
#include "wkv.c"
#undef REAL
#undef NAME
#undef LEAST
#define REAL double
#define NAME(name) name##_f64
#define LEAST -708
#include "wkv.c"

#else

/* n = max(x1, x2) and e^(x1 - n), e^(x2 - n); not a number where torch's maximum and exp give none, and 0 below
 * e^LEAST, where numbers cease to be normal. */
typedef struct {
    REAL n, a, e;
} NAME(shares);

INLINE NAME(shares) NAME(share)(REAL x1, REAL x2)
{
    const REAL apart = x1 - x2, below = apart < -apart ? apart : -apart;
    const REAL least = below < LEAST ? 0 : NAME(power)(below);
    const REAL most = x1 > x2 ? x1 : x2, one = 1 + (most - most);
    return (NAME(shares)){least == least ? most : least, x1 >= x2 ? one : least, x1 >= x2 ? least : one};
}

/* A call does the blocks from `block` to `end` of batch x ceil(channels / CHANNELS), each over all steps.
 *
 * state, last: p, q, o before the first and after the last step, [batch, 3, channels]. kept: the states before steps
 * 0, EVERY, 2 EVERY ..., [batch, ceil(steps / EVERY), 3, channels], or NULL to keep none. */
ANY_WIDTH void NAME(wkv_forward)(const REAL *restrict w, const REAL *restrict u, const REAL *restrict k,
                              const REAL *restrict v, const REAL *restrict state, REAL *restrict y,
                              REAL *restrict last, REAL *restrict kept, int64_t steps, int64_t channels,
                              int64_t block, int64_t end)
{
    const int64_t a_row = (channels + CHANNELS - 1) / CHANNELS, stretches = (steps + EVERY - 1) / EVERY;
    for (; block < end; block++) {
        const int64_t b = block / a_row, first = block % a_row * CHANNELS;
        const int64_t n = channels - first < CHANNELS ? channels - first : CHANNELS;
        const size_t size = (size_t)n * sizeof(REAL);
        const REAL *w_n = w + first, *u_n = u + first;
        REAL p[CHANNELS], q[CHANNELS], o[CHANNELS];
        const REAL *start = state + b * 3 * channels + first;
        REAL *stop = last + b * 3 * channels + first;
        memcpy(p, start, size);
        memcpy(q, start + channels, size);
        memcpy(o, start + 2 * channels, size);
        for (int64_t t = 0; t < steps; t++) {
            const int64_t at = (b * steps + t) * channels + first;
            const REAL *k_t = k + at, *v_t = v + at;
            REAL *restrict y_t = y + at;
            if (t + AHEAD < steps) {
                prefetch(k_t + AHEAD * channels, size);
                prefetch(v_t + AHEAD * channels, size);
                prefetch(y_t + AHEAD * channels, size);
            }
            if (kept && t % EVERY == 0) {
                REAL *row = kept + (b * stretches + t / EVERY) * 3 * channels + first;
                memcpy(row, p, size);
                memcpy(row + channels, q, size);
                memcpy(row + 2 * channels, o, size);
            }
            for (int64_t d = 0; d < n; d++) {
                const NAME(shares) now = NAME(share)(o[d], u_n[d] + k_t[d]);
                y_t[d] = (now.a * p[d] + now.e * v_t[d]) / (now.a * q[d] + now.e);
                const NAME(shares) next = NAME(share)(w_n[d] + o[d], k_t[d]);
                p[d] = next.a * p[d] + next.e * v_t[d];
                q[d] = next.a * q[d] + next.e;
                o[d] = next.n;
            }
        }
        memcpy(stop, p, size);
        memcpy(stop + channels, q, size);
        memcpy(stop + 2 * channels, o, size);
    }
}

/* g_y: gradient of y. g_state: on entry P, Q and rest of the last state, on return those of the first,
 * [batch, 3, channels]. g_w, g_u: [batch, channels]. */
ANY_WIDTH void NAME(wkv_backward)(const REAL *restrict w, const REAL *restrict u, const REAL *restrict k,
                               const REAL *restrict v, const REAL *restrict kept, const REAL *restrict g_y,
                               REAL *restrict g_state, REAL *restrict g_w, REAL *restrict g_u, REAL *restrict g_k,
                               REAL *restrict g_v, int64_t steps, int64_t channels, int64_t block,
                               int64_t end)
{
    const int64_t a_row = (channels + CHANNELS - 1) / CHANNELS, stretches = (steps + EVERY - 1) / EVERY;
    for (; block < end; block++) {
        const int64_t b = block / a_row, first = block % a_row * CHANNELS;
        const int64_t n = channels - first < CHANNELS ? channels - first : CHANNELS;
        const size_t size = (size_t)n * sizeof(REAL);
        const REAL *w_n = w + first, *u_n = u + first;
        REAL *g_first = g_state + b * 3 * channels + first;
        REAL of_p[CHANNELS], of_q[CHANNELS], rest[CHANNELS], of_w[CHANNELS] = {0}, of_u[CHANNELS] = {0};
        REAL p[EVERY + 1][CHANNELS], q[EVERY + 1][CHANNELS], o[EVERY + 1][CHANNELS];
        REAL a[EVERY][CHANNELS], e[EVERY][CHANNELS];
        memcpy(of_p, g_first, size);
        memcpy(of_q, g_first + channels, size);
        memcpy(rest, g_first + 2 * channels, size);
        for (int64_t stretch = stretches - 1; stretch >= 0; stretch--) {
            const int64_t from = stretch * EVERY, count = steps - from < EVERY ? steps - from : EVERY;
            const REAL *row = kept + (b * stretches + stretch) * 3 * channels + first;
            memcpy(p[0], row, size);
            memcpy(q[0], row + channels, size);
            memcpy(o[0], row + 2 * channels, size);
            for (int64_t i = 0; i < count; i++) {
                const int64_t at = (b * steps + from + i) * channels + first;
                const REAL *k_t = k + at, *v_t = v + at;
                for (int64_t d = 0; d < n; d++) {
                    const NAME(shares) next = NAME(share)(w_n[d] + o[i][d], k_t[d]);
                    a[i][d] = next.a;
                    e[i][d] = next.e;
                    p[i + 1][d] = next.a * p[i][d] + next.e * v_t[d];
                    q[i + 1][d] = next.a * q[i][d] + next.e;
                    o[i + 1][d] = next.n;
                }
            }
            for (int64_t i = count - 1; i >= 0; i--) {
                const int64_t at = (b * steps + from + i) * channels + first;
                const REAL *k_t = k + at, *v_t = v + at, *g_y_t = g_y + at;
                REAL *restrict g_k_t = g_k + at, *restrict g_v_t = g_v + at;
                if (from + i >= EVERY) { /* the next stretch's k and v are read by its first loop already */
                    prefetch(k_t - EVERY * channels, size);
                    prefetch(v_t - EVERY * channels, size);
                    prefetch(g_y_t - AHEAD * channels, size);
                    prefetch(g_k_t - AHEAD * channels, size);
                    prefetch(g_v_t - AHEAD * channels, size);
                }
                for (int64_t d = 0; d < n; d++) {
                    const NAME(shares) now = NAME(share)(o[i][d], u_n[d] + k_t[d]);
                    const REAL inverse = 1 / (now.a * q[i][d] + now.e);
                    const REAL y = (now.a * p[i][d] + now.e * v_t[d]) * inverse, g = g_y_t[d] * inverse;
                    /* e (v - y), which cancels where e is nearly all: by v - y = a (q v - p) / (a q + e) */
                    const REAL by_now = g * now.e * now.a * (q[i][d] * v_t[d] - p[i][d]) * inverse;

                    const REAL decayed = w_n[d] + o[i][d];
                    const REAL to_k = decayed > k_t[d] ? 0 : decayed < k_t[d] ? rest[d] : rest[d] / 2;
                    const REAL to_o = rest[d] - to_k;
                    const REAL of_p_d = of_p[d], of_q_d = of_q[d];

                    g_v_t[d] = g * now.e + of_p_d * e[i][d];
                    g_k_t[d] = by_now + e[i][d] * (of_p_d * v_t[d] + of_q_d) + to_k;
                    of_u[d] += by_now;
                    of_w[d] += a[i][d] * (of_p_d * p[i][d] + of_q_d * q[i][d]) + to_o;
                    of_p[d] = a[i][d] * of_p_d + g * now.a;
                    of_q[d] = a[i][d] * of_q_d - g * now.a * y;
                    rest[d] = to_o;
                }
            }
        }
        memcpy(g_first, of_p, size);
        memcpy(g_first + channels, of_q, size);
        memcpy(g_first + 2 * channels, rest, size);
        memcpy(g_w + b * channels + first, of_w, size);
        memcpy(g_u + b * channels + first, of_u, size);
    }
}

#endif
