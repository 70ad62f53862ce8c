/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <linux/vfio.h>
#include <sys/ioctl.h>

#include "agents/vfio-irq.h"
#include "util/io.h"
#include "util/string-util.h"

#define INTERRUPTS_SIZE_MAX ((size_t) 64 * 1024 * 1024)

static const char *const luv_vfio_irq_table[_VFIO_IRQ_MAX] = {
        [VFIO_IRQ_INTX] = "intx", [VFIO_IRQ_MSI] = "msi", [VFIO_IRQ_MSIX] = "msix",
        [VFIO_IRQ_ERR] = "err",   [VFIO_IRQ_REQ] = "req", [VFIO_IRQ_UNMASK] = "unmask",
};
DEFINE_STRING_TABLE(luv_vfio_irq, VfioIrq);

static const uint32_t indexes[_VFIO_IRQ_MAX] = {
        [VFIO_IRQ_INTX] = VFIO_PCI_INTX_IRQ_INDEX, [VFIO_IRQ_MSI] = VFIO_PCI_MSI_IRQ_INDEX,
        [VFIO_IRQ_MSIX] = VFIO_PCI_MSIX_IRQ_INDEX, [VFIO_IRQ_ERR] = VFIO_PCI_ERR_IRQ_INDEX,
        [VFIO_IRQ_REQ] = VFIO_PCI_REQ_IRQ_INDEX,   [VFIO_IRQ_UNMASK] = VFIO_PCI_INTX_IRQ_INDEX,
};

/* The kernel names them vfio-intx(ADDRESS), vfio-msi[N](ADDRESS), vfio-msix[N](ADDRESS). */
static void take_name(const char *name, const char *address, VfioWired *w)
{
        VfioIrq type = startswith(name, "vfio-msix[")   ? VFIO_IRQ_MSIX
                       : startswith(name, "vfio-msi[")  ? VFIO_IRQ_MSI
                       : startswith(name, "vfio-intx(") ? VFIO_IRQ_INTX
                                                        : _VFIO_IRQ_INVALID;
        unsigned long vector = 0;
        size_t n = strlen(address);
        char *rest;

        if (type < 0)
                return;
        if (type == VFIO_IRQ_INTX)
                rest = strchr(name, '(');
        else
                vector = strtoul(strchr(name, '[') + 1, &rest, 10);
        if (type != VFIO_IRQ_INTX) {
                if (!startswith(rest, "]("))
                        return;
                rest++;
        }
        if (strncmp(rest + 1, address, n) != 0 || rest[n + 1] != ')' || vector >= VFIO_VECTORS_MAX)
                return;
        w->type = type;
        w->vectors[vector] = true;
        w->n = MAX(w->n, (size_t) vector + 1);
}

void luv_vfio_wired_parse(const char *text, const char *address, VfioWired *ret)
{
        *ret = (VfioWired) { .type = _VFIO_IRQ_INVALID };
        for (const char *p = text; (p = strstr(p, "vfio-")); p++)
                take_name(p, address, ret);
}

int luv_vfio_wired_read(const char *address, VfioWired *ret)
{
        _cleanup_free_ char *text = NULL;
        size_t size;
        int r;

        r = luv_read_file(AT_FDCWD, "/proc/interrupts", INTERRUPTS_SIZE_MAX, &text, &size);
        if (r < 0)
                return r;
        luv_vfio_wired_parse(text, address, ret);
        return 0;
}

static int set_irqs(int device_fd, VfioIrq type, uint32_t flags, unsigned start, const int *fds, size_t n)
{
        size_t size = sizeof(struct vfio_irq_set) + (fds ? n * sizeof(int) : 0);
        _cleanup_free_ struct vfio_irq_set *set = calloc(1, size);

        if (!set)
                return -ENOMEM;
        set->argsz = (uint32_t) size;
        set->flags = flags | (fds ? VFIO_IRQ_SET_DATA_EVENTFD : VFIO_IRQ_SET_DATA_NONE);
        set->index = indexes[type];
        set->start = start;
        set->count = (uint32_t) n;
        if (fds)
                memcpy(set->data, fds, n * sizeof(int));
        return ioctl(device_fd, VFIO_DEVICE_SET_IRQS, set) < 0 ? negative_errno() : 0;
}

int luv_vfio_irq_raise(int device_fd, VfioIrq type, unsigned vector)
{
        return set_irqs(device_fd, type, VFIO_IRQ_SET_ACTION_TRIGGER, vector, NULL, 1);
}

int luv_vfio_irq_off(int device_fd, VfioIrq type)
{
        return set_irqs(device_fd, type, VFIO_IRQ_SET_ACTION_TRIGGER, 0, NULL, 0);
}

int luv_vfio_irq_on(int device_fd, VfioIrq type, const int *fds, size_t n)
{
        return set_irqs(device_fd, type,
                        type == VFIO_IRQ_UNMASK ? VFIO_IRQ_SET_ACTION_UNMASK : VFIO_IRQ_SET_ACTION_TRIGGER,
                        0, fds, n);
}
