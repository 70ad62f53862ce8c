/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <systemd/sd-event.h>

#include "util/macro.h"

/*
 * A machine of QEMU and what luvfiod wants of it: a client of libluvfio on one side, on the other one of
 * QEMU's monitor and the peer of its migration mode cpr-transfer, old side and new side both.
 *
 * `prepare` has QEMU hand over its files; the channel on which it did is held open, and so it runs on.
 * `quiesce` closes it, upon which QEMU stops the vCPUs and sends its state. From there on that QEMU must not
 * run again: it has let go of its interrupts. Going on, after an abort as after the jump, is a new QEMU that
 * is given all of it.
 */

typedef struct QemuMachine QemuMachine;

/* Whose processes of QEMU they are: this program's own, or another's. */
typedef struct QemuBackend QemuBackend;
extern const QemuBackend luv_qemu_own;

typedef struct QemuMachineConfig {
        sd_event *event;
        const QemuBackend *backend;
        const char *name;        /* luvfiod's */
        const char *runtime_dir; /* for sockets; the machine's alone */
        const char *secret_file; /* or NULL */
        char *const *argv;       /* of a machine that is not there yet, or NULL */
        const char *monitor;     /* socket of the monitor of a QEMU that runs, or NULL */
        uint64_t stop_usec;      /* how long a guest may take to power itself off */
} QemuMachineConfig;

/* Exit code of the event loop when QEMU has ended by itself, and not well. */
#define QEMU_MACHINE_FAILED 3

/*
 * Registers with luvfiod, and starts QEMU, or takes up one that an earlier run of this program has left, or
 * waits to be given one that came over a jump. The event loop ends with the machine. -ECHILD: QEMU could not
 * be started; -errno; logged.
 */
int luv_qemu_machine_new(const QemuMachineConfig *config, QemuMachine **ret);
QemuMachine *luv_qemu_machine_free(QemuMachine *m);
DEFINE_CLEANUP(QemuMachine *, luv_qemu_machine_free);

/* Has the guest power itself off, and ends QEMU if that takes too long. Not in the middle of an update:
 * after it. */
void luv_qemu_machine_stop(QemuMachine *m);
