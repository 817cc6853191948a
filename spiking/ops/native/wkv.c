/* WKV over a sequence, forward and backward; equations: `ops.wkv`. Arrays are [batch, steps, channels], row-major.
 *
 * Of the exponentials e^(x1 - n) and e^(x2 - n), n = max(x1, x2), one is always 1. Forward needs e^(-|o - (u + k)|) and
 * e^(-|w + o - k|) a step; where k is within NEAR of o in a block's whole row, as nearly always, it takes e^(k - o)
 * alone and multiplies. That depends on the step alone, so that a sequence gives the same bits wherever it is cut.
 *
 * The state is kept before every EVERYth step; backward runs each such stretch again before it walks back through it.
 * Where all k of a stretch and the o before it are within NEAR of one number m, as nearly always, backward measures the
 * stretch's p and q in units of e^m: then a step's shares are e^w, e^(k - m) and e^u e^(k - m), with one exponential
 * and no choice.
 *
 * Neither y nor the next step's values change when p, q are scaled by e^-c and o rises by c. So with the gradients
 * P, Q, O of a state, rest = O - P p - Q q is not touched by any y: a step passes it on to the o before, to k where k
 * is the larger exponent, or half to each where they are equal, as torch's maximum does. It is 0 wherever the last
 * state has no gradient, and never comes out of a difference of large numbers.
 */
#ifndef REAL

#include "native.h"

enum { CHANNELS = 64, EVERY = 16, AHEAD = 8, NEAR = 30 };

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

/* e^x for x up to NEAR, 0 below e^LEAST. */
INLINE REAL NAME(small)(REAL x)
{
    return x < LEAST ? 0 : NAME(power)(x);
}

/* e^w and e^u of some channels; whether u is near enough to 0, and w not above it, for products with them. */
INLINE int NAME(able)(const REAL *restrict w, const REAL *restrict u, REAL *restrict decay, REAL *restrict bonus,
                      int64_t n)
{
    int able = 1;
    for (int64_t d = 0; d < n; d++) {
        able &= (w[d] <= 0) & (u[d] >= -NEAR / 3) & (u[d] <= NEAR / 3);
        decay[d] = NAME(small)(w[d]);
        bonus[d] = NAME(small)(u[d]);
    }
    return able;
}

/* One step. Near: of e^(k - o) alone, and products with e^w and e^u. */
INLINE void NAME(step)(REAL *restrict p, REAL *restrict q, REAL *restrict o, const REAL *restrict w,
                       const REAL *restrict u, const REAL *restrict decay, const REAL *restrict growth,
                       const REAL *restrict bonus, const REAL *restrict k, const REAL *restrict v, REAL *restrict y,
                       int64_t n, const int near)
{
    for (int64_t d = 0; d < n; d++) {
        const REAL decayed = w[d] + o[d];
        NAME(shares) now, next;
        if (near) {
            const REAL e = NAME(power)(k[d] - o[d]), of_p = decay[d] * (1 / e), of_v = growth[d] * e;
            const int older = decayed > k[d];
            now = (NAME(shares)){0, 1, bonus[d] * e};
            next = (NAME(shares)){older ? decayed : k[d], older ? 1 : of_p, older ? of_v : 1};
        } else {
            now = NAME(share)(o[d], u[d] + k[d]);
            next = NAME(share)(decayed, k[d]);
        }
        y[d] = (now.a * p[d] + now.e * v[d]) / (now.a * q[d] + now.e);
        p[d] = next.a * p[d] + next.e * v[d];
        q[d] = next.a * q[d] + next.e;
        o[d] = next.n;
    }
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
        REAL p[CHANNELS], q[CHANNELS], o[CHANNELS], decay[CHANNELS], growth[CHANNELS], bonus[CHANNELS];
        const int able = NAME(able)(w_n, u_n, decay, bonus, n);
        for (int64_t d = 0; d < n; d++)
            growth[d] = NAME(power)(-w_n[d]); /* read where w + o > k alone: there w > -NEAR */
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
            int far = !able;
            for (int64_t d = 0; d < n; d++)
                far |= !(k_t[d] - o[d] <= NEAR) | !(o[d] - k_t[d] <= NEAR);
            if (far)
                NAME(step)(p, q, o, w_n, u_n, decay, growth, bonus, k_t, v_t, y_t, n, 0);
            else
                NAME(step)(p, q, o, w_n, u_n, decay, growth, bonus, k_t, v_t, y_t, n, 1);
        }
        memcpy(stop, p, size);
        memcpy(stop + channels, q, size);
        memcpy(stop + 2 * channels, o, size);
    }
}

/* What backward holds of a block of channels, and of the stretch where it is. */
typedef struct {
    REAL p[EVERY + 1][CHANNELS], q[EVERY + 1][CHANNELS], o[EVERY + 1][CHANNELS]; /* states before its steps, and last */
    REAL a[EVERY][CHANNELS], e[EVERY][CHANNELS];                                 /* shares of p and of v in the next */
    REAL m[CHANNELS], decay[CHANNELS], bonus[CHANNELS];                          /* of the stretch; e^w, e^u */
    REAL of_p[CHANNELS], of_q[CHANNELS], rest[CHANNELS], of_w[CHANNELS], of_u[CHANNELS];
} NAME(stretch);

/* Chooses m of each channel of a stretch; whether all of it is near enough. */
INLINE int NAME(near)(NAME(stretch) *s, const REAL *restrict k, int64_t count, int64_t channels, int64_t n)
{
    REAL most[CHANNELS], least[CHANNELS], sum[CHANNELS];
    for (int64_t d = 0; d < n; d++)
        most[d] = least[d] = sum[d] = k[d];
    for (int64_t i = 1; i < count; i++)
        for (int64_t d = 0; d < n; d++) {
            const REAL k_d = k[i * channels + d];
            most[d] = k_d > most[d] ? k_d : most[d];
            least[d] = k_d < least[d] ? k_d : least[d];
            sum[d] += k_d; /* not a number if any is not */
        }
    int far = 0;
    for (int64_t d = 0; d < n; d++) {
        s->m[d] = most[d] > s->o[0][d] - NEAR ? most[d] : s->o[0][d] - NEAR;
        far |= !(least[d] - s->m[d] >= -NEAR) | !(sum[d] == sum[d]);
    }
    return !far;
}

/* Runs a stretch from its first state, and asks for what the way back through it is going to need. */
INLINE void NAME(again)(NAME(stretch) *s, const REAL *restrict w, const REAL *restrict k, const REAL *restrict v,
                        const REAL *g_y, const REAL *g_k, const REAL *g_v, int64_t count, int64_t channels, int64_t n,
                        const int scaled)
{
    const size_t size = (size_t)n * sizeof(REAL);
    if (scaled)
        for (int64_t d = 0; d < n; d++) {
            const REAL by = NAME(small)(s->o[0][d] - s->m[d]);
            s->p[0][d] *= by;
            s->q[0][d] *= by;
        }
    for (int64_t i = 0; i < count; i++) {
        const REAL *k_t = k + i * channels, *v_t = v + i * channels;
        prefetch(g_y + i * channels, size);
        prefetch(g_k + i * channels, size);
        prefetch(g_v + i * channels, size);
        for (int64_t d = 0; d < n; d++) {
            const REAL decayed = w[d] + s->o[i][d], most = decayed > k_t[d] ? decayed : k_t[d];
            const NAME(shares) next = scaled ? (NAME(shares)){most, s->decay[d], NAME(power)(k_t[d] - s->m[d])}
                                             : NAME(share)(decayed, k_t[d]);
            if (!scaled)
                s->a[i][d] = next.a;
            s->e[i][d] = next.e;
            s->p[i + 1][d] = next.a * s->p[i][d] + next.e * v_t[d];
            s->q[i + 1][d] = next.a * s->q[i][d] + next.e;
            s->o[i + 1][d] = next.n;
        }
    }
}

/* Walks back through a stretch that was run `again`, and asks for the stretch before it.
 *
 * q_kept: q behind the stretch as forward kept it, NULL behind the last. What it is to the stretch's own says in which
 * unit P and Q come, the rounding of all steps of o included: e^(m - o) differs from that by as much. */
INLINE void NAME(back)(NAME(stretch) *s, const REAL *restrict w, const REAL *restrict u, const REAL *restrict k,
                       const REAL *restrict v, const REAL *restrict g_y, REAL *restrict g_k, REAL *restrict g_v,
                       const REAL *restrict q_kept, int64_t from, int64_t count, int64_t channels, int64_t n,
                       const int scaled)
{
    const size_t size = (size_t)n * sizeof(REAL);
    if (scaled)
        for (int64_t d = 0; d < n; d++) {
            const REAL by = q_kept ? q_kept[d] / s->q[count][d] : NAME(power)(s->m[d] - s->o[count][d]);
            s->of_p[d] *= by;
            s->of_q[d] *= by;
        }
    for (int64_t i = count - 1; i >= 0; i--) {
        const REAL *k_t = k + i * channels, *v_t = v + i * channels, *g_y_t = g_y + i * channels;
        REAL *restrict g_k_t = g_k + i * channels, *restrict g_v_t = g_v + i * channels;
        if (from + i >= EVERY) {
            prefetch_wide(k_t - EVERY * channels, size);
            prefetch_wide(v_t - EVERY * channels, size);
        }
        for (int64_t d = 0; d < n; d++) {
            const REAL p = s->p[i][d], q = s->q[i][d], o = s->o[i][d], e = s->e[i][d];
            const REAL a = scaled ? s->decay[d] : s->a[i][d];
            const NAME(shares) now =
                scaled ? (NAME(shares)){0, 1, s->bonus[d] * e} : NAME(share)(o, u[d] + k_t[d]);
            const REAL inverse = 1 / (now.a * q + now.e);
            const REAL y = (now.a * p + now.e * v_t[d]) * inverse, g = g_y_t[d] * inverse;
            /* e (v - y), which cancels where e is nearly all: by v - y = a (q v - p) / (a q + e) */
            const REAL by_now = g * now.e * now.a * (q * v_t[d] - p) * inverse;

            const REAL decayed = w[d] + o;
            const REAL to_k = decayed > k_t[d] ? 0 : decayed < k_t[d] ? s->rest[d] : s->rest[d] / 2;
            const REAL to_o = s->rest[d] - to_k;
            const REAL of_p = s->of_p[d], of_q = s->of_q[d];

            g_v_t[d] = g * now.e + of_p * e;
            g_k_t[d] = by_now + e * (of_p * v_t[d] + of_q) + to_k;
            s->of_u[d] += by_now;
            s->of_w[d] += a * (of_p * p + of_q * q) + to_o;
            s->of_p[d] = a * of_p + g * now.a;
            s->of_q[d] = a * of_q - g * now.a * y;
            s->rest[d] = to_o;
        }
    }
    if (scaled)
        for (int64_t d = 0; d < n; d++) {
            const REAL by = NAME(small)(s->o[0][d] - s->m[d]);
            s->of_p[d] *= by;
            s->of_q[d] *= by;
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
        NAME(stretch) s;
        const int able = NAME(able)(w_n, u_n, s.decay, s.bonus, n);
        memset(s.of_w, 0, size);
        memset(s.of_u, 0, size);
        memcpy(s.of_p, g_first, size);
        memcpy(s.of_q, g_first + channels, size);
        memcpy(s.rest, g_first + 2 * channels, size);
        for (int64_t stretch = stretches - 1; stretch >= 0; stretch--) {
            const int64_t from = stretch * EVERY, count = steps - from < EVERY ? steps - from : EVERY;
            const int64_t at = (b * steps + from) * channels + first;
            const REAL *k_s = k + at, *v_s = v + at, *g_y_s = g_y + at;
            REAL *g_k_s = g_k + at, *g_v_s = g_v + at;
            const REAL *row = kept + (b * stretches + stretch) * 3 * channels + first;
            const REAL *q_kept = stretch + 1 < stretches ? row + 4 * channels : NULL;
            memcpy(s.p[0], row, size);
            memcpy(s.q[0], row + channels, size);
            memcpy(s.o[0], row + 2 * channels, size);
            if (able && NAME(near)(&s, k_s, count, channels, n)) {
                NAME(again)(&s, w_n, k_s, v_s, g_y_s, g_k_s, g_v_s, count, channels, n, 1);
                NAME(back)(&s, w_n, u_n, k_s, v_s, g_y_s, g_k_s, g_v_s, q_kept, from, count, channels, n, 1);
            } else {
                NAME(again)(&s, w_n, k_s, v_s, g_y_s, g_k_s, g_v_s, count, channels, n, 0);
                NAME(back)(&s, w_n, u_n, k_s, v_s, g_y_s, g_k_s, g_v_s, q_kept, from, count, channels, n, 0);
            }
        }
        memcpy(g_first, s.of_p, size);
        memcpy(g_first + channels, s.of_q, size);
        memcpy(g_first + 2 * channels, s.rest, size);
        memcpy(g_w + b * channels + first, s.of_w, size);
        memcpy(g_u + b * channels + first, s.of_u, size);
    }
}

#endif
