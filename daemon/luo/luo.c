/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>

#include "luo/luo-internal.h"
#include "util/io.h"
#include "util/string-util.h"
#include "util/time-util.h"

static const char *const luo_backend_table[_LUO_BACKEND_MAX] = {
        [LUO_BACKEND_DEVICE] = "device",
        [LUO_BACKEND_SIMULATED] = "simulated",
};

const char *luv_luo_backend_to_string(LuoBackend b)
{
        return b >= 0 && b < _LUO_BACKEND_MAX ? luo_backend_table[b] : NULL;
}

/* How long to wait before /dev/liveupdate is opened again: somebody else has it for one ioctl. */
#define BUSY_FIRST_USEC (1 * USEC_PER_MSEC)
#define BUSY_LAST_USEC (50 * USEC_PER_MSEC)
/* Calls that are started in one turn of the event loop. */
#define READY_AT_ONCE 32u

int luv_luo_handed_fd(void)
{
        const char *e = getenv(LUVFIO_HANDED_ENV);
        uint64_t v;
        int r, fd;

        if (!e)
                return -ENOENT;
        r = luv_parse_u64(e, &v);
        if (r < 0 || v > INT32_MAX)
                return -EINVAL;
        fd = (int) v;
        (void) unsetenv(LUVFIO_HANDED_ENV);
        r = luv_fd_set_cloexec(fd, true);
        return r < 0 ? r : fd;
}

int luv_luo_new(sd_event *event, LuoBackend backend, int handed_fd, const char *fail, Luo **ret)
{
        static const LuoBackendOps *const ops[_LUO_BACKEND_MAX] = {
                [LUO_BACKEND_DEVICE] = &luv_luo_device_ops,
                [LUO_BACKEND_SIMULATED] = &luv_luo_simulated_ops,
        };
        _cleanup_(luv_luo_unrefp) Luo *l = NULL;
        int r;

        assert(backend >= 0 && backend < _LUO_BACKEND_MAX);

        l = calloc(1, sizeof(*l));
        if (!l) {
                (void) safe_close(handed_fd);
                return -ENOMEM;
        }
        l->n_ref = 1;
        l->event = sd_event_ref(event);
        l->backend = backend;
        l->ops = ops[backend];
        r = l->ops->init(l, handed_fd, fail);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(l);
        return 0;
}

Luo *luv_luo_ref(Luo *l)
{
        if (l)
                l->n_ref++;
        return l;
}

static void call_unref(LuoCall *c);

Luo *luv_luo_unref(Luo *l)
{
        LuoCall *c;

        if (!l || --l->n_ref > 0)
                return NULL;
        l->ops->done(l);
        /* Sessions hold a reference of ours, so what is left are calls that open one, or are over. */
        while ((c = l->calls)) {
                l->calls = c->next;
                c->luo = NULL;
                if (!c->pending)
                        continue;
                c->pending = c->ready = false;
                c->deadline_source = sd_event_source_disable_unref(c->deadline_source);
                c->busy_source = sd_event_source_disable_unref(c->busy_source);
                call_unref(c);
        }
        (void) sd_event_source_disable_unref(l->ready_source);
        (void) sd_event_unref(l->event);
        free(l);
        return NULL;
}

LuoBackend luv_luo_get_backend(Luo *l)
{
        return l->backend;
}

int luv_luo_probe(Luo *l)
{
        return l->ops->probe(l);
}

int luv_luo_read_abi(Luo *l, char **ret)
{
        return l->ops->read_abi(l, ret);
}

int luv_luo_jump(Luo *l, char *const *argv, const int *kept, char *const *kept_names, size_t n_kept)
{
        return l->ops->jump(l, argv, kept, kept_names, n_kept);
}

/* Calls: a session's are made one after the other; those that open sessions do not wait for each other. */

static void call_unref(LuoCall *c)
{
        if (--c->n_ref > 0)
                return;
        if (c->luo) {
                if (c->previous)
                        c->previous->next = c->next;
                else
                        c->luo->calls = c->next;
                if (c->next)
                        c->next->previous = c->previous;
        }
        (void) sd_event_source_disable_unref(c->deadline_source);
        (void) sd_event_source_disable_unref(c->busy_source);
        (void) safe_close(c->fd);
        free(c->name);
        free(c);
}

static int dispatch_ready(sd_event_source *source, void *userdata);

static int call_make_ready(LuoCall *c)
{
        Luo *l = c->luo;
        int r;

        if (!l->ready_source) {
                r = sd_event_add_defer(l->event, &l->ready_source, dispatch_ready, l);
                if (r < 0)
                        return r;
                (void) sd_event_source_set_description(l->ready_source, "luo-ready");
        }
        r = sd_event_source_set_enabled(l->ready_source, SD_EVENT_ON);
        if (r < 0)
                return r;
        c->ready = true;
        c->ready_next = NULL;
        if (l->ready_last)
                l->ready_last->ready_next = c;
        else
                l->ready_first = c;
        l->ready_last = c;
        return 0;
}

static void call_unready(LuoCall *c)
{
        Luo *l = c->luo;
        LuoCall *before = NULL;

        if (!c->ready)
                return;
        for (LuoCall *i = l->ready_first; i != c; i = i->ready_next)
                before = i;
        if (before)
                before->ready_next = c->ready_next;
        else
                l->ready_first = c->ready_next;
        if (l->ready_last == c)
                l->ready_last = before;
        c->ready = false;
}

/* Takes the call out of all queues; the next one's turn comes if this was its session's first. */
static void call_dequeue(LuoCall *c)
{
        LuoSession *s = c->session;
        LuoCall *before = NULL;

        call_unready(c);
        if (!c->queued)
                return;
        assert(s);
        c->queued = false;
        for (LuoCall *i = s->first; i != c; i = i->queue_next)
                before = i;
        if (before)
                before->queue_next = c->queue_next;
        else
                s->first = c->queue_next;
        if (s->last == c)
                s->last = before;
        /* The event source is there already, so this needs no memory. */
        if (!before && s->first)
                (void) call_make_ready(s->first);
}

/*
 * Ends a call with its callback, or without if CANCELLED. What the backend may still do for it does not
 * keep the session open.
 */
static void call_end(LuoCall *c, bool cancelled, int error, int fd)
{
        LuoSession *s = c->session, *opened = NULL;
        Luo *l = luv_luo_ref(c->luo);

        assert(c->pending);
        c->pending = false;
        c->deadline_source = sd_event_source_disable_unref(c->deadline_source);
        c->busy_source = sd_event_source_disable_unref(c->busy_source);
        if (!c->running)
                call_dequeue(c);

        if (!cancelled)
                switch (c->op) {
                case LUO_OP_CREATE:
                case LUO_OP_RETRIEVE_SESSION:
                        if (error >= 0)
                                error = luv_luo_session_adopt(l, c->name, fd,
                                                              c->op == LUO_OP_RETRIEVE_SESSION, &opened);
                        if (error >= 0)
                                fd = -EBADF;
                        c->session_done(error, opened, c->userdata);
                        break;
                case LUO_OP_RETRIEVE:
                        c->fd_done(error, TAKE_FD(fd), c->userdata);
                        break;
                default:
                        c->done(error, c->userdata);
                }
        (void) safe_close(fd);
        luv_luo_session_unref(s);
        call_unref(c);
        luv_luo_unref(l);
}

void luv_luo_call_complete(LuoCall *c, int error, int fd)
{
        assert(c->running);

        c->running = false;
        call_dequeue(c);
        if (c->pending)
                call_end(c, false, error, fd);
        else
                (void) safe_close(fd);
        call_unref(c);
}

static int dispatch_deadline(sd_event_source *source, uint64_t usec, void *userdata)
{
        LuoCall *c = userdata;

        call_end(c, false, -ETIME, -EBADF);
        return 0;
}

static int dispatch_busy(sd_event_source *source, uint64_t usec, void *userdata)
{
        LuoCall *c = userdata;
        int r;

        r = call_make_ready(c);
        if (r < 0)
                call_end(c, false, r, -EBADF);
        return 0;
}

/* The device is somebody else's for the moment. */
static int call_retry(LuoCall *c)
{
        unsigned doublings = MIN(c->n_busy, 10u);
        uint64_t delay = MIN(BUSY_FIRST_USEC << doublings, BUSY_LAST_USEC);
        uint64_t when = luv_now_usec() + delay;
        int r;

        c->n_busy++;
        if (!c->busy_source) {
                r = sd_event_add_time(c->luo->event, &c->busy_source, CLOCK_BOOTTIME, when, USEC_PER_MSEC,
                                      dispatch_busy, c);
                if (r < 0)
                        return r;
                (void) sd_event_source_set_description(c->busy_source, "luo-busy");
                return 0;
        }
        r = sd_event_source_set_time(c->busy_source, when);
        if (r < 0)
                return r;
        return sd_event_source_set_enabled(c->busy_source, SD_EVENT_ONESHOT);
}

static void call_start(LuoCall *c)
{
        int r;

        if (luv_usec_left(c->deadline) == 0) {
                call_end(c, false, -ETIME, -EBADF);
                return;
        }
        if (c->session) {
                c->running = true;
                c->n_ref++;
                c->luo->ops->start(c);
                return;
        }

        r = c->luo->ops->open_session(c->luo, c->op == LUO_OP_RETRIEVE_SESSION, c->name);
        if (r == -EBUSY) {
                r = call_retry(c);
                if (r >= 0)
                        return;
        }
        call_end(c, false, r < 0 ? r : 0, r < 0 ? -EBADF : r);
}

static int dispatch_ready(sd_event_source *source, void *userdata)
{
        _cleanup_(luv_luo_unrefp) Luo *l = luv_luo_ref(userdata);

        /* A turn of the loop has a price, and a thousand machines' calls must not keep it from its sockets.
         */
        for (unsigned n = 0; n < READY_AT_ONCE && l->ready_first; n++) {
                LuoCall *c = l->ready_first;

                call_unready(c);
                call_start(c);
        }
        if (!l->ready_first)
                return sd_event_source_set_enabled(source, SD_EVENT_OFF);
        return 0;
}

static int call_new(Luo *l, LuoSession *s, LuoOp op, uint64_t deadline, void *userdata, LuoCall **ret)
{
        LuoCall *c;
        int r;

        c = calloc(1, sizeof(*c));
        if (!c)
                return -ENOMEM;
        *c = (LuoCall) {
                .n_ref = 1,
                .luo = l,
                .session = s,
                .op = op,
                .fd = -EBADF,
                .deadline = deadline,
                .userdata = userdata,
                .next = l->calls,
        };
        if (l->calls)
                l->calls->previous = c;
        l->calls = c;
        if (deadline != 0) {
                r = sd_event_add_time(l->event, &c->deadline_source, CLOCK_BOOTTIME, deadline, USEC_PER_MSEC,
                                      dispatch_deadline, c);
                if (r < 0) {
                        call_unref(c);
                        return r;
                }
                (void) sd_event_source_set_description(c->deadline_source, "luo-deadline");
        }
        *ret = c;
        return 0;
}

/* From here on there will be a callback. */
static int call_submit(LuoCall *c, LuoCall **ret)
{
        LuoSession *s = c->session;
        int r;

        if (!s || !s->first) {
                r = call_make_ready(c);
                if (r < 0) {
                        call_unref(c);
                        return r;
                }
        }
        if (s) {
                if (s->last)
                        s->last->queue_next = c;
                else
                        s->first = c;
                s->last = c;
                luv_luo_session_ref(s);
                c->queued = true;
        }
        c->pending = true;
        if (ret) {
                c->n_ref++;
                *ret = c;
        }
        return 0;
}

LuoCall *luv_luo_call_free(LuoCall *c)
{
        if (!c)
                return NULL;
        if (c->pending)
                call_end(c, true, 0, -EBADF);
        call_unref(c);
        return NULL;
}

static int session_name_check(const char *name)
{
        size_t n = strlen(name);

        if (n == 0 || n >= LUO_SESSION_NAME_SIZE)
                return -EINVAL;
        /* What is not UTF-8 in a session's name breaks PID 1's own bookkeeping; ASCII is enough for us. */
        for (size_t i = 0; i < n; i++)
                if (name[i] <= 0x20 || name[i] > 0x7e)
                        return -EINVAL;
        return 0;
}

static int session_open(Luo *l, LuoOp op, const char *name, uint64_t deadline, LuoSessionDone done,
                        void *userdata, LuoCall **ret)
{
        LuoCall *c;
        int r;

        r = session_name_check(name);
        if (r < 0)
                return r;
        r = call_new(l, NULL, op, deadline, userdata, &c);
        if (r < 0)
                return r;
        c->session_done = done;
        c->name = strdup(name);
        if (!c->name) {
                call_unref(c);
                return -ENOMEM;
        }
        return call_submit(c, ret);
}

int luv_luo_session_create(Luo *l, const char *name, uint64_t deadline, LuoSessionDone done, void *userdata,
                           LuoCall **ret)
{
        return session_open(l, LUO_OP_CREATE, name, deadline, done, userdata, ret);
}

int luv_luo_session_retrieve(Luo *l, const char *name, uint64_t deadline, LuoSessionDone done,
                             void *userdata, LuoCall **ret)
{
        return session_open(l, LUO_OP_RETRIEVE_SESSION, name, deadline, done, userdata, ret);
}

/* Sessions. */

int luv_luo_session_adopt(Luo *l, const char *name, int fd, bool incoming, LuoSession **ret)
{
        LuoSession *s;
        int r;

        s = calloc(1, sizeof(*s));
        if (!s)
                return -ENOMEM;
        *s = (LuoSession) {
                .n_ref = 1,
                .luo = luv_luo_ref(l),
                .session_fd = fd,
                .incoming = incoming,
        };
        s->name = strdup(name);
        r = s->name ? l->ops->session_attach(s) : -ENOMEM;
        if (r < 0) {
                luv_luo_unref(s->luo);
                free(s->name);
                free(s);
                return r;
        }
        *ret = s;
        return 0;
}

LuoSession *luv_luo_session_ref(LuoSession *s)
{
        if (s)
                s->n_ref++;
        return s;
}

LuoSession *luv_luo_session_unref(LuoSession *s)
{
        LuoCall *c;

        if (!s || --s->n_ref > 0)
                return NULL;
        c = s->first;
        s->luo->ops->session_detach(s);
        if (c) {
                /* Its callback is over, or it would hold the session: the backend had it, and forgot it. */
                assert(c->running && !c->pending && !c->queue_next);
                c->session = NULL;
                c->queued = c->running = false;
                call_unref(c);
        }
        (void) safe_close(s->session_fd);
        luv_luo_unref(s->luo);
        free(s->name);
        free(s->cgroup);
        free(s);
        return NULL;
}

const char *luv_luo_session_get_name(LuoSession *s)
{
        return s->name;
}

int luv_luo_session_get_fd(LuoSession *s)
{
        return s->session_fd;
}

int luv_luo_session_set_cgroup(LuoSession *s, const char *cgroup)
{
        if (cgroup && cgroup[0] != '/')
                return -EINVAL;
        return luv_free_and_strdup(&s->cgroup, cgroup);
}

int luv_luo_session_preserve(LuoSession *s, int fd, uint64_t token, uint64_t deadline, LuoDone done,
                             void *userdata, LuoCall **ret)
{
        LuoCall *c;
        int r;

        r = call_new(s->luo, s, LUO_OP_PRESERVE, deadline, userdata, &c);
        if (r < 0)
                return r;
        c->done = done;
        c->token = token;
        c->fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
        if (c->fd < 0) {
                r = negative_errno();
                call_unref(c);
                return r;
        }
        return call_submit(c, ret);
}

int luv_luo_session_retrieve_fd(LuoSession *s, uint64_t token, uint64_t deadline, LuoFdDone done,
                                void *userdata, LuoCall **ret)
{
        LuoCall *c;
        int r;

        r = call_new(s->luo, s, LUO_OP_RETRIEVE, deadline, userdata, &c);
        if (r < 0)
                return r;
        c->fd_done = done;
        c->token = token;
        return call_submit(c, ret);
}

int luv_luo_session_finish(LuoSession *s, uint64_t deadline, LuoDone done, void *userdata, LuoCall **ret)
{
        LuoCall *c;
        int r;

        r = call_new(s->luo, s, LUO_OP_FINISH, deadline, userdata, &c);
        if (r < 0)
                return r;
        c->done = done;
        return call_submit(c, ret);
}
