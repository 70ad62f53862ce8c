/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <systemd/sd-json.h>

#include "util/macro.h"

/* A client of QEMU's monitor protocol: one command at a time, events in between are kept. */

typedef struct Qmp Qmp;

/* On a socket that is connected, which is taken. Until the greeting has come and capabilities are
 * negotiated. -ETIMEDOUT, -EBADMSG, -errno; with a sentence. */
int luv_qmp_open(int *fd, uint64_t deadline, Qmp **ret, char **ret_reason);
Qmp *luv_qmp_free(Qmp *q);
DEFINE_CLEANUP(Qmp *, luv_qmp_free);

/* To be polled for reading. */
int luv_qmp_get_fd(const Qmp *q);
/* As "11.1.3", from the greeting. */
const char *luv_qmp_get_version(const Qmp *q);
void luv_qmp_get_version_numbers(const Qmp *q, unsigned *ret_major, unsigned *ret_minor);

/*
 * ARGUMENTS: an object, or NULL; unreferenced. *RET: what it returned, the caller's; RET may be NULL.
 * -EREMOTEIO: QEMU refuses, and says why; -ECONNRESET: it is gone; -ETIMEDOUT; -EBADMSG; with a sentence.
 * After all but -EREMOTEIO the connection is of no use any more but after -ETIMEDOUT, when the answer is
 * dropped when it comes.
 */
int luv_qmp_call(Qmp *q, const char *command, sd_json_variant *arguments, uint64_t deadline,
                 sd_json_variant **ret, char **ret_reason);

/* The same in two halves, with something to be done in between. */
int luv_qmp_begin(Qmp *q, const char *command, sd_json_variant *arguments, uint64_t deadline,
                  char **ret_reason);
int luv_qmp_end(Qmp *q, const char *command, uint64_t deadline, sd_json_variant **ret, char **ret_reason);
/* Waits for nothing. 1: done; 0: the answer is not there yet. */
int luv_qmp_try_end(Qmp *q, const char *command, sd_json_variant **ret, char **ret_reason);

/* Reads what is there, and waits for nothing. -ECONNRESET, -EBADMSG. */
int luv_qmp_process(Qmp *q);
/* The oldest event that was read; name and data are the caller's. 0: there is none, 1. */
int luv_qmp_take_event(Qmp *q, char **ret_name, sd_json_variant **ret_data);
/* Until an event of this NAME (others are dropped on the way). -ETIMEDOUT, -ECONNRESET, -EBADMSG. */
int luv_qmp_wait_event(Qmp *q, const char *name, uint64_t deadline, sd_json_variant **ret_data);
