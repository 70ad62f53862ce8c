/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <sys/types.h>

#include "luo/fd-identify.h"
#include "util/macro.h"

/* A process of QEMU: how it was started, what it has open, how one like it is started. */

typedef struct QemuProcess {
        pid_t pid; /* 0: none */
        int pidfd;
        char **argv;
        char *cwd;
} QemuProcess;

#define QEMU_PROCESS_NULL ((QemuProcess) { .pidfd = -EBADF })

void luv_qemu_process_done(QemuProcess *p);

/* One that runs, with its command line less what luv_qemu_start() adds to one. -ESRCH, -errno. */
int luv_qemu_process_open(pid_t pid, QemuProcess *ret);
/* Whether it was stopped by a signal. */
bool luv_qemu_process_is_stopped(const QemuProcess *p);
/* Whether it has ended, or does within two seconds, as one does that has closed its sockets. */
bool luv_qemu_process_is_ending(const QemuProcess *p);
int luv_qemu_process_signal(const QemuProcess *p, int sig);
/* Ends it and waits until it is gone. -ETIMEDOUT. */
int luv_qemu_process_kill(const QemuProcess *p, uint64_t deadline);

/* A file that it has open. */
typedef struct QemuFile {
        int fd;
        FdIdentity identity;
} QemuFile;

typedef struct QemuFiles {
        QemuFile *items;
        size_t n;
        char **legacy;      /* VFIO devices that it has by their group */
        char **reset;       /* VFIO devices that a QEMU resets when it begins: PCI addresses */
        char **unsupported; /* memory that cannot be preserved: what is wrong with it */
} QemuFiles;

void luv_qemu_files_done(QemuFiles *f);
/* What of it could cross a jump: memfds, iommufds, VFIO devices. Needs what ptrace(2) needs. -errno. */
int luv_qemu_process_files(const QemuProcess *p, QemuFiles *ret);

typedef struct QemuStart {
        char *const *argv;
        const char *cwd;
        const char *machine_type; /* or NULL */
        int monitor_fd;           /* listening */
        int cpr_fd;               /* listening, or negative: a new machine, not one that comes in */
        int main_fd;              /* connected, with cpr_fd */
        /* Called before the program is executed, which it is not if this fails. WHOLE is false. Or NULL.
         * -errno. */
        int (*note)(const QemuProcess *process, bool whole, void *userdata);
        void *userdata;
} QemuStart;

/*
 * -errno; with a sentence. That the program could not be executed comes as -errno, too. Who starts it may be
 * killed at any time: it is either noted or not executed.
 */
int luv_qemu_start(const QemuStart *start, QemuProcess *ret, char **ret_reason);

/* Takes from ARGV what luv_qemu_start() adds, and all else that says how a machine begins. */
int luv_qemu_argv_clean(char *const *argv, char ***ret);
