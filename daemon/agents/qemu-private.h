/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* Inside of a machine of QEMU: events and its end (qemu-machine.c), how it begins (qemu-begin.c), how it is
 * handed over (qemu-capture.c). */

#include <luvfio/luvfio.h>

#include "agents/cpr.h"
#include "agents/qemu-check.h"
#include "agents/qemu-document.h"
#include "agents/qemu-machine.h"
#include "agents/qemu-process.h"
#include "agents/qemu-replay.h"
#include "agents/qmp.h"

#define START_USEC (60 * USEC_PER_SEC)
#define CALL_USEC (10 * USEC_PER_SEC)
#define REPLAY_USEC (180 * USEC_PER_SEC)
#define STREAM_SIZE_MAX (UINT64_C(1) << 32)

/* Names in the service manager's store, beside QEMU_DOCUMENT and QEMU_STREAM. */
#define QEMU_BEGUN "begun"
#define QEMU_CHANNEL "channel"
#define QEMU_PIPE_IN "pipe-in"
#define QEMU_PIPE_OUT "pipe-out"

typedef enum QemuState {
        QEMU_NONE,     /* no process, or not yet */
        QEMU_RUNNING,  /* it is as its user wants it */
        QEMU_HELD,     /* it runs, and waits for the end of the channel on which it handed its files over */
        QEMU_CAPTURED, /* all of it is here; its process stands and must not run again */
} QemuState;

struct QemuMachine {
        QemuMachineConfig config;
        struct luvfio *l;

        QemuState state;
        QemuProcess process;
        char *monitor; /* where it listens */
        Qmp *qmp;
        sd_event_source *process_source, *qmp_source, *stop_source;

        QemuHeld *held;
        size_t n_held;
        uint64_t last_file; /* number of the file that was named last */

        int main_fd; /* listening */
        int cpr_fd;  /* the channel that is held open */
        CprState cpr;

        QemuDocument *document;
        int document_fd, stream_fd;

        /* Of a capture that has begun, for another run of this program to end it: its document without the
         * end, and the way that the stream comes. */
        int begun_fd, channel_fd, pipe_fds[2];

        bool blocked;    /* something was found to speak against an update */
        bool unanswered; /* QEMU owes an answer */
        bool stop;       /* it is to end, */
        bool quit;       /* and QEMU was asked to, when the guest had not done it */
};

struct QemuBackend {
        const char *vmm; /* who this is, for people */
        /* Stopping the agent stops the machine. */
        bool stops_machine;
        /* QEMU's command line has to do for another one. */
        bool keeps_argv;
        /*
         * A QEMU that is there already. 1: it runs, and was adopted; 0: there is none, or none that could
         * run: one that has been captured, or one that the machine is coming into.
         */
        int (*take_up)(QemuMachine *m, char **ret_reason);
        /* The monitor of a QEMU that runs on has ended, since it is another's: begins anew. Or NULL. */
        int (*reopen)(QemuMachine *m, char **ret_reason);
        /* A new machine, adopted. -ECHILD: QEMU could not be started. */
        int (*start)(QemuMachine *m, char **ret_reason);
        /* All of it is in its document by now; what else has to be done before the jump. Or NULL. */
        int (*captured)(QemuMachine *m, uint64_t deadline, char **ret_reason);
        /* A new QEMU for what was captured, adopted; the old one is gone. */
        int (*go_on)(QemuMachine *m, uint64_t deadline, char **ret_reason);
        /* What else speaks against a live update of it. Or NULL. */
        int (*check)(QemuMachine *m, uint64_t deadline, Blockers *b);
        /* Into the document, while QEMU runs. Or NULL. */
        int (*describe)(QemuMachine *m, uint64_t deadline, char **ret_reason);
};

/* qemu-machine.c */
char *luv_qemu_path(const QemuMachine *m, const char *name);
void luv_qemu_release(QemuMachine *m);
void luv_qemu_drop_channels(QemuMachine *m);
void luv_qemu_drop_capture(QemuMachine *m);
void luv_qemu_drop_held(QemuMachine *m);
int luv_qemu_hold(QemuMachine *m, const char *name, FdKind kind, int *fd);
const QemuHeld *luv_qemu_find_same(const QemuMachine *m, int fd);
/* Hands one over that is new. Takes FD if it is. */
int luv_qemu_hand_over(QemuMachine *m, FdKind kind, int *fd);
/* A QEMU that runs: its process and its monitor are watched. */
int luv_qemu_adopt(QemuMachine *m);
/* What was captured, in a new QEMU. */
int luv_qemu_go_on(QemuMachine *m, uint64_t deadline, char **ret_reason);

/* qemu-begin.c */
/* It is to be put together again; `resume` follows or has come. */
bool luv_qemu_comes_in(const QemuMachine *m);
int luv_qemu_begin(QemuMachine *m, char **ret_reason);
/* As QEMU has it; -errno, with a sentence. */
int luv_qemu_status(Qmp *q, char **ret, char **ret_reason);
/* When it does not change any more, or at the deadline. */
int luv_qemu_settled_status(QemuMachine *m, uint64_t deadline, char **ret, char **ret_reason);

/* qemu-capture.c */
/* From state running to held. On failure it is let go by luv_qemu_let_go(), as after success. */
int luv_qemu_prepare(QemuMachine *m, uint64_t deadline, char **ret_reason);
/* From state held back to running, or to captured, if QEMU was quicker. -errno: neither. */
int luv_qemu_let_go(QemuMachine *m, char **ret_reason);
/* What can be asked while it runs. */
int luv_qemu_begin_document(QemuMachine *m, uint64_t deadline, char **ret_reason);
/* The rest of the stream that an earlier run of this program had begun to receive. */
int luv_qemu_take_stream(QemuMachine *m, uint64_t deadline, char **ret_reason);
/* To captured, when QEMU has said that it was all. */
int luv_qemu_end_capture(QemuMachine *m, uint64_t deadline, char **ret_reason);
/* From state held to captured. On failure in whichever state it is then. */
int luv_qemu_quiesce(QemuMachine *m, uint64_t deadline, char **ret_reason);
/* What was captured is kept no more for the next run of this program. */
void luv_qemu_unstore(const QemuMachine *m);
