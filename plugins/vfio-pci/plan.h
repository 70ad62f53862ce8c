/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef PLAN_H
#define PLAN_H

#include "config-space.h"

/* What crosses the jump: which device it was, and what was promised for it. As JSON, see README.md. */
struct plan {
        enum luvfio_promise promise;
        char driver[64];
        char handler[64]; /* the kernel's, that preserves it */
        struct identity identity;
        struct bar bars[PCI_BARS];
        uint16_t command;
};

int plan_format(const struct luvfio_host *host, struct luvfio_device *device, const struct plan *plan,
                char *text, size_t size);
int plan_parse(const struct luvfio_host *host, struct luvfio_device *device, const char *text,
               struct plan *ret);

#endif
