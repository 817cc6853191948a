/* What the firmware needs of the machine that it runs on: QEMU in qemu.c, a board in board.c. */
#ifndef S2LM_HAL_H
#define S2LM_HAL_H

#include <stdint.h>

/* The image, in data memory, and the room that it may take. */
uint8_t *hal_image(uint32_t *room);

/* Wait: HAL_EVENT for each event that came before the tick, then HAL_TICK, and HAL_STOP at the end. */
enum { HAL_EVENT, HAL_TICK, HAL_STOP };
int hal_next(uint32_t *key, int32_t *payload);

/* Send a multicast packet with a payload of 32 bits. */
void hal_send(uint32_t key, int32_t payload);

/* Cycles since some moment, modulo 2^32. */
uint32_t hal_cycles(void);

/* Tell the host that a tick is done: the hash of its state and the cycles that it took; or why the program ends. */
enum { HAL_HASH, HAL_CYCLES, HAL_STRAYS, HAL_REFUSED, HAL_GUARD, HAL_PASSED, HAL_FAILED };
void hal_log(uint32_t what, uint32_t value);

/* End, with 0 for success. */
void hal_stop(int code);

#endif
