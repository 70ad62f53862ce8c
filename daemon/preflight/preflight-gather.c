/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <dirent.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "preflight/preflight-processes.h"
#include "preflight/preflight.h"
#include "util/cgroup.h"
#include "util/io.h"
#include "util/log.h"
#include "util/string-util.h"

/* Facts that need no waiting first; then plugins and the service manager are asked, all at once. */

typedef struct DeviceQuery {
        Preflight *preflight;
        size_t device; /* index in the facts */
        PluginCall *call;
} DeviceQuery;

typedef struct UnitQuery {
        Preflight *preflight;
        size_t machine; /* index in the facts */
        char *unit;
        sd_bus_slot *slot;
} UnitQuery;

struct Preflight {
        PreflightConfig config;
        PreflightDone done;
        void *userdata;
        PreflightFacts facts;
        DeviceQuery *devices;
        size_t n_devices;
        UnitQuery *survivals, *stores;
        size_t n_survivals, n_stores;
        sd_bus_slot *list, *drain;
        size_t pending;
        sd_event_source *finished;
};

Preflight *luv_preflight_free(Preflight *p)
{
        if (!p)
                return NULL;
        sd_event_source_disable_unref(p->finished);
        for (size_t i = 0; i < p->n_devices; i++)
                luv_plugin_call_free(p->devices[i].call);
        free(p->devices);
        for (size_t i = 0; i < p->n_survivals; i++)
                sd_bus_slot_unref(p->survivals[i].slot);
        free(p->survivals);
        for (size_t i = 0; i < p->n_stores; i++) {
                sd_bus_slot_unref(p->stores[i].slot);
                free(p->stores[i].unit);
        }
        free(p->stores);
        sd_bus_slot_unref(p->list);
        sd_bus_slot_unref(p->drain);
        luv_preflight_facts_done(&p->facts);
        free(p);
        return NULL;
}

static int on_finished(sd_event_source *s, void *userdata)
{
        Preflight *p = userdata;

        /* The callback may free P. */
        p->done(0, &p->facts, p->userdata);
        return 0;
}

static void one_less(Preflight *p)
{
        int r;

        if (--p->pending > 0)
                return;
        /* Out of whatever callback this is. */
        r = sd_event_add_defer(p->config.event, &p->finished, on_finished, p);
        if (r < 0)
                p->done(r, &p->facts, p->userdata);
}

static void gather_kernel(Preflight *p)
{
        PreflightFacts *f = &p->facts;
        const PreflightConfig *c = &p->config;
        struct stat st;

        f->kernel_staged = c->kernel_staged;
        f->kernel_given = c->kernel_fd >= 0;
        f->kexec_loaded = c->simulated || c->kernel_staged ? 0 : luv_kexec_loaded();
        if (c->kernel_staged || !f->kernel_given)
                return;
        f->kernel_error = luv_kexec_inspect(c->kernel_fd, &f->kernel, &f->kernel_reason);
        if (c->initrd_fd >= 0) {
                if (fstat(c->initrd_fd, &st) < 0 || !S_ISREG(st.st_mode))
                        f->initrd_reason = strdup("it is no regular file");
                else if (st.st_size == 0)
                        f->initrd_reason = strdup("it is empty");
        }
        f->running_abi_error = luv_luo_read_abi(c->luo, &f->running_abi);
        if (c->cmdline)
                f->cmdline = strdup(c->cmdline);
        else if (luv_kexec_running_cmdline(&f->cmdline) < 0)
                f->cmdline = NULL;
}

static void gather_memory_of(Machine *m, PreflightMachine *x)
{
        for (size_t i = 0; i < m->n_fds; i++) {
                const MachineFd *fd = m->fds[i];
                struct stat st;
                uint64_t allocated;

                if (fd->kind != FD_KIND_MEMFD || fd->fd < 0)
                        continue;
                x->n_memfds++;
                if (fd->preserved || fstat(fd->fd, &st) < 0)
                        continue;
                allocated = (uint64_t) st.st_blocks * 512;
                x->bytes += (uint64_t) st.st_size;
                x->holes += (uint64_t) st.st_size - MIN((uint64_t) st.st_size, allocated);
        }
}

static int gather_machine(Preflight *p, Machine *m, const char *own_cgroup)
{
        PreflightMachine *x = p->facts.machines + p->facts.n_machines;

        *x = (PreflightMachine) {
                .state = m->state,
                .attached = m->attached,
                .alive = luv_machine_is_alive(m) || m->attached,
                .n_fds = m->n_fds,
                .n_missing = luv_strv_length(m->missing),
                .headroom = UINT64_MAX,
                .survives = -1,
                .in_control_group = m->owner.cgroup && !streq(m->owner.cgroup, "/"),
        };
        p->facts.n_machines++;
        if (luv_free_and_strdup(&x->name, m->name) < 0 || luv_free_and_strdup(&x->unit, m->owner.unit) < 0 ||
            luv_free_and_strdup(&x->reason, m->reason) < 0)
                return -ENOMEM;
        x->blockers = calloc(MAX(m->n_blockers, (size_t) 1), sizeof(MachineBlocker));
        if (!x->blockers)
                return -ENOMEM;
        x->n_blockers = m->n_blockers;
        for (size_t i = 0; i < m->n_blockers; i++)
                if (luv_free_and_strdup(&x->blockers[i].message, m->blockers[i].message) < 0 ||
                    luv_free_and_strdup(&x->blockers[i].remedy, m->blockers[i].remedy) < 0)
                        return -ENOMEM;
        gather_memory_of(m, x);
        for (size_t i = 0; i < m->n_fds && !x->iommufd_blocker; i++)
                if (m->fds[i]->kind == FD_KIND_IOMMUFD &&
                    luv_iommufd_blocker(m->fds[i]->fd, &x->iommufd_blocker) == -ENOMEM)
                        return -ENOMEM;
        if (x->in_control_group) {
                _cleanup_free_ char *unit = luv_cgroup_of_unit(m->owner.cgroup);

                if (!unit)
                        return -ENOMEM;
                x->shares_control_group = own_cgroup && startswith(own_cgroup, unit) != NULL;
                (void) luv_memory_headroom(m->owner.cgroup, &x->headroom);
        }
        for (size_t i = 0; i < m->n_devices; i++) {
                PreflightDevice *devices, *d;

                devices = reallocarray(p->facts.devices, p->facts.n_devices + 1, sizeof(PreflightDevice));
                if (!devices)
                        return -ENOMEM;
                p->facts.devices = devices;
                d = devices + p->facts.n_devices++;
                *d = (PreflightDevice) { .preserved = luv_machine_device_preserved(m,
                                                                                   m->devices[i].address) };
                if (luv_free_and_strdup(&d->machine, m->name) < 0 ||
                    luv_free_and_strdup(&d->address, m->devices[i].address) < 0)
                        return -ENOMEM;
        }
        return 0;
}

static int gather_machines(Preflight *p)
{
        size_t n = luv_machine_registry_size(p->config.machines);
        _cleanup_free_ char *own = NULL, *own_unit = NULL;

        if (n == 0)
                return 0;
        p->facts.machines = calloc(n, sizeof(PreflightMachine));
        if (!p->facts.machines)
                return -ENOMEM;
        (void) luv_cgroup_of_pid(0, &own);
        if (own)
                own_unit = luv_cgroup_of_unit(own);
        for (size_t i = 0; i < n; i++) {
                int r = gather_machine(p, luv_machine_registry_at(p->config.machines, i), own_unit);

                if (r < 0)
                        return r;
        }
        return 0;
}

/* VFIO makes groups for devices without an IOMMU, too. */
static bool is_iommu_group(int groups_fd, const char *group)
{
        _cleanup_free_ char *path = luv_strf("%s/name", group), *name = NULL;

        return path && (luv_read_line_file(groups_fd, path, &name) < 0 || !streq(name, "vfio-noiommu"));
}

static void gather_host(Preflight *p)
{
        PreflightFacts *f = &p->facts;
        const char *store = getenv("FDSTORE");
        struct statvfs s;
        DIR *groups;

        f->store_available = luv_fd_store_available(p->config.store);
        if (!store || luv_parse_u64(store, &f->store_max) < 0)
                f->store_max = 0;
        f->store_needed = f->n_machines + 1;

        f->history_free = UINT64_MAX;
        /* A folder that is not there yet is made when it is needed. */
        if (statvfs(p->config.state_dir, &s) < 0)
                f->history_error = errno == ENOENT ? 0 : negative_errno();
        else if (s.f_flag & ST_RDONLY)
                f->history_error = -EROFS;
        else
                f->history_free = (uint64_t) s.f_bavail * s.f_frsize;

        f->may_noiommu = prctl(PR_CAPBSET_READ, CAP_SYS_RAWIO) == 1;
        groups = opendir("/sys/kernel/iommu_groups");
        if (groups) {
                struct dirent *e;

                while ((e = readdir(groups)))
                        f->n_iommu_groups += e->d_name[0] != '.' && is_iommu_group(dirfd(groups), e->d_name);
                closedir(groups);
        }
}

static void on_plugin_preflight(const PluginResult *result, void *userdata)
{
        DeviceQuery *q = userdata;
        PreflightDevice *d = q->preflight->facts.devices + q->device;

        if (result->error < 0) {
                d->reason = strdup(result->reason ? result->reason : strerror(-result->error));
        } else {
                for (size_t i = 0; i < result->n_findings; i++) {
                        const PluginFinding *x = result->findings + i;
                        Severity severity = luv_severity_from_string(x->severity);

                        luv_findings_add(&d->findings, x->id, severity < 0 ? SEVERITY_BLOCKER : severity,
                                         &(FindingSubject) { .remedy = x->remedy }, "%s", x->message);
                }
        }
        one_less(q->preflight);
}

static void on_plugin_match(const PluginResult *result, void *userdata)
{
        DeviceQuery *q = userdata;
        Preflight *p = q->preflight;
        PreflightDevice *d = p->facts.devices + q->device;
        Machine *m;
        int r;

        q->call = luv_plugin_call_free(q->call);
        if (result->error < 0) {
                d->reason = strdup(result->reason ? result->reason : strerror(-result->error));
                one_less(p);
                return;
        }
        if (luv_free_and_strdup(&d->plugin, result->plugin) < 0 ||
            luv_free_and_strdup(&d->promise, result->promise) < 0) {
                one_less(p);
                return;
        }
        /* The machine learns of it too, unless it went meanwhile. */
        m = luv_machine_registry_find(p->config.machines, d->machine);
        if (m) {
                MachineDevice *own = luv_machine_find_device(m, d->address);

                if (own) {
                        (void) luv_free_and_strdup(&own->plugin, d->plugin);
                        (void) luv_free_and_strdup(&own->promise, d->promise);
                }
        }
        r = luv_plugin_call(p->config.plugins, PLUGIN_OP_PREFLIGHT, d->plugin, d->address, NULL,
                            d->preserved, p->config.deadline, on_plugin_preflight, q, &q->call);
        if (r < 0) {
                d->reason = strdup(strerror(-r));
                one_less(p);
        }
}

static int query_devices(Preflight *p)
{
        if (p->facts.n_devices == 0)
                return 0;
        p->devices = calloc(p->facts.n_devices, sizeof(DeviceQuery));
        if (!p->devices)
                return -ENOMEM;
        for (size_t i = 0; i < p->facts.n_devices; i++) {
                DeviceQuery *q = p->devices + p->n_devices++;
                int r;

                q->preflight = p;
                q->device = i;
                r = luv_plugin_call(p->config.plugins, PLUGIN_OP_MATCH, NULL, p->facts.devices[i].address,
                                    NULL, p->facts.devices[i].preserved, p->config.deadline, on_plugin_match,
                                    q, &q->call);
                if (r < 0)
                        return r;
                p->pending++;
        }
        return 0;
}

static void on_survival(UnitSurvival survival, void *userdata)
{
        UnitQuery *q = userdata;

        if (survival != UNIT_UNKNOWN)
                q->preflight->facts.machines[q->machine].survives = survival == UNIT_SURVIVES;
        one_less(q->preflight);
}

static bool is_service(const char *unit)
{
        size_t n = strlen(unit);

        return n > STRLEN(".service") && streq(unit + n - STRLEN(".service"), ".service");
}

static int query_survivals(Preflight *p)
{
        if (!p->config.units || p->facts.n_machines == 0)
                return 0;
        p->survivals = calloc(p->facts.n_machines, sizeof(UnitQuery));
        if (!p->survivals)
                return -ENOMEM;
        for (size_t i = 0; i < p->facts.n_machines; i++) {
                UnitQuery *q;
                const char *unit = p->facts.machines[i].unit;

                /* Scopes survive an isolate of themselves; other managers' units are not stopped by this
                 * one. */
                if (!unit || !is_service(unit) || strchr(unit, '/'))
                        continue;
                q = p->survivals + p->n_survivals++;
                q->preflight = p;
                q->machine = i;
                if (luv_units_survival(p->config.units, unit, on_survival, q, &q->slot) >= 0)
                        p->pending++;
        }
        return 0;
}

static void on_store(bool lost, void *userdata)
{
        UnitQuery *q = userdata;

        if (lost)
                (void) luv_strv_extend(&q->preflight->facts.lost_stores, q->unit);
        one_less(q->preflight);
}

static void on_list(int error, const char *reason, const UnitInfo *units, size_t n, void *userdata)
{
        Preflight *p = userdata;

        if (error < 0) {
                luv_log_warning("The service manager did not list its units: %s",
                                reason ? reason : strerror(-error));
        } else if (n > 0) {
                p->stores = calloc(n, sizeof(UnitQuery));
                for (size_t i = 0; p->stores && i < n; i++) {
                        UnitQuery *q;

                        /* Our own holds sessions, which do survive. */
                        if (!streq(units[i].active_state, "active") || !is_service(units[i].name) ||
                            streq(units[i].name, "luvfiod.service"))
                                continue;
                        q = p->stores + p->n_stores++;
                        q->preflight = p;
                        q->unit = strdup(units[i].name);
                        if (q->unit &&
                            luv_units_has_store(p->config.units, q->unit, on_store, q, &q->slot) >= 0)
                                p->pending++;
                }
        }
        one_less(p);
}

static void on_drain_target(UnitSurvival survival, void *userdata)
{
        Preflight *p = userdata;

        p->facts.drain_target_missing = survival == UNIT_UNKNOWN;
        one_less(p);
}

int luv_preflight_start(const PreflightConfig *config, PreflightDone done, void *userdata, Preflight **ret)
{
        _cleanup_(luv_preflight_freep) Preflight *p = NULL;
        int r;

        p = calloc(1, sizeof(Preflight));
        if (!p)
                return -ENOMEM;
        p->config = *config;
        p->done = done;
        p->userdata = userdata;
        p->facts.simulated = config->simulated;
        p->facts.luo = luv_luo_probe(config->luo);
        gather_kernel(p);
        r = luv_memory_available(&p->facts.memory_available, &p->facts.memory_reserve);
        if (r < 0)
                return r;
        r = gather_machines(p);
        if (r < 0)
                return r;
        gather_host(p);
        if (!config->simulated) {
                r = luv_preflight_find_processes(config->machines, &p->facts);
                if (r < 0)
                        return r;
        }

        /* One for ourselves, so that nothing ends before all have begun. */
        p->pending = 1;
        r = query_devices(p);
        if (r < 0)
                return r;
        r = query_survivals(p);
        if (r < 0)
                return r;
        if (config->units) {
                r = luv_units_list(config->units, on_list, p, &p->list);
                if (r >= 0)
                        p->pending++;
                else
                        luv_log_error(r, "Cannot ask the service manager for its units");
                r = luv_units_survival(config->units, LUVFIO_DRAIN_TARGET, on_drain_target, p, &p->drain);
                if (r >= 0)
                        p->pending++;
                else
                        p->facts.drain_target_missing = true;
        }
        one_less(p);
        *ret = TAKE_PTR(p);
        return 0;
}
