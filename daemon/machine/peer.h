/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "machine/machine.h"

/* A pidfd of the process that connected SOCKET_FD, or of PID on an old kernel. -errno if it is gone. */
int luv_peer_open(int socket_fd, pid_t pid);
/*
 * Who is at the other end, from a pidfd: unit and control group, safe against a pid that is used again.
 * PIDFD may be negative (old kernel): then PID is opened. A process that is in no unit, or is gone by now,
 * has no unit.
 */
int luv_peer_identify(uid_t uid, pid_t pid, int pidfd, MachineOwner *ret);
/* Start of PID in clock ticks since boot: with the pid it names a process for all time. -ESRCH. */
int luv_process_start_time(pid_t pid, uint64_t *ret);
/* The process that had PID and started at START_TIME; -ESRCH if it is gone. Returns a pidfd. */
int luv_process_open(pid_t pid, uint64_t start_time);
bool luv_pidfd_is_alive(int pidfd);
