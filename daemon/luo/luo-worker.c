/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <sys/socket.h>

#include "luo/luo-uapi.h"
#include "luo/luo-worker.h"

int luv_luo_worker_send(int socket_fd, const void *message, size_t size, int fd)
{
        union {
                struct cmsghdr header;
                uint8_t space[CMSG_SPACE(sizeof(int))];
        } control = {};
        struct iovec iov = { .iov_base = (void *) message, .iov_len = size };
        struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1 };
        ssize_t n;

        if (fd >= 0) {
                m.msg_control = &control;
                m.msg_controllen = sizeof(control);
                control.header.cmsg_level = SOL_SOCKET;
                control.header.cmsg_type = SCM_RIGHTS;
                control.header.cmsg_len = CMSG_LEN(sizeof(int));
                memcpy(CMSG_DATA(&control.header), &fd, sizeof(fd));
        }
        do
                n = sendmsg(socket_fd, &m, MSG_NOSIGNAL);
        while (n < 0 && errno == EINTR);
        if (n < 0)
                return errno == ECONNRESET ? -EPIPE : negative_errno();
        return (size_t) n == size ? 0 : -EIO;
}

int luv_luo_worker_receive(int socket_fd, void *message, size_t size, int *ret_fd)
{
        union {
                struct cmsghdr header;
                uint8_t space[CMSG_SPACE(sizeof(int))];
        } control;
        struct iovec iov = { .iov_base = message, .iov_len = size };
        struct msghdr m = {
                .msg_iov = &iov,
                .msg_iovlen = 1,
                .msg_control = &control,
                .msg_controllen = sizeof(control),
        };
        _cleanup_close_ int fd = -EBADF;
        struct cmsghdr *c;
        ssize_t n;

        do
                n = recvmsg(socket_fd, &m, MSG_CMSG_CLOEXEC);
        while (n < 0 && errno == EINTR);
        if (n < 0)
                return errno == ECONNRESET ? -EPIPE : negative_errno();
        c = CMSG_FIRSTHDR(&m);
        if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS &&
            c->cmsg_len == CMSG_LEN(sizeof(int)))
                memcpy(&fd, CMSG_DATA(c), sizeof(fd));
        if (n == 0)
                return -EPIPE;
        if ((size_t) n != size || (m.msg_flags & (MSG_TRUNC | MSG_CTRUNC)))
                return -EPROTO;
        *ret_fd = TAKE_FD(fd);
        return 0;
}

int luv_luo_session_ioctl(LuoIoctl do_ioctl, int session_fd, LuoOp op, int fd, uint64_t token)
{
        LuoUapiFd argument = { .size = sizeof(argument), .fd = fd, .token = token };
        LuoUapiFinish finish = { .size = sizeof(finish) };
        int r;

        /* An interrupted call is not made again: what a half of it did to the session is the kernel's to
         * say. */
        switch (op) {
        case LUO_OP_PRESERVE:
                r = do_ioctl(session_fd, LUO_IOCTL_PRESERVE_FD, &argument);
                return r < 0 ? negative_errno() : 0;
        case LUO_OP_RETRIEVE:
                argument.fd = -1;
                r = do_ioctl(session_fd, LUO_IOCTL_RETRIEVE_FD, &argument);
                if (r < 0)
                        return negative_errno();
                return argument.fd < 0 ? -EPROTO : argument.fd;
        case LUO_OP_FINISH:
                r = do_ioctl(session_fd, LUO_IOCTL_FINISH, &finish);
                return r < 0 ? negative_errno() : 0;
        default:
                return -EOPNOTSUPP;
        }
}

int luv_luo_worker_run(int socket_fd, int session_fd, LuoIoctl do_ioctl)
{
        for (;;) {
                _cleanup_close_ int fd = -EBADF, retrieved = -EBADF;
                LuoWorkerRequest request;
                LuoWorkerReply reply;
                int r;

                r = luv_luo_worker_receive(socket_fd, &request, sizeof(request), &fd);
                if (r == -EPIPE)
                        return 0;
                if (r < 0)
                        return r;
                r = luv_luo_session_ioctl(do_ioctl, session_fd, (LuoOp) request.op, fd, request.token);
                if (r >= 0 && request.op == LUO_OP_RETRIEVE)
                        retrieved = r;
                reply.error = MIN(r, 0);
                r = luv_luo_worker_send(socket_fd, &reply, sizeof(reply), retrieved);
                if (r == -EPIPE)
                        return 0;
                if (r < 0)
                        return r;
        }
}
