/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A device that is none, for `luvfiod --simulate`: what stands in for it is a memfd, and its "DMA" is a
 * copy. */

#include <sys/eventfd.h>

#include "vmm.h"

static int simulated_start(Device *d)
{
        return 0;
}

static int simulated_round(Device *d, uint64_t round)
{
        uint64_t *words = (uint64_t *) d->area->driver;

        words[0] = round;
        words[1] = words[0];
        (void) eventfd_write(d->irq_fd, 1);
        device_interrupt_drain(d);
        d->area->interrupts++;
        return words[1] == round ? 0 : -EBADMSG;
}

static int simulated_stop(Device *d)
{
        return 0;
}

const Driver simulated_driver = {
        .name = "simulated",
        .start = simulated_start,
        .round = simulated_round,
        .stop = simulated_stop,
        .restart = simulated_start,
};
