/* A whole graph, a token at a time: `stream_*` runs a list of instructions once a token.
 *
 * Vectors are REAL in the floating-point forms and int32_t in the integer form, whose weights are int8; what an
 * instruction computes is said in spiking/graph/ and in backends/exporters/spinnaker2/arithmetic.py. A product by
 * events reads one weight row for each element that is not 0, and adds the number of rows to `rows`.
 */
#ifndef REAL

#include <stddef.h>

#include "native.h"

/* As in backends/stream.py. */
enum { ROW, LINEAR, EGRU, LIF, WKV, LAYER_NORM, AFFINE, MIX, SIGMOID, RELU, SQUARED_RELU, SPIKE, MULTIPLY, ADD, COPY };
enum { BY_EVENTS = 1, HARD = 2, DECAY_INPUT = 4, STRICT = 8, TERNARY = 16, GRADED = 32, NARROW = 64 };
enum { COLUMNS = 1024, LINE = 64 };

typedef struct {
    int64_t op, flags, n_in, n_out, rows;
    const void *in[2];
    const void *array[3]; /* weights and vectors */
    void *out, *state[3];
    double number[2];
} instruction;

/* Indices of the elements that are not 0, of all where `every`; their number. */
#define EVENTS(NAME, TYPE)                                                                                    \
    INLINE int64_t NAME(const TYPE *x, int64_t n, int every, int32_t *at)                                     \
    {                                                                                                         \
        int64_t count = 0;                                                                                    \
        for (int64_t i = 0; i < n; i++) {                                                                     \
            at[count] = (int32_t)i;                                                                           \
            count += every || x[i] != 0;                                                                      \
        }                                                                                                     \
        return count;                                                                                         \
    }

/* The k-th of `count` rows, of `width` weights each; behind the last come the first ones again, in the next columns. */
INLINE int64_t row_of(const int32_t *at, int64_t k, int64_t count, int64_t width, int64_t next_columns)
{
    return k < count ? at[k] * width : at[k - count] * width + next_columns;
}

#define REAL float
#define NAME(name) name##_f32
#include "stream.c"
#undef REAL
#undef NAME
#define REAL double
#define NAME(name) name##_f64
#include "stream.c"
#undef REAL
#undef NAME

EVENTS(events_i32, int32_t)

/* Weights of int8 lie four to a word: byte b of word l is column LANES b + l of its block of 4 LANES, so that a shift
 * takes it to where its sum is; bytes side by side have to be spread first, which takes twice as long. Rows are filled
 * up to whole blocks. */
enum { LANES = 16, WORDS = 512 };

INLINE int32_t byte_of(int32_t word, int b)
{
    return (int32_t)((uint32_t)word << (24 - 8 * b)) >> 24;
}

/* As `rows_f32`, of such weights. */
INLINE void rows_i8(const int32_t *restrict x, const int32_t *restrict weight, int32_t *restrict out,
                    const int32_t *restrict at, int64_t count, int64_t n_out)
{
    const int64_t words = (n_out + 4 * LANES - 1) / (4 * LANES) * LANES; /* of a row */
    for (int64_t first = 0; first < words; first += WORDS) {
        const int64_t n = words - first < WORDS ? words - first : WORDS, more = words - first > n ? WORDS : 0;
        const int32_t *block = weight + first;
        int32_t sum[4 * WORDS] = {0};
        int64_t k = 0;
        for (; k + 4 <= count; k += 4) {
            const int32_t x0 = x[at[k]], x1 = x[at[k + 1]], x2 = x[at[k + 2]], x3 = x[at[k + 3]];
            const int32_t *w0 = block + at[k] * words, *w1 = block + at[k + 1] * words;
            const int32_t *w2 = block + at[k + 2] * words, *w3 = block + at[k + 3] * words;
            const int32_t *next[4];
            for (int i = 0; i < 4; i++)
                next[i] = block + row_of(at, k + 4 + i, count, words, more);
            for (int64_t j = 0; j < n; j += LANES) {
                for (int i = 0; i < 4; i++)
                    __builtin_prefetch(next[i] + j, 0, 2);
                for (int b = 0; b < 4; b++)
                    for (int l = 0; l < LANES; l++)
                        sum[4 * j + b * LANES + l] +=
                            (x0 * byte_of(w0[j + l], b) + x1 * byte_of(w1[j + l], b)) +
                            (x2 * byte_of(w2[j + l], b) + x3 * byte_of(w3[j + l], b));
            }
        }
        for (; k < count; k++) {
            const int32_t x0 = x[at[k]], *w0 = block + at[k] * words;
            for (int64_t j = 0; j < n; j += LANES)
                for (int b = 0; b < 4; b++)
                    for (int l = 0; l < LANES; l++)
                        sum[4 * j + b * LANES + l] += x0 * byte_of(w0[j + l], b);
        }
        for (int64_t j = 0; j < 4 * n && 4 * first + j < n_out; j++)
            out[4 * first + j] += sum[j];
    }
}

enum { EVENT_FRAC = 14, ONE = 1 << EVENT_FRAC, TABLE_STEP = 6 };

INLINE int32_t shift_right(int32_t x, int32_t s)
{
    return (x + ((1 << s) >> 1)) >> s;
}

INLINE int32_t saturate16(int32_t x)
{
    x = x > 32767 ? 32767 : x;
    return x < -32768 ? -32768 : x;
}

/* x 2^-s, rounded: a shift to the left where s < 0. */
INLINE int32_t rescale(int32_t x, int32_t s)
{
    return s < 0 ? x * (1 << -s) : shift_right(x, s);
}

/* The same, held within int16, before a shift to the left and after it. */
INLINE int32_t narrow(int32_t x, int32_t s)
{
    return saturate16(rescale(saturate16(s < 0 ? x : shift_right(x, s)), s < 0 ? s : 0));
}

/* table: in each word a value, and in its upper half what the next value is more: one reads both. */
INLINE int32_t look_up(const int32_t *table, int32_t x)
{
    const int32_t u = saturate16(x) + 32768, two = table[u >> TABLE_STEP], f = u & ((1 << TABLE_STEP) - 1);
    return (int16_t)two + shift_right((two >> 16) * f, TABLE_STEP);
}

/* Runs n_tokens tokens through n instructions; `logits`, [n_tokens, n_logits], takes what lies at `output` after each.
 * at: room for the indices of one vector's events. */
ANY_WIDTH void stream_i8(instruction *program, int64_t n, const int64_t *tokens, int64_t n_tokens,
                         const int32_t *output, int32_t *logits, int64_t n_logits, int32_t *at)
{
    for (int64_t t = 0; t < n_tokens; t++) {
        for (instruction *i = program; i < program + n; i++) {
            const int32_t *a = i->in[0], *b = i->in[1];
            int32_t *restrict out = i->out;
            const int64_t size = i->n_out;
            switch (i->op) {
            case ROW:
                memcpy(out, (const int32_t *)i->array[0] + tokens[t] * size, (size_t)size * sizeof *out);
                break;
            case LINEAR: {
                const int32_t *shift = i->array[2];
                const int64_t count = events_i32(a, i->n_in, !(i->flags & BY_EVENTS), at);
                memcpy(out, i->array[1], (size_t)size * sizeof *out);
                rows_i8(a, i->array[0], out, at, count, size);
                for (int64_t j = 0; j < size; j++)
                    out[j] = i->flags & NARROW ? narrow(out[j], shift[j]) : rescale(out[j], shift[j]);
                i->rows += count;
                break;
            }
            case EGRU: {
                const int32_t *thr = i->array[0], *sigmoid = i->array[1], *tanh = i->array[2];
                const int32_t zoneout = (int32_t)i->number[0];
                int32_t *restrict c = i->state[0];
                for (int64_t j = 0; j < size; j++) {
                    const int32_t z = look_up(sigmoid, a[j] + b[j]), r = look_up(sigmoid, a[size + j] + b[size + j]);
                    const int32_t q = shift_right(r * saturate16(b[2 * size + j]), EVENT_FRAC);
                    const int32_t g = look_up(tanh, a[2 * size + j] + q);
                    int32_t p = shift_right(z * c[j] + (ONE - z) * g, EVENT_FRAC);
                    if (zoneout)
                        p = shift_right(zoneout * c[j] + (ONE - zoneout) * p, EVENT_FRAC);
                    const int fired = p > thr[j];
                    out[j] = fired ? p : 0;
                    c[j] = fired ? p - thr[j] : p;
                }
                break;
            }
            case SPIKE:
                for (int64_t j = 0; j < size; j++)
                    out[j] = a[j] >= 0;
                break;
            case COPY:
                memcpy(out, a, (size_t)size * sizeof *out);
            }
        }
        memcpy(logits + t * n_logits, output, (size_t)n_logits * sizeof *logits);
    }
}

#else

EVENTS(NAME(events), REAL)

INLINE void NAME(four)(const REAL *restrict x, const REAL *const *w, int64_t first, int64_t n, REAL *restrict sum)
{
    const REAL *w0 = w[0] + first, *w1 = w[1] + first, *w2 = w[2] + first, *w3 = w[3] + first;
    for (int64_t j = 0; j < n; j++)
        sum[first + j] += (x[0] * w0[j] + x[1] * w1[j]) + (x[2] * w2[j] + x[3] * w3[j]);
}

/* out += sum of x[i] weight[i] over `count` rows i of at; four rows at a time, so that out is read and written less;
 * each line asks for those of the next four, which keeps the memory busy throughout (to ask for what lies past the last
 * row does nothing); columns in blocks that stay in the nearest cache. */
INLINE void NAME(rows)(const REAL *restrict x, const REAL *restrict weight, REAL *restrict out,
                       const int32_t *restrict at, int64_t count, int64_t n_out)
{
    enum { A_LINE = LINE / sizeof(REAL) };
    for (int64_t first = 0; first < n_out; first += COLUMNS) {
        const int64_t n = n_out - first < COLUMNS ? n_out - first : COLUMNS, more = n_out - first > n ? COLUMNS : 0;
        const REAL *block = weight + first;
        REAL *restrict sum = out + first;
        int64_t k = 0, j;
        for (; k + 4 <= count; k += 4) {
            const REAL *now[4], *next[4];
            REAL of[4];
            for (int i = 0; i < 4; i++) {
                of[i] = x[at[k + i]];
                now[i] = block + at[k + i] * n_out;
                next[i] = block + row_of(at, k + 4 + i, count, n_out, more);
            }
            for (j = 0; j + A_LINE <= n; j += A_LINE) {
                for (int i = 0; i < 4; i++)
                    __builtin_prefetch(next[i] + j, 0, 2);
                NAME(four)(of, now, j, A_LINE, sum);
            }
            NAME(four)(of, now, j, n - j, sum);
        }
        for (; k < count; k++) {
            const REAL of = x[at[k]], *now = block + at[k] * n_out;
            for (j = 0; j < n; j++)
                sum[j] += of * now[j];
        }
    }
}

INLINE void NAME(egru)(const instruction *i, int64_t n)
{
    const REAL *a = i->in[0], *q = i->in[1], *thr = i->array[0];
    const REAL keep = (REAL)i->number[0], take = 1 - keep, old = (REAL)i->number[1], fresh = 1 - old;
    REAL *restrict y = i->out, *restrict c = i->state[0], *restrict trace = i->state[1];
    for (int64_t j = 0; j < n; j++) {
        const REAL z = NAME(sigmoid)(a[j] + q[j]), r = NAME(sigmoid)(a[n + j] + q[n + j]);
        const REAL g = 2 * NAME(sigmoid)(2 * (a[2 * n + j] + r * q[2 * n + j])) - 1; /* tanh */
        const REAL p = keep * c[j] + take * (z * c[j] + (1 - z) * g), over = p - thr[j];
        y[j] = over > 0 ? p : 0;
        c[j] = over > 0 ? over : p;
        trace[j] = old * trace[j] + fresh * y[j];
    }
}

INLINE void NAME(lif)(const instruction *i, int64_t n)
{
    const REAL *x = i->in[0], *tau = i->array[0], *theta = i->array[1], v_reset = (REAL)i->number[0];
    const int hard = !!(i->flags & HARD), strict = !!(i->flags & STRICT), ternary = !!(i->flags & TERNARY);
    const int decay_input = !!(i->flags & DECAY_INPUT), graded = !!(i->flags & GRADED);
    const REAL rest = hard ? v_reset : 0;
    REAL *restrict s = i->out, *restrict v = i->state[0];
    for (int64_t j = 0; j < n; j++) {
        const REAL above = v[j] - rest;
        const REAL h = decay_input ? v[j] + (x[j] - above) / tau[j] : v[j] - above / tau[j] + x[j];
        const REAL over = h - theta[j], under = -h - theta[j];
        const REAL up = strict ? over > 0 : over >= 0, down = ternary * (REAL)(strict ? under > 0 : under >= 0);
        v[j] = h - (hard ? (up + down) * (h - v_reset) : (up - down) * theta[j]);
        s[j] = graded ? (up + down != 0 ? h : 0) : up - down;
    }
}

INLINE void NAME(wkv)(const instruction *i, int64_t n)
{
    const REAL *k = i->in[0], *v = i->in[1], *w = i->array[0], *u = i->array[1];
    REAL *restrict y = i->out, *restrict p = i->state[0], *restrict q = i->state[1], *restrict o = i->state[2];
    for (int64_t j = 0; j < n; j++) {
        const REAL now = u[j] + k[j], past = w[j] + o[j];
        const REAL most = o[j] > now ? o[j] : now, next = past > k[j] ? past : k[j];
        const REAL a = NAME(exp)(o[j] - most), e = NAME(exp)(now - most);
        const REAL a_next = NAME(exp)(past - next), e_next = NAME(exp)(k[j] - next);
        y[j] = (a * p[j] + e * v[j]) / (a * q[j] + e);
        p[j] = a_next * p[j] + e_next * v[j];
        q[j] = a_next * q[j] + e_next;
        o[j] = next;
    }
}

INLINE void NAME(layer_norm)(const instruction *i, int64_t n)
{
    const REAL *x = i->in[0], *weight = i->array[0], *bias = i->array[1];
    REAL *restrict out = i->out;
    double sum = 0, squares = 0;
    for (int64_t j = 0; j < n; j++)
        sum += x[j];
    const REAL mean = (REAL)(sum / (double)n);
    for (int64_t j = 0; j < n; j++)
        squares += (double)(x[j] - mean) * (double)(x[j] - mean);
    const REAL scale = (REAL)(1 / __builtin_sqrt(squares / (double)n + i->number[0]));
    for (int64_t j = 0; j < n; j++)
        out[j] = (x[j] - mean) * scale * weight[j] + bias[j];
}

/* As `stream_i8`. */
ANY_WIDTH void NAME(stream)(instruction *program, int64_t n, const int64_t *tokens, int64_t n_tokens,
                            const REAL *output, REAL *logits, int64_t n_logits, int32_t *at)
{
    for (int64_t t = 0; t < n_tokens; t++) {
        for (instruction *i = program; i < program + n; i++) {
            const REAL *a = i->in[0], *b = i->in[1], *first = i->array[0], *second = i->array[1];
            REAL *restrict out = i->out;
            const int64_t size = i->n_out;
            switch (i->op) {
            case ROW:
                memcpy(out, first + tokens[t] * size, (size_t)size * sizeof *out);
                break;
            case LINEAR: {
                const int64_t count = NAME(events)(a, i->n_in, !(i->flags & BY_EVENTS), at);
                memcpy(out, second, (size_t)size * sizeof *out);
                NAME(rows)(a, first, out, at, count, size);
                i->rows += count;
                break;
            }
            case EGRU:
                NAME(egru)(i, size);
                break;
            case LIF:
                NAME(lif)(i, size);
                break;
            case WKV:
                NAME(wkv)(i, size);
                break;
            case LAYER_NORM:
                NAME(layer_norm)(i, size);
                break;
            case AFFINE:
                for (int64_t j = 0; j < size; j++)
                    out[j] = a[j] * first[j] + second[j];
                break;
            case MIX: {
                const REAL *bias = i->array[2];
                for (int64_t j = 0; j < size; j++)
                    out[j] = a[j] * first[j] + b[j] * second[j] + bias[j];
                break;
            }
            case SIGMOID:
                for (int64_t j = 0; j < size; j++)
                    out[j] = NAME(sigmoid)(a[j]);
                break;
            case RELU:
                for (int64_t j = 0; j < size; j++)
                    out[j] = a[j] > 0 ? a[j] : 0;
                break;
            case SQUARED_RELU:
                for (int64_t j = 0; j < size; j++)
                    out[j] = a[j] > 0 ? a[j] * a[j] : 0;
                break;
            case SPIKE:
                for (int64_t j = 0; j < size; j++)
                    out[j] = a[j] >= 0;
                break;
            case MULTIPLY:
                for (int64_t j = 0; j < size; j++)
                    out[j] = a[j] * b[j];
                break;
            case ADD:
                for (int64_t j = 0; j < size; j++)
                    out[j] = a[j] + b[j];
                break;
            case COPY:
                memcpy(out, a, (size_t)size * sizeof *out);
            }
        }
        memcpy(logits + t * n_logits, output, (size_t)n_logits * sizeof *logits);
    }
}

#endif
