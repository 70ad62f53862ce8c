/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <endian.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "agents/cpr.h"
#include "util/string-util.h"
#include "util/time-util.h"

#define CPR_MAGIC 0x51435052u
#define CPR_VERSION 1u
#define CPR_END 0u
#define CPR_ELEMENT 1u
#define CPR_SECTION 5u
#define CPR_DEVICES "CprState/vfio devices"
#define CPR_DEVICES_VERSION 1u

#define SCM_MAX_FD 253u

void luv_cpr_state_done(CprState *s)
{
        for (size_t i = 0; i < s->n_fds; i++) {
                free(s->fds[i].name);
                safe_close(s->fds[i].fd);
        }
        for (size_t i = 0; i < s->n_devices; i++)
                free(s->devices[i].name);
        free(s->fds);
        free(s->devices);
        *s = (CprState) {};
}

int luv_cpr_add_fd(CprState *s, const char *name, int32_t id, int *fd)
{
        _cleanup_free_ char *copy = strdup(name);
        CprFd *fds;

        if (s->n_fds == CPR_FDS_MAX)
                return -E2BIG;
        fds = reallocarray(s->fds, s->n_fds + 1, sizeof(CprFd));
        if (fds)
                s->fds = fds;
        if (!fds || !copy)
                return -ENOMEM;
        s->fds[s->n_fds++] = (CprFd) { .name = TAKE_PTR(copy), .id = id, .fd = TAKE_FD(*fd) };
        return 0;
}

int luv_cpr_add_device(CprState *s, const CprDevice *device)
{
        _cleanup_free_ char *copy = strdup(device->name);
        CprDevice *devices;

        if (s->n_devices == CPR_DEVICES_MAX)
                return -E2BIG;
        devices = reallocarray(s->devices, s->n_devices + 1, sizeof(CprDevice));
        if (devices)
                s->devices = devices;
        if (!devices || !copy)
                return -ENOMEM;
        s->devices[s->n_devices] = *device;
        s->devices[s->n_devices++].name = TAKE_PTR(copy);
        return 0;
}

CprFd *luv_cpr_find_fd(const CprState *s, const char *name, int32_t id)
{
        for (size_t i = 0; i < s->n_fds; i++)
                if (s->fds[i].id == id && streq(s->fds[i].name, name))
                        return &s->fds[i];
        return NULL;
}

/* Reading. */

typedef struct Reader {
        const uint8_t *at, *end;
        int *fds;
        size_t n_fds;
} Reader;

static int get_u8(Reader *r, uint8_t *ret)
{
        if (r->at == r->end)
                return -ENODATA;
        *ret = *r->at++;
        return 0;
}

static int get_u32(Reader *r, uint32_t *ret)
{
        uint32_t v;

        if ((size_t) (r->end - r->at) < sizeof(v))
                return -ENODATA;
        memcpy(&v, r->at, sizeof(v));
        r->at += sizeof(v);
        *ret = be32toh(v);
        return 0;
}

/* A name that says itself how long it is, and ends with a 0 byte nonetheless. */
static int get_name(Reader *r, char **ret)
{
        uint32_t n;
        char *s;

        if (get_u32(r, &n) < 0)
                return -ENODATA;
        if (n > CPR_NAME_MAX + 1)
                return -EBADMSG;
        if ((size_t) (r->end - r->at) < n)
                return -ENODATA;
        if (n < 2 || strnlen((const char *) r->at, n) != n - 1 ||
            !luv_utf8_valid((const char *) r->at, n - 1))
                return -EBADMSG;
        s = strdup((const char *) r->at);
        if (!s)
                return -ENOMEM;
        r->at += n;
        *ret = s;
        return 0;
}

static int get_fd(Reader *r, CprState *s)
{
        _cleanup_free_ char *name = NULL;
        uint32_t id;
        uint8_t carrier;
        int k;

        k = get_name(r, &name);
        if (k < 0)
                return k;
        if (get_u32(r, &id) < 0 || get_u8(r, &carrier) < 0)
                return -ENODATA;
        if (r->n_fds == 0)
                return -EBADF;
        if (luv_cpr_find_fd(s, name, (int32_t) id))
                return -EBADMSG;
        k = luv_cpr_add_fd(s, name, (int32_t) id, r->fds);
        if (k < 0)
                return k;
        r->fds++;
        r->n_fds--;
        return 0;
}

static int get_device(Reader *r, CprState *s)
{
        _cleanup_free_ char *name = NULL;
        CprDevice d = {};
        uint32_t devid;
        int k;

        k = get_name(r, &name);
        if (k < 0)
                return k;
        if (get_u32(r, &devid) < 0 || get_u32(r, &d.ioas) < 0 || get_u32(r, &d.hwpt) < 0)
                return -ENODATA;
        d.name = name;
        d.devid = (int32_t) devid;
        return luv_cpr_add_device(s, &d);
}

static int get_list(Reader *r, CprState *s, int (*element)(Reader *r, CprState *s))
{
        uint8_t byte;
        int k;

        for (;;) {
                if (get_u8(r, &byte) < 0)
                        return -ENODATA;
                if (byte == CPR_END)
                        return 0;
                if (byte != CPR_ELEMENT)
                        return -EBADMSG;
                k = element(r, s);
                if (k < 0)
                        return k;
        }
}

static int get_section(Reader *r, CprState *s, char **ret_reason)
{
        char name[UINT8_MAX + 1] = {};
        uint8_t byte, n;
        uint32_t version;

        if (get_u8(r, &byte) < 0 || byte != CPR_SECTION)
                return -EBADMSG;
        if (get_u8(r, &n) < 0 || (size_t) (r->end - r->at) < n)
                return -ENODATA;
        memcpy(name, r->at, n);
        r->at += n;
        if (get_u32(r, &version) < 0)
                return -ENODATA;
        if (!streq(name, CPR_DEVICES) || version != CPR_DEVICES_VERSION)
                return luv_reason(ret_reason, -EPROTONOSUPPORT,
                                  "QEMU hands over a section \"%s\" of version %u, which is not known",
                                  luv_utf8_valid(name, n) ? name : "?", version);
        if (s->n_devices > 0)
                return -EBADMSG;
        return get_list(r, s, get_device);
}

static int parse(Reader *r, CprState *s, char **ret_reason)
{
        uint32_t magic, version;
        int k;

        if (get_u32(r, &magic) < 0 || get_u32(r, &version) < 0)
                return -ENODATA;
        if (magic != CPR_MAGIC)
                return -EBADMSG;
        if (version != CPR_VERSION)
                return luv_reason(ret_reason, -EPROTONOSUPPORT,
                                  "QEMU hands over its state in version %u, known is %u", version,
                                  CPR_VERSION);
        k = get_list(r, s, get_fd);
        while (k >= 0 && r->at < r->end)
                k = get_section(r, s, ret_reason);
        if (k >= 0 && r->n_fds > 0)
                return -EBADF;
        return k;
}

int luv_cpr_parse(const void *data, size_t size, int *fds, size_t n_fds, CprState *ret, char **ret_reason)
{
        Reader r = { .at = data, .end = (const uint8_t *) data + size, .fds = fds, .n_fds = n_fds };
        CprState s = {};
        int k;

        k = parse(&r, &s, ret_reason);
        if (k >= 0) {
                *ret = s;
                return 0;
        }
        luv_cpr_state_done(&s);
        if (k == -EPROTONOSUPPORT || k == -ENOMEM)
                return k;
        return luv_reason(ret_reason, -EBADMSG,
                          "what QEMU hands over is no CPR state: %s at byte %zu of %zu",
                          k == -ENODATA ? "it ends"
                          : k == -EBADF ? "the number of file descriptors is another"
                          : k == -E2BIG ? "there is too much"
                                        : "it makes no sense",
                          (size_t) (r.at - (const uint8_t *) data), size);
}

typedef struct Received {
        uint8_t *data;
        size_t size;
        int *fds;
        size_t n_fds;
} Received;

static void received_done(Received *x)
{
        for (size_t i = 0; i < x->n_fds; i++)
                safe_close(x->fds[i]);
        free(x->fds);
        free(x->data);
}

static int take_fds(struct msghdr *m, Received *x)
{
        int r = 0;

        for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c)) {
                size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
                int *more;

                if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
                        continue;
                more = reallocarray(x->fds, x->n_fds + n, sizeof(int));
                if (more)
                        x->fds = more;
                for (size_t i = 0; i < n; i++) {
                        int fd;

                        memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
                        if (more)
                                x->fds[x->n_fds++] = fd;
                        else
                                safe_close(fd);
                }
                if (!more)
                        r = -ENOMEM;
        }
        if (r >= 0 && (m->msg_flags & MSG_CTRUNC))
                r = -EMFILE;
        return r < 0 || x->n_fds <= CPR_FDS_MAX ? r : -E2BIG;
}

static int wait_for(int fd, short events, uint64_t deadline)
{
        struct pollfd p = { .fd = fd, .events = events };
        uint64_t left = luv_usec_left(deadline);
        int n;

        n = poll(&p, 1, left == UINT64_MAX ? -1 : (int) MIN(left / USEC_PER_MSEC + 1, (uint64_t) INT32_MAX));
        if (n < 0 && errno != EINTR)
                return negative_errno();
        return n == 0 && luv_usec_left(deadline) == 0 ? -ETIMEDOUT : 0;
}

/* 1: there is more to come. */
static int receive_some(int socket_fd, Received *x)
{
        union {
                struct cmsghdr header;
                uint8_t bytes[CMSG_SPACE(SCM_MAX_FD * sizeof(int))];
        } control;
        struct iovec v = { .iov_base = x->data + x->size, .iov_len = CPR_SIZE_MAX - x->size };
        struct msghdr m = {
                .msg_iov = &v,
                .msg_iovlen = 1,
                .msg_control = &control,
                .msg_controllen = sizeof(control),
        };
        ssize_t n;
        int r;

        if (v.iov_len == 0)
                return -E2BIG;
        n = recvmsg(socket_fd, &m, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
        if (n < 0)
                return errno == EAGAIN || errno == EINTR ? 1 : negative_errno();
        r = take_fds(&m, x);
        if (r < 0)
                return r;
        x->size += (size_t) n;
        return n > 0;
}

int luv_cpr_receive(int socket_fd, uint64_t deadline, CprState *ret, char **ret_reason)
{
        _cleanup_(received_done) Received x = {};
        int r = 1;

        x.data = malloc(CPR_SIZE_MAX);
        if (!x.data)
                return -ENOMEM;
        while (r > 0) {
                r = wait_for(socket_fd, POLLIN, deadline);
                if (r >= 0)
                        r = receive_some(socket_fd, &x);
        }
        if (r < 0)
                return luv_reason(ret_reason, r, "QEMU's CPR state cannot be received: %s", strerror(-r));
        return luv_cpr_parse(x.data, x.size, x.fds, x.n_fds, ret, ret_reason);
}

/* Writing. */

static int send_bytes(int socket_fd, const void *data, size_t size, int fd, uint64_t deadline)
{
        union {
                struct cmsghdr header;
                uint8_t bytes[CMSG_SPACE(sizeof(int))];
        } control = {};
        struct iovec v = { .iov_base = (void *) data, .iov_len = size };
        struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1 };

        if (fd >= 0) {
                m.msg_control = &control;
                m.msg_controllen = sizeof(control);
                control.header.cmsg_level = SOL_SOCKET;
                control.header.cmsg_type = SCM_RIGHTS;
                control.header.cmsg_len = CMSG_LEN(sizeof(int));
                memcpy(CMSG_DATA(&control.header), &fd, sizeof(int));
        }
        while (v.iov_len > 0) {
                ssize_t n = sendmsg(socket_fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT);

                if (n < 0) {
                        int r;

                        if (errno != EAGAIN && errno != EINTR)
                                return negative_errno();
                        r = wait_for(socket_fd, POLLOUT, deadline);
                        if (r < 0)
                                return r;
                        continue;
                }
                v.iov_base = (uint8_t *) v.iov_base + n;
                v.iov_len -= (size_t) n;
                m.msg_control = NULL;
                m.msg_controllen = 0;
        }
        return 0;
}

static uint8_t *put_u32(uint8_t *at, uint32_t v)
{
        v = htobe32(v);
        memcpy(at, &v, sizeof(v));
        return at + sizeof(v);
}

/* In BUFFER, which has room for a name of the greatest length and 24 bytes more. */
static uint8_t *put_element(uint8_t *at, const char *name)
{
        size_t n = strlen(name) + 1;

        *at++ = CPR_ELEMENT;
        at = put_u32(at, (uint32_t) n);
        memcpy(at, name, n);
        return at + n;
}

int luv_cpr_send(int socket_fd, const CprState *s, uint64_t deadline)
{
        uint8_t buffer[CPR_NAME_MAX + 32], *at = buffer;
        int r;

        at = put_u32(at, CPR_MAGIC);
        at = put_u32(at, CPR_VERSION);
        r = send_bytes(socket_fd, buffer, (size_t) (at - buffer), -1, deadline);
        for (size_t i = 0; i < s->n_fds && r >= 0; i++) {
                if (strlen(s->fds[i].name) > CPR_NAME_MAX)
                        return -E2BIG;
                at = put_element(buffer, s->fds[i].name);
                at = put_u32(at, (uint32_t) s->fds[i].id);
                r = send_bytes(socket_fd, buffer, (size_t) (at - buffer), -1, deadline);
                if (r >= 0)
                        r = send_bytes(socket_fd, " ", 1, s->fds[i].fd, deadline);
        }
        at = buffer;
        *at++ = CPR_END;
        *at++ = CPR_SECTION;
        *at++ = STRLEN(CPR_DEVICES);
        memcpy(at, CPR_DEVICES, STRLEN(CPR_DEVICES));
        at = put_u32(at + STRLEN(CPR_DEVICES), CPR_DEVICES_VERSION);
        if (r >= 0)
                r = send_bytes(socket_fd, buffer, (size_t) (at - buffer), -1, deadline);
        for (size_t i = 0; i < s->n_devices && r >= 0; i++) {
                if (strlen(s->devices[i].name) > CPR_NAME_MAX)
                        return -E2BIG;
                at = put_element(buffer, s->devices[i].name);
                at = put_u32(at, (uint32_t) s->devices[i].devid);
                at = put_u32(at, s->devices[i].ioas);
                at = put_u32(at, s->devices[i].hwpt);
                r = send_bytes(socket_fd, buffer, (size_t) (at - buffer), -1, deadline);
        }
        if (r >= 0)
                r = send_bytes(socket_fd, (uint8_t[]) { CPR_END }, 1, -1, deadline);
        if (r >= 0 && shutdown(socket_fd, SHUT_WR) < 0)
                r = negative_errno();
        return r;
}
