/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <poll.h>
#include <sys/socket.h>

#include "agents/qmp.h"
#include "util/string-util.h"
#include "util/time-util.h"

#define QMP_MESSAGE_MAX ((size_t) 16 * 1024 * 1024)
#define QMP_EVENTS_MAX 1024u

struct Qmp {
        int fd;
        char *version;
        unsigned major, minor;
        uint64_t serial; /* of the last command */

        char *buffer;
        size_t size, allocated;

        sd_json_variant *events[QMP_EVENTS_MAX];
        size_t n_events;
};

Qmp *luv_qmp_free(Qmp *q)
{
        if (!q)
                return NULL;
        safe_close(q->fd);
        for (size_t i = 0; i < q->n_events; i++)
                sd_json_variant_unref(q->events[i]);
        free(q->version);
        free(q->buffer);
        free(q);
        return NULL;
}

int luv_qmp_get_fd(const Qmp *q)
{
        return q->fd;
}

const char *luv_qmp_get_version(const Qmp *q)
{
        return q->version;
}

void luv_qmp_get_version_numbers(const Qmp *q, unsigned *ret_major, unsigned *ret_minor)
{
        *ret_major = q->major;
        *ret_minor = q->minor;
}

static int wait_for(int fd, short events, uint64_t deadline)
{
        struct pollfd p = { .fd = fd, .events = events };
        uint64_t left = luv_usec_left(deadline);

        if (left == 0)
                return -ETIMEDOUT;
        if (poll(&p, 1,
                 left == UINT64_MAX ? -1 : (int) MIN(left / USEC_PER_MSEC + 1, (uint64_t) INT32_MAX)) < 0 &&
            errno != EINTR)
                return negative_errno();
        return 0;
}

/* 1: something came. */
static int fill(Qmp *q)
{
        ssize_t n;

        if (q->allocated - q->size < 4096) {
                size_t wanted = MAX(q->allocated * 2, (size_t) 65536);
                char *b;

                if (q->size >= QMP_MESSAGE_MAX)
                        return -EBADMSG;
                b = realloc(q->buffer, wanted);
                if (!b)
                        return -ENOMEM;
                q->buffer = b;
                q->allocated = wanted;
        }
        n = recv(q->fd, q->buffer + q->size, q->allocated - q->size - 1, MSG_DONTWAIT);
        if (n < 0)
                return errno == EAGAIN || errno == EINTR ? 0 : negative_errno();
        if (n == 0)
                return -ECONNRESET;
        q->size += (size_t) n;
        return 1;
}

/* One whole message out of the buffer. 0: there is none. */
static int take_message(Qmp *q, sd_json_variant **ret)
{
        char *end = memchr(q->buffer, '\n', q->size);
        size_t n;
        int r;

        if (!end)
                return 0;
        *end = 0;
        n = (size_t) (end - q->buffer) + 1;
        r = strlen(q->buffer) == n - 1 ? sd_json_parse(q->buffer, 0, ret, NULL, NULL) : -EBADMSG;
        memmove(q->buffer, q->buffer + n, q->size - n);
        q->size -= n;
        if (r == -ENOMEM)
                return r;
        return r < 0 || !sd_json_variant_is_object(*ret) ? -EBADMSG : 1;
}

/* Takes MESSAGE. When nobody takes events out, the oldest are the ones to lose. */
static void keep_event(Qmp *q, sd_json_variant *message)
{
        if (q->n_events == QMP_EVENTS_MAX) {
                sd_json_variant_unref(q->events[0]);
                memmove(q->events, q->events + 1, --q->n_events * sizeof(q->events[0]));
        }
        q->events[q->n_events++] = message;
}

/* The next message that is no event; 0: it is not there yet. */
static int next_message(Qmp *q, sd_json_variant **ret)
{
        for (;;) {
                sd_json_variant *m = NULL;
                int r;

                r = q->size > 0 ? take_message(q, &m) : 0;
                if (r <= 0) {
                        sd_json_variant_unref(m);
                        return r;
                }
                if (!sd_json_variant_by_key(m, "event")) {
                        *ret = m;
                        return 1;
                }
                keep_event(q, m);
        }
}

static int wait_message(Qmp *q, uint64_t deadline, sd_json_variant **ret)
{
        for (;;) {
                int r;

                r = next_message(q, ret);
                if (r != 0)
                        return r;
                r = wait_for(q->fd, POLLIN, deadline);
                if (r >= 0)
                        r = fill(q);
                if (r < 0)
                        return r;
        }
}

static int send_text(Qmp *q, const char *text, uint64_t deadline)
{
        size_t n = strlen(text);

        while (n > 0) {
                ssize_t k = send(q->fd, text, n, MSG_NOSIGNAL | MSG_DONTWAIT);
                int r;

                if (k > 0) {
                        text += k;
                        n -= (size_t) k;
                        continue;
                }
                if (k < 0 && errno != EAGAIN && errno != EINTR)
                        return errno == EPIPE ? -ECONNRESET : negative_errno();
                r = wait_for(q->fd, POLLOUT, deadline);
                if (r < 0)
                        return r;
        }
        return 0;
}

static int send_command(Qmp *q, const char *command, sd_json_variant *arguments, uint64_t deadline)
{
        _cleanup_(sd_json_variant_unrefp) sd_json_variant *m = NULL;
        _cleanup_free_ char *text = NULL, *line = NULL;
        int r;

        r = sd_json_buildo(&m, SD_JSON_BUILD_PAIR_STRING("execute", command),
                           SD_JSON_BUILD_PAIR_CONDITION(arguments != NULL, "arguments",
                                                        SD_JSON_BUILD_VARIANT(arguments)),
                           SD_JSON_BUILD_PAIR_UNSIGNED("id", ++q->serial));
        if (r >= 0)
                r = sd_json_variant_format(m, 0, &text);
        if (r < 0)
                return r;
        line = luv_strf("%s\n", text);
        return line ? send_text(q, line, deadline) : -ENOMEM;
}

static const char *string_at(sd_json_variant *v, const char *key)
{
        v = sd_json_variant_by_key(v, key);
        return v && sd_json_variant_is_string(v) ? sd_json_variant_string(v) : NULL;
}

static int fail(int r, const char *command, char **ret_reason)
{
        return luv_reason(ret_reason, r, "QEMU does not answer %s: %s", command,
                          r == -ECONNRESET ? "it has closed its monitor"
                          : r == -EBADMSG  ? "what it says makes no sense"
                                           : strerror(-r));
}

int luv_qmp_begin(Qmp *q, const char *command, sd_json_variant *arguments, uint64_t deadline,
                  char **ret_reason)
{
        int r;

        r = send_command(q, command, arguments, deadline);
        sd_json_variant_unref(arguments);
        return r < 0 ? fail(r, command, ret_reason) : 0;
}

/* 1: M is the answer to the last command, and *RET what it returned; 0: it is another's. */
static int is_answer(const Qmp *q, const char *command, sd_json_variant *m, sd_json_variant **ret,
                     char **ret_reason)
{
        sd_json_variant *id = sd_json_variant_by_key(m, "id"), *v;

        /* Of a command that was given up. */
        if (id && sd_json_variant_is_unsigned(id) && sd_json_variant_unsigned(id) != q->serial)
                return 0;
        v = sd_json_variant_by_key(m, "error");
        if (v) {
                const char *why = string_at(v, "desc");

                return luv_reason(ret_reason, -EREMOTEIO, "QEMU refuses %s: %s", command,
                                  why ? why : "it does not say why");
        }
        v = sd_json_variant_by_key(m, "return");
        if (!v || !id)
                return fail(-EBADMSG, command, ret_reason);
        if (ret)
                *ret = sd_json_variant_ref(v);
        return 1;
}

int luv_qmp_try_end(Qmp *q, const char *command, sd_json_variant **ret, char **ret_reason)
{
        int end, r;

        while ((end = fill(q)) > 0)
                ;
        /* What it said before it hung up counts. */
        for (;;) {
                _cleanup_(sd_json_variant_unrefp) sd_json_variant *m = NULL;

                r = next_message(q, &m);
                if (r == 0)
                        r = end;
                if (r <= 0)
                        return r < 0 ? fail(r, command, ret_reason) : 0;
                r = is_answer(q, command, m, ret, ret_reason);
                if (r != 0)
                        return r;
        }
}

int luv_qmp_end(Qmp *q, const char *command, uint64_t deadline, sd_json_variant **ret, char **ret_reason)
{
        for (;;) {
                _cleanup_(sd_json_variant_unrefp) sd_json_variant *m = NULL;
                int r;

                r = wait_message(q, deadline, &m);
                if (r < 0)
                        return fail(r, command, ret_reason);
                r = is_answer(q, command, m, ret, ret_reason);
                if (r != 0)
                        return MIN(r, 0);
        }
}

int luv_qmp_call(Qmp *q, const char *command, sd_json_variant *arguments, uint64_t deadline,
                 sd_json_variant **ret, char **ret_reason)
{
        int r;

        r = luv_qmp_begin(q, command, arguments, deadline, ret_reason);
        return r < 0 ? r : luv_qmp_end(q, command, deadline, ret, ret_reason);
}

static int greeting(Qmp *q, uint64_t deadline, char **ret_reason)
{
        _cleanup_(sd_json_variant_unrefp) sd_json_variant *m = NULL;
        static const char *const names[] = { "major", "minor", "micro" };
        sd_json_variant *v;
        uint64_t n[3];
        int r;

        r = wait_message(q, deadline, &m);
        if (r < 0)
                return luv_reason(ret_reason, r, "QEMU's monitor gives no greeting: %s", strerror(-r));
        v = sd_json_variant_by_key(m, "QMP");
        v = v ? sd_json_variant_by_key(v, "version") : NULL;
        v = v ? sd_json_variant_by_key(v, "qemu") : NULL;
        for (size_t i = 0; i < ELEMENTSOF(names); i++) {
                sd_json_variant *x = v ? sd_json_variant_by_key(v, names[i]) : NULL;

                if (!x || !sd_json_variant_is_unsigned(x) || sd_json_variant_unsigned(x) > 9999)
                        return luv_reason(ret_reason, -EBADMSG, "what listens is no monitor of QEMU");
                n[i] = sd_json_variant_unsigned(x);
        }
        q->major = (unsigned) n[0];
        q->minor = (unsigned) n[1];
        q->version = luv_strf("%u.%u.%u", q->major, q->minor, (unsigned) n[2]);
        if (!q->version)
                return -ENOMEM;
        return luv_qmp_call(q, "qmp_capabilities", NULL, deadline, NULL, ret_reason);
}

int luv_qmp_open(int *fd, uint64_t deadline, Qmp **ret, char **ret_reason)
{
        _cleanup_(luv_qmp_freep) Qmp *q = calloc(1, sizeof(Qmp));
        int r;

        if (!q)
                return -ENOMEM;
        q->fd = TAKE_FD(*fd);
        r = greeting(q, deadline, ret_reason);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(q);
        return 0;
}

int luv_qmp_process(Qmp *q)
{
        sd_json_variant *m = NULL;
        int end, r;

        while ((end = fill(q)) > 0)
                ;
        /* An answer that nobody waits for any more. What it said before it hung up counts. */
        while ((r = next_message(q, &m)) > 0)
                m = sd_json_variant_unref(m);
        return r < 0 ? r : end;
}

int luv_qmp_take_event(Qmp *q, char **ret_name, sd_json_variant **ret_data)
{
        _cleanup_(sd_json_variant_unrefp) sd_json_variant *m = NULL;
        sd_json_variant *data;
        const char *name;
        char *copy;

        if (q->n_events == 0)
                return 0;
        m = q->events[0];
        memmove(q->events, q->events + 1, --q->n_events * sizeof(q->events[0]));
        name = string_at(m, "event");
        copy = strdup(strempty(name));
        if (!copy)
                return -ENOMEM;
        data = sd_json_variant_by_key(m, "data");
        *ret_name = copy;
        if (ret_data)
                *ret_data = data ? sd_json_variant_ref(data) : NULL;
        return 1;
}

int luv_qmp_wait_event(Qmp *q, const char *name, uint64_t deadline, sd_json_variant **ret_data)
{
        for (;;) {
                _cleanup_(sd_json_variant_unrefp) sd_json_variant *data = NULL;
                _cleanup_free_ char *got = NULL;
                int end = 0, r;

                r = luv_qmp_take_event(q, &got, &data);
                if (r == 0) {
                        /* It may have come together with what was read before. */
                        end = luv_qmp_process(q);
                        r = luv_qmp_take_event(q, &got, &data);
                }
                if (r < 0)
                        return r;
                if (r > 0 && streq(got, name)) {
                        if (ret_data)
                                *ret_data = TAKE_PTR(data);
                        return 0;
                }
                if (r > 0)
                        continue;
                r = end < 0 ? end : wait_for(q->fd, POLLIN, deadline);
                if (r < 0)
                        return r;
        }
}
