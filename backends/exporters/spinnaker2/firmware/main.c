/* The program of a processing element. */
#include "pe.h"
#include "s2_hal.h"

#define GUARD 0x5afe57acu

#ifdef S2LM_BOARD
/* A kit's linker script has no such words: these two never change. */
static uint32_t stack_guard, data_guard;
#else
/* The linker script puts these at the ends of stack and data. */
extern uint32_t stack_guard, data_guard;
#endif

static void send(void *to, uint32_t key, int32_t payload)
{
    (void)to;
    hal_send(key, payload);
}

int main(void)
{
    static pe_t pe;
    uint32_t room;
    event_t event;
    stack_guard = data_guard = GUARD;
    uint8_t *image = hal_image(&room);
    const int error = pe_open(&pe, image, room);
    if (error) {
        hal_log(HAL_REFUSED, (uint32_t)error);
        return error;
    }
    uint32_t busy = 0;
    for (;;) {
        const int what = hal_next(&event.key, &event.payload);
        if (what == HAL_STOP)
            return 0;
        const uint32_t before = hal_cycles();
        if (what == HAL_EVENT) {
            pe_receive(&pe, &event, 1);
            busy += hal_cycles() - before;
            continue;
        }
        pe_tick(&pe, send, (void *)0);
        busy += hal_cycles() - before;
        hal_log(HAL_HASH, pe.hash);
        hal_log(HAL_CYCLES, busy);
        busy = 0;
        if (pe.strays) {
            hal_log(HAL_STRAYS, pe.strays);
            return 1;
        }
        if (stack_guard != GUARD || data_guard != GUARD) {
            hal_log(HAL_GUARD, stack_guard == GUARD);
            return 1;
        }
    }
}
