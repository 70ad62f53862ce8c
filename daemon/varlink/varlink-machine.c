/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>

#include "machine/peer.h"
#include "report/messages.h"
#include "util/log.h"
#include "util/string-util.h"
#include "util/time-util.h"
#include "varlink/idl.h"
#include "varlink/server-private.h"

/* org.luvfio.Machine */

#define VMM_LENGTH_MAX 1024u
#define BLOCKER_LENGTH_MAX 1024u

#define DISPATCH_STRING(name, type, member, flags)                                                          \
        { name, SD_JSON_VARIANT_STRING, sd_json_dispatch_const_string, offsetof(type, member), (flags) }

/* Errors. They return what sd-varlink returns: a negative number once the error is sent. */

static int error_machine(Connection *c, const char *error, const char *machine)
{
        return sd_varlink_errorbo(c->link, error, SD_JSON_BUILD_PAIR_STRING("machine", machine));
}

static int error_name(Connection *c, const char *name)
{
        _cleanup_free_ char *printable = luv_printable(name);

        if (!printable)
                return -ENOMEM;
        return sd_varlink_errorbo(c->link, VL_ERROR_MACHINE("InvalidName"),
                                  SD_JSON_BUILD_PAIR_STRING("name", printable));
}

static int error_state(Connection *c, const Machine *m)
{
        return sd_varlink_errorbo(c->link, VL_ERROR_MACHINE("WrongState"),
                                  SD_JSON_BUILD_PAIR_STRING("machine", m->name),
                                  SD_JSON_BUILD_PAIR_STRING("state", luv_machine_state_to_string(m->state)));
}

static int error_quota(Connection *c, const char *what, uint64_t limit)
{
        return sd_varlink_errorbo(c->link, VL_ERROR_MACHINE("QuotaExceeded"),
                                  SD_JSON_BUILD_PAIR_STRING("what", what),
                                  SD_JSON_BUILD_PAIR_UNSIGNED("limit", limit));
}

static int error_unsupported(Connection *c, const char *name, const char *reason)
{
        return sd_varlink_errorbo(c->link, VL_ERROR_MACHINE("UnsupportedFileDescriptor"),
                                  SD_JSON_BUILD_PAIR_STRING("name", name),
                                  SD_JSON_BUILD_PAIR_STRING("reason", reason));
}

static int error_fd_name(Connection *c, const char *error, const char *name)
{
        return sd_varlink_errorbo(c->link, error, SD_JSON_BUILD_PAIR_STRING("name", name));
}

static int fd_to_json(const MachineFd *f, sd_json_variant **ret)
{
        bool memory = f->kind == FD_KIND_MEMFD || f->kind == FD_KIND_STATE;

        return sd_json_buildo(ret, SD_JSON_BUILD_PAIR_STRING("name", f->name),
                              SD_JSON_BUILD_PAIR_STRING("kind", luv_fd_kind_to_string(f->kind)),
                              SD_JSON_BUILD_PAIR_UNSIGNED("token", f->token),
                              SD_JSON_BUILD_PAIR_STRING("outcome", luv_fd_outcome_to_string(f->outcome)),
                              SD_JSON_BUILD_PAIR_CONDITION(memory, "size",
                                                           SD_JSON_BUILD_UNSIGNED(f->identity.size)),
                              SD_JSON_BUILD_PAIR_CONDITION(f->identity.device[0] != 0, "device",
                                                           SD_JSON_BUILD_STRING(f->identity.device)));
}

static bool is_proven(const Connection *c, const Machine *m)
{
        return luv_machine_is_owner(m, &c->peer, c->server->config.simulated) ||
               streq_ptr(c->proven, m->name);
}

/*
 * The machine that a call is about, if the caller may speak for it. 1: *ret is set. Else the error has been
 * sent, and what is to be returned comes back.
 */
static int find_machine(Connection *c, const char *name, Machine **ret)
{
        Machine *m = luv_machine_registry_find(c->server->config.machines, name);

        if (!m) {
                _cleanup_free_ char *printable = luv_printable(name);

                if (!printable)
                        return -ENOMEM;
                (void) error_machine(c, VL_ERROR_MACHINE("NoSuchMachine"), printable);
                return 0;
        }
        if (!is_proven(c, m)) {
                (void) error_machine(c, VL_ERROR_MACHINE("NotOwner"), m->name);
                return 0;
        }
        *ret = m;
        return 1;
}

typedef struct MachineParameters {
        const char *machine;
} MachineParameters;

static const sd_json_dispatch_field machine_table[] = {
        DISPATCH_STRING("machine", MachineParameters, machine, SD_JSON_MANDATORY),
        {},
};

/* Register. */

static int reply_registered(Connection *c, Machine *m)
{
        _cleanup_(sd_json_variant_unrefp) sd_json_variant *fds = NULL;
        int r;

        r = sd_json_variant_new_array(&fds, NULL, 0);
        for (size_t i = 0; i < m->n_fds && r >= 0; i++) {
                _cleanup_(sd_json_variant_unrefp) sd_json_variant *v = NULL;

                r = fd_to_json(m->fds[i], &v);
                if (r >= 0)
                        r = sd_json_variant_append_array(&fds, v);
        }
        if (r < 0)
                return r;
        return sd_varlink_replybo(c->link, SD_JSON_BUILD_PAIR_STRING("secret", m->secret),
                                  SD_JSON_BUILD_PAIR_UNSIGNED("generation", m->generation),
                                  SD_JSON_BUILD_PAIR_STRING("state", luv_machine_state_to_string(m->state)),
                                  SD_JSON_BUILD_PAIR_VARIANT("fileDescriptors", fds));
}

static int copy_peer(const Connection *c, MachineOwner *ret)
{
        _cleanup_(luv_machine_owner_done) MachineOwner o = { .pidfd = -EBADF };

        o.uid = c->peer.uid;
        o.pid = c->peer.pid;
        if (luv_free_and_strdup(&o.unit, c->peer.unit) < 0 ||
            luv_free_and_strdup(&o.cgroup, c->peer.cgroup) < 0)
                return -ENOMEM;
        /* It may have sent its message and gone: then nobody would see its machine's end. */
        o.pidfd = luv_peer_open(sd_varlink_get_fd(c->link), c->peer.pid);
        if (o.pidfd < 0)
                return o.pidfd;
        *ret = o;
        o = (MachineOwner) { .pidfd = -EBADF };
        return 0;
}

static int note(Machine *m)
{
        int r = luv_machine_note(m);

        if (r < 0)
                luv_log_error(r, "Machine %s is not noted for a restart of luvfiod", m->name);
        return r;
}

static int error_stranded(Connection *c, const Machine *m)
{
        return sd_varlink_errorbo(c->link, VL_ERROR_MACHINE("Stranded"),
                                  SD_JSON_BUILD_PAIR_STRING("machine", m->name),
                                  SD_JSON_BUILD_PAIR_STRING("reason", strempty(m->reason)));
}

static int register_new(Connection *c, const char *name, const char *vmm)
{
        _cleanup_(luv_machine_owner_done) MachineOwner owner = { .pidfd = -EBADF };
        MachineRegistry *machines = c->server->config.machines;
        Machine *m;
        int r;

        if (!luv_update_takes_machines(c->server->config.update))
                return sd_varlink_errorbo(c->link, VL_ERROR_MACHINE("WrongState"),
                                          SD_JSON_BUILD_PAIR_STRING("machine", name),
                                          SD_JSON_BUILD_PAIR_STRING("state",
                                                                    luv_machine_state_to_string(
                                                                                    MACHINE_QUIESCING)));
        r = copy_peer(c, &owner);
        if (r < 0)
                return r;
        r = luv_machine_new(machines, name, &owner, MACHINE_RUNNING, &m);
        if (r == -EDQUOT)
                return error_quota(c, "machines", luv_machine_registry_quota(machines)->machines);
        if (r < 0)
                return r;
        if (luv_free_and_strdup(&m->vmm, vmm) < 0) {
                luv_machine_forget(m);
                return -ENOMEM;
        }
        if (luv_update_may_be_lost(c->server->config.update, name)) {
                r = luv_update_strand_lost(c->server->config.update, m);
                if (r < 0) {
                        luv_machine_forget(m);
                        return r;
                }
                return error_stranded(c, m);
        }
        (void) note(m);
        luv_log_struct(LOG_INFO,
                       &(LogFields) { .message_id = LUVFIO_MESSAGE_MACHINE_REGISTERED, .machine = name },
                       "Machine %s registered by pid %i (uid %u, %s)", name, (int) c->peer.pid, c->peer.uid,
                       c->peer.unit ? c->peer.unit : "no unit");
        return reply_registered(c, m);
}

static int park(Connection *c)
{
        c->caller = CALLER_PARKED;
        return 0;
}

typedef struct RegisterParameters {
        const char *name, *secret, *vmm;
} RegisterParameters;

static int show_secret(Connection *c, Machine *m, const char *secret)
{
        if (!luv_machine_is_secret(m, secret))
                return 0;
        return luv_free_and_strdup(&c->proven, m->name) < 0 ? -ENOMEM : 1;
}

static bool is_same_unit(const Connection *c, const Machine *m)
{
        if (c->peer.uid != m->owner.uid)
                return false;
        if (!c->peer.unit || !m->owner.unit)
                return c->server->config.simulated && !c->peer.unit && !m->owner.unit;
        return streq(c->peer.unit, m->owner.unit);
}

static int register_again(Connection *c, Machine *m, const RegisterParameters *p)
{
        _cleanup_(luv_machine_owner_done) MachineOwner owner = { .pidfd = -EBADF };
        bool alive, proven;
        int r;

        /* Whose it is was not read yet. */
        if (m->state == MACHINE_RESTORING)
                return park(c);
        r = show_secret(c, m, p->secret);
        if (r < 0)
                return r;
        if (!is_proven(c, m))
                return error_machine(c,
                                     p->secret ? VL_ERROR_MACHINE("NotOwner")
                                               : VL_ERROR_MACHINE("MachineExists"),
                                     m->name);
        if (m->state == MACHINE_STRANDED && luv_update_returned(c->server->config.update, m) == -ESTALE)
                return error_stranded(c, m);
        alive = luv_machine_is_alive(m);
        proven = luv_machine_is_secret(m, p->secret);
        /* Root may speak for any machine, but two VMMs of root that took the same name are a mistake. */
        if (alive && !proven && c->peer.pid != m->owner.pid && !is_same_unit(c, m))
                return error_machine(c, VL_ERROR_MACHINE("MachineExists"), m->name);
        /* Whoever shows the secret takes over, and whoever comes when the first is gone. */
        if (!alive || (proven && c->peer.pid != m->owner.pid)) {
                r = copy_peer(c, &owner);
                if (r < 0)
                        return r;
                r = luv_machine_set_owner(m, &owner);
                if (r < 0)
                        return r;
        }
        r = luv_update_returned(c->server->config.update, m);
        if (r < 0)
                return r;
        if (p->vmm && luv_free_and_strdup(&m->vmm, p->vmm) < 0)
                return -ENOMEM;
        (void) note(m);
        return reply_registered(c, m);
}

static int method_register(sd_varlink *link, sd_json_variant *parameters, sd_varlink_method_flags_t flags,
                           void *userdata)
{
        static const sd_json_dispatch_field table[] = {
                DISPATCH_STRING("name", RegisterParameters, name, SD_JSON_MANDATORY),
                DISPATCH_STRING("secret", RegisterParameters, secret, SD_JSON_NULLABLE),
                DISPATCH_STRING("vmm", RegisterParameters, vmm, SD_JSON_NULLABLE),
                {},
        };
        Connection *c = userdata;
        RegisterParameters p = {};
        Machine *m;
        int r;

        r = luv_dispatch(c, parameters, flags, table, &p);
        if (r <= 0)
                return r;
        if (!luv_machine_name_valid(p.name))
                return error_name(c, p.name);
        /* For people, and never logged: what it says is its own affair, how much is not. */
        if (p.vmm && strlen(p.vmm) > VMM_LENGTH_MAX)
                return sd_varlink_error_invalid_parameter_name(link, "vmm");
        if (!luv_update_knows_machines(c->server->config.update))
                return park(c);
        m = luv_machine_registry_find(c->server->config.machines, p.name);
        return m ? register_again(c, m, &p) : register_new(c, p.name, p.vmm);
}

int luv_machine_again(Connection *c, sd_json_variant *parameters)
{
        return method_register(c->link, parameters, 0, c);
}

/* Watch. */

static int send_event(Connection *c, MachineEvent event, const char *update_id, uint64_t remaining_usec,
                      const char *reason)
{
        _cleanup_(sd_json_variant_unrefp) sd_json_variant *v = NULL;
        int r;

        r = sd_json_buildo(&v, SD_JSON_BUILD_PAIR_STRING("event", luv_machine_event_to_string(event)),
                           SD_JSON_BUILD_PAIR_STRING("state",
                                                     luv_machine_state_to_string(c->machine->state)),
                           SD_JSON_BUILD_PAIR_CONDITION(update_id != NULL, "updateId",
                                                        SD_JSON_BUILD_STRING(update_id)),
                           SD_JSON_BUILD_PAIR_CONDITION(remaining_usec != UINT64_MAX, "remainingUSec",
                                                        SD_JSON_BUILD_UNSIGNED(remaining_usec)),
                           SD_JSON_BUILD_PAIR_CONDITION(reason != NULL, "reason",
                                                        SD_JSON_BUILD_STRING(reason)));
        if (r < 0)
                return r;
        return luv_connection_notify(c, v);
}

void luv_server_send_event(Machine *m, MachineEvent event, const char *update_id, uint64_t remaining_usec,
                           const char *reason)
{
        Connection *c = m->watcher;
        int r;

        if (!c)
                return;
        r = send_event(c, event, update_id, remaining_usec, reason);
        if (r < 0)
                luv_log_errno(LOG_WARNING, r, "The VMM of machine %s cannot be told to %s", m->name,
                              luv_machine_event_to_string(event));
}

static void stop_watching(Connection *c)
{
        Machine *m = c->machine;

        if (!m || m->watcher != c)
                return;
        m->watcher = NULL;
        m->attached = false;
}

/* Whoever watches a machine whose process is gone is the one to look at from now on. */
static int take_up(Connection *c, Machine *m)
{
        _cleanup_(luv_machine_owner_done) MachineOwner owner = { .pidfd = -EBADF };
        int r;

        if (m->state == MACHINE_RESTORING)
                return 0;
        if (c->peer.pid == m->owner.pid && luv_machine_is_alive(m)) {
                m->served = true;
                return 0;
        }
        if (luv_machine_is_alive(m))
                return 0;
        r = copy_peer(c, &owner);
        if (r < 0)
                return r;
        return luv_machine_set_owner(m, &owner);
}

typedef struct WatchParameters {
        const char *name, *secret;
} WatchParameters;

static int method_watch(sd_varlink *link, sd_json_variant *parameters, sd_varlink_method_flags_t flags,
                        void *userdata)
{
        static const sd_json_dispatch_field table[] = {
                DISPATCH_STRING("name", WatchParameters, name, SD_JSON_MANDATORY),
                DISPATCH_STRING("secret", WatchParameters, secret, SD_JSON_NULLABLE),
                {},
        };
        Connection *c = userdata;
        WatchParameters p = {};
        Connection *old;
        Machine *m;
        int r;

        r = luv_dispatch(c, parameters, flags, table, &p);
        if (r <= 0)
                return r;
        if (!(flags & SD_VARLINK_METHOD_MORE))
                return sd_varlink_error(link, SD_VARLINK_ERROR_EXPECTED_MORE, NULL);
        m = luv_machine_registry_find(c->server->config.machines, p.name);
        if (m && p.secret) {
                r = show_secret(c, m, p.secret);
                if (r < 0)
                        return r;
        }
        r = find_machine(c, p.name, &m);
        if (r <= 0)
                return r;
        r = take_up(c, m);
        if (r < 0)
                return r;
        old = m->watcher;
        if (old) {
                stop_watching(old);
                old->machine = NULL;
                luv_connection_close(old);
        }
        c->caller = CALLER_WATCH;
        c->machine = m;
        m->watcher = c;
        m->attached = true;
        r = send_event(c, MACHINE_EVENT_ATTACHED, luv_update_id(c->server->config.update), UINT64_MAX, NULL);
        if (r < 0)
                return r;
        luv_update_attached(c->server->config.update, m);
        return 0;
}

/* Preserve. */

static bool may_preserve(MachineState state, FdKind kind)
{
        switch (state) {
        case MACHINE_RUNNING:
        case MACHINE_PREPARING:
        case MACHINE_PREPARED:
                return kind != FD_KIND_STATE;
        case MACHINE_QUIESCING:
                return kind == FD_KIND_STATE || kind == FD_KIND_VFIO;
        case MACHINE_ABORTING:
                /* On its way when the update was given up. */
                return true;
        default:
                return false;
        }
}

/* The one fd of this message, now ours. Others are closed with the message. */
static int take_the_fd(Connection *c, int64_t index)
{
        if (index != 0 || sd_varlink_peek_fd(c->link, 0) < 0 || sd_varlink_peek_fd(c->link, 1) >= 0)
                return -ENXIO;
        return sd_varlink_take_fd(c->link, 0);
}

typedef struct PreserveParameters {
        const char *machine, *name, *kind;
        int64_t fd;
} PreserveParameters;

static int hold(Connection *c, Machine *m, const PreserveParameters *p, FdKind kind, int *fd)
{
        _cleanup_(sd_json_variant_unrefp) sd_json_variant *v = NULL;
        _cleanup_free_ char *reason = NULL, *text = NULL;
        MachineFd *f, *other = NULL;
        const char *what = NULL;
        FdIdentity identity;
        uint64_t limit = 0;
        int r;

        r = luv_fd_identify(*fd, c->server->config.simulated, &identity, &reason);
        if (r == -ENOMEM)
                return r;
        if (r < 0)
                return error_unsupported(c, p->name, reason ? reason : strerror(-r));
        if (identity.kind != (kind == FD_KIND_STATE ? FD_KIND_MEMFD : kind)) {
                text = luv_strf("it is of kind %s, not %s", luv_fd_kind_to_string(identity.kind),
                                luv_fd_kind_to_string(kind));
                return error_unsupported(c, p->name, text ? text : "it is of another kind");
        }
        if (identity.kind == FD_KIND_MEMFD && identity.size == 0)
                return error_unsupported(c, p->name, "it is a memfd of size 0");

        r = luv_machine_hold(m, p->name, kind, luv_fd_outcome(kind, *fd), &identity, fd, &f, &other, &what,
                             &limit);
        if (r == -EEXIST) {
                text = other->machine == m ? strdup(other->name)
                                           : luv_strf("%s of machine %s", other->name, other->machine->name);
                if (!text)
                        return -ENOMEM;
                if (other->identity.device[0]) {
                        char *with_device = luv_strf("%s (%s)", text, other->identity.device);

                        if (!with_device)
                                return -ENOMEM;
                        free(text);
                        text = with_device;
                }
                return sd_varlink_errorbo(c->link, VL_ERROR_MACHINE("DuplicateFileDescriptor"),
                                          SD_JSON_BUILD_PAIR_STRING("name", p->name),
                                          SD_JSON_BUILD_PAIR_STRING("other", text));
        }
        if (r == -EDQUOT)
                return error_quota(c, what, limit);
        if (r == -EBUSY)
                return error_state(c, m);
        if (r < 0)
                return r;
        /* What becomes of a device depends on its iommufd, whichever comes first. */
        for (size_t i = 0; i < m->n_fds; i++)
                if (m->fds[i]->kind == FD_KIND_VFIO)
                        m->fds[i]->outcome = luv_machine_fd_outcome(m, m->fds[i]);
        r = fd_to_json(f, &v);
        if (r < 0)
                return r;
        /* A luvfiod that was killed may have left it like that. */
        if (kind == FD_KIND_VFIO && m->state == MACHINE_RUNNING)
                (void) luv_fd_latch_interrupts(f->fd, false);
        (void) note(m);
        luv_update_held(c->server->config.update, m, f);
        if (kind == FD_KIND_STATE && luv_update_is_late(m))
                luv_machine_drop_fd(m, f);
        return sd_varlink_replybo(c->link, SD_JSON_BUILD_PAIR_VARIANT("fileDescriptor", v));
}

static int method_preserve(sd_varlink *link, sd_json_variant *parameters, sd_varlink_method_flags_t flags,
                           void *userdata)
{
        static const sd_json_dispatch_field table[] = {
                DISPATCH_STRING("machine", PreserveParameters, machine, SD_JSON_MANDATORY),
                DISPATCH_STRING("name", PreserveParameters, name, SD_JSON_MANDATORY),
                DISPATCH_STRING("kind", PreserveParameters, kind, SD_JSON_MANDATORY),
                { "fileDescriptor", _SD_JSON_VARIANT_TYPE_INVALID, sd_json_dispatch_int64,
                  offsetof(PreserveParameters, fd), SD_JSON_MANDATORY },
                {},
        };
        _cleanup_close_ int fd = -EBADF;
        Connection *c = userdata;
        PreserveParameters p = {};
        FdKind kind;
        Machine *m;
        int r;

        r = luv_dispatch(c, parameters, flags, table, &p);
        if (r <= 0)
                return r;
        r = find_machine(c, p.machine, &m);
        if (r <= 0)
                return r;
        if (!luv_fd_name_valid(p.name))
                return error_name(c, p.name);
        kind = luv_fd_kind_from_string(p.kind);
        if (kind < 0)
                return sd_varlink_error_invalid_parameter_name(link, "kind");
        fd = take_the_fd(c, p.fd);
        if (fd < 0)
                return error_fd_name(c, VL_ERROR_MACHINE("MissingFileDescriptor"), p.name);
        if (!may_preserve(m->state, kind))
                return error_state(c, m);
        return hold(c, m, &p, kind, &fd);
}

/* SetBlockers. */

typedef struct BlockersParameters {
        const char *machine;
        sd_json_variant *blockers;
} BlockersParameters;

typedef struct BlockerParameters {
        const char *message, *remedy;
} BlockerParameters;

/* -EINVAL: it is none. */
static int blocker_from_json(sd_json_variant *v, MachineBlocker *ret)
{
        static const sd_json_dispatch_field table[] = {
                DISPATCH_STRING("message", BlockerParameters, message, SD_JSON_MANDATORY),
                DISPATCH_STRING("remedy", BlockerParameters, remedy, SD_JSON_NULLABLE),
                {},
        };
        BlockerParameters p = {};

        if (sd_json_dispatch(v, table, 0, &p) < 0 || !p.message[0] ||
            strlen(p.message) > BLOCKER_LENGTH_MAX || (p.remedy && strlen(p.remedy) > BLOCKER_LENGTH_MAX))
                return -EINVAL;
        ret->message = luv_printable(p.message);
        ret->remedy = p.remedy ? luv_printable(p.remedy) : NULL;
        return ret->message && (!p.remedy || ret->remedy) ? 0 : -ENOMEM;
}

static bool may_be_blocked(MachineState s)
{
        return s == MACHINE_RUNNING || s == MACHINE_PREPARING || s == MACHINE_PREPARED ||
               s == MACHINE_QUIESCING || s == MACHINE_ABORTING;
}

static int method_set_blockers(sd_varlink *link, sd_json_variant *parameters,
                               sd_varlink_method_flags_t flags, void *userdata)
{
        static const sd_json_dispatch_field table[] = {
                DISPATCH_STRING("machine", BlockersParameters, machine, SD_JSON_MANDATORY),
                { "blockers", SD_JSON_VARIANT_ARRAY, sd_json_dispatch_variant_noref,
                  offsetof(BlockersParameters, blockers), SD_JSON_MANDATORY },
                {},
        };
        MachineBlocker *blockers = NULL;
        Connection *c = userdata;
        BlockersParameters p = {};
        size_t n, done = 0;
        Machine *m;
        int r;

        r = luv_dispatch(c, parameters, flags, table, &p);
        if (r <= 0)
                return r;
        r = find_machine(c, p.machine, &m);
        if (r <= 0)
                return r;
        if (!may_be_blocked(m->state))
                return error_state(c, m);
        n = sd_json_variant_elements(p.blockers);
        if (n > MACHINE_BLOCKERS_MAX)
                return sd_varlink_error_invalid_parameter_name(link, "blockers");
        blockers = calloc(MAX(n, (size_t) 1), sizeof(MachineBlocker));
        r = blockers ? 0 : -ENOMEM;
        while (r >= 0 && done < n) {
                r = blocker_from_json(sd_json_variant_by_index(p.blockers, done), blockers + done);
                done++;
        }
        if (r < 0) {
                luv_machine_blockers_free(blockers, done);
                return r == -EINVAL ? sd_varlink_error_invalid_parameter_name(link, "blockers") : r;
        }
        luv_machine_set_blockers(m, blockers, n);
        luv_update_blocked(c->server->config.update, m);
        return sd_varlink_reply(link, NULL);
}

/* The VMM's answers. R is what the update made of one. */

static int reply_to_answer(Connection *c, const Machine *m, int r)
{
        if (r == -EPROTO)
                return error_state(c, m);
        return r < 0 ? r : sd_varlink_reply(c->link, NULL);
}

static int answer(Connection *c, sd_json_variant *parameters, sd_varlink_method_flags_t flags,
                  int (*func)(Update *u, Machine *m))
{
        MachineParameters p = {};
        Machine *m;
        int r;

        r = luv_dispatch(c, parameters, flags, machine_table, &p);
        if (r <= 0)
                return r;
        r = find_machine(c, p.machine, &m);
        if (r <= 0)
                return r;
        return reply_to_answer(c, m, func(c->server->config.update, m));
}

static int method_prepared(sd_varlink *link, sd_json_variant *parameters, sd_varlink_method_flags_t flags,
                           void *userdata)
{
        return answer(userdata, parameters, flags, luv_update_prepared);
}

static int method_committed(sd_varlink *link, sd_json_variant *parameters, sd_varlink_method_flags_t flags,
                            void *userdata)
{
        return answer(userdata, parameters, flags, luv_update_committed);
}

typedef struct TimeParameters {
        const char *machine;
        uint64_t usec;
} TimeParameters;

/* A time that lies in the future was not measured. */
static uint64_t not_later_than_now(uint64_t usec)
{
        uint64_t now = luv_now_usec();

        return usec == 0 || usec > now ? now : usec;
}

/* Of a call which tells a machine and a time, called FIELD. 0: the call has been answered. */
static int dispatch_time(Connection *c, sd_json_variant *parameters, sd_varlink_method_flags_t flags,
                         const char *field, Machine **ret_machine, uint64_t *ret_usec)
{
        const sd_json_dispatch_field table[] = {
                DISPATCH_STRING("machine", TimeParameters, machine, SD_JSON_MANDATORY),
                { field, _SD_JSON_VARIANT_TYPE_INVALID, sd_json_dispatch_uint64,
                  offsetof(TimeParameters, usec), SD_JSON_NULLABLE },
                {},
        };
        TimeParameters p = {};
        int r;

        r = luv_dispatch(c, parameters, flags, table, &p);
        if (r <= 0)
                return r;
        r = find_machine(c, p.machine, ret_machine);
        if (r > 0)
                *ret_usec = not_later_than_now(p.usec);
        return r;
}

static int method_quiesced(sd_varlink *link, sd_json_variant *parameters, sd_varlink_method_flags_t flags,
                           void *userdata)
{
        Connection *c = userdata;
        uint64_t usec;
        Machine *m;
        int r;

        r = dispatch_time(c, parameters, flags, "vcpusStoppedUSec", &m, &usec);
        if (r <= 0)
                return r;
        return reply_to_answer(c, m, luv_update_quiesced(c->server->config.update, m, usec));
}

static int method_resumed(sd_varlink *link, sd_json_variant *parameters, sd_varlink_method_flags_t flags,
                          void *userdata)
{
        Connection *c = userdata;
        uint64_t usec;
        Machine *m;
        int r;

        r = dispatch_time(c, parameters, flags, "vcpusRunningUSec", &m, &usec);
        if (r <= 0)
                return r;
        r = luv_update_resumed(c->server->config.update, m, usec);
        if (r <= 0)
                return reply_to_answer(c, m, r);
        /* Answered when it is running in luvfiod's eyes too. */
        c->caller = CALLER_RESUMED;
        c->machine = m;
        return 0;
}

/* Retrieve. */

static void free_retrieve(void *p)
{
        luv_update_retrieve_free(p);
}

typedef struct RetrieveParameters {
        const char *machine, *name;
} RetrieveParameters;

typedef struct RetrieveAnswer {
        Connection *connection;
        UpdateRetrieve *retrieve;
        char *name;
} RetrieveAnswer;

static void free_answer(void *p)
{
        RetrieveAnswer *a = p;

        free_retrieve(a->retrieve);
        free(a->name);
        free(a);
}

static void on_retrieved(int error, const char *reason, const MachineFd *f, void *userdata)
{
        RetrieveAnswer *a = userdata;
        Connection *c = a->connection;
        _cleanup_(sd_json_variant_unrefp) sd_json_variant *v = NULL;
        int r = error;

        if (error >= 0) {
                r = fd_to_json(f, &v);
                if (r >= 0)
                        r = sd_varlink_push_dup_fd(c->link, f->fd);
                if (r >= 0)
                        r = sd_varlink_replybo(c->link, SD_JSON_BUILD_PAIR_INTEGER("fileDescriptor", 0),
                                               SD_JSON_BUILD_PAIR_VARIANT("description", v));
                if (r < 0)
                        luv_log_error(r, "The file \"%s\" cannot be given back", a->name);
        }
        if (r < 0)
                (void) sd_varlink_errorbo(c->link, VL_ERROR_MACHINE("RetrieveFailed"),
                                          SD_JSON_BUILD_PAIR_STRING("name", a->name),
                                          SD_JSON_BUILD_PAIR_STRING("reason",
                                                                    reason ? reason : strerror(-r)));
        c->caller = CALLER_NONE;
        luv_connection_touch(c);
        luv_connection_clear_pending(c);
        free_answer(a);
}

static int method_retrieve(sd_varlink *link, sd_json_variant *parameters, sd_varlink_method_flags_t flags,
                           void *userdata)
{
        static const sd_json_dispatch_field table[] = {
                DISPATCH_STRING("machine", RetrieveParameters, machine, SD_JSON_MANDATORY),
                DISPATCH_STRING("name", RetrieveParameters, name, SD_JSON_MANDATORY),
                {},
        };
        Connection *c = userdata;
        RetrieveParameters p = {};
        RetrieveAnswer *a;
        Machine *m;
        int r;

        r = luv_dispatch(c, parameters, flags, table, &p);
        if (r <= 0)
                return r;
        r = find_machine(c, p.machine, &m);
        if (r <= 0)
                return r;
        if (!luv_fd_name_valid(p.name))
                return error_name(c, p.name);
        if (m->state == MACHINE_STRANDED)
                return sd_varlink_errorbo(link, VL_ERROR_MACHINE("Stranded"),
                                          SD_JSON_BUILD_PAIR_STRING("machine", m->name),
                                          SD_JSON_BUILD_PAIR_STRING("reason", strempty(m->reason)));
        if (m->state != MACHINE_RESUMING)
                return error_state(c, m);
        a = calloc(1, sizeof(RetrieveAnswer));
        if (!a)
                return -ENOMEM;
        a->connection = c;
        a->name = strdup(p.name);
        if (!a->name) {
                free(a);
                return -ENOMEM;
        }
        luv_connection_set_pending(c, a, free_answer);
        c->caller = CALLER_OTHER;
        r = luv_update_retrieve(c->server->config.update, m, p.name, on_retrieved, a, &a->retrieve);
        if (r >= 0)
                return 0;
        c->caller = CALLER_NONE;
        luv_connection_clear_pending(c);
        free_answer(a);
        if (r == -ENOENT || r == -ENODATA)
                return error_fd_name(c, VL_ERROR_MACHINE("NoSuchFileDescriptor"), p.name);
        return sd_varlink_errorbo(link, VL_ERROR_MACHINE("RetrieveFailed"),
                                  SD_JSON_BUILD_PAIR_STRING("name", p.name),
                                  SD_JSON_BUILD_PAIR_STRING("reason", strerror(-r)));
}

static int method_withdraw(sd_varlink *link, sd_json_variant *parameters, sd_varlink_method_flags_t flags,
                           void *userdata)
{
        Connection *c = userdata;
        MachineParameters p = {};
        Machine *m;
        int r;

        r = luv_dispatch(c, parameters, flags, machine_table, &p);
        if (r <= 0)
                return r;
        r = find_machine(c, p.machine, &m);
        if (r <= 0)
                return r;
        if (m->state != MACHINE_RUNNING)
                return error_state(c, m);
        luv_log_struct(LOG_INFO,
                       &(LogFields) { .message_id = LUVFIO_MESSAGE_MACHINE_FORGOTTEN, .machine = m->name },
                       "Machine %s is withdrawn by its VMM", m->name);
        luv_update_withdraw(c->server->config.update, m);
        return sd_varlink_reply(link, NULL);
}

void luv_machine_disconnected(Connection *c)
{
        Machine *m = c->machine;
        bool watched = c->caller == CALLER_WATCH && m && m->watcher == c;

        c->caller = CALLER_NONE;
        if (watched) {
                stop_watching(c);
                luv_update_detached(c->server->config.update, m);
        }
        c->machine = NULL;
}

void luv_server_machine_forgotten(Server *s, Machine *m)
{
        for (Connection *c = s->connections; c; c = c->next) {
                if (c->machine != m)
                        continue;
                if (c->caller == CALLER_WATCH)
                        luv_connection_close(c);
                else if (c->caller == CALLER_RESUMED)
                        (void) error_machine(c, VL_ERROR_MACHINE("NoSuchMachine"), m->name);
                if (c->caller == CALLER_RESUMED) {
                        c->caller = CALLER_NONE;
                        luv_connection_touch(c);
                }
                c->machine = NULL;
        }
        m->watcher = NULL;
        m->attached = false;
}

int luv_server_bind_machine(Server *s, sd_varlink_server *v)
{
        int r;

        r = sd_varlink_server_add_interface(v, &vl_interface_org_luvfio_Machine);
        if (r < 0)
                return r;
        return sd_varlink_server_bind_method_many(v, "org.luvfio.Machine.Register", method_register,
                                                  "org.luvfio.Machine.Watch", method_watch,
                                                  "org.luvfio.Machine.Preserve", method_preserve,
                                                  "org.luvfio.Machine.SetBlockers", method_set_blockers,
                                                  "org.luvfio.Machine.Prepared", method_prepared,
                                                  "org.luvfio.Machine.Quiesced", method_quiesced,
                                                  "org.luvfio.Machine.Committed", method_committed,
                                                  "org.luvfio.Machine.Retrieve", method_retrieve,
                                                  "org.luvfio.Machine.Resumed", method_resumed,
                                                  "org.luvfio.Machine.Withdraw", method_withdraw);
}
