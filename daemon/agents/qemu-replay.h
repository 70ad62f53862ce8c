/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "agents/qemu-document.h"
#include "agents/qemu-process.h"
#include "agents/qmp.h"
#include "luo/fd-identify.h"
#include "util/macro.h"

/* A machine of QEMU put together again from its document, in a new process of QEMU. */

/* A file of the machine that luvfiod holds too. */
typedef struct QemuHeld {
        char *name; /* luvfiod's */
        FdKind kind;
        int fd;
} QemuHeld;

const QemuHeld *luv_qemu_held_find(const QemuHeld *held, size_t n, const char *name);

/* The file of a device, by QEMU's name of it. -ENOENT. */
int luv_qemu_device_file(const QemuDocument *d, const QemuHeld *held, size_t n, const char *device);

/* A socket at PATH, in place of one that may be there, for its owner alone. -ENAMETOOLONG, -errno. */
int luv_qemu_listen(const char *path);
int luv_qemu_connect(const char *path);
/* The monitor of a QEMU that listens at PATH. As luv_qmp_open(); -ENOENT, -ECONNREFUSED. */
int luv_qemu_monitor(const char *path, uint64_t deadline, Qmp **ret, char **ret_reason);

typedef struct QemuReplay {
        const QemuDocument *document;
        int stream_fd; /* a memfd; its position is not used */
        const QemuHeld *held;
        size_t n_held;
        const char *runtime_dir; /* for its sockets: qmp.sock, which stays, and cpr.sock */
        uint64_t deadline;
        /* That there will be a QEMU; and, before its vCPUs run, that it is whole. May be NULL. -errno. */
        int (*note)(const QemuProcess *process, bool whole, void *userdata);
        void *userdata;
} QemuReplay;

/* Wires the devices' interrupts to new eventfds; *RET is what the new QEMU has to be given. */
int luv_qemu_replay_files(const QemuReplay *p, CprState *ret, char **ret_reason);

/*
 * Wires the devices' interrupts to new eventfds, starts QEMU, and returns when its vCPUs run; or, where they
 * stood before, when it could let them run. On failure QEMU is gone, and it can be tried again, if it was
 * not noted as whole at the end: then its vCPUs may have run. -errno; with a sentence.
 */
int luv_qemu_replay(const QemuReplay *p, QemuProcess *ret, Qmp **ret_qmp, char **ret_reason);
