/* EGRU over a sequence, in the evaluation form of spiking/ops/egru/reference.py; the recurrent product is gathered.
 *
 * a is [n_steps, n_streams, 3 units], gates in the order z, r, g; weight is [units, 3 units], bias may be NULL;
 * thr is [units]. y, c and trace are [n_steps + 1, n_streams, units]: the first row of each is the state before the
 * first step, the others are written, and so is q, shaped as a. Sets counts to the weight rows read and the events.
 */
#include "native.h"

#define EGRU(NAME, CELL, SIGMOID, GATHER, REAL, INT, EXP)                                                     \
    int64_t GATHER(const REAL *restrict, const REAL *restrict, const REAL *restrict, REAL *restrict, int64_t, \
                   int64_t, int64_t);                                                                         \
                                                                                                              \
    static inline REAL SIGMOID(REAL x)                                                                        \
    {                                                                                                         \
        return 1 / (1 + EXP(-x));                                                                             \
    }                                                                                                         \
                                                                                                              \
    ANY_WIDTH static INT CELL(const REAL *restrict a, const REAL *restrict q, const REAL *restrict thr,       \
                              const REAL *restrict c, const REAL *restrict trace, REAL *restrict y_new,       \
                              REAL *restrict c_new, REAL *restrict trace_new, double zoneout, double decay,   \
                              int64_t units)                                                                  \
    {                                                                                                         \
        const REAL keep = (REAL)zoneout, take = (REAL)(1 - zoneout);                                          \
        const REAL old = (REAL)decay, fresh = (REAL)(1 - decay);                                              \
        INT events = 0; /* as wide as REAL, or the loop is not made into vectors */                           \
        for (int64_t j = 0; j < units; j++) {                                                                 \
            const REAL z = SIGMOID(a[j] + q[j]);                                                              \
            const REAL r = SIGMOID(a[units + j] + q[units + j]);                                              \
            const REAL g = 2 * SIGMOID(2 * (a[2 * units + j] + r * q[2 * units + j])) - 1; /* tanh */         \
            const REAL p = keep * c[j] + take * (z * c[j] + (1 - z) * g);                                     \
            const REAL over = p - thr[j], y = over > 0 ? p : 0;                                               \
            y_new[j] = y;                                                                                     \
            c_new[j] = over > 0 ? over : p;                                                                   \
            trace_new[j] = old * trace[j] + fresh * y;                                                        \
            events += over > 0;                                                                               \
        }                                                                                                     \
        return events;                                                                                        \
    }                                                                                                         \
                                                                                                              \
    void NAME(const REAL *a, const REAL *weight, const REAL *bias, const REAL *thr, REAL *q, REAL *y, REAL *c,\
              REAL *trace, int64_t *counts, double zoneout, double decay, int64_t n_steps, int64_t n_streams, \
              int64_t units)                                                                                  \
    {                                                                                                         \
        const int64_t size = n_streams * units;                                                               \
        counts[0] = counts[1] = 0;                                                                            \
        for (int64_t t = 0; t < n_steps; t++) {                                                               \
            counts[0] += GATHER(y, weight, bias, q, n_streams, units, 3 * units);                             \
            for (int64_t b = 0; b < n_streams; b++) {                                                         \
                counts[1] += CELL(a, q, thr, c, trace, y + size, c + size, trace + size, zoneout, decay, units);\
                a += 3 * units, q += 3 * units, y += units, c += units, trace += units;                       \
            }                                                                                                 \
        }                                                                                                     \
    }

EGRU(egru_f32, cell_f32, sigmoid_f32, gather_f32, float, int32_t, exp_f32)
EGRU(egru_f64, cell_f64, sigmoid_f64, gather_f64, double, int64_t, exp_f64)
