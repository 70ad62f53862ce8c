/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <inttypes.h>

#include "machine/machine-private.h"
#include "util/string-util.h"

int luv_machine_registry_new(sd_event *event, const char *folder, const MachineQuota *quota,
                             const MachineCallbacks *callbacks, void *userdata, MachineRegistry **ret)
{
        _cleanup_(luv_machine_registry_freep) MachineRegistry *r = NULL;

        r = calloc(1, sizeof(MachineRegistry));
        if (!r)
                return -ENOMEM;
        r->event = event ? sd_event_ref(event) : NULL;
        r->quota = quota ? *quota : LUVFIO_QUOTA_DEFAULT;
        if (callbacks)
                r->callbacks = *callbacks;
        r->userdata = userdata;
        if (luv_free_and_strdup(&r->folder, folder) < 0)
                return -ENOMEM;
        *ret = TAKE_PTR(r);
        return 0;
}

MachineRegistry *luv_machine_registry_free(MachineRegistry *r)
{
        if (!r)
                return NULL;
        /* The daemon ends, the machines do not: their notes stay. */
        free(r->folder);
        r->folder = NULL;
        while (r->n_machines > 0)
                luv_machine_forget(r->machines[r->n_machines - 1]);
        free(r->machines);
        while (r->users) {
                UserQuota *u = r->users;

                r->users = u->next;
                free(u);
        }
        sd_event_unref(r->event);
        free(r);
        return NULL;
}

size_t luv_machine_registry_size(MachineRegistry *r)
{
        return r->n_machines;
}

Machine *luv_machine_registry_at(MachineRegistry *r, size_t i)
{
        assert(i < r->n_machines);
        return r->machines[i];
}

const MachineQuota *luv_machine_registry_quota(MachineRegistry *r)
{
        return &r->quota;
}

/* Whether NAME is there; where it is, or is to be. */
static bool search(MachineRegistry *r, const char *name, size_t *ret)
{
        size_t low = 0, high = r->n_machines;

        while (low < high) {
                size_t middle = low + (high - low) / 2;
                int c = strcmp(name, r->machines[middle]->name);

                if (c == 0) {
                        *ret = middle;
                        return true;
                }
                if (c < 0)
                        high = middle;
                else
                        low = middle + 1;
        }
        *ret = low;
        return false;
}

Machine *luv_machine_registry_find(MachineRegistry *r, const char *name)
{
        size_t i;

        return search(r, name, &i) ? r->machines[i] : NULL;
}

int luv_registry_insert(MachineRegistry *r, Machine *m)
{
        size_t i;

        if (search(r, m->name, &i))
                return -EEXIST;
        if (r->n_machines == r->n_allocated) {
                size_t n = MAX(r->n_allocated * 2, (size_t) 16);
                Machine **machines = reallocarray(r->machines, n, sizeof(Machine *));

                if (!machines)
                        return -ENOMEM;
                r->machines = machines;
                r->n_allocated = n;
        }
        memmove(r->machines + i + 1, r->machines + i, (r->n_machines - i) * sizeof(Machine *));
        r->machines[i] = m;
        r->n_machines++;
        return 0;
}

void luv_registry_remove(Machine *m)
{
        MachineRegistry *r = m->registry;
        size_t i;

        if (!search(r, m->name, &i))
                return;
        memmove(r->machines + i, r->machines + i + 1, (r->n_machines - i - 1) * sizeof(Machine *));
        r->n_machines--;
}

uint64_t luv_registry_next_serial(MachineRegistry *r)
{
        return ++r->serial;
}

void luv_registry_raise_serial(MachineRegistry *r, uint64_t serial)
{
        r->serial = MAX(r->serial, serial);
}

int luv_registry_user(MachineRegistry *r, uid_t uid, UserQuota **ret)
{
        UserQuota *u;

        for (u = r->users; u; u = u->next)
                if (u->uid == uid) {
                        *ret = u;
                        return 0;
                }
        u = calloc(1, sizeof(UserQuota));
        if (!u)
                return -ENOMEM;
        u->uid = uid;
        u->next = r->users;
        r->users = u;
        *ret = u;
        return 0;
}

static UserQuota *account(Machine *m)
{
        for (UserQuota *u = m->registry->users; u; u = u->next)
                if (u->uid == m->owner.uid)
                        return u;
        return NULL;
}

uint64_t luv_fd_bytes(const MachineFd *f)
{
        return f->kind == FD_KIND_MEMFD || f->kind == FD_KIND_STATE ? f->identity.size : 0;
}

void luv_registry_charge_fd(Machine *m, const MachineFd *f, int sign)
{
        UserQuota *u = account(m);

        if (!u)
                return;
        if (sign > 0) {
                u->fds++;
                u->bytes += luv_fd_bytes(f);
        } else {
                u->fds--;
                u->bytes -= luv_fd_bytes(f);
        }
}

/* A machine comes to a user, or leaves him, with all that is held of it. */
void luv_registry_charge_machine(Machine *m, int sign)
{
        UserQuota *u = NULL;

        /* Made when the machine was, or before its owner changed; without memory it goes uncounted. */
        if (luv_registry_user(m->registry, m->owner.uid, &u) < 0)
                return;
        u->machines += sign > 0 ? 1 : UINT64_MAX;
        for (size_t i = 0; i < m->n_fds; i++)
                luv_registry_charge_fd(m, m->fds[i], sign);
}

static size_t bucket_of(const FdIdentity *i)
{
        uint64_t h = i->ino * UINT64_C(0x9e3779b97f4a7c15) ^ i->dev;

        return (h >> 32) % FILE_BUCKETS;
}

static bool same_file(const MachineFd *f, const FdIdentity *b, int fd)
{
        const FdIdentity *a = &f->identity;

        if (a->kind != b->kind)
                return false;
        /* A device has one owner, however often it was opened. */
        if (a->kind == FD_KIND_VFIO && a->device[0] && streq(a->device, b->device))
                return true;
        if (a->dev != b->dev || a->ino != b->ino)
                return false;
        /* Each machine opens the one /dev/iommu, and what it gets is its own. */
        return a->kind != FD_KIND_IOMMUFD || luv_fd_same(f->fd, fd) > 0;
}

/* Devices are filed by address, so that two open files of one device meet. */
static size_t bucket_for(const FdIdentity *i)
{
        FdIdentity by_address = {};

        if (i->kind != FD_KIND_VFIO || !i->device[0])
                return bucket_of(i);
        for (const char *p = i->device; *p; p++)
                by_address.ino = by_address.ino * 31 + (unsigned char) *p;
        return bucket_of(&by_address);
}

void luv_registry_index(MachineRegistry *r, MachineFd *f)
{
        size_t b = bucket_for(&f->identity);

        f->next_same_hash = r->files[b];
        r->files[b] = f;
}

void luv_registry_unindex(MachineRegistry *r, MachineFd *f)
{
        MachineFd **p;

        for (p = r->files + bucket_for(&f->identity); *p; p = &(*p)->next_same_hash)
                if (*p == f) {
                        *p = f->next_same_hash;
                        f->next_same_hash = NULL;
                        return;
                }
}

MachineFd *luv_machine_registry_find_file(MachineRegistry *r, const FdIdentity *identity, int fd)
{
        for (MachineFd *f = r->files[bucket_for(identity)]; f; f = f->next_same_hash)
                if (same_file(f, identity, fd))
                        return f;
        return NULL;
}
