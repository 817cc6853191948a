/* Reads an image, and hands events and ticks to the kernels. */
#include "pe.h"

static uint32_t half(const uint8_t *at)
{
    return (uint32_t)at[0] | (uint32_t)at[1] << 8;
}

static uint32_t word(const uint8_t *at)
{
    return half(at) | half(at + 2) << 16;
}

static uint32_t region_bytes(const uint8_t *image, uint32_t id)
{
    return word(image + S2LM_PREFIX + id * S2LM_ENTRY + 8);
}

/* Where a region begins. */
static void *at(uint8_t *image, uint32_t id)
{
    return image + word(image + S2LM_PREFIX + id * S2LM_ENTRY + 4);
}

/* Where a region lies, if it holds `count` numbers of `item` bytes each; else NULL. */
static void *region(uint8_t *image, uint32_t id, uint64_t count, uint32_t item)
{
    return region_bytes(image, id) == count * item ? at(image, id) : (void *)0;
}

/* Rows of weights that are listed: every target must be one. */
static int sparse_open(product_t *product, const uint16_t *start, const uint8_t *gap, uint32_t kept)
{
    const uint32_t rows = product->rows, width = product->width;
    if (start[0] != 0 || start[rows] != kept)
        return PE_BAD_SIZE;
    for (uint32_t r = 0; r < rows; r++) {
        uint32_t target = 0;
        if (start[r] > start[r + 1] || start[r + 1] > kept)
            return PE_BAD_ROWS;
        for (uint32_t i = start[r]; i < start[r + 1]; i++)
            if ((target += gap[i]) >= width || (!gap[i] && i > start[r]))
                return PE_BAD_ROWS;
    }
    product->start = start;
    product->gap = gap;
    return PE_OK;
}

/* A product from its three regions; `id` is that of the first. */
static int product_open(product_t *product, uint8_t *image, uint32_t id, uint32_t rows, uint32_t width)
{
    const uint32_t kept = region_bytes(image, id + 1);
    const uint16_t *start = region(image, id, (uint64_t)rows + 1, 2);
    product->rows = rows;
    product->width = width;
    product->start = (void *)0;
    if (region(image, id, 0, 1) && !kept) {
        product->weight = region(image, id + 2, (uint64_t)rows * width, 1);
        return product->weight ? PE_OK : PE_BAD_SIZE;
    }
    product->weight = region(image, id + 2, kept, 1);
    if (!start || !product->weight)
        return PE_BAD_SIZE;
    return sparse_open(product, start, region(image, id + 1, kept, 1), kept);
}

static int shifts_open(pe_t *pe, uint32_t which, uint8_t *image, uint32_t bias, uint32_t shift, uint32_t width,
                       int32_t lowest)
{
    pe->bias[which] = region(image, bias, width, 4);
    pe->shift[which] = region(image, shift, width, 1);
    if (!pe->bias[which] || !pe->shift[which])
        return PE_BAD_SIZE;
    for (uint32_t j = 0; j < width; j++)
        if (pe->shift[which][j] < lowest || pe->shift[which][j] > 31)
            return PE_BAD_SHIFT;
    pe->products = which + 1;
    return PE_OK;
}

/* Keys: each once, and whatever they name must be rows of the products, or units of the vectors, that there are. */
static int keys_open(pe_t *pe, uint8_t *image, uint32_t id, uint32_t listens, uint32_t vectors)
{
    pe->keys = region(image, id, (uint64_t)listens * 4, 4);
    pe->listens = listens;
    if (!pe->keys)
        return PE_BAD_SIZE;
    for (uint32_t i = 0; i < listens; i++) {
        const uint32_t *entry = pe->keys + 4 * i;
        if (i && entry[0] <= entry[-4])
            return PE_BAD_FIELD;
        if ((entry[0] & ~S2LM_KEY_MASK) || entry[3] >= pe->products + vectors)
            return PE_BAD_FIELD;
        const uint32_t port = entry[3];
        const uint32_t rows = port < pe->products ? pe->product[port].rows : pe->vector[port - pe->products].length;
        if (entry[1] > rows || entry[2] > rows - entry[1])
            return PE_BAD_FIELD;
    }
    return PE_OK;
}

static int within(const int16_t *value, uint32_t count, int32_t low)
{
    for (uint32_t j = 0; j < count; j++)
        if (value[j] < low || value[j] > S2LM_ONE)
            return 0;
    return 1;
}

static int egru_open(pe_t *pe, uint8_t *image)
{
    const uint32_t *field = pe->field, width = 3 * pe->units, port_regions = EGRU_AT_ROWS_Q - EGRU_AT_ROWS_A;
    const uint32_t rows[2] = {field[EGRU_INPUTS], field[EGRU_LAYER_UNITS]};
    int32_t *sum = region(image, EGRU_AT_ACCUMULATORS, (uint64_t)2 * width, 4);
    pe->cell = region(image, EGRU_AT_CELL, pe->units, 2);
    pe->thr = region(image, EGRU_AT_THR, pe->units, 2);
    pe->sigmoid = region(image, EGRU_AT_SIGMOID, S2LM_TABLE_SIZE, 2);
    pe->tanh = region(image, EGRU_AT_TANH, S2LM_TABLE_SIZE, 2);
    if (!sum || !pe->cell || !pe->thr || !pe->sigmoid || !pe->tanh)
        return PE_BAD_SIZE;
    /* then |c| and |y| never pass 1: no later step can overflow */
    if (field[EGRU_ZONEOUT] > S2LM_ONE || !within(pe->thr, pe->units, 0) ||
        !within(pe->sigmoid, S2LM_TABLE_SIZE, 0) || !within(pe->tanh, S2LM_TABLE_SIZE, -S2LM_ONE))
        return PE_BAD_FIELD;
    for (uint32_t port = 0; port < 2; port++) {
        int error = shifts_open(pe, port, image, EGRU_AT_BIAS_A + port, EGRU_AT_SHIFT_A + port, width, 0);
        if (!error)
            error = product_open(&pe->product[port], image, EGRU_AT_ROWS_A + port * port_regions, rows[port], width);
        if (error)
            return error;
        pe->product[port].sum = sum + port * width;
    }
    return keys_open(pe, image, EGRU_AT_KEYS, field[EGRU_LISTENS], 0);
}

static int head_open(pe_t *pe, uint8_t *image)
{
    pe->own_key |= S2LM_LOGITS;
    pe->product[0].sum = region(image, HEAD_AT_ACCUMULATORS, pe->units, 4);
    int error = shifts_open(pe, 0, image, HEAD_AT_BIAS, HEAD_AT_SHIFT, pe->units, -15);
    if (!error)
        error = product_open(&pe->product[0], image, HEAD_AT_ROWS, pe->field[HEAD_INPUTS], pe->units);
    if (error || !pe->product[0].sum)
        return error ? error : PE_BAD_SIZE;
    return keys_open(pe, image, HEAD_AT_KEYS, pe->field[HEAD_LISTENS], 0);
}

static int embedding_open(pe_t *pe, uint8_t *image)
{
    pe->exponent = region(image, EMBEDDING_AT_EXPONENT, pe->units, 1);
    if (!pe->exponent || pe->field[EMBEDDING_X_FRAC] > 15 || pe->field[EMBEDDING_WIDTH] > 65536)
        return pe->exponent ? PE_BAD_FIELD : PE_BAD_SIZE;
    for (uint32_t j = 0; j < pe->units; j++) {
        const int32_t up = (int32_t)pe->field[EMBEDDING_X_FRAC] - pe->exponent[j];
        if (up < -31 || up > 31)
            return PE_BAD_SHIFT;
    }
    return product_open(&pe->product[0], image, EMBEDDING_AT_ROWS, pe->units, pe->field[EMBEDDING_WIDTH]);
}

/* How many factors an instruction reads. */
static const uint8_t factors_of[S2LM_OPS] = {[OP_NORM] = 2, [OP_MIX] = 3, [OP_LIF] = 5, [OP_WKV] = 2};

static int instruction_open(const pe_t *pe, const int32_t *i)
{
    const uint32_t registers = pe->field[PROGRAM_REGISTERS], op = (uint32_t)i[OP], factor = (uint32_t)i[FACTOR];
    if (op >= S2LM_OPS || factor > pe->field[PROGRAM_FACTORS] || factors_of[op] > pe->field[PROGRAM_FACTORS] - factor)
        return PE_BAD_PROGRAM;
    for (uint32_t at = OUT; at <= D; at++)
        if ((uint32_t)i[at] >= registers)
            return PE_BAD_PROGRAM;
    const uint32_t port = (uint32_t)i[PORT], vector = port - pe->products;
    const uint32_t length = vector < pe->field[PROGRAM_VECTORS] ? pe->vector[vector].length : 0;
    const int wide = op == OP_SIGMOID || op == OP_MIX || op == OP_SQUARED_RELU || op == OP_MULTIPLY || op == OP_NORM;
    if (wide && (i[S0] < -15 || i[S0] > 31))
        return PE_BAD_SHIFT;
    switch (op) {
    case OP_PRODUCT:
        return port < pe->products ? PE_OK : PE_BAD_PROGRAM;
    case OP_NORM:
        if (i[S2] < 0 || i[S2] >= 1 << 29 || (!i[S2] && !i[S1]) || length >= 1 << 14)
            return PE_BAD_PROGRAM; /* fall through */
    case OP_SLICE:
        return length && length >= pe->field[PROGRAM_UNIT_LO] + (uint64_t)pe->units ? PE_OK : PE_BAD_PROGRAM;
    case OP_SIGMOID:
        return pe->sigmoid ? PE_OK : PE_BAD_PROGRAM;
    case OP_WKV:
        return pe->power && i[S0] >= 0 && i[S0] <= 20 && (uint32_t)i[S1] < registers ? PE_OK : PE_BAD_PROGRAM;
    case OP_ADD: {
        const int32_t low = i[S0] < i[S1] ? i[S0] : i[S1], high = i[S0] < i[S1] ? i[S1] : i[S0];
        return low >= -64 && high <= 64 && high - low <= 14 && i[S2] >= -64 && i[S2] <= 64 && high - i[S2] >= -15 &&
               high - i[S2] <= 31 ? PE_OK : PE_BAD_SHIFT;
    }
    case OP_SEND:
        return i[S0] > 0 && (uint32_t)i[S0] < S2LM_LOG >> 24 ? PE_OK : PE_BAD_PROGRAM;
    default:
        return PE_OK;
    }
}

static int program_open(pe_t *pe, uint8_t *image)
{
    const uint32_t *field = pe->field, n = pe->units, products = field[PROGRAM_PRODUCTS];
    const uint32_t vectors = field[PROGRAM_VECTORS], registers = field[PROGRAM_REGISTERS];
    if (products > S2LM_MOST_PRODUCTS || vectors > S2LM_MOST_VECTORS || !registers)
        return PE_BAD_FIELD;
    const uint32_t *product = region(image, PROGRAM_AT_PRODUCTS, products * 5, 4);
    const uint32_t *vector = region(image, PROGRAM_AT_VECTORS, vectors * 2, 4);
    const int32_t *bias = region(image, PROGRAM_AT_BIAS, (uint64_t)products * n, 4);
    const int8_t *shift = region(image, PROGRAM_AT_SHIFT, (uint64_t)products * n, 1);
    int32_t *sum = region(image, PROGRAM_AT_ACCUMULATORS, (uint64_t)products * n, 4);
    pe->factors = region(image, PROGRAM_AT_FACTORS, (uint64_t)field[PROGRAM_FACTORS] * n, 4);
    pe->registers = region(image, PROGRAM_AT_REGISTERS, (uint64_t)registers * n, 4);
    pe->initial = region(image, PROGRAM_AT_INITIAL, registers, 4);
    pe->program = region(image, PROGRAM_AT_PROGRAM, (uint64_t)field[PROGRAM_INSTRUCTIONS] * INSTRUCTION, 4);
    if (region_bytes(image, PROGRAM_AT_ROWS) % 2 || region_bytes(image, PROGRAM_AT_GATHERED) % 2)
        return PE_BAD_SIZE;
    if (!product || !vector || !bias || !shift || !sum || !pe->factors || !pe->registers || !pe->initial || !pe->program)
        return PE_BAD_SIZE;
    pe->instructions = field[PROGRAM_INSTRUCTIONS];
    if (region_bytes(image, PROGRAM_AT_SIGMOID))
        pe->sigmoid = region(image, PROGRAM_AT_SIGMOID, S2LM_TABLE_SIZE, 2);
    if (region_bytes(image, PROGRAM_AT_POWER))
        pe->power = region(image, PROGRAM_AT_POWER, S2LM_POWER_SIZE, 4);
    if ((region_bytes(image, PROGRAM_AT_SIGMOID) && !pe->sigmoid) ||
        (region_bytes(image, PROGRAM_AT_POWER) && !pe->power))
        return PE_BAD_SIZE;
    for (uint32_t port = 0; port < products; port++, product += 5) {
        /* sources, then where its part of rows, gaps and weight begins, and how many weights are listed */
        product_t *to = &pe->product[port];
        const uint32_t rows = product[0], kept = product[4], dense = kept == 0xffffffffu;
        const uint64_t weights = dense ? (uint64_t)rows * n : kept;
        to->rows = rows;
        to->width = n;
        to->sum = sum + (uint64_t)port * n;
        pe->bias[port] = bias + (uint64_t)port * n;
        pe->shift[port] = shift + (uint64_t)port * n;
        for (uint32_t j = 0; j < n; j++)
            if (pe->shift[port][j] < -15 || pe->shift[port][j] > 31)
                return PE_BAD_SHIFT;
        if (product[3] + weights > region_bytes(image, PROGRAM_AT_WEIGHT))
            return PE_BAD_SIZE;
        to->weight = (const int8_t *)at(image, PROGRAM_AT_WEIGHT) + product[3];
        if (dense)
            continue;
        if ((product[1] + (uint64_t)rows + 1) * 2 > region_bytes(image, PROGRAM_AT_ROWS) ||
            product[2] + (uint64_t)kept > region_bytes(image, PROGRAM_AT_GAPS))
            return PE_BAD_SIZE;
        const uint16_t *start = (const uint16_t *)at(image, PROGRAM_AT_ROWS) + product[1];
        const int error = sparse_open(to, start, (const uint8_t *)at(image, PROGRAM_AT_GAPS) + product[2], kept);
        if (error)
            return error;
    }
    pe->products = products;
    for (uint32_t port = 0; port < vectors; port++, vector += 2) {
        if ((vector[1] + (uint64_t)vector[0]) * 2 > region_bytes(image, PROGRAM_AT_GATHERED))
            return PE_BAD_SIZE;
        pe->vector[port].length = vector[0];
        pe->vector[port].at = (int16_t *)at(image, PROGRAM_AT_GATHERED) + vector[1];
    }
    for (uint32_t i = 0; i < pe->instructions; i++) {
        const int error = instruction_open(pe, pe->program + i * INSTRUCTION);
        if (error)
            return error;
    }
    return keys_open(pe, image, PROGRAM_AT_KEYS, field[PROGRAM_LISTENS], vectors);
}

int pe_open(pe_t *pe, uint8_t *image, uint32_t room)
{
    static const uint32_t regions[] = {EGRU_END, 0, HEAD_END, EMBEDDING_END, PROGRAM_END};
    static const uint32_t count_field[] = {EGRU_REGIONS, 0, HEAD_REGIONS, EMBEDDING_REGIONS, PROGRAM_REGIONS};
    if (room < S2LM_PREFIX || word(image) != S2LM_MAGIC)
        return PE_NO_IMAGE;
    for (uint32_t i = 0; i < sizeof *pe; i++)
        ((uint8_t *)pe)[i] = 0;
    pe->kind = half(image + 6);
    pe->field = (const uint32_t *)(const void *)(image + 8);
    if (half(image + 4) != S2LM_VERSION || pe->kind >= sizeof regions / sizeof *regions || !regions[pe->kind])
        return PE_OTHER_VERSION;
    const uint32_t count = regions[pe->kind];
    if (pe->field[count_field[pe->kind]] != count || room < S2LM_PREFIX + count * S2LM_ENTRY)
        return PE_BAD_REGION;
    uint32_t free = S2LM_PREFIX + count * S2LM_ENTRY; /* no region overlaps another: some are written */
    for (uint32_t id = 0; id < count; id++) {
        const uint8_t *entry = image + S2LM_PREFIX + id * S2LM_ENTRY;
        const uint32_t offset = word(entry + 4), size = word(entry + 8);
        if (word(entry) != id || offset % S2LM_ALIGN || offset < free || offset > room || size > room - offset)
            return PE_BAD_REGION;
        free = offset + size;
    }
    pe->units = pe->field[EGRU_UNITS]; /* the first fields are the same of every kind */
    if (pe->field[EGRU_SLICE] > 255 || pe->field[EGRU_LAYER] > 251 || pe->units > 65536)
        return PE_BAD_FIELD;
    pe->own_key = pe->field[EGRU_SLICE] << 16;
    if (pe->kind == S2LM_EGRU)
        pe->own_key |= (pe->field[EGRU_LAYER] + 1) << 24;
    const int error = pe->kind == S2LM_EGRU   ? egru_open(pe, image)
                      : pe->kind == S2LM_HEAD ? head_open(pe, image)
                      : pe->kind == S2LM_EMBEDDING ? embedding_open(pe, image)
                                                   : program_open(pe, image);
    if (!error)
        pe_reset(pe);
    return error;
}

void pe_reset(pe_t *pe)
{
    for (uint32_t port = 0; port < pe->products && pe->bias[port]; port++)
        product_begin(&pe->product[port], pe->bias[port]);
    for (uint32_t r = 0; pe->kind == S2LM_PROGRAM && r < pe->field[PROGRAM_REGISTERS]; r++)
        for (uint32_t j = 0; j < pe->units; j++)
            pe->registers[r * pe->units + j] = pe->initial[r];
    for (uint32_t port = 0; pe->kind == S2LM_PROGRAM && port < pe->field[PROGRAM_VECTORS]; port++)
        for (uint32_t j = 0; j < pe->vector[port].length; j++)
            pe->vector[port].at[j] = 0;
    for (uint32_t j = 0; pe->cell && j < pe->units; j++)
        pe->cell[j] = 0;
    pe->token = -1;
    pe->strays = pe->heard = 0;
}

/* Keep what the units of a vector sent; how many events were of no such unit. */
static uint32_t vector_keep(const vector_t *vector, uint32_t first, uint32_t units, const event_t *event, uint32_t count)
{
    uint32_t strays = 0;
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t unit = event[i].key & ~S2LM_KEY_MASK;
        if (unit < units)
            vector->at[first + unit] = (int16_t)event[i].payload;
        else
            strays++;
    }
    return strays;
}

void pe_receive(pe_t *pe, const event_t *event, uint32_t count)
{
    const uint32_t base = event->key & S2LM_KEY_MASK;
    if (pe->kind == S2LM_EMBEDDING) {
        const uint32_t row = (uint32_t)event[count - 1].payload - pe->field[EMBEDDING_UNIT_LO];
        pe->token = base == S2LM_TOKEN && row < pe->units ? (int32_t)row : -1;
        pe->strays += base != S2LM_TOKEN;
        return;
    }
    /* Events mostly come slice after slice: look where the last one was found, then search by halves. */
    const uint32_t *entry = pe->keys + 4 * pe->heard;
    if (!pe->listens || *entry != base) {
        uint32_t low = 0, high = pe->listens;
        while (low < high) {
            const uint32_t middle = (low + high) / 2;
            if (pe->keys[4 * middle] < base)
                low = middle + 1;
            else
                high = middle;
        }
        entry = pe->keys + 4 * low;
        if (low == pe->listens || *entry != base) {
            pe->strays += count;
            return;
        }
        pe->heard = low;
    }
    const uint32_t port = entry[3];
    pe->strays += port < pe->products
                      ? product_add(&pe->product[port], entry[1], entry[2], event, count)
                      : vector_keep(&pe->vector[port - pe->products], entry[1], entry[2], event, count);
}

void pe_tick(pe_t *pe, send_t *send, void *to)
{
    if (pe->kind == S2LM_EGRU)
        egru_tick(pe, send, to);
    else if (pe->kind == S2LM_HEAD)
        head_tick(pe, send, to);
    else if (pe->kind == S2LM_EMBEDDING)
        embedding_tick(pe, send, to);
    else
        program_tick(pe, send, to);
}
