/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <inttypes.h>
#include <stdarg.h>
#include <sys/epoll.h>
#include <sys/resource.h>

#include <luvfio/plugin.h>

#include "machine/machine.h"
#include "machine/machine-private.h"
#include "machine/peer.h"
#include "report/messages.h"
#include "util/log.h"
#include "util/string-util.h"

/* A machine that was registered by a process that had no more to do: somebody else speaks for it soon. */
#define GRACE_USEC (60 * USEC_PER_SEC)

static const char *const luv_machine_state_table[_MACHINE_STATE_MAX] = {
        [MACHINE_RUNNING] = "running",   [MACHINE_PREPARING] = "preparing",
        [MACHINE_PREPARED] = "prepared", [MACHINE_QUIESCING] = "quiescing",
        [MACHINE_QUIESCED] = "quiesced", [MACHINE_COMMITTED] = "committed",
        [MACHINE_ABORTING] = "aborting", [MACHINE_RESTORING] = "restoring",
        [MACHINE_RESUMING] = "resuming", [MACHINE_STRANDED] = "stranded",
};
DEFINE_STRING_TABLE(luv_machine_state, MachineState);

static const char *const luv_machine_event_table[_MACHINE_EVENT_MAX] = {
        [MACHINE_EVENT_ATTACHED] = "attached", [MACHINE_EVENT_PREPARE] = "prepare",
        [MACHINE_EVENT_QUIESCE] = "quiesce",   [MACHINE_EVENT_COMMIT] = "commit",
        [MACHINE_EVENT_ABORT] = "abort",       [MACHINE_EVENT_RESUME] = "resume",
        [MACHINE_EVENT_FINISHED] = "finished",
};
DEFINE_STRING_TABLE(luv_machine_event, MachineEvent);

void luv_machine_owner_done(MachineOwner *o)
{
        free(o->unit);
        free(o->cgroup);
        safe_close(o->pidfd);
        *o = (MachineOwner) { .pidfd = -EBADF };
}

static void device_done(MachineDevice *d)
{
        free(d->address);
        free(d->plugin);
        free(d->promise);
        free(d->plan);
        free(d->reason);
}

MachineBlocker *luv_machine_blockers_free(MachineBlocker *blockers, size_t n)
{
        for (size_t i = 0; blockers && i < n; i++) {
                free(blockers[i].message);
                free(blockers[i].remedy);
        }
        free(blockers);
        return NULL;
}

void luv_machine_set_blockers(Machine *m, MachineBlocker *blockers, size_t n)
{
        luv_machine_blockers_free(m->blockers, m->n_blockers);
        m->blockers = blockers;
        m->n_blockers = n;
}

/* Frees a machine that is in the registry no more. */
static Machine *machine_free(Machine *m)
{
        if (!m)
                return NULL;
        free(m->fds);
        while (m->n_devices > 0)
                device_done(m->devices + --m->n_devices);
        free(m->devices);
        luv_strv_free(m->missing);
        luv_machine_blockers_free(m->blockers, m->n_blockers);
        sd_event_source_disable_unref(m->exit_source);
        sd_event_source_disable_unref(m->grace_source);
        luv_luo_session_unref(m->session);
        free(m->session_name);
        luv_machine_owner_done(&m->owner);
        free(m->name);
        if (m->secret)
                explicit_bzero(m->secret, strlen(m->secret));
        free(m->secret);
        free(m->vmm);
        free(m->reason);
        free(m);
        return NULL;
}
DEFINE_CLEANUP(Machine *, machine_free);

static int on_process_exit(sd_event_source *s, int fd, uint32_t revents, void *userdata)
{
        Machine *m = userdata;

        m->exit_source = sd_event_source_disable_unref(m->exit_source);
        m->exited = true;
        if (m->registry->callbacks.exited)
                m->registry->callbacks.exited(m, m->registry->userdata);
        return 0;
}

static int on_grace_over(sd_event_source *s, uint64_t usec, void *userdata)
{
        Machine *m = userdata;

        m->grace_source = sd_event_source_disable_unref(m->grace_source);
        if (m->registry->callbacks.exited)
                m->registry->callbacks.exited(m, m->registry->userdata);
        return 0;
}

int luv_machine_grant_grace(Machine *m)
{
        if (!m->registry->event || m->grace_source)
                return 0;
        return sd_event_add_time_relative(m->registry->event, &m->grace_source, CLOCK_BOOTTIME, GRACE_USEC,
                                          0, on_grace_over, m);
}

static int watch_exit(Machine *m)
{
        int r;

        m->exit_source = sd_event_source_disable_unref(m->exit_source);
        m->grace_source = sd_event_source_disable_unref(m->grace_source);
        m->exited = m->served = m->graced = false;
        if (!m->registry->event || m->owner.pidfd < 0)
                return 0;
        r = sd_event_add_io(m->registry->event, &m->exit_source, m->owner.pidfd, EPOLLIN, on_process_exit,
                            m);
        if (r < 0)
                return r;
        /* What it said before it ended is heard first. */
        return sd_event_source_set_priority(m->exit_source, SD_EVENT_PRIORITY_NORMAL + 10);
}

int luv_machine_new(MachineRegistry *r, const char *name, MachineOwner *owner, MachineState state,
                    Machine **ret)
{
        _cleanup_(machine_freep) Machine *m = NULL;
        char secret[LUVFIO_ID_SIZE];
        UserQuota *q;
        int k;

        if (luv_machine_registry_find(r, name))
                return -EEXIST;
        k = luv_registry_user(r, owner->uid, &q);
        if (k < 0)
                return k;
        if (state == MACHINE_RUNNING && q->machines >= r->quota.machines)
                return -EDQUOT;

        m = calloc(1, sizeof(Machine));
        if (!m)
                return -ENOMEM;
        m->registry = r;
        m->owner.pidfd = -EBADF;
        m->state = state;
        luv_random_id(secret);
        if (luv_free_and_strdup(&m->name, name) < 0 || luv_free_and_strdup(&m->secret, secret) < 0)
                return -ENOMEM;
        k = luv_registry_insert(r, m);
        if (k < 0)
                return k;
        m->serial = luv_registry_next_serial(r);
        m->owner = *owner;
        *owner = (MachineOwner) { .pidfd = -EBADF };
        luv_registry_charge_machine(m, 1);
        k = watch_exit(m);
        if (k < 0) {
                luv_machine_forget(TAKE_PTR(m));
                return k;
        }
        *ret = TAKE_PTR(m);
        return 0;
}

Machine *luv_machine_forget(Machine *m)
{
        if (!m)
                return NULL;
        if (m->registry->callbacks.forgotten)
                m->registry->callbacks.forgotten(m, m->registry->userdata);
        luv_registry_remove_note(m);
        while (m->n_fds > 0)
                luv_machine_drop_fd(m, m->fds[m->n_fds - 1]);
        luv_registry_charge_machine(m, -1);
        luv_registry_remove(m);
        return machine_free(m);
}

void luv_machine_set_state(Machine *m, MachineState state)
{
        MachineState old = m->state;

        if (old == state)
                return;
        m->state = state;
        luv_log_struct(LOG_DEBUG,
                       &(LogFields) { .machine = m->name, .state = luv_machine_state_to_string(state) },
                       "Machine %s is %s now (was %s)", m->name, luv_machine_state_to_string(state),
                       luv_machine_state_to_string(old));
        if (m->registry->callbacks.state_changed)
                m->registry->callbacks.state_changed(m, old, m->registry->userdata);
}

int luv_machine_set_reason(Machine *m, const char *format, ...)
{
        char *text = NULL;
        va_list ap;

        if (format) {
                va_start(ap, format);
                text = luv_strfv(format, ap);
                va_end(ap);
                if (!text)
                        return -ENOMEM;
        }
        free(m->reason);
        m->reason = text;
        return 0;
}

int luv_machine_set_owner(Machine *m, MachineOwner *owner)
{
        luv_registry_charge_machine(m, -1);
        m->exit_source = sd_event_source_disable_unref(m->exit_source);
        luv_machine_owner_done(&m->owner);
        m->owner = *owner;
        *owner = (MachineOwner) { .pidfd = -EBADF };
        luv_registry_charge_machine(m, 1);
        return watch_exit(m);
}

bool luv_machine_is_owner(const Machine *m, const MachineOwner *peer, bool simulated)
{
        if (peer->uid == 0)
                return true;
        if (peer->uid != m->owner.uid)
                return false;
        if (!peer->unit || !m->owner.unit)
                return simulated && !peer->unit && !m->owner.unit;
        return streq(peer->unit, m->owner.unit);
}

bool luv_machine_is_secret(const Machine *m, const char *secret)
{
        unsigned char difference = 0;

        if (!secret || !m->secret || strlen(secret) != LUVFIO_ID_SIZE - 1 ||
            strlen(m->secret) != LUVFIO_ID_SIZE - 1)
                return false;
        for (size_t i = 0; i < LUVFIO_ID_SIZE - 1; i++)
                difference |= (unsigned char) (secret[i] ^ m->secret[i]);
        return difference == 0;
}

bool luv_machine_is_alive(const Machine *m)
{
        return !m->exited && luv_pidfd_is_alive(m->owner.pidfd);
}

MachineFd *luv_machine_find_fd(Machine *m, const char *name)
{
        for (size_t i = 0; i < m->n_fds; i++)
                if (streq(m->fds[i]->name, name))
                        return m->fds[i];
        return NULL;
}

static MachineFd *fd_free(MachineFd *f)
{
        if (!f)
                return NULL;
        free(f->name);
        safe_close(f->fd);
        free(f);
        return NULL;
}
DEFINE_CLEANUP(MachineFd *, fd_free);

static void drop_device(Machine *m, const char *address)
{
        for (size_t i = 0; i < m->n_devices; i++) {
                if (!streq(m->devices[i].address, address))
                        continue;
                device_done(m->devices + i);
                memmove(m->devices + i, m->devices + i + 1, (m->n_devices - i - 1) * sizeof(MachineDevice));
                m->n_devices--;
                return;
        }
}

static int add_device(Machine *m, const char *address)
{
        MachineDevice *d;
        char *copy;

        if (luv_machine_find_device(m, address))
                return 0;
        copy = strdup(address);
        if (!copy)
                return -ENOMEM;
        d = reallocarray(m->devices, m->n_devices + 1, sizeof(MachineDevice));
        if (!d) {
                free(copy);
                return -ENOMEM;
        }
        m->devices = d;
        d[m->n_devices++] = (MachineDevice) { .address = copy };
        return 0;
}

static bool has_preserved_iommufd(const Machine *m)
{
        for (size_t i = 0; i < m->n_fds; i++)
                if (m->fds[i]->kind == FD_KIND_IOMMUFD && m->fds[i]->outcome == FD_OUTCOME_PRESERVED)
                        return true;
        return false;
}

uint64_t luv_machine_device_preserved(const Machine *m, const char *address)
{
        uint64_t preserved = FD_PRESERVED_UNKNOWN;

        for (size_t i = 0; i < m->n_fds; i++)
                if (m->fds[i]->kind == FD_KIND_VFIO && streq(m->fds[i]->identity.device, address))
                        preserved = luv_fd_preserved(m->fds[i]->fd);
        /* What the kernel can do for a device, it does with its iommufd, or not at all. */
        if (preserved != FD_PRESERVED_UNKNOWN && (preserved & LUVFIO_PRESERVED_IOMMU) &&
            !has_preserved_iommufd(m))
                preserved &= LUVFIO_PRESERVED_OWNER | LUVFIO_PRESERVED_SRIOV;
        return preserved;
}

FdOutcome luv_machine_fd_outcome(const Machine *m, const MachineFd *f)
{
        if (f->kind == FD_KIND_VFIO)
                return luv_device_outcome(luv_machine_device_preserved(m, f->identity.device));
        return luv_fd_outcome(f->kind, f->fd);
}

MachineDevice *luv_machine_find_device(Machine *m, const char *address)
{
        for (size_t i = 0; i < m->n_devices; i++)
                if (streq(m->devices[i].address, address))
                        return m->devices + i;
        return NULL;
}

static void remove_fd(Machine *m, MachineFd *f)
{
        luv_registry_unindex(m->registry, f);
        luv_registry_charge_fd(m, f, -1);
        for (size_t i = 0; i < m->n_fds; i++) {
                if (m->fds[i] != f)
                        continue;
                memmove(m->fds + i, m->fds + i + 1, (m->n_fds - i - 1) * sizeof(MachineFd *));
                m->n_fds--;
                break;
        }
        fd_free(f);
}

void luv_machine_drop_fd(Machine *m, MachineFd *f)
{
        if (f->kind == FD_KIND_VFIO)
                drop_device(m, f->identity.device);
        remove_fd(m, f);
}

/*
 * FINISH goes backwards through what was preserved, and a device must be let go before its IOMMU, that
 * before the memory it maps. State last: it needs nothing and nothing needs it.
 */
static unsigned order_of(FdKind k)
{
        static const unsigned order[_FD_KIND_MAX] = {
                [FD_KIND_MEMFD] = 0,
                [FD_KIND_IOMMUFD] = 1,
                [FD_KIND_VFIO] = 2,
                [FD_KIND_STATE] = 3,
        };

        return order[k];
}

static int insert_fd(Machine *m, MachineFd *f)
{
        size_t i;

        if (m->n_fds == m->n_fds_allocated) {
                size_t n = MAX(m->n_fds_allocated * 2, (size_t) 8);
                MachineFd **fds = reallocarray(m->fds, n, sizeof(MachineFd *));

                if (!fds)
                        return -ENOMEM;
                m->fds = fds;
                m->n_fds_allocated = n;
        }
        for (i = m->n_fds; i > 0 && order_of(m->fds[i - 1]->kind) > order_of(f->kind); i--)
                m->fds[i] = m->fds[i - 1];
        m->fds[i] = f;
        m->n_fds++;
        f->machine = m;
        return 0;
}

static bool token_is_used(const Machine *m, uint64_t token)
{
        for (size_t i = 0; i < m->n_fds; i++)
                if (m->fds[i]->token == token)
                        return true;
        return false;
}

/* The next number of this machine that is free; 0 is the record's. */
static int free_token(Machine *m, uint64_t *ret)
{
        if (m->n_fds >= LUVFIO_FDS_MAX)
                return -EDQUOT;
        do
                m->last_token = m->last_token % LUVFIO_FDS_MAX + 1;
        while (token_is_used(m, LUVFIO_MACHINE_TOKEN(m->serial) + m->last_token));
        *ret = LUVFIO_MACHINE_TOKEN(m->serial) + m->last_token;
        return 0;
}

/* Connections and workers need fds too: where machines had all of them, nobody could even withdraw. */
#define FDS_RESERVED 32u

/* Whether FD is among the last that may be open: the kernel gives out the lowest number that is free. */
static bool is_reserved(int fd, uint64_t *ret_limit)
{
        struct rlimit l;

        if (getrlimit(RLIMIT_NOFILE, &l) < 0 || (rlim_t) fd + FDS_RESERVED < l.rlim_cur)
                return false;
        *ret_limit = l.rlim_cur - MIN(l.rlim_cur, (rlim_t) FDS_RESERVED);
        return true;
}

static void not_missing(Machine *m, const char *name)
{
        for (char **x = m->missing; x && *x; x++)
                if (streq(*x, name)) {
                        free(*x);
                        memmove(x, x + 1, (luv_strv_length(x + 1) + 1) * sizeof(char *));
                        return;
                }
}

int luv_machine_hold(Machine *m, const char *name, FdKind kind, FdOutcome outcome,
                     const FdIdentity *identity, int *fd, MachineFd **ret, MachineFd **ret_other,
                     const char **ret_what, uint64_t *ret_limit)
{
        _cleanup_(fd_freep) MachineFd *f = NULL;
        MachineFd *old, *other;
        UserQuota *q;
        uint64_t bytes = kind == FD_KIND_MEMFD || kind == FD_KIND_STATE ? identity->size : 0;
        int r;

        old = luv_machine_find_fd(m, name);
        other = luv_machine_registry_find_file(m->registry, identity, *fd);
        if (other && other != old) {
                *ret_other = other;
                return -EEXIST;
        }
        if (old && old->preserved) {
                if (other != old || old->kind != kind)
                        return -EBUSY;
                /* The same file again, nothing to do: the session has it. */
                *ret = old;
                *fd = safe_close(*fd);
                return 0;
        }

        r = luv_registry_user(m->registry, m->owner.uid, &q);
        if (r < 0)
                return r;
        if (!old && q->fds >= m->registry->quota.fds) {
                *ret_what = "fds";
                *ret_limit = m->registry->quota.fds;
                return -EDQUOT;
        }
        if (!old && is_reserved(*fd, ret_limit)) {
                *ret_what = "fds";
                return -EDQUOT;
        }
        if (q->bytes - (old ? luv_fd_bytes(old) : 0) + bytes > m->registry->quota.bytes) {
                *ret_what = "bytes";
                *ret_limit = m->registry->quota.bytes;
                return -EDQUOT;
        }

        f = calloc(1, sizeof(MachineFd));
        if (!f)
                return -ENOMEM;
        f->fd = -EBADF;
        f->kind = kind;
        f->outcome = outcome;
        f->identity = *identity;
        f->name = strdup(name);
        if (!f->name)
                return -ENOMEM;
        if (kind == FD_KIND_VFIO && (!old || !streq(old->identity.device, identity->device))) {
                r = add_device(m, identity->device);
                if (r < 0)
                        return r;
        }
        if (old) {
                f->token = old->token;
                /* The device's own record stays where only the open file is another. */
                if (old->kind == FD_KIND_VFIO && kind == FD_KIND_VFIO &&
                    streq(old->identity.device, identity->device))
                        remove_fd(m, old);
                else
                        luv_machine_drop_fd(m, old);
        } else {
                r = free_token(m, &f->token);
                if (r < 0) {
                        if (kind == FD_KIND_VFIO)
                                drop_device(m, identity->device);
                        *ret_what = "fds";
                        *ret_limit = LUVFIO_FDS_MAX;
                        return r;
                }
        }
        r = insert_fd(m, f);
        if (r < 0)
                return r;
        f->fd = TAKE_FD(*fd);
        luv_registry_index(m->registry, f);
        luv_registry_charge_fd(m, f, 1);
        not_missing(m, name);
        *ret = TAKE_PTR(f);
        return 0;
}

uint64_t luv_machine_memory(const Machine *m)
{
        uint64_t sum = 0;

        for (size_t i = 0; i < m->n_fds; i++)
                if (m->fds[i]->kind == FD_KIND_MEMFD)
                        sum += m->fds[i]->identity.size;
        return sum;
}

void luv_machine_set_retrieved(Machine *m, MachineFd *f, const FdIdentity *identity, int fd)
{
        luv_registry_charge_fd(m, f, -1);
        f->identity = *identity;
        f->fd = fd;
        luv_registry_charge_fd(m, f, 1);
        luv_registry_index(m->registry, f);
}

void luv_machine_release_devices(Machine *m)
{
        for (size_t i = 0; i < m->n_fds; i++) {
                MachineFd *f = m->fds[i];

                if (f->kind != FD_KIND_VFIO || f->fd < 0)
                        continue;
                luv_registry_unindex(m->registry, f);
                f->fd = safe_close(f->fd);
        }
}

static int add_recorded_fd(Machine *m, const FdRecord *record)
{
        _cleanup_(fd_freep) MachineFd *f = calloc(1, sizeof(MachineFd));
        int r;

        if (!f)
                return -ENOMEM;
        f->fd = -EBADF;
        f->kind = record->kind;
        f->outcome = record->outcome;
        f->token = record->token;
        f->identity = (FdIdentity) {
                .kind = record->kind == FD_KIND_STATE ? FD_KIND_MEMFD : record->kind,
                .size = record->size,
        };
        if (record->device)
                (void) snprintf(f->identity.device, sizeof(f->identity.device), "%s", record->device);
        f->name = strdup(record->name);
        if (!f->name)
                return -ENOMEM;
        if (record->kind == FD_KIND_VFIO && record->device) {
                r = add_device(m, record->device);
                if (r < 0)
                        return r;
        }
        r = insert_fd(m, f);
        if (r < 0)
                return r;
        luv_registry_charge_fd(m, TAKE_PTR(f), 1);
        return 0;
}

int luv_machine_set_record(Machine *m, const MachineRecord *record)
{
        MachineOwner owner = { .uid = (uid_t) record->uid, .pidfd = -EBADF };
        int r;

        if (luv_free_and_strdup(&m->secret, record->secret) < 0 ||
            luv_free_and_strdup(&m->vmm, record->vmm) < 0 ||
            luv_free_and_strdup(&m->session_name, record->session) < 0 ||
            luv_free_and_strdup(&owner.unit, record->unit) < 0) {
                luv_machine_owner_done(&owner);
                return -ENOMEM;
        }
        r = luv_machine_set_owner(m, &owner);
        if (r < 0)
                return r;
        /* What it had is in its session, whatever an earlier run noted. */
        m->missing = luv_strv_free(m->missing);
        m->generation = record->generation + 1;
        m->tries = 0;
        m->stopped_usec = record->stopped_usec;
        luv_registry_raise_serial(m->registry, record->serial);
        m->serial = record->serial;
        for (size_t i = 0; i < record->n_fds; i++) {
                r = add_recorded_fd(m, record->fds + i);
                if (r < 0)
                        return r;
        }
        for (size_t i = 0; i < record->n_devices; i++) {
                const DeviceRecord *d = record->devices + i;
                MachineDevice *own;

                r = add_device(m, d->address);
                if (r < 0)
                        return r;
                own = luv_machine_find_device(m, d->address);
                if (luv_free_and_strdup(&own->plugin, d->plugin) < 0 ||
                    luv_free_and_strdup(&own->promise, d->promise) < 0 ||
                    luv_free_and_strdup(&own->plan, d->plan) < 0)
                        return -ENOMEM;
        }
        return 0;
}
