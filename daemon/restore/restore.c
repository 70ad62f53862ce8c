/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "restore/restore.h"
#include "util/log.h"
#include "util/string-util.h"
#include "util/time-util.h"

/*
 * A session that somebody still has: an earlier incarnation's worker, which is about to end. Looked for
 * again after this time, until the deadline, or for so long where there is none.
 */
#define HELD_RETRY_USEC (20 * USEC_PER_MSEC)
#define HELD_LIMIT_USEC (10 * USEC_PER_SEC)

/* A session that is there and cannot be had, for want of memory maybe. Asking for one leaves no trace in
 * LUO. */
#define FAILED_RETRY_USEC (100 * USEC_PER_MSEC)
#define FAILED_LIMIT_USEC (2 * USEC_PER_SEC)

typedef struct RestoreMachine RestoreMachine;

/* A session on its way: from the fd store or the kernel, into the store, to its record. */
typedef struct RestoreSession {
        Restore *restore;
        const char *name;
        uint64_t token;
        RestoreMachine *machine; /* NULL: the host's */
        LuoSession *session;
        LuoCall *call;
        sd_event_source *retry_source;
        uint64_t retry_until; /* 0: it has not failed */
} RestoreSession;

typedef struct RestoreDevice {
        RestoreMachine *machine;
        const DeviceRecord *record;
        PluginOp op;
        PluginCall *call;
} RestoreDevice;

struct RestoreMachine {
        Restore *restore;
        const SessionRecord *listed;
        RestoreSession session;
        MachineRecord *record;
        RestoreDevice *devices;
        size_t n_devices_left;
        char *reason; /* of the first device that failed */
};

struct Restore {
        unsigned n_ref; /* the caller's, and one while a callback is under way */
        bool freed;
        sd_event *event;
        Luo *luo;
        FdStore *store;
        PluginManager *plugins;
        uint64_t deadline, held_until;
        RestoreCallbacks callbacks;
        void *userdata;

        sd_event_source *start_source;
        RestoreSession host_session;
        char *host_reason; /* why the first copy of the host record cannot be had */
        HostRecord *host;
        RestoreMachine *machines;
        size_t n_machines, n_machines_left;
};

static void restore_session_done(RestoreSession *s)
{
        s->call = luv_luo_call_free(s->call);
        s->retry_source = sd_event_source_disable_unref(s->retry_source);
        s->session = luv_luo_session_unref(s->session);
}

static void restore_machine_done(RestoreMachine *m)
{
        restore_session_done(&m->session);
        for (size_t i = 0; m->devices && i < m->record->n_devices; i++)
                (void) luv_plugin_call_free(m->devices[i].call);
        free(m->devices);
        m->record = luv_machine_record_free(m->record);
        free(m->reason);
}

static void restore_unref(Restore *r)
{
        if (--r->n_ref > 0)
                return;
        (void) sd_event_source_disable_unref(r->start_source);
        for (size_t i = 0; i < r->n_machines; i++)
                restore_machine_done(&r->machines[i]);
        free(r->machines);
        restore_session_done(&r->host_session);
        free(r->host_reason);
        (void) luv_host_record_free(r->host);
        (void) luv_luo_unref(r->luo);
        (void) sd_event_unref(r->event);
        free(r);
}

Restore *luv_restore_free(Restore *r)
{
        if (!r)
                return NULL;
        r->freed = true;
        restore_unref(r);
        return NULL;
}

/* The callee may free us in any callback: then nothing more is done. */
#define CALL_BACK(r, name, ...)                                                                             \
        ({                                                                                                  \
                Restore *_restore = (r);                                                                    \
                bool _alive;                                                                                \
                                                                                                            \
                _restore->n_ref++;                                                                          \
                _restore->callbacks.name(__VA_ARGS__, _restore->userdata);                                  \
                _alive = !_restore->freed;                                                                  \
                restore_unref(_restore);                                                                    \
                _alive;                                                                                     \
        })

static void restore_ended(Restore *r, int error, const char *reason)
{
        (void) CALL_BACK(r, done, error, reason, TAKE_PTR(r->host), TAKE_PTR(r->host_session.session));
}

static void machine_left(Restore *r)
{
        if (--r->n_machines_left == 0)
                restore_ended(r, 0, NULL);
}

static void machine_stranded(RestoreMachine *m, const char *reason)
{
        Restore *r = m->restore;

        if (CALL_BACK(r, stranded, m->listed->machine, reason ? reason : "out of memory",
                      TAKE_PTR(m->record), TAKE_PTR(m->session.session)))
                machine_left(r);
}

/* Devices: each is bound again, then held against its promise. */

static void devices_ended(RestoreMachine *m)
{
        Restore *r = m->restore;

        free(TAKE_PTR(m->devices));
        if (m->reason) {
                machine_stranded(m, m->reason);
                return;
        }
        if (CALL_BACK(r, ready, TAKE_PTR(m->record), TAKE_PTR(m->session.session)))
                machine_left(r);
}

static void device_ended(RestoreDevice *d, const char *reason)
{
        RestoreMachine *m = d->machine;

        if (reason && !m->reason)
                m->reason = strdup(reason);
        /* The others are waited for: a plugin at work cannot be called back. */
        if (--m->n_devices_left == 0)
                devices_ended(m);
}

static int device_call(RestoreDevice *d, PluginOp op);

static void device_done(const PluginResult *result, void *userdata)
{
        _cleanup_free_ char *text = NULL;
        RestoreDevice *d = userdata;
        int r;

        d->call = luv_plugin_call_free(d->call);
        if (result->error < 0) {
                text = result->reason ? strdup(result->reason)
                                      : luv_strf("device %s cannot be brought back: %s", d->record->address,
                                                 strerror(-result->error));
                device_ended(d, text ? text : "out of memory");
                return;
        }
        if (d->op == PLUGIN_OP_VERIFY) {
                device_ended(d, NULL);
                return;
        }
        r = device_call(d, PLUGIN_OP_VERIFY);
        if (r < 0) {
                text = luv_strf("plugin %s cannot be asked about device %s: %s", d->record->plugin,
                                d->record->address, strerror(-r));
                device_ended(d, text ? text : "out of memory");
        }
}

static int device_call(RestoreDevice *d, PluginOp op)
{
        Restore *r = d->machine->restore;

        d->op = op;
        return luv_plugin_call(r->plugins, op, d->record->plugin, d->record->address, d->record->plan,
                               FD_PRESERVED_UNKNOWN, r->deadline, device_done, d, &d->call);
}

static void machine_bind_devices(RestoreMachine *m)
{
        size_t n = m->record->n_devices;
        int r;

        m->devices = calloc(n + 1, sizeof(RestoreDevice));
        if (!m->devices) {
                machine_stranded(m, NULL);
                return;
        }
        /* One more than there are, so that the end is not seen before the last has begun. */
        m->n_devices_left = n + 1;
        for (size_t i = 0; i < n; i++) {
                RestoreDevice *d = &m->devices[i];
                _cleanup_free_ char *text = NULL;

                *d = (RestoreDevice) { .machine = m, .record = &m->record->devices[i] };
                r = device_call(d, PLUGIN_OP_REBIND);
                if (r >= 0)
                        continue;
                text = luv_strf("plugin %s cannot be asked to bind device %s: %s", d->record->plugin,
                                d->record->address, strerror(-r));
                device_ended(d, text ? text : "out of memory");
        }
        if (--m->n_devices_left == 0)
                devices_ended(m);
}

/* Sessions. */

static void session_failed(RestoreSession *s, int error, const char *reason);
static void session_get_record(RestoreSession *s);

static void machine_record_read(RestoreMachine *m, int fd)
{
        _cleanup_free_ char *reason = NULL;
        const SessionRecord *listed = m->listed;
        int r;

        r = luv_machine_record_read(fd, &m->record, &reason);
        if (r < 0) {
                machine_stranded(m, reason);
                return;
        }
        if (!streq(m->record->name, listed->machine) || !streq(m->record->session, listed->session) ||
            m->record->serial != listed->serial) {
                reason = luv_strf("session %s holds the record of machine %s, session %s, number %" PRIu64
                                  ", where the host's has %s, number %" PRIu64,
                                  listed->session, m->record->name, m->record->session, m->record->serial,
                                  listed->machine, listed->serial);
                m->record = luv_machine_record_free(m->record);
                machine_stranded(m, reason);
                return;
        }
        machine_bind_devices(m);
}

static void session_start(RestoreSession *s);

/* All machines hang on this record. Not retrieved, or damaged: both stay so, but there is a second one. */
static void host_record_failed(Restore *r, int error, const char *reason)
{
        RestoreSession *s = &r->host_session;

        if (!reason)
                reason = "out of memory";
        if (s->token == LUVFIO_HOST_TOKEN) {
                luv_log(LOG_WARNING, "The host's record is taken from its copy: %s", reason);
                r->host_reason = strdup(reason);
                s->token = LUVFIO_HOST_COPY_TOKEN;
                session_get_record(s);
                return;
        }
        /* Where there is no copy either, as at the hands of another version, the first one's is the reason.
         */
        restore_ended(r, error == -ENOENT ? -EBADMSG : error, r->host_reason ? r->host_reason : reason);
}

static void host_record_read(Restore *r, int fd)
{
        _cleanup_free_ char *reason = NULL;
        int error;

        error = luv_host_record_read(fd, &r->host, &reason);
        if (error < 0) {
                host_record_failed(r, error, reason);
                return;
        }
        if (!CALL_BACK(r, found, r->host))
                return;
        r->machines = calloc(r->host->n_sessions + 1, sizeof(RestoreMachine));
        if (!r->machines) {
                restore_ended(r, -ENOMEM, "out of memory");
                return;
        }
        r->n_machines = r->host->n_sessions;
        for (size_t i = 0; i < r->n_machines; i++) {
                RestoreMachine *m = &r->machines[i];

                *m = (RestoreMachine) { .restore = r, .listed = &r->host->sessions[i] };
                m->session = (RestoreSession) {
                        .restore = r,
                        .name = m->listed->session,
                        .token = LUVFIO_MACHINE_TOKEN(m->listed->serial),
                        .machine = m,
                };
        }

        /* One more than there are: see machine_bind_devices(). */
        r->n_machines_left = r->n_machines + 1;
        r->n_ref++;
        for (size_t i = 0; i < r->n_machines && !r->freed; i++)
                session_start(&r->machines[i].session);
        if (!r->freed)
                machine_left(r);
        restore_unref(r);
}

static void session_record_done(int error, int fd, void *userdata)
{
        _cleanup_close_ int record_fd = fd;
        _cleanup_free_ char *reason = NULL;
        RestoreSession *s = userdata;

        s->call = luv_luo_call_free(s->call);
        if (error < 0) {
                /* Outgoing: this is still the kernel before the jump. */
                reason = luv_strf(error == -EINVAL ? "session %s did not come over a live update: %s"
                                                   : "the record in session %s cannot be retrieved: %s",
                                  s->name, strerror(-error));
                if (s->machine)
                        session_failed(s, error, reason);
                else
                        host_record_failed(s->restore, error, reason);
                return;
        }
        if (s->machine)
                machine_record_read(s->machine, record_fd);
        else
                host_record_read(s->restore, record_fd);
}

static void session_get_record(RestoreSession *s)
{
        _cleanup_free_ char *reason = NULL;
        int error;

        error = luv_luo_session_retrieve_fd(s->session, s->token, s->restore->deadline, session_record_done,
                                            s, &s->call);
        if (error >= 0)
                return;
        reason = luv_strf("the record in session %s cannot be asked for: %s", s->name, strerror(-error));
        session_failed(s, error, reason);
}

/* It is ours now: into the store before anything else. */
static void session_have(RestoreSession *s, bool stored)
{
        Restore *r = s->restore;
        int error;

        if (!stored) {
                /* The kernel puts it back if we die: no reason to strand a machine, or to wait for a service
                 * manager that is starting everything else. */
                error = luv_fd_store_send(r->store, s->name, luv_luo_session_get_fd(s->session));
                if (error < 0)
                        (void) luv_log_errno(LOG_WARNING, error,
                                             "Cannot put session %s into the service manager's store",
                                             s->name);
        }
        session_get_record(s);
}

static int session_retrieve(RestoreSession *s);

static int dispatch_retry(sd_event_source *source, uint64_t usec, void *userdata)
{
        _cleanup_free_ char *reason = NULL;
        RestoreSession *s = userdata;
        int r;

        s->retry_source = sd_event_source_disable_unref(s->retry_source);
        r = session_retrieve(s);
        if (r < 0) {
                reason = luv_strf("session %s cannot be asked for: %s", s->name, strerror(-r));
                session_failed(s, r, reason);
        }
        return 0;
}

/* Whether it is worth asking again for a session, and was arranged. */
static bool session_try_again(RestoreSession *s, int error)
{
        uint64_t now = luv_now_usec(), until, delay;
        Restore *r = s->restore;

        switch (error) {
        case -ENOENT:
        case -ENODEV:
        case -ETIME:
                return false;
        case -EINVAL:
                until = r->held_until;
                delay = HELD_RETRY_USEC;
                break;
        default:
                if (s->retry_until == 0)
                        s->retry_until = now + FAILED_LIMIT_USEC;
                until = s->retry_until;
                delay = FAILED_RETRY_USEC;
        }
        return now < until && sd_event_add_time_relative(r->event, &s->retry_source, CLOCK_BOOTTIME, delay,
                                                         USEC_PER_MSEC, dispatch_retry, s) >= 0;
}

static void session_retrieved(int error, LuoSession *session, void *userdata)
{
        _cleanup_free_ char *reason = NULL;
        RestoreSession *s = userdata;

        s->call = luv_luo_call_free(s->call);
        if (error >= 0) {
                s->session = session;
                session_have(s, false);
                return;
        }
        if (session_try_again(s, error))
                return;
        reason = error == -EINVAL
                                 ? luv_strf("session %s is held by another process", s->name)
                                 : luv_strf("session %s cannot be retrieved: %s", s->name, strerror(-error));
        session_failed(s, error, reason);
}

static int session_retrieve(RestoreSession *s)
{
        return luv_luo_session_retrieve(s->restore->luo, s->name, s->restore->deadline, session_retrieved, s,
                                        &s->call);
}

static void session_start(RestoreSession *s)
{
        _cleanup_free_ char *reason = NULL;
        _cleanup_close_ int fd = -EBADF;
        Restore *r = s->restore;
        int error;

        fd = luv_fd_store_take(r->store, s->name);
        if (fd >= 0) {
                error = luv_luo_session_adopt(r->luo, s->name, fd, true, &s->session);
                if (error >= 0) {
                        TAKE_FD(fd);
                        session_have(s, true);
                        return;
                }
                /* What is stored under this name is something else; the kernel may have the session still.
                 */
                (void) luv_log_errno(LOG_WARNING, error,
                                     "What the service manager stored as %s is no such session", s->name);
                (void) luv_fd_store_remove(r->store, s->name);
        }
        error = session_retrieve(s);
        if (error < 0) {
                reason = luv_strf("session %s cannot be asked for: %s", s->name, strerror(-error));
                session_failed(s, error, reason);
        }
}

static void session_failed(RestoreSession *s, int error, const char *reason)
{
        RestoreMachine *m = s->machine;
        Restore *r = s->restore;

        if (m && error == -ENOENT && r->callbacks.gone) {
                /* Where the fd was stored, it is that of a session that has nothing in it any more. */
                if (s->session)
                        (void) luv_fd_store_remove(r->store, s->name);
                s->session = luv_luo_session_unref(s->session);
                if (CALL_BACK(r, gone, m->listed->machine))
                        machine_left(r);
                return;
        }
        if (m) {
                machine_stranded(m, reason);
                return;
        }
        /* No such session, or no LUO at all: this is a cold boot. */
        if (!s->session && (error == -ENOENT || error == -ENODEV))
                restore_ended(r, -ENOENT, "nothing was handed over to this kernel");
        else
                restore_ended(r, error == -ENOENT ? -EBADMSG : error, reason ? reason : "out of memory");
}

static int dispatch_start(sd_event_source *source, void *userdata)
{
        Restore *r = userdata;

        session_start(&r->host_session);
        return 0;
}

int luv_restore_start(sd_event *event, Luo *luo, FdStore *store, PluginManager *plugins, uint64_t deadline,
                      const RestoreCallbacks *callbacks, void *userdata, Restore **ret)
{
        _cleanup_(luv_restore_freep) Restore *r = NULL;
        int error;

        r = calloc(1, sizeof(*r));
        if (!r)
                return -ENOMEM;
        *r = (Restore) {
                .n_ref = 1,
                .event = sd_event_ref(event),
                .luo = luv_luo_ref(luo),
                .store = store,
                .plugins = plugins,
                .deadline = deadline,
                .held_until = deadline ? deadline : luv_now_usec() + HELD_LIMIT_USEC,
                .callbacks = *callbacks,
                .userdata = userdata,
        };
        r->host_session = (RestoreSession) {
                .restore = r,
                .name = LUVFIO_HOST_SESSION,
                .token = LUVFIO_HOST_TOKEN,
        };
        error = sd_event_add_defer(event, &r->start_source, dispatch_start, r);
        if (error < 0)
                return error;
        (void) sd_event_source_set_description(r->start_source, "restore-start");
        *ret = TAKE_PTR(r);
        return 0;
}
