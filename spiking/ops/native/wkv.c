/* WKV over a sequence, forward and backward; equations: `ops.wkv`. Arrays are [batch, steps, channels], row-major.
 *
 * Of the exponentials e^(x1 - n) and e^(x2 - n), n = max(x1, x2), one is always 1. Forward needs e^(-|o - (u + k)|) and
 * e^(-|w + o - k|) a step; where k is within NEAR of o in a block's whole row, as nearly always, it takes e^(k - o)
 * alone and multiplies. That depends on the step alone, so that a sequence gives the same bits wherever it is cut.
 *
 * A call does the blocks of channels from `block` to `end`, as `native.h` says. The state is kept before every EVERYth
 * step; backward runs each such stretch again before it walks back through it.
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

enum { NEAR = 30 };

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

/* Of the blocks of a part: e^w, e^-w and e^u, and whether u is near enough to 0, and w not above it, for products with
 * them. */
typedef struct {
    REAL decay[BLOCKS][UNITS], growth[BLOCKS][UNITS], bonus[BLOCKS][UNITS];
    int able[BLOCKS];
} NAME(factors);

INLINE void NAME(factor)(NAME(factors) *f, const REAL *w, const REAL *u, tile_part part, int64_t channels)
{
    for (int64_t j = 0; j < part.blocks; j++) {
        const int64_t first = (part.column + j) * UNITS, n = channels - first < UNITS ? channels - first : UNITS;
        const REAL *restrict w_n = w + first, *restrict u_n = u + first;
        int able = 1;
        for (int64_t d = 0; d < n; d++) {
            able &= (w_n[d] <= 0) & (u_n[d] >= -NEAR / 3) & (u_n[d] <= NEAR / 3);
            f->decay[j][d] = NAME(small)(w_n[d]);
            f->growth[j][d] = NAME(power)(-w_n[d]); /* read where w + o > k alone: there w > -NEAR */
            f->bonus[j][d] = NAME(small)(u_n[d]);
        }
        f->able[j] = able;
    }
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

typedef struct {
    const REAL *w, *u, *k, *v;
    REAL *y, *last, *kept;
} NAME(wkv_forth);

/* count steps of n channels: the tile's own numbers, for a compiler to know those of a whole one. */
INLINE void NAME(tile_forth)(const NAME(wkv_forth) a, const NAME(factors) *f, const one_tile tile, int64_t steps,
                             int64_t channels, int64_t count, int64_t n)
{
    const size_t size = (size_t)n * sizeof(REAL), wide = (size_t)width_asked(n, channels) * sizeof(REAL);
    const REAL *w = a.w + tile.first, *u = a.u + tile.first, *decay = f->decay[tile.block];
    const REAL *growth = f->growth[tile.block], *bonus = f->bonus[tile.block];
    const int64_t stretches = (steps + EVERY - 1) / EVERY;
    REAL s[3][UNITS], *last = a.last + 3 * tile.item * channels + tile.first;
    for (int i = 0; i < 3; i++) {
        memcpy(s[i], last + i * channels, size);
        if (a.kept)
            memcpy(a.kept + (3 * (tile.item * stretches + tile.stretch) + i) * channels + tile.first, s[i], size);
    }
    for (int64_t t = 0; t < count; t++) {
        const int64_t at = tile.at + t * channels, next = tile.at + EVERY * channels + soon(tile, t, channels);
        const REAL *restrict k = a.k + at;
        if (count == EVERY) {
            ask(a.k + next, wide, ASKS);
            ask(a.v + next, wide, ASKS);
            ask(a.y + next, wide, ASKS);
        }
        int far = !f->able[tile.block];
        for (int64_t d = 0; d < n; d++)
            far |= !(k[d] - s[2][d] <= NEAR) | !(s[2][d] - k[d] <= NEAR);
        if (far)
            NAME(step)(s[0], s[1], s[2], w, u, decay, growth, bonus, k, a.v + at, a.y + at, n, 0);
        else
            NAME(step)(s[0], s[1], s[2], w, u, decay, growth, bonus, k, a.v + at, a.y + at, n, 1);
    }
    for (int i = 0; i < 3; i++)
        memcpy(last + i * channels, s[i], size);
}

/* state, last: p, q, o before the first and after the last step, [batch, 3, channels]. kept: the states before steps
 * 0, EVERY, 2 EVERY ..., [batch, ceil(steps / EVERY), 3, channels], or NULL to keep none. */
ANY_WIDTH void NAME(wkv_forward)(const REAL *w, const REAL *u, const REAL *k, const REAL *v, const REAL *state, REAL *y,
                                 REAL *last, REAL *kept, int64_t steps, int64_t channels, int64_t block, int64_t end)
{
    const NAME(wkv_forth) a = {w, u, k, v, y, last, kept};
    NAME(factors) f;
    for (tile_part part; block < end; block += part.blocks) {
        part = part_of(block, end, channels);
        NAME(factor)(&f, w, u, part, channels);
        for (int64_t i = 0; i < 3; i++) {
            const int64_t row = (3 * part.item + i) * channels + part.column * UNITS;
            memcpy(last + row, state + row, (size_t)width_of(part, channels) * sizeof(REAL));
        }
        for (int64_t i = 0; i < tiles(part, steps); i++) {
            const one_tile tile = tile_of(part, i, steps, channels);
            if (tile.count == EVERY && tile.n == UNITS)
                NAME(tile_forth)(a, &f, tile, steps, channels, EVERY, UNITS);
            else
                NAME(tile_forth)(a, &f, tile, steps, channels, tile.count, tile.n);
        }
    }
}

/* What backward holds of a tile. */
typedef struct {
    REAL p[EVERY + 1][UNITS], q[EVERY + 1][UNITS], o[EVERY + 1][UNITS]; /* states before its steps, and last */
    REAL a[EVERY][UNITS], e[EVERY][UNITS];                              /* shares of p and of v in the next */
    REAL m[UNITS];
    REAL of_p[UNITS], of_q[UNITS], rest[UNITS], of_w[UNITS], of_u[UNITS];
} NAME(stretch);

/* Chooses m of each channel of a stretch; whether all of it is near enough. */
INLINE int NAME(near)(NAME(stretch) *s, const REAL *restrict k, int64_t count, int64_t channels, int64_t n)
{
    REAL most[UNITS], least[UNITS], sum[UNITS];
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

/* Runs a stretch from its first state. g_y, g_k, g_v: where the way back through it is to find and leave its numbers;
 * it asks for the rows from `asked` on, the stretch behind it has asked for those before. */
INLINE void NAME(again)(NAME(stretch) *s, const REAL *restrict w, const REAL *restrict decay, const REAL *restrict k,
                        const REAL *restrict v, const REAL *g_y, const REAL *g_k, const REAL *g_v, int64_t asked,
                        int64_t count, int64_t channels, int64_t n, const int scaled)
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
        if (i >= asked) {
            ask(g_y + i * channels, size, 1);
            ask(g_k + i * channels, size, 1);
            ask(g_v + i * channels, size, 1);
        }
        for (int64_t d = 0; d < n; d++) {
            const REAL decayed = w[d] + s->o[i][d], most = decayed > k_t[d] ? decayed : k_t[d];
            const NAME(shares) next = scaled ? (NAME(shares)){most, decay[d], NAME(power)(k_t[d] - s->m[d])}
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

/* Walks back through a stretch that was run `again`, and asks for as many rows of the one before it.
 *
 * q_kept: q behind the stretch as forward kept it, NULL behind the last. What it is to the stretch's own says in which
 * unit P and Q come, the rounding of all steps of o included: e^(m - o) differs from that by as much. */
INLINE void NAME(back)(NAME(stretch) *s, const REAL *restrict w, const REAL *restrict u, const REAL *restrict decay,
                       const REAL *restrict bonus, const REAL *restrict k, const REAL *restrict v,
                       const REAL *restrict g_y, REAL *restrict g_k, REAL *restrict g_v, const REAL *restrict q_kept,
                       const one_tile tile, int64_t count, int64_t channels, int64_t n, const int scaled)
{
    const size_t wide = (size_t)width_asked(n, channels) * sizeof(REAL);
    if (scaled)
        for (int64_t d = 0; d < n; d++) {
            const REAL by = q_kept ? q_kept[d] / s->q[count][d] : NAME(power)(s->m[d] - s->o[count][d]);
            s->of_p[d] *= by;
            s->of_q[d] *= by;
        }
    for (int64_t i = count - 1; i >= 0; i--) {
        const REAL *k_t = k + i * channels, *v_t = v + i * channels, *g_y_t = g_y + i * channels;
        REAL *restrict g_k_t = g_k + i * channels, *restrict g_v_t = g_v + i * channels;
        if (tile.stretch) {
            const int64_t next = soon(tile, count - 1 - i, channels) - EVERY * channels;
            ask(k + next, wide, ASKS);
            ask(v + next, wide, ASKS);
            ask(g_y + next, wide, ASKS);
            ask(g_k + next, wide, ASKS);
            ask(g_v + next, wide, ASKS);
        }
        for (int64_t d = 0; d < n; d++) {
            const REAL p = s->p[i][d], q = s->q[i][d], o = s->o[i][d], e = s->e[i][d];
            const REAL a = scaled ? decay[d] : s->a[i][d];
            const NAME(shares) now =
                scaled ? (NAME(shares)){0, 1, bonus[d] * e} : NAME(share)(o, u[d] + k_t[d]);
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

typedef struct {
    const REAL *w, *u, *k, *v, *kept, *g_y;
    REAL *g_state, *g_w, *g_u, *g_k, *g_v;
} NAME(wkv_back);

/* As `tile_forth`. */
INLINE void NAME(tile_back)(const NAME(wkv_back) a, const NAME(factors) *f, NAME(stretch) *s, const one_tile tile,
                            int64_t steps, int64_t channels, int64_t count, int64_t n)
{
    const size_t size = (size_t)n * sizeof(REAL);
    const REAL *w = a.w + tile.first, *u = a.u + tile.first, *k = a.k + tile.at, *v = a.v + tile.at;
    const REAL *decay = f->decay[tile.block], *bonus = f->bonus[tile.block], *g_y = a.g_y + tile.at;
    REAL *g_k = a.g_k + tile.at, *g_v = a.g_v + tile.at;
    const int64_t stretches = (steps + EVERY - 1) / EVERY;
    const REAL *kept = a.kept + 3 * (tile.item * stretches + tile.stretch) * channels + tile.first;
    const REAL *q_kept = tile.stretch + 1 < stretches ? kept + 4 * channels : NULL;
    REAL *here[] = {s->p[0], s->q[0], s->o[0]}, *carried[] = {s->of_p, s->of_q, s->rest, s->of_w, s->of_u}, *back[5];
    for (int i = 0; i < 5; i++) {
        back[i] = i < 3 ? a.g_state + (3 * tile.item + i) * channels : (i < 4 ? a.g_w : a.g_u) + tile.item * channels;
        memcpy(carried[i], back[i] + tile.first, size);
    }
    for (int i = 0; i < 3; i++) {
        memcpy(here[i], kept + i * channels, size);
        if (tile.stretch)
            ask(kept + (i - 3) * channels, size, ASKS);
    }
#define BOTH(SCALED)                                                                                          \
    NAME(again)(s, w, decay, k, v, g_y, g_k, g_v, steps - (tile.stretch + 1) * EVERY, count, channels, n,     \
                SCALED);                                                                                      \
    NAME(back)(s, w, u, decay, bonus, k, v, g_y, g_k, g_v, q_kept, tile, count, channels, n, SCALED)
    if (f->able[tile.block] && NAME(near)(s, k, count, channels, n)) {
        BOTH(1);
    } else {
        BOTH(0);
    }
#undef BOTH
    for (int i = 0; i < 5; i++)
        memcpy(back[i] + tile.first, carried[i], size);
}

/* g_y: gradient of y. g_state: on entry P, Q and rest of the last state, on return those of the first,
 * [batch, 3, channels]. g_w, g_u: [batch, channels], added to. */
ANY_WIDTH void NAME(wkv_backward)(const REAL *w, const REAL *u, const REAL *k, const REAL *v, const REAL *kept,
                                  const REAL *g_y, REAL *g_state, REAL *g_w, REAL *g_u, REAL *g_k, REAL *g_v,
                                  int64_t steps, int64_t channels, int64_t block, int64_t end)
{
    const NAME(wkv_back) a = {w, u, k, v, kept, g_y, g_state, g_w, g_u, g_k, g_v};
    NAME(factors) f;
    NAME(stretch) s;
    for (tile_part part; block < end; block += part.blocks) {
        part = part_of(block, end, channels);
        NAME(factor)(&f, w, u, part, channels);
        for (int64_t i = tiles(part, steps) - 1; i >= 0; i--) {
            const one_tile tile = tile_of(part, i, steps, channels);
            if (tile.count == EVERY && tile.n == UNITS)
                NAME(tile_back)(a, &f, &s, tile, steps, channels, EVERY, UNITS);
            else
                NAME(tile_back)(a, &f, &s, tile, steps, channels, tile.count, tile.n);
        }
    }
}

#endif
