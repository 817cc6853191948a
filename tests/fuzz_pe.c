/* The firmware on damaged images, to be compiled with sanitizers: reads (u32 length, image)s from a file, opens each in a
 * block of exactly its size, and runs those that are accepted. Prints a line "accepted of images". */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host.h"

enum { TICKS = 6, WIDTH = 8 };
static uint64_t state = 88172645463325252u;
static uint32_t sent;

static uint32_t draw(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 16);
}

static void count(void *to, uint32_t key, int32_t payload)
{
    (void)to, (void)key, (void)payload;
    sent++;
}

static void hear(pe_t *pe, uint32_t key, int32_t payload)
{
    pe_receive(pe, &(event_t){key, payload}, 1);
}

/* Events of every key it listens to, and of random ones, with extreme payloads. */
static void events(pe_t *pe)
{
    static const int32_t payloads[] = {0, 1, -1, S2LM_ONE, -S2LM_ONE, 32767, -32768, INT32_MAX, INT32_MIN};
    const uint32_t n = sizeof payloads / sizeof *payloads;
    for (uint32_t i = 0; i < pe->listens; i++) {
        const uint32_t base = pe->keys[4 * i], units = pe->keys[4 * i + 2];
        for (uint32_t unit = 0; unit <= units && unit < 64; unit++)
            hear(pe, base + unit, payloads[draw() % n]);
        hear(pe, base + units - 1, payloads[draw() % n]);
    }
    for (uint32_t i = 0; i < 16; i++)
        hear(pe, draw(), payloads[draw() % n]);
    if (pe->kind == S2LM_EMBEDDING)
        hear(pe, S2LM_TOKEN, draw() & 1 ? (int32_t)draw() : (int32_t)(pe->field[EMBEDDING_UNIT_LO] + draw() % 9));
}

static slice_t join(const pe_t *pe, uint32_t base, uint32_t units, const uint8_t *image)
{
    int64_t *start = malloc((units + 1) * sizeof *start);
    const int64_t kept = host_join(pe, 1, base, units, (const int32_t *)image, start, NULL, NULL);
    int32_t *at = malloc(kept * sizeof *at);
    int8_t *weight = malloc(kept * sizeof *weight);
    host_join(pe, 1, base, units, (const int32_t *)image, start, at, weight);
    return (slice_t){.at = at, .weight = weight, .start = start, .units = units};
}

static void run(pe_t *pe, uint8_t *image)
{
    const uint64_t most = pe->kind == S2LM_EMBEDDING ? pe->field[EMBEDDING_WIDTH]
                          : pe->kind == S2LM_PROGRAM ? (uint64_t)pe->instructions * pe->units
                                                     : pe->units;
    for (int tick = 0; tick < TICKS; tick++) {
        events(pe);
        sent = 0;
        pe_tick(pe, count, 0);
        if (sent > most)
            abort();
    }
    pe_reset(pe);
    const int64_t last = 1, tokens[2] = {pe->field[EMBEDDING_UNIT_LO], 1};
    const int32_t vectors[2][WIDTH] = {{0}, {1, -1, 127, -128, INT32_MAX, INT32_MIN, 0, 5}};
    const int64_t held = most > WIDTH ? most : WIDTH, logits = pe->kind == S2LM_HEAD ? pe->units : 0;
    event_t *room = malloc(held * sizeof *room);
    int32_t *out = malloc(2 * logits * sizeof *out);
    uint32_t hashes[2];
    const int64_t pair[2] = {0, 1};
    const int embeds = pe->kind == S2LM_EMBEDDING;
    /* it hears every key, those of its sparse weights as joined rows */
    static int32_t of_base[65536], itself;
    slice_t *slice = calloc(1 + pe->listens, sizeof *slice);
    memset(of_base, 0, sizeof of_base);
    *slice = (slice_t){.listener = &itself, .listeners = 1};
    for (uint32_t i = 0; i < pe->listens; i++) {
        const uint32_t base = pe->keys[4 * i], units = pe->keys[4 * i + 2];
        if (host_joins(pe, base)) {
            of_base[base >> 16] = 1 + (int32_t)i;
            slice[1 + i] = join(pe, base, units < 64 ? units : 64, image);
        }
    }
    host_run(pe, &last, 1, embeds ? NULL : *vectors, WIDTH, slice, of_base, (int32_t *)image, embeds ? tokens : pair, 2,
             out, logits, hashes, room, NULL, NULL);
    for (uint32_t i = 0; i <= pe->listens; i++) {
        free((void *)slice[i].at);
        free((void *)slice[i].weight);
        free((void *)slice[i].start);
    }
    free(slice);
    free(room);
    free(out);
}

int main(int argc, char **argv)
{
    FILE *file = argc == 2 ? fopen(argv[1], "rb") : NULL;
    uint32_t size, images = 0, accepted = 0;
    if (!file)
        return 2;
    for (; fread(&size, 4, 1, file) == 1; images++) {
        uint8_t *image = malloc(size);
        pe_t pe;
        if (fread(image, 1, size, file) != size)
            return 2;
        if (host_open(&pe, image, size) == PE_OK) {
            accepted++;
            run(&pe, image);
        }
        free(image);
    }
    fclose(file);
    printf("%u of %u\n", accepted, images);
    return 0;
}
