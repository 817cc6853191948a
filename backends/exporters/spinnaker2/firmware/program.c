/* A section of a SpikeGPT: some units that run a short program a tick, over what products and vectors have gathered.
 * The arithmetic is that of arithmetic_rwkv.py. */
#include "pe.h"

enum { FACTOR_FRAC = 14, POWER_FRAC = 30, POWER_STEPS = 8, EXPONENT_FRAC = 20, WEIGHT_FRAC = 29 };
enum { RESETS = 1, TERNARY = 2, GRADED = 4 };
#define LOG2_E 1549082005

static int32_t shift_right64(int64_t x, uint32_t s)
{
    return (int32_t)((x + (int64_t)(((uint64_t)1 << s) >> 1)) >> s);
}

static int32_t narrow(int64_t x, int32_t s)
{
    const int64_t right = s > 0 ? (x + ((int64_t)1 << s >> 1)) >> s : x;
    const int32_t held = right > 32767 ? 32767 : right < -32768 ? -32768 : (int32_t)right;
    return s < 0 ? saturate16((int32_t)((uint32_t)held << -s)) : held;
}

/* floor((x + floor(d / 2)) / d) */
static int32_t divide(int32_t x, int32_t d)
{
    if (d < 1)
        d = 1;
    const int64_t sum = (int64_t)x + (d >> 1);
    const int32_t n = sum > 0x7fffffff ? 0x7fffffff : (int32_t)sum, quotient = n / d;
    return quotient - (n % d < 0);
}

static int32_t bit_length(uint64_t x)
{
    return x ? 64 - __builtin_clzll(x) : 0;
}

/* The integer nearest to the root of m. */
static uint32_t square_root(uint32_t m)
{
    uint32_t root = 0, rest = m;
    for (uint32_t bit = 1u << 30; bit; bit >>= 2) {
        if (rest >= root + bit) {
            rest -= root + bit;
            root = (root >> 1) + bit;
        } else {
            root >>= 1;
        }
    }
    return root + (rest > root);
}

static int32_t power(const int32_t *table, int32_t d)
{
    const uint32_t whole = (uint32_t)d >> EXPONENT_FRAC, part = (uint32_t)d & ((1u << EXPONENT_FRAC) - 1);
    const uint32_t step = EXPONENT_FRAC - POWER_STEPS, i = part >> step, f = part & ((1u << step) - 1);
    if (whole > POWER_FRAC)
        return 0;
    return shift_right64(add32(table[i], shift_right64(((int64_t)table[i + 1] - table[i]) * f, step)), whole);
}

typedef struct {
    int32_t p, q;
} sums_t;

static sums_t weighed(sums_t sums, int32_t v, int32_t a, int32_t e)
{
    const int32_t p = shift_right64((int64_t)a * sums.p, POWER_FRAC);
    const int32_t q = shift_right64((int64_t)a * sums.q, POWER_FRAC);
    return (sums_t){
        add32(p, shift_right64((int64_t)e * v, POWER_FRAC - FACTOR_FRAC)),
        add32(q, shift_right64(e, POWER_FRAC - WEIGHT_FRAC)),
    };
}

static int32_t greater(int32_t a, int32_t b)
{
    return a > b ? a : b;
}

static int32_t less(int32_t a, int32_t b)
{
    return add32(a, add32(~b, 1));
}

/* One WKV unit; returns y. */
static int32_t wkv(const int32_t *table, int32_t k, int32_t v, sums_t *sums, int32_t *o, int32_t decay, int32_t first,
                   int32_t k_frac)
{
    k = shift_right64((int64_t)k * LOG2_E, (uint32_t)(k_frac + POWER_FRAC - EXPONENT_FRAC));
    const int32_t now = add32(first, k), past = less(*o, decay);
    int32_t n = greater(*o, now);
    const sums_t out = weighed(*sums, v, power(table, less(n, *o)), power(table, less(n, now)));
    const int32_t y = saturate16(divide(out.p, shift_right64(out.q, WEIGHT_FRAC - FACTOR_FRAC)));
    n = greater(past, k);
    *sums = weighed(*sums, v, power(table, less(n, past)), power(table, less(n, k)));
    if (sums->q >= 1 << (WEIGHT_FRAC + 1)) {
        sums->p = shift_right64(sums->p, 1);
        sums->q = shift_right64(sums->q, 1);
        n = add32(n, 1 << EXPONENT_FRAC);
    }
    const int32_t least = multiply32(sums->q, -1);
    sums->p = sums->p > sums->q ? sums->q : sums->p < least ? least : sums->p;
    *o = n;
    return y;
}

/* The statistics of a vector: R and h with 1 / deviation = R 2^-(31 + h), and the sum. */
static int32_t statistics(const int16_t *x, int32_t n, int64_t eps, int32_t *h, int32_t *total)
{
    int64_t squares = 0;
    int32_t sum = 0;
    for (int32_t i = 0; i < n; i++) {
        sum += x[i];
        squares += (int32_t)x[i] * x[i];
    }
    const uint64_t a = (uint64_t)(n * squares - (int64_t)sum * sum + eps);
    *total = sum;
    *h = (bit_length(a) - 31) >> 1;
    const uint32_t m = (uint32_t)(*h > 0 ? a >> (2 * *h) : a << (-2 * *h)), g = square_root(m);
    return (int32_t)(((1u << 31) + (g >> 1)) / g);
}

static void norm(pe_t *pe, const int32_t *i, int32_t *out, const int32_t *weight)
{
    const vector_t *vector = &pe->vector[(uint32_t)i[PORT] - pe->products];
    const int16_t *x = vector->at;
    const int32_t n = (int32_t)vector->length, *bias = weight + pe->units;
    const int16_t *own = x + pe->field[PROGRAM_UNIT_LO];
    int32_t h, total;
    const int32_t root = statistics(x, n, (int64_t)((uint64_t)(uint32_t)i[S2] << 32 | (uint32_t)i[S1]), &h, &total);
    for (uint32_t j = 0; j < pe->units; j++) {
        const int32_t u = shift_right64((int64_t)(n * own[j] - total) * root, (uint32_t)(31 + h - FACTOR_FRAC));
        out[j] = narrow((int64_t)u * weight[j] + bias[j], i[S0]);
    }
}

static void lif(const pe_t *pe, const int32_t *i, int32_t *out, const int32_t *x, int32_t *v, const int32_t *leak)
{
    const uint32_t n = pe->units;
    const int32_t *gain = leak + n, *offset = gain + n, *threshold = offset + n, *step = threshold + n;
    for (uint32_t j = 0; j < n; j++) {
        const int32_t sum = add32(add32(multiply32(leak[j], v[j]), multiply32(gain[j], x[j])), offset[j]);
        const int32_t h = narrow(sum, FACTOR_FRAC);
        int32_t s = h > threshold[j];
        if (i[S1] & TERNARY)
            s -= -h > threshold[j];
        v[j] = i[S1] & RESETS ? (s ? i[S0] : h) : less(h, multiply32(s, step[j]));
        out[j] = i[S1] & GRADED ? (s ? h : 0) : s;
    }
}

static void elementwise(const pe_t *pe, const int32_t *i, int32_t *out, const int32_t *a, const int32_t *b,
                        const int32_t *factor)
{
    const uint32_t n = pe->units;
    const int32_t s = i[S0], frac = greater(i[S0], i[S1]);
    for (uint32_t j = 0; j < n; j++)
        switch (i[OP]) {
        case OP_MIX:
            out[j] = narrow(add32(add32(multiply32(a[j], factor[j]), multiply32(b[j], factor[n + j])),
                                  factor[2 * n + j]), s);
            break;
        case OP_SIGMOID:
            out[j] = look_up(pe->sigmoid, rescale(a[j], s));
            break;
        case OP_SQUARED_RELU:
            out[j] = narrow(a[j] > 0 ? (int64_t)a[j] * a[j] : 0, s);
            break;
        case OP_MULTIPLY:
            out[j] = narrow((int64_t)a[j] * b[j], s);
            break;
        case OP_ADD:
            out[j] = narrow((int64_t)a[j] * ((int64_t)1 << (frac - i[S0])) + (int64_t)b[j] * ((int64_t)1 << (frac - i[S1])),
                            frac - i[S2]);
            break;
        case OP_SPIKE:
            out[j] = a[j] >= 0;
            break;
        case OP_MOVE:
            out[j] = a[j];
            break;
        }
}

void program_tick(pe_t *pe, send_t *send, void *to)
{
    const uint32_t n = pe->units;
    for (uint32_t at = 0; at < pe->instructions; at++) {
        const int32_t *i = pe->program + at * INSTRUCTION;
        int32_t *out = pe->registers + (uint32_t)i[OUT] * n, *a = pe->registers + (uint32_t)i[A] * n;
        int32_t *b = pe->registers + (uint32_t)i[B] * n, *c = pe->registers + (uint32_t)i[C] * n;
        int32_t *d = pe->registers + (uint32_t)i[D] * n;
        const int32_t *factor = pe->factors + (uint32_t)i[FACTOR] * n;
        switch (i[OP]) {
        case OP_PRODUCT:
            for (uint32_t j = 0; j < n; j++) {
                const int32_t sum = pe->product[i[PORT]].sum[j], s = pe->shift[i[PORT]][j];
                out[j] = i[S0] ? narrow(sum, s) : rescale(sum, s);
            }
            break;
        case OP_SLICE:
            for (uint32_t j = 0; j < n; j++)
                out[j] = pe->vector[(uint32_t)i[PORT] - pe->products].at[pe->field[PROGRAM_UNIT_LO] + j];
            break;
        case OP_NORM:
            norm(pe, i, out, factor);
            break;
        case OP_LIF:
            lif(pe, i, out, a, b, factor);
            break;
        case OP_WKV:
            for (uint32_t j = 0; j < n; j++) {
                sums_t sums = {c[j], d[j]};
                int32_t *o = pe->registers + (uint32_t)i[S1] * n + j;
                out[j] = wkv(pe->power, a[j], b[j], &sums, o, factor[j], factor[n + j], i[S0]);
                c[j] = sums.p;
                d[j] = sums.q;
            }
            break;
        case OP_SEND:
            for (uint32_t j = 0; j < n; j++)
                if (a[j])
                    send(to, pe->own_key | (uint32_t)i[S0] << 24 | j, a[j]);
            break;
        default:
            elementwise(pe, i, out, a, b, factor);
        }
    }
    uint32_t hash = 0;
    for (uint32_t j = 0; j < pe->field[PROGRAM_REGISTERS] * n; j++)
        hash = fold(hash, pe->registers[j]);
    pe->hash = hash;
    for (uint32_t port = 0; port < pe->products; port++)
        product_begin(&pe->product[port], pe->bias[port]);
    for (uint32_t port = 0; port < pe->field[PROGRAM_VECTORS]; port++)
        for (uint32_t j = 0; j < pe->vector[port].length; j++)
            pe->vector[port].at[j] = 0;
}
