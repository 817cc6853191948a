/* EGRU over a sequence: equations in `ops.egru`, gates in the order z, r, g.
 *
 * `egru` is the evaluation form that the event simulator runs, steps first. `egru_forward` and `egru_backward` are
 * for training, batch first: see `egru_run`. Backward is, from the last step to the first,
 *
 *     of_trace = g_trace + 0.9 of_trace      of_y = g_y + of_q weight^T + 0.1 of_trace      of_c = g_c + of_c
 *     s = slope(p - thr) (g_o + p of_y - thr of_c)          of_p = o of_y + of_c + s         of_thr -= s + o of_c
 *     of_g = (1 - z) of_p (1 - g^2)      of_z = (c_before - g) of_p z (1 - z)      of_r = of_g q_g r (1 - r)
 *     of_a = (of_z, of_r, of_g)          of_q = (of_z, of_r, r of_g)               of_c = z of_p
 *
 * where of_q is that of the step after. Zoneout multiplies what reaches the gates, and what passes by it goes to of_c.
 */
#ifndef REAL

#include "native.h"

/* A call of `ops.egru` for training. Arrays of values over time are [batch, steps, .], states [batch, .]. */
typedef struct {
    int64_t batch, steps, units;
    int64_t t;      /* the step that is next */
    int64_t few;    /* events of all the batch up to which their product is gathered */
    int64_t events; /* those of the step before */
    double zoneout; /* share of c that stays */
    double decay;   /* of the trace */
    double gamma, eps;
    void *gates;    /* forward: a, made into the gates z, r, g; [.., 3 units] */
    void *q_g;      /* the part of q for g */
    void *q;        /* of one step, [batch, 3 units] */
    void *y, *c, *o, *trace;
    const void *y_0, *c_0, *trace_0; /* the state before the first step */
    const void *weight, *bias, *thr; /* the recurrent kernel and bias */
    const uint8_t *kept;             /* zoneout in training: 1 where the update is kept; or NULL */
    const void *slope;               /* the surrogate's, or NULL for the triangle's */
    const void *g_y, *g_c, *g_o, *g_trace; /* gradients of the outputs, or NULL */
    const void *none;                      /* [units] zeros */
    void *of_a, *of_q;                     /* [.., 3 units] */
    void *of_y, *of_c, *of_trace, *of_thr; /* carried from step to step, [batch, units] */
} egru_run;

#define REAL float
#define INT int32_t
#define NAME(name) name##_f32
#include "egru.c"
#undef REAL
#undef INT
#undef NAME
#define REAL double
#define INT int64_t
#define NAME(name) name##_f64
#include "egru.c"

#else

int64_t NAME(gather)(const REAL *restrict, const REAL *restrict, const REAL *restrict, REAL *restrict, int64_t, int64_t,
                     int64_t);

/* One step of one stream, from its three parts of a and of q, each [units] as the other arrays are. Where it trains,
 * the parts of a become the gates; else kept, q_g and o are not used. Returns the number of events. */
INLINE INT NAME(cell)(const int trains, REAL *restrict z, REAL *restrict r, REAL *restrict g, const REAL *restrict q,
                      const REAL *restrict thr, const REAL *restrict c, const REAL *restrict trace,
                      const uint8_t *restrict kept, REAL *restrict q_g, REAL *restrict y_new, REAL *restrict c_new,
                      REAL *restrict o, REAL *restrict trace_new, double zoneout, double decay, int64_t units)
{
    const REAL old = (REAL)decay, fresh = (REAL)(1 - decay);
    INT events = 0; /* as wide as REAL, or the loop is not made into vectors */
    for (int64_t j = 0; j < units; j++) {
        const REAL update = NAME(sigmoid)(z[j] + q[j]), reset = NAME(sigmoid)(r[j] + q[units + j]);
        const REAL candidate = 2 * NAME(sigmoid)(2 * (g[j] + reset * q[2 * units + j])) - 1; /* tanh */
        const REAL step = update * c[j] + (1 - update) * candidate;
        const REAL p = kept ? (kept[j] ? step : c[j]) : (REAL)zoneout * c[j] + (REAL)(1 - zoneout) * step;
        const REAL over = p - thr[j];
        /* not a number where p, or the threshold, is none, so that training sees it */
        const REAL y = over > 0 ? p : trains ? 0 * p : 0, left = over > 0 ? over : trains ? p + 0 * over : p;
        if (trains) {
            z[j] = update;
            r[j] = reset;
            g[j] = candidate;
            q_g[j] = q[2 * units + j];
            o[j] = over > 0;
        }
        y_new[j] = y;
        c_new[j] = left;
        trace_new[j] = old * trace[j] + fresh * y;
        events += over > 0;
    }
    return events;
}

/* a is [n_steps, n_streams, 3 units]; weight is [units, 3 units], bias may be NULL; thr is [units]. y, c and trace are
 * [n_steps + 1, n_streams, units]: the first row of each is the state before the first step, the others are written,
 * and so is q, shaped as a. Sets counts to the weight rows read and the events. */
ANY_WIDTH void NAME(egru)(REAL *a, const REAL *weight, const REAL *bias, const REAL *thr, REAL *q, REAL *y, REAL *c,
                          REAL *trace, int64_t *counts, double zoneout, double decay, int64_t n_steps,
                          int64_t n_streams, int64_t units)
{
    const int64_t size = n_streams * units;
    counts[0] = counts[1] = 0;
    for (int64_t t = 0; t < n_steps; t++) {
        counts[0] += NAME(gather)(y, weight, bias, q, n_streams, units, 3 * units);
        for (int64_t b = 0; b < n_streams; b++) {
            counts[1] += NAME(cell)(0, a, a + units, a + 2 * units, q, thr, c, trace, NULL, NULL, y + size, c + size,
                                    NULL, trace + size, zoneout, decay, units);
            a += 3 * units, q += 3 * units, y += units, c += units, trace += units;
        }
    }
}

/* Steps from run->t on. Returns after the last one, or before one with too many events to be gathered, whose product
 * is then given in run->q to the next call. */
ANY_WIDTH void NAME(egru_forward)(egru_run *run, int64_t given)
{
    const int64_t steps = run->steps, units = run->units;
    REAL *const gates = run->gates, *const q_g = run->q_g, *const all_q = run->q;
    REAL *const y = run->y, *const c = run->c, *const o = run->o, *const trace = run->trace;
    const REAL *const y_0 = run->y_0, *const c_0 = run->c_0, *const trace_0 = run->trace_0;
    for (; run->t < steps; run->t++, given = 0) {
        if (!given && run->events > run->few)
            return;
        run->events = 0;
        for (int64_t b = 0; b < run->batch; b++) {
            const int64_t at = (b * steps + run->t) * units, before = run->t ? at - units : b * units;
            const REAL *y_before = (run->t ? y : y_0) + before, *c_before = (run->t ? c : c_0) + before;
            const REAL *trace_before = (run->t ? trace : trace_0) + before;
            REAL *q = all_q + 3 * b * units, *z = gates + 3 * at;
            if (!given)
                NAME(gather)(y_before, run->weight, run->bias, q, 1, units, 3 * units);
#define CELL(KEPT)                                                                                            \
    NAME(cell)(1, z, z + units, z + 2 * units, q, run->thr, c_before, trace_before, KEPT, q_g + at, y + at,   \
               c + at, o + at, trace + at, run->zoneout, run->decay, units)
            run->events += run->kept ? CELL(run->kept + at) : CELL(NULL);
#undef CELL
        }
    }
}

/* What a step of one stream hands back: `egru_backward` gives the arrays. */
INLINE void NAME(cell_backward)(const egru_run *run, const uint8_t *restrict kept, const REAL *restrict slope,
                                const REAL *restrict thr, const REAL *restrict gates, const REAL *restrict q_g,
                                const REAL *restrict before, const REAL *restrict y, const REAL *restrict c,
                                const REAL *restrict o, const REAL *restrict g_y, const REAL *restrict g_c,
                                const REAL *restrict g_o, const REAL *restrict g_trace, REAL *restrict of_a,
                                REAL *restrict of_q, REAL *restrict of_y, REAL *restrict of_c,
                                REAL *restrict of_trace, REAL *restrict of_thr, int64_t units)
{
    const REAL old = (REAL)run->decay, fresh = (REAL)(1 - run->decay);
    const REAL gamma = (REAL)run->gamma, eps = (REAL)run->eps;
    for (int64_t j = 0; j < units; j++) {
        const REAL z = gates[j], r = gates[units + j], g = gates[2 * units + j], threshold = thr[j];
        const REAL sent = y[j], left = c[j], fired = o[j];
        const REAL by_trace = g_trace[j] + of_trace[j], by_c = g_c[j] + of_c[j];
        const REAL by_y = g_y[j] + of_y[j] + fresh * by_trace;
        /* p - thr is c where the unit fired and else c - thr, p is y or c: both to the last bit */
        const REAL below = left - threshold, u = fired > 0 ? left : below, p = fired > 0 ? sent : left;
        const REAL near = 1 - eps * (u < 0 ? -u : u), triangle = gamma * (near < 0 ? 0 : near);
        const REAL s = (slope ? slope[j] : triangle) * (g_o[j] + p * by_y - threshold * by_c);
        const REAL by_p = fired * by_y + by_c + s;
        const REAL past = kept ? (kept[j] ? 0 : by_p) : (REAL)run->zoneout * by_p;
        const REAL update = kept ? (kept[j] ? by_p : 0) : (REAL)(1 - run->zoneout) * by_p;
        const REAL by_g = (1 - z) * update * (1 - g * g), by_z = (before[j] - g) * update * z * (1 - z);
        const REAL by_r = by_g * q_g[j] * r * (1 - r);
        of_a[j] = of_q[j] = by_z;
        of_a[units + j] = of_q[units + j] = by_r;
        of_a[2 * units + j] = by_g;
        of_q[2 * units + j] = r * by_g;
        of_c[j] = z * update + past;
        of_trace[j] = old * by_trace;
        of_thr[j] -= s + fired * by_c;
    }
}

/* Step run->t, from of_y and the others that are carried: of_a and of_q, and what is carried on but for of_y, which is
 * the caller's to find from of_q. */
ANY_WIDTH void NAME(egru_backward)(egru_run *run)
{
    const int64_t steps = run->steps, units = run->units;
    for (int64_t b = 0; b < run->batch; b++) {
        const int64_t at = (b * steps + run->t) * units, carried = b * units;
        const REAL *c = (const REAL *)run->c + at, *before = run->t ? c - units : (const REAL *)run->c_0 + carried;
        const uint8_t *kept = run->kept ? run->kept + at : NULL;
        const REAL *slope = run->slope ? (const REAL *)run->slope + at : NULL;
#define AT(ARRAY, INDEX) ((REAL *)run->ARRAY + (INDEX))
#define GIVEN(ARRAY) (run->ARRAY ? (const REAL *)run->ARRAY + at : (const REAL *)run->none)
#define CELL(KEPT, SLOPE)                                                                                     \
    NAME(cell_backward)(run, KEPT, SLOPE, run->thr, AT(gates, 3 * at), AT(q_g, at), before, AT(y, at), c,     \
                        AT(o, at), GIVEN(g_y), GIVEN(g_c), GIVEN(g_o), GIVEN(g_trace), AT(of_a, 3 * at),      \
                        AT(of_q, 3 * at), AT(of_y, carried), AT(of_c, carried), AT(of_trace, carried),        \
                        AT(of_thr, carried), units)
        if (kept)
            slope ? CELL(kept, slope) : CELL(kept, NULL);
        else
            slope ? CELL(NULL, slope) : CELL(NULL, NULL);
#undef AT
#undef GIVEN
#undef CELL
    }
}

#endif
