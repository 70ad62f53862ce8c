/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "luo/luo-internal.h"

/*
 * The worker is a process that does one session's ioctls, in the machine's control group, so that memory is
 * charged there and nothing that blocks stops the daemon. It gets a SEQPACKET socket and the session's fd at
 * fixed numbers, answers one request after the other, and ends when the socket is closed.
 */

#define LUO_WORKER_SOCKET_FD 3
#define LUO_WORKER_SESSION_FD 4
#define LUO_WORKER_NAME "luvfio-luo-worker"

typedef struct LuoWorkerRequest {
        uint32_t op; /* LuoOp; PRESERVE comes with the fd */
        uint32_t reserved;
        uint64_t token;
} LuoWorkerRequest;

typedef struct LuoWorkerReply {
        int32_t error; /* RETRIEVE, if 0, comes with the fd */
} LuoWorkerReply;

/* A seam for tests: ioctl(2). */
typedef int (*LuoIoctl)(int fd, unsigned long request, void *argument);

/* One operation on a session, -errno, or the fd of RETRIEVE, or 0. */
int luv_luo_session_ioctl(LuoIoctl do_ioctl, int session_fd, LuoOp op, int fd, uint64_t token);

/* Until the other end is closed: 0; -errno if the socket fails. */
int luv_luo_worker_run(int socket_fd, int session_fd, LuoIoctl do_ioctl);

/* One message, with one fd or none (negative). -EPIPE: the other end is closed. */
int luv_luo_worker_send(int socket_fd, const void *message, size_t size, int fd);
/* -EPROTO: of another size. *ret_fd is negative if there was none. -EAGAIN as recvmsg(2). */
int luv_luo_worker_receive(int socket_fd, void *message, size_t size, int *ret_fd);
