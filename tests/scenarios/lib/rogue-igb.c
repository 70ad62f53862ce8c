/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "rogue-igb.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

enum {
        CTRL = 0x0000,
        MDIC = 0x0020,
        RCTL = 0x0100,
        IMC = 0x010c,
        RDBAL = 0xc000,
        RDBAH = 0xc004,
        RDLEN = 0xc008,
        SRRCTL = 0xc00c,
        RDT = 0xc018,
        RXDCTL = 0xc028,
};

#define CTRL_LINK_UP 0x00000040u
#define CTRL_RESET 0x04000000u
#define MDIC_RESTART_NEGOTIATION 0x04201200u
/* Receive whatever comes, without the checksum behind it. */
#define RCTL_RECEIVE 0x0400801au
#define SRRCTL_ONE_BUFFER 0x02000002u
#define RXDCTL_ON 0x02000000u
#define DONE 1u
#define HEADER 14u

static uint32_t get(void *registers, unsigned where)
{
        return *(volatile uint32_t *) ((uint8_t *) registers + where);
}

static void set(void *registers, unsigned where, uint32_t value)
{
        atomic_thread_fence(memory_order_seq_cst);
        *(volatile uint32_t *) ((uint8_t *) registers + where) = value;
}

void igb_start(Igb *igb, void *registers)
{
        set(registers, CTRL, get(registers, CTRL) | CTRL_RESET);
        usleep(20000);
        set(registers, IMC, UINT32_MAX);
        /* QEMU brings the link up half a second after it was asked to negotiate. */
        set(registers, MDIC, MDIC_RESTART_NEGOTIATION);
        set(registers, CTRL, get(registers, CTRL) | CTRL_LINK_UP);
        sleep(1);

        igb->last = -1;
        for (unsigned i = 0; i < IGB_RING; i++)
                igb->ring[i].address = igb->physical[i + 1];
        set(registers, RDBAL, (uint32_t) igb->physical[0]);
        set(registers, RDBAH, (uint32_t) (igb->physical[0] >> 32));
        set(registers, RDLEN, sizeof(igb->ring));
        set(registers, SRRCTL, SRRCTL_ONE_BUFFER);
        set(registers, RXDCTL, RXDCTL_ON);
        set(registers, RCTL, RCTL_RECEIVE);
        usleep(10000);
        set(registers, RDT, IGB_RING - 1);
}

bool igb_is_as_it_was(const Igb *igb, void *registers)
{
        return get(registers, RCTL) == RCTL_RECEIVE &&
               get(registers, RDBAL) == (uint32_t) igb->physical[0] &&
               get(registers, RDT) == (igb->received + IGB_RING - 1) % IGB_RING;
}

static bool has_come(const Igb *igb, uint64_t n)
{
        return *(const volatile uint32_t *) &igb->ring[n % IGB_RING].status & DONE;
}

unsigned igb_waiting(const Igb *igb)
{
        unsigned n = 0;

        while (n < IGB_RING - 1 && has_come(igb, igb->received + n))
                n++;
        return n;
}

bool igb_take(Igb *igb, void *registers)
{
        while (has_come(igb, igb->received)) {
                size_t i = igb->received % IGB_RING;
                long number;

                atomic_thread_fence(memory_order_acquire);
                number = atol((const char *) igb->frames[i] + HEADER);
                if (igb->last >= 0 && number != igb->last + 1)
                        return false;
                igb->last = number;
                igb->received++;
                /* The device has overwritten it. */
                igb->ring[i].address = igb->physical[i + 1];
                igb->ring[i].status = 0;
                set(registers, RDT, (uint32_t) ((igb->received + IGB_RING - 1) % IGB_RING));
        }
        return true;
}
