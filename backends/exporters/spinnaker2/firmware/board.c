/* The machine as a board, to fill in with its vendor's kit in place of qemu.c. A program is main.c or selftest.c with
 * this file and pe.c, product.c, egru.c, head.c, embedding.c, program.c, freestanding, for the Cortex-M4F. The kit
 * starts it, with the memory of pe.ld or a map of its own, and calls main(). Compile with -DS2LM_BOARD: the guard words
 * of pe.ld are then left to the kit. As it stands every function below ends the program: there is no image, which
 * main.c reports as HAL_REFUSED, and nothing comes. */
#include "s2_hal.h"

/* The image pe/NNN.bin of this element, which the host loaded into data memory on a boundary of 16 bytes before the
 * program began, and the bytes that may be read and written there: the file's own, or all that is left. For the
 * self-test any writable room of 16 KiB. */
uint8_t *hal_image(uint32_t *room)
{
    *room = 0;
    return (void *)0;
}

/* Sleep until something comes, then take one thing from a queue that the interrupt handlers fill: a multicast packet,
 * its routing key in *key and its 32 bits of payload in *payload, is HAL_EVENT; the timer's tick is HAL_TICK, and
 * comes after every packet that arrived before it; HAL_STOP when the host ends the run. No packet may be lost: a queue
 * that is full must be logged. */
int hal_next(uint32_t *key, int32_t *payload)
{
    (void)key;
    (void)payload;
    return HAL_STOP;
}

/* Send a multicast packet with this routing key and payload; wait while the network takes none. An element may listen
 * to itself: the routing tables say so, not this function. */
void hal_send(uint32_t key, int32_t payload)
{
    (void)key;
    (void)payload;
}

/* The processor's cycle counter, such as DWT->CYCCNT once it is enabled. */
uint32_t hal_cycles(void)
{
    return 0;
}

/* Bring (what, value) to the host, in order and apart from the events: a word in shared memory, or a packet to the
 * host's port. HAL_HASH and HAL_CYCLES come each tick; every other one is an end that the host must show. */
void hal_log(uint32_t what, uint32_t value)
{
    (void)what;
    (void)value;
}

/* Wait until what was logged has reached the host, and end: 0 is success. */
void hal_stop(int code)
{
    (void)code;
    for (;;)
        ;
}
