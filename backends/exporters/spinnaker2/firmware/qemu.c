/* The machine as QEMU's mps2-an386 with semihosting: events come from the file "in" and go to the file "out", which
 * may be pipes to other processing elements; the image lies in data memory when the program begins. Cycles are
 * instructions, counted by SysTick under -icount shift=0. */
#include <stddef.h>

#include "layout.h"
#include "s2_hal.h"

enum { SYS_OPEN = 1, SYS_WRITE = 5, SYS_READ = 6, SYS_EXIT = 0x20 };
enum { READ_BINARY = 1, WRITE_BINARY = 5 };
enum { CODE_DONE = 0x20026 };
enum { RECORDS = 16 };

/* SysTick counts down 24 bits at 25 MHz, and an instruction takes a nanosecond. */
#define SYST_CSR (*(volatile uint32_t *)0xe000e010u)
#define SYST_RVR (*(volatile uint32_t *)0xe000e014u)
#define SYST_CVR (*(volatile uint32_t *)0xe000e018u)
#define INSTRUCTIONS_A_COUNT 40u

typedef struct {
    uint32_t key;
    int32_t payload;
} record_t;

extern uint8_t image_begin[], image_end[], data_load[], data_begin[], data_end[], bss_begin[], bss_end[], stack_end[];
extern int main(void);

static int in, out;
static record_t came[RECORDS], sent[RECORDS];
static uint32_t n_came, n_read, n_sent;

static int call(int operation, const void *argument)
{
    register int r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

static int open(const char *name, uint32_t length, int mode)
{
    const uint32_t argument[] = {(uint32_t)name, (uint32_t)mode, length};
    return call(SYS_OPEN, argument);
}

/* Bytes that were not transferred. */
static int transfer(int operation, int file, void *data, uint32_t bytes)
{
    const uint32_t argument[] = {(uint32_t)file, (uint32_t)data, bytes};
    return call(operation, argument);
}

static void leave(int code)
{
    const uint32_t argument[] = {CODE_DONE, (uint32_t)code};
    call(SYS_EXIT, argument);
    for (;;)
        ;
}

static void flush(void)
{
    uint8_t *at = (uint8_t *)sent;
    uint32_t left = n_sent * sizeof *sent;
    while (left) {
        const uint32_t still = (uint32_t)transfer(SYS_WRITE, out, at, left);
        if (still >= left)
            leave(3);
        at += left - still;
        left = still;
    }
    n_sent = 0;
}

uint8_t *hal_image(uint32_t *room)
{
    *room = (uint32_t)(image_end - image_begin);
    return image_begin;
}

int hal_next(uint32_t *key, int32_t *payload)
{
    if (n_read == n_came) {
        flush();
        uint32_t bytes = 0;
        do { /* a pipe may hold a part of a record */
            const uint32_t wanted = sizeof came - bytes;
            const uint32_t got = wanted - (uint32_t)transfer(SYS_READ, in, (uint8_t *)came + bytes, wanted);
            if (!got || got > wanted)
                return HAL_STOP;
            bytes += got;
        } while (bytes % sizeof *came);
        n_came = bytes / sizeof *came;
        n_read = 0;
    }
    *key = came[n_read].key;
    *payload = came[n_read++].payload;
    return *key == S2LM_LOG ? HAL_TICK : HAL_EVENT;
}

void hal_send(uint32_t key, int32_t payload)
{
    if (n_sent == RECORDS)
        flush();
    sent[n_sent++] = (record_t){key, payload};
}

uint32_t hal_cycles(void)
{
    static uint32_t last, total;
    const uint32_t now = SYST_CVR;
    total += ((last - now) & 0xffffffu) * INSTRUCTIONS_A_COUNT;
    last = now;
    return total;
}

void hal_log(uint32_t what, uint32_t value)
{
    hal_send(S2LM_LOG | what, (int32_t)value);
}

void hal_stop(int code)
{
    flush();
    leave(code);
}

void reset(void)
{
    for (uint8_t *from = data_load, *to = data_begin; to < data_end;)
        *to++ = *from++;
    for (uint8_t *to = bss_begin; to < bss_end;)
        *to++ = 0;
    SYST_RVR = 0xffffff;
    SYST_CVR = 0;
    SYST_CSR = 5; /* on, by the processor's clock, no interrupt */
    in = open("in", 2, READ_BINARY);
    out = open("out", 3, WRITE_BINARY);
    hal_stop(in < 0 || out < 0 ? 4 : main());
}

static void fault(void)
{
    hal_stop(5);
}

__attribute__((section(".vectors"), used)) static void *const vectors[] = {
    stack_end, (void *)reset, (void *)fault, (void *)fault, (void *)fault, (void *)fault, (void *)fault,
};
