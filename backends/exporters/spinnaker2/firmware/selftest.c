/* A self-test of one element, without any other: small images of every kind hear the events of selftest_data.h, which
 * Python made, and must give its hashes. Logs HAL_PASSED with the ticks compared, or HAL_FAILED with the case in the
 * upper half and the first failing tick in the lower: from 1, or 0 where the image was refused. */
#include "pe.h"
#include "s2_hal.h"
#include "selftest_data.h"

/* The hash of what a tick sends. */
static void send(void *to, uint32_t key, int32_t payload)
{
    uint32_t *sent = to;
    *sent = fold(fold(*sent, (int32_t)key), payload);
}

/* The first failing tick of a case, or -1. */
static int32_t run(const selftest_t *test, uint8_t *image, uint32_t room)
{
    static pe_t pe;
    if (test->bytes > room)
        return 0;
    for (uint32_t i = 0; i < test->bytes; i++)
        image[i] = test->image[i];
    if (pe_open(&pe, image, test->bytes))
        return 0;
    const uint32_t *expected = test->expected;
    int32_t tick = 0;
    for (uint32_t i = 0; i < test->records; i++) {
        const uint32_t *record = test->heard + 2 * i;
        if (record[0] != S2LM_LOG) {
            pe_receive(&pe, &(event_t){record[0], (int32_t)record[1]}, 1);
            continue;
        }
        uint32_t sent = 0;
        pe_tick(&pe, send, &sent);
        tick++;
        if (pe.hash != expected[0] || sent != expected[1] || pe.strays)
            return tick;
        expected += 2;
    }
    return -1;
}

int main(void)
{
    uint32_t room, ticks = 0;
    uint8_t *image = hal_image(&room);
    for (uint32_t i = 0; i < SELFTESTS; i++) {
        const int32_t wrong = run(&selftests[i], image, room);
        if (wrong >= 0) {
            hal_log(HAL_FAILED, i << 16 | (uint32_t)wrong);
            return 1;
        }
        ticks += selftests[i].ticks;
    }
    hal_log(HAL_PASSED, ticks);
    return 0;
}
