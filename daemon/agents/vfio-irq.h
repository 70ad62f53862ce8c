/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "util/macro.h"

/* Interrupts of a VFIO device that a VMM has set up, looked at and set up anew by somebody else. */

typedef enum VfioIrq {
        VFIO_IRQ_INTX, /* in the order of VFIO_PCI_*_IRQ_INDEX */
        VFIO_IRQ_MSI,
        VFIO_IRQ_MSIX,
        VFIO_IRQ_ERR,
        VFIO_IRQ_REQ,
        VFIO_IRQ_UNMASK, /* what unmasks INTx */
        _VFIO_IRQ_MAX,
        _VFIO_IRQ_INVALID = -EINVAL,
} VfioIrq;

const char *luv_vfio_irq_to_string(VfioIrq i);
VfioIrq luv_vfio_irq_from_string(const char *s);

#define VFIO_VECTORS_MAX 2048u

/* Which interrupts of a device are wired to something. */
typedef struct VfioWired {
        VfioIrq type; /* INTX, MSI, MSIX; invalid: none is on */
        size_t n;     /* highest vector that is, plus one */
        bool vectors[VFIO_VECTORS_MAX];
} VfioWired;

/* Of the device at that PCI address, from TEXT, which is like /proc/interrupts. */
void luv_vfio_wired_parse(const char *text, const char *address, VfioWired *ret);
int luv_vfio_wired_read(const char *address, VfioWired *ret);

/*
 * Has the kernel raise VECTOR as if the device had, so that whatever it is wired to is signalled. -errno.
 */
int luv_vfio_irq_raise(int device_fd, VfioIrq type, unsigned vector);
int luv_vfio_irq_off(int device_fd, VfioIrq type);
/* Vector i of N to FDS[i], those that are negative to nothing. */
int luv_vfio_irq_on(int device_fd, VfioIrq type, const int *fds, size_t n);
