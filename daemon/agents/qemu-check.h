/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <luvfio/luvfio.h>

#include "agents/qemu-process.h"
#include "agents/qmp.h"
#include "util/macro.h"

/* What speaks against taking a QEMU through a live update. */

typedef struct Blockers {
        struct luvfio_blocker *items; /* their texts are its own */
        size_t n;
} Blockers;

void luv_blockers_done(Blockers *b);
_printf_(3, 4) int luv_blockers_add(Blockers *b, const char *remedy, const char *format, ...);

/*
 * All there is. QEMU is asked, its files are looked at, and its command line, if that has to do for a second
 * one (else NULL). A failure to ask is one of them, too. -ENOMEM.
 */
int luv_qemu_check(Qmp *q, char *const *argv, const QemuFiles *files, uint64_t deadline, Blockers *ret);

/* Name of the board that it has, as "pc-q35-11.1". */
int luv_qemu_machine_type(Qmp *q, uint64_t deadline, char **ret, char **ret_reason);
