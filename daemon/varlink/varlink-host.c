/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <sys/utsname.h>

#include "config.h"
#include "report/history.h"
#include "report/messages.h"
#include "util/io.h"
#include "util/log.h"
#include "util/string-util.h"
#include "varlink/idl.h"
#include "varlink/server-private.h"

/* org.luvfio.Host */

#define HISTORY_DEFAULT 20u
#define TEXT_MAX 256u
#define SACRIFICE_MAX 4096u

#define PAIR_STRING(name, s) SD_JSON_BUILD_PAIR_CONDITION((s) != NULL, name, SD_JSON_BUILD_STRING(s))

/* Reading. */

/* What this kernel makes of all files of a kind; of devices and iommufds, the least of those that machines
 * have. */
static FdOutcome outcome_of_kind(MachineRegistry *machines, FdKind kind)
{
        /* Of a file that is none, nothing is preserved that depends on how it is used. */
        const FdOutcome least = luv_fd_outcome(kind, -EBADF);
        FdOutcome all = _FD_OUTCOME_INVALID;

        for (size_t i = 0; i < luv_machine_registry_size(machines) && all != least; i++) {
                const Machine *m = luv_machine_registry_at(machines, i);

                for (size_t k = 0; k < m->n_fds && all != least; k++) {
                        FdOutcome o;

                        if (m->fds[k]->kind != kind)
                                continue;
                        o = luv_machine_fd_outcome(m, m->fds[k]);
                        if (all < 0 || all == FD_OUTCOME_PRESERVED || o == least)
                                all = o;
                }
        }
        return all >= 0 ? all : least;
}

static int build_promises(MachineRegistry *machines, sd_json_variant **ret)
{
        int r = 0;

        for (FdKind k = 0; k < _FD_KIND_MAX && r >= 0; k++)
                r = sd_json_variant_append_arraybo(
                                ret, SD_JSON_BUILD_PAIR_STRING("kind", luv_fd_kind_to_string(k)),
                                SD_JSON_BUILD_PAIR_STRING("outcome",
                                                          luv_fd_outcome_to_string(
                                                                          outcome_of_kind(machines, k))));
        return r;
}

static int method_describe(sd_varlink *link, sd_json_variant *parameters, sd_varlink_method_flags_t flags,
                           void *userdata)
{
        _cleanup_(sd_json_variant_unrefp) sd_json_variant *promises = NULL, *last = NULL;
        Connection *c = userdata;
        Server *s = c->server;
        const Report *report;
        Report *found = NULL;
        struct utsname name;
        size_t n = luv_machine_registry_size(s->config.machines), stranded = 0;
        const char *id = luv_update_id(s->config.update);
        int r;

        r = luv_dispatch(c, parameters, flags, luv_no_parameters, NULL);
        if (r <= 0)
                return r;
        if (uname(&name) < 0)
                return negative_errno();
        for (size_t i = 0; i < n; i++)
                stranded += luv_machine_registry_at(s->config.machines, i)->state == MACHINE_STRANDED;
        r = build_promises(s->config.machines, &promises);
        if (r < 0)
                return r;
        report = luv_update_last_report(s->config.update);
        if (!report && luv_history_find(s->config.state_dir, NULL, &found) >= 0)
                report = found;
        if (report)
                r = luv_report_to_json(report, /* with_phases= */ false, &last);
        luv_report_free(found);
        if (r < 0)
                return r;
        return sd_varlink_replybo(
                        link, SD_JSON_BUILD_PAIR_STRING("version", LUVFIO_VERSION),
                        SD_JSON_BUILD_PAIR_STRING("backend", luv_luo_backend_to_string(luv_luo_get_backend(
                                                                             s->config.luo))),
                        SD_JSON_BUILD_PAIR_STRING("kernel", name.release),
                        SD_JSON_BUILD_PAIR_STRING("state", luv_update_state_to_string(luv_update_state(
                                                                           s->config.update))),
                        PAIR_STRING("updateId", id), SD_JSON_BUILD_PAIR_VARIANT("promises", promises),
                        SD_JSON_BUILD_PAIR_UNSIGNED("machines", n),
                        SD_JSON_BUILD_PAIR_UNSIGNED("stranded", stranded),
                        SD_JSON_BUILD_PAIR_CONDITION(last != NULL, "lastUpdate",
                                                     SD_JSON_BUILD_VARIANT(last)));
}

static int append_machine(sd_json_variant **array, const Machine *m)
{
        _cleanup_(sd_json_variant_unrefp) sd_json_variant *devices = NULL;
        bool known = m->owner.uid != (uid_t) -1;
        int r;

        r = sd_json_variant_new_array(&devices, NULL, 0);
        for (size_t i = 0; i < m->n_devices && r >= 0; i++)
                r = sd_json_variant_append_arrayb(&devices, SD_JSON_BUILD_STRING(m->devices[i].address));
        if (r < 0)
                return r;
        return sd_json_variant_append_arraybo(
                        array, SD_JSON_BUILD_PAIR_STRING("name", m->name),
                        SD_JSON_BUILD_PAIR_STRING("state", luv_machine_state_to_string(m->state)),
                        PAIR_STRING("reason", m->reason), PAIR_STRING("vmm", m->vmm),
                        SD_JSON_BUILD_PAIR_CONDITION(known, "uid", SD_JSON_BUILD_UNSIGNED(m->owner.uid)),
                        PAIR_STRING("unit", m->owner.unit),
                        SD_JSON_BUILD_PAIR_CONDITION(luv_machine_is_alive(m), "pid",
                                                     SD_JSON_BUILD_INTEGER(m->owner.pid)),
                        SD_JSON_BUILD_PAIR_BOOLEAN("attached", m->attached),
                        SD_JSON_BUILD_PAIR_UNSIGNED("generation", m->generation),
                        PAIR_STRING("session", m->session_name),
                        SD_JSON_BUILD_PAIR_UNSIGNED("fileDescriptors", m->n_fds),
                        SD_JSON_BUILD_PAIR_UNSIGNED("memoryBytes", luv_machine_memory(m)),
                        SD_JSON_BUILD_PAIR_VARIANT("devices", devices));
}

static int method_list_machines(sd_varlink *link, sd_json_variant *parameters,
                                sd_varlink_method_flags_t flags, void *userdata)
{
        _cleanup_(sd_json_variant_unrefp) sd_json_variant *array = NULL;
        Connection *c = userdata;
        MachineRegistry *machines = c->server->config.machines;
        int r;

        r = luv_dispatch(c, parameters, flags, luv_no_parameters, NULL);
        if (r <= 0)
                return r;
        r = sd_json_variant_new_array(&array, NULL, 0);
        for (size_t i = 0; i < luv_machine_registry_size(machines) && r >= 0; i++)
                r = append_machine(&array, luv_machine_registry_at(machines, i));
        if (r < 0)
                return r;
        return sd_varlink_replybo(link, SD_JSON_BUILD_PAIR_VARIANT("machines", array));
}

/* An attribute of a PCI device; NULL if it cannot be read, or is empty. */
static char *device_attribute(const char *address, const char *attribute)
{
        _cleanup_free_ char *path = luv_strf("/sys/bus/pci/devices/%s/%s", address, attribute),
                            *value = NULL;

        if (!path || luv_read_line_file(AT_FDCWD, path, &value) < 0 || !*value)
                return NULL;
        return TAKE_PTR(value);
}

static int append_device(sd_json_variant **array, const Machine *m, const MachineDevice *d)
{
        _cleanup_free_ char *vendor = NULL, *device = NULL, *id = NULL, *path = NULL, *state = NULL,
                            *blocked_by = NULL;
        uint64_t preserved = luv_machine_device_preserved(m, d->address);
        _cleanup_strv_ char **kept = NULL, **lost = NULL;
        const char *driver = NULL;
        char target[PATH_MAX];
        ssize_t n;
        int r;

        vendor = device_attribute(d->address, "vendor");
        device = device_attribute(d->address, "device");
        state = device_attribute(d->address, "liveupdate/state");
        blocked_by = device_attribute(d->address, "liveupdate/blocked_by");
        r = luv_fd_preserved_to_strv(preserved, true, &kept);
        if (r >= 0)
                r = luv_fd_preserved_to_strv(preserved, false, &lost);
        if (r < 0)
                return r;
        if (vendor && device && startswith(vendor, "0x") && startswith(device, "0x"))
                id = luv_strf("%s:%s", vendor + 2, device + 2);
        path = luv_strf("/sys/bus/pci/devices/%s/driver", d->address);
        n = path ? readlink(path, target, sizeof(target) - 1) : -1;
        if (n > 0) {
                target[n] = 0;
                driver = strrchr(target, '/');
                driver = driver ? driver + 1 : target;
        }
        return sd_json_variant_append_arraybo(
                        array, SD_JSON_BUILD_PAIR_STRING("address", d->address),
                        SD_JSON_BUILD_PAIR_STRING("machine", m->name), PAIR_STRING("id", id),
                        PAIR_STRING("driver", driver), PAIR_STRING("plugin", d->plugin),
                        PAIR_STRING("promise", d->promise), PAIR_STRING("kernelState", state),
                        PAIR_STRING("blockedBy", blocked_by),
                        SD_JSON_BUILD_PAIR_CONDITION(preserved != FD_PRESERVED_UNKNOWN, "preserved",
                                                     SD_JSON_BUILD_STRV(kept)),
                        SD_JSON_BUILD_PAIR_CONDITION(preserved != FD_PRESERVED_UNKNOWN, "notPreserved",
                                                     SD_JSON_BUILD_STRV(lost)),
                        PAIR_STRING("reason", d->reason));
}

typedef struct DeviceOf {
        const Machine *machine;
        const MachineDevice *device;
} DeviceOf;

static int compare_devices(const void *a, const void *b)
{
        const DeviceOf *x = a, *y = b;

        return strcmp(x->device->address, y->device->address);
}

static int method_list_devices(sd_varlink *link, sd_json_variant *parameters,
                               sd_varlink_method_flags_t flags, void *userdata)
{
        _cleanup_(sd_json_variant_unrefp) sd_json_variant *array = NULL;
        Connection *c = userdata;
        MachineRegistry *machines = c->server->config.machines;
        _cleanup_free_ DeviceOf *devices = NULL;
        size_t n = 0, k = 0;
        int r;

        r = luv_dispatch(c, parameters, flags, luv_no_parameters, NULL);
        if (r <= 0)
                return r;
        for (size_t i = 0; i < luv_machine_registry_size(machines); i++)
                n += luv_machine_registry_at(machines, i)->n_devices;
        devices = calloc(MAX(n, (size_t) 1), sizeof(DeviceOf));
        if (!devices)
                return -ENOMEM;
        for (size_t i = 0; i < luv_machine_registry_size(machines); i++) {
                const Machine *m = luv_machine_registry_at(machines, i);

                for (size_t d = 0; d < m->n_devices; d++)
                        devices[k++] = (DeviceOf) { .machine = m, .device = m->devices + d };
        }
        if (k > 1)
                qsort(devices, k, sizeof(DeviceOf), compare_devices);
        r = sd_json_variant_new_array(&array, NULL, 0);
        for (size_t i = 0; i < k && r >= 0; i++)
                r = append_device(&array, devices[i].machine, devices[i].device);
        if (r < 0)
                return r;
        return sd_varlink_replybo(link, SD_JSON_BUILD_PAIR_VARIANT("devices", array));
}

static int method_history(sd_varlink *link, sd_json_variant *parameters, sd_varlink_method_flags_t flags,
                          void *userdata)
{
        static const sd_json_dispatch_field table[] = {
                { "limit", _SD_JSON_VARIANT_TYPE_INVALID, sd_json_dispatch_int64, 0, SD_JSON_NULLABLE },
                {},
        };
        _cleanup_(sd_json_variant_unrefp) sd_json_variant *array = NULL;
        Connection *c = userdata;
        int64_t limit = HISTORY_DEFAULT;
        Report **reports;
        size_t n;
        int r;

        r = luv_dispatch(c, parameters, flags, table, &limit);
        if (r <= 0)
                return r;
        if (limit < 0)
                return sd_varlink_error_invalid_parameter_name(link, "limit");
        r = luv_history_read(c->server->config.state_dir, (size_t) limit, &reports, &n);
        if (r < 0)
                return luv_log_error(r, "The history in %s cannot be read", c->server->config.state_dir);
        r = sd_json_variant_new_array(&array, NULL, 0);
        for (size_t i = 0; i < n && r >= 0; i++) {
                _cleanup_(sd_json_variant_unrefp) sd_json_variant *v = NULL;

                r = luv_report_to_json(reports[i], /* with_phases= */ false, &v);
                if (r >= 0)
                        r = sd_json_variant_append_array(&array, v);
        }
        luv_history_free(reports, n);
        if (r < 0)
                return r;
        return sd_varlink_replybo(link, SD_JSON_BUILD_PAIR_VARIANT("updates", array));
}

static int method_analyze(sd_varlink *link, sd_json_variant *parameters, sd_varlink_method_flags_t flags,
                          void *userdata)
{
        static const sd_json_dispatch_field table[] = {
                { "updateId", SD_JSON_VARIANT_STRING, sd_json_dispatch_const_string, 0, SD_JSON_NULLABLE },
                {},
        };
        _cleanup_(sd_json_variant_unrefp) sd_json_variant *v = NULL;
        Connection *c = userdata;
        const Report *report = luv_update_last_report(c->server->config.update);
        const char *id = NULL;
        Report *found = NULL;
        int r;

        r = luv_dispatch(c, parameters, flags, table, &id);
        if (r <= 0)
                return r;
        if (!report || (id && !streq(report->update_id, id))) {
                r = id && !luv_id_valid(id) ? -ENOENT
                                            : luv_history_find(c->server->config.state_dir, id, &found);
                if (r == -ENOENT)
                        return sd_varlink_errorbo(link, VL_ERROR_HOST("NoSuchUpdate"),
                                                  SD_JSON_BUILD_PAIR_STRING("updateId", strempty(id)));
                if (r < 0)
                        return luv_log_error(r, "The history in %s cannot be read",
                                             c->server->config.state_dir);
                report = found;
        }
        r = luv_report_to_json(report, /* with_phases= */ true, &v);
        luv_report_free(found);
        if (r < 0)
                return r;
        return sd_varlink_replybo(link, SD_JSON_BUILD_PAIR_VARIANT("report", v));
}

/* What a change is asked for with; kept until it is known whether it is allowed. */

typedef struct HostCall HostCall;
typedef int (*HostFunc)(HostCall *h);

struct HostCall {
        Connection *connection;
        HostFunc func;
        AuthCall *auth;
        UpdateCheck *check;
        bool more;
        UpdateRequest request;
        char *cmdline, *machine, *who, *why;
        char **sacrifice;
};

static void host_call_free(void *p)
{
        HostCall *h = p;

        luv_auth_call_free(h->auth);
        luv_update_check_free(h->check);
        safe_close(h->request.kernel_fd);
        safe_close(h->request.initrd_fd);
        free(h->cmdline);
        free(h->machine);
        free(h->who);
        free(h->why);
        luv_strv_free(h->sacrifice);
        free(h);
}

static HostCall *host_call_new(Connection *c, HostFunc func, bool more)
{
        HostCall *h = calloc(1, sizeof(HostCall));

        if (!h)
                return NULL;
        h->connection = c;
        h->func = func;
        h->more = more;
        h->request.kernel_fd = h->request.initrd_fd = -EBADF;
        return h;
}

/* The call is over, or goes on without its parameters. */
static void host_call_drop(HostCall *h)
{
        luv_connection_clear_pending(h->connection);
        host_call_free(h);
}

static void host_call_run(HostCall *h)
{
        Connection *c = h->connection;
        int r;

        c->caller = CALLER_NONE;
        r = h->func(h);
        /* What sent an error returns it as a number too; then nobody waits for another. */
        if (r < 0)
                (void) sd_varlink_error_errno(c->link, r);
}

static void refuse(Connection *c, AuthResult result)
{
        (void) sd_varlink_error(c->link,
                                result == AUTH_INTERACTIVE
                                                ? SD_VARLINK_ERROR_INTERACTIVE_AUTHENTICATION_REQUIRED
                                                : SD_VARLINK_ERROR_PERMISSION_DENIED,
                                NULL);
}

static void on_authorised(AuthResult result, void *userdata)
{
        HostCall *h = userdata;
        Connection *c = h->connection;

        h->auth = luv_auth_call_free(h->auth);
        if (result == AUTH_ALLOWED) {
                host_call_run(h);
                return;
        }
        c->caller = CALLER_NONE;
        host_call_drop(h);
        refuse(c, result);
}

/* Runs H once its caller is known to be allowed. Takes over H. */
static int authorise(HostCall *h, const char *action, bool interactive)
{
        Connection *c = h->connection;
        AuthResult result = AUTH_DENIED;
        int r;

        luv_connection_set_pending(c, h, host_call_free);
        c->caller = CALLER_OTHER;
        r = luv_auth_check(c->server->auth, &c->peer, action, interactive, &result, on_authorised, h,
                           &h->auth);
        if (r == 0)
                return 0;
        if (r < 0)
                luv_log_error(r, "Whether pid %i (uid %u) may do %s cannot be found out, it is refused",
                              (int) c->peer.pid, c->peer.uid, action);
        if (r > 0 && result == AUTH_ALLOWED) {
                host_call_run(h);
                return 0;
        }
        c->caller = CALLER_NONE;
        host_call_drop(h);
        refuse(c, result);
        return 0;
}

typedef struct UpdateParameters {
        int64_t kernel, initrd;
        const char *cmdline;
        sd_json_variant *sacrifice;
        bool dry_run, interactive;
        int64_t deadline;
        const char *fallback;
} UpdateParameters;

#define KERNEL_FIELDS                                                                                       \
        { "kernelFileDescriptor", _SD_JSON_VARIANT_TYPE_INVALID, sd_json_dispatch_int64,                    \
          offsetof(UpdateParameters, kernel), SD_JSON_NULLABLE },                                           \
                        { "initrdFileDescriptor", _SD_JSON_VARIANT_TYPE_INVALID, sd_json_dispatch_int64,    \
                          offsetof(UpdateParameters, initrd), SD_JSON_NULLABLE },                           \
                        { "commandLine", SD_JSON_VARIANT_STRING, sd_json_dispatch_const_string,             \
                          offsetof(UpdateParameters, cmdline), SD_JSON_NULLABLE },                          \
        {                                                                                                   \
                "sacrifice", SD_JSON_VARIANT_ARRAY, sd_json_dispatch_variant_noref,                         \
                                offsetof(UpdateParameters, sacrifice), SD_JSON_NULLABLE                     \
        }

#define INTERACTIVE_FIELD                                                                                   \
        { "allowInteractiveAuthentication", SD_JSON_VARIANT_BOOLEAN, sd_json_dispatch_stdbool,              \
          offsetof(UpdateParameters, interactive), SD_JSON_NULLABLE }

static int error_bad_kernel(Connection *c, const char *reason)
{
        return sd_varlink_errorbo(c->link, VL_ERROR_HOST("BadKernel"),
                                  SD_JSON_BUILD_PAIR_STRING("reason", reason));
}

/* Takes the fd at INDEX; -1: none was named. Sends the error itself: negative. */
static int take_fd(Connection *c, int64_t index, const char *parameter, int *ret)
{
        int fd;

        if (index == -1)
                return 0;
        if (index < 0 || index > INT_MAX)
                return sd_varlink_error_invalid_parameter_name(c->link, parameter);
        fd = sd_varlink_take_fd(c->link, (size_t) index);
        if (fd < 0)
                return sd_varlink_error_invalid_parameter_name(c->link, parameter);
        *ret = fd;
        return 0;
}

/* From parameters to a request. Negative: the error has been sent. */
static int fill_request(Connection *c, HostCall *h, const UpdateParameters *p)
{
        int r;

        r = take_fd(c, p->kernel, "kernelFileDescriptor", &h->request.kernel_fd);
        if (r < 0)
                return r;
        r = take_fd(c, p->initrd, "initrdFileDescriptor", &h->request.initrd_fd);
        if (r < 0)
                return r;
        if (p->cmdline && strlen(p->cmdline) > LUVFIO_CMDLINE_MAX)
                return error_bad_kernel(c, "the command line is longer than the kernel takes (2047 bytes)");
        if (luv_free_and_strdup(&h->cmdline, p->cmdline) < 0)
                return sd_varlink_error_errno(c->link, -ENOMEM);
        h->request.cmdline = h->cmdline;
        for (size_t i = 0; p->sacrifice && i < sd_json_variant_elements(p->sacrifice); i++) {
                const char *name = sd_json_variant_string(sd_json_variant_by_index(p->sacrifice, i));

                if (!name || i >= SACRIFICE_MAX)
                        return sd_varlink_error_invalid_parameter_name(c->link, "sacrifice");
                /* A slip of the pen here costs another machine its life. */
                if (!luv_machine_registry_find(c->server->config.machines, name)) {
                        _cleanup_free_ char *printable = luv_printable(name);

                        return sd_varlink_errorbo(c->link, VL_ERROR_HOST("NoSuchMachine"),
                                                  SD_JSON_BUILD_PAIR_STRING("machine", strempty(printable)));
                }
                if (luv_strv_extend(&h->sacrifice, name) < 0)
                        return sd_varlink_error_errno(c->link, -ENOMEM);
        }
        h->request.sacrifice = h->sacrifice;
        return 0;
}

/* Check. */

static void on_check_done(int error, const Findings *findings, void *userdata)
{
        HostCall *h = userdata;
        Connection *c = h->connection;
        _cleanup_(sd_json_variant_unrefp) sd_json_variant *v = NULL;
        int r = error;

        if (r >= 0)
                r = luv_findings_to_json(findings, &v);
        if (r >= 0)
                r = sd_varlink_replybo(c->link,
                                       SD_JSON_BUILD_PAIR_BOOLEAN("ready",
                                                                  luv_findings_blockers(findings) == 0),
                                       SD_JSON_BUILD_PAIR_VARIANT("findings", v));
        if (r < 0)
                (void) sd_varlink_error_errno(c->link, r);
        c->caller = CALLER_NONE;
        host_call_drop(h);
}

static int method_check(sd_varlink *link, sd_json_variant *parameters, sd_varlink_method_flags_t flags,
                        void *userdata)
{
        static const sd_json_dispatch_field table[] = { KERNEL_FIELDS, {} };
        UpdateParameters p = { .kernel = -1, .initrd = -1 };
        Connection *c = userdata;
        HostCall *h;
        int r;

        r = luv_dispatch(c, parameters, flags, table, &p);
        if (r <= 0)
                return r;
        h = host_call_new(c, NULL, false);
        if (!h)
                return -ENOMEM;
        r = fill_request(c, h, &p);
        if (r < 0) {
                host_call_free(h);
                return r;
        }
        luv_connection_set_pending(c, h, host_call_free);
        c->caller = CALLER_OTHER;
        r = luv_update_check(c->server->config.update, &h->request, on_check_done, h, &h->check);
        if (r < 0) {
                c->caller = CALLER_NONE;
                host_call_drop(h);
                return luv_log_error(r, "The checks cannot be made");
        }
        return 0;
}

/* Stage and Update. */

static int error_in_progress(Connection *c)
{
        Update *u = c->server->config.update;

        return sd_varlink_errorbo(c->link, VL_ERROR_HOST("UpdateInProgress"),
                                  SD_JSON_BUILD_PAIR_STRING("updateId", strempty(luv_update_id(u))),
                                  SD_JSON_BUILD_PAIR_STRING("state", luv_update_state_to_string(
                                                                                     luv_update_state(u))));
}

static int run_update(HostCall *h)
{
        Connection *c = h->connection;
        bool jump = h->request.jump;
        int r;

        c->caller = jump ? CALLER_UPDATE : CALLER_STAGE;
        c->more = h->more;
        r = luv_update_begin(c->server->config.update, &h->request);
        host_call_drop(h);
        if (r >= 0)
                return 0;
        c->caller = CALLER_NONE;
        if (r == -EBUSY)
                return error_in_progress(c);
        if (r == -ENOKEY)
                return sd_varlink_error(c->link, VL_ERROR_HOST("NoKernel"), NULL);
        return luv_log_error(r, "The update cannot begin");
}

static int begin(Connection *c, sd_json_variant *parameters, sd_varlink_method_flags_t flags,
                 const sd_json_dispatch_field *table, bool jump)
{
        UpdateParameters p = { .kernel = -1, .initrd = -1 };
        HostCall *h;
        int r;

        r = luv_dispatch(c, parameters, flags, table, &p);
        if (r <= 0)
                return r;
        if (p.deadline < 0 || (uint64_t) p.deadline > LUVFIO_DEADLINE_MAX_USEC)
                return sd_varlink_error_invalid_parameter_name(c->link, "deadlineUSec");
        if (p.fallback && !streq(p.fallback, "none") && !streq(p.fallback, "cold"))
                return sd_varlink_error_invalid_parameter_name(c->link, "fallback");
        h = host_call_new(c, run_update, flags & SD_VARLINK_METHOD_MORE);
        if (!h)
                return -ENOMEM;
        h->request.jump = jump;
        h->request.dry_run = p.dry_run;
        h->request.deadline_usec = (uint64_t) p.deadline;
        h->request.cold = p.fallback && streq(p.fallback, "cold");
        r = fill_request(c, h, &p);
        if (r < 0) {
                host_call_free(h);
                return r;
        }
        return authorise(h, jump ? "org.luvfio.host.update" : "org.luvfio.host.stage", p.interactive);
}

static int method_stage(sd_varlink *link, sd_json_variant *parameters, sd_varlink_method_flags_t flags,
                        void *userdata)
{
        static const sd_json_dispatch_field table[] = { KERNEL_FIELDS, INTERACTIVE_FIELD, {} };

        return begin(userdata, parameters, flags, table, /* jump= */ false);
}

static int method_update(sd_varlink *link, sd_json_variant *parameters, sd_varlink_method_flags_t flags,
                         void *userdata)
{
        static const sd_json_dispatch_field table[] = {
                KERNEL_FIELDS,
                INTERACTIVE_FIELD,
                { "dryRun", SD_JSON_VARIANT_BOOLEAN, sd_json_dispatch_stdbool,
                  offsetof(UpdateParameters, dry_run), SD_JSON_NULLABLE },
                { "deadlineUSec", _SD_JSON_VARIANT_TYPE_INVALID, sd_json_dispatch_int64,
                  offsetof(UpdateParameters, deadline), SD_JSON_NULLABLE },
                { "fallback", SD_JSON_VARIANT_STRING, sd_json_dispatch_const_string,
                  offsetof(UpdateParameters, fallback), SD_JSON_NULLABLE },
                {},
        };

        return begin(userdata, parameters, flags, table, /* jump= */ true);
}

/* Abort, Discard, Inhibit. */

static int run_abort(HostCall *h)
{
        Connection *c = h->connection;
        Update *u = c->server->config.update;
        int r;

        host_call_drop(h);
        r = luv_update_abort(u, "an operator gave it up");
        if (r == -EPROTO)
                return sd_varlink_errorbo(c->link, VL_ERROR_HOST("NotPossible"),
                                          SD_JSON_BUILD_PAIR_STRING("state",
                                                                    luv_update_state_to_string(
                                                                                    luv_update_state(u))));
        if (r < 0)
                return r;
        c->caller = CALLER_ABORT;
        return 0;
}

static int method_abort(sd_varlink *link, sd_json_variant *parameters, sd_varlink_method_flags_t flags,
                        void *userdata)
{
        static const sd_json_dispatch_field table[] = { INTERACTIVE_FIELD, {} };
        UpdateParameters p = {};
        Connection *c = userdata;
        HostCall *h;
        int r;

        r = luv_dispatch(c, parameters, flags, table, &p);
        if (r <= 0)
                return r;
        h = host_call_new(c, run_abort, false);
        if (!h)
                return -ENOMEM;
        return authorise(h, "org.luvfio.host.abort", p.interactive);
}

typedef struct TextParameters {
        const char *machine, *who, *why;
        bool interactive;
} TextParameters;

/* Outlives its connection: what was begun is brought to its end. */
typedef struct DiscardAnswer {
        Server *server;
        sd_varlink *link;
} DiscardAnswer;

static void on_discarded(int error, const char *reason, void *userdata)
{
        DiscardAnswer *a = userdata;

        if (error < 0)
                luv_log_warning("A machine could not be given up: %s", reason ? reason : strerror(-error));
        for (Connection *c = a->server->connections; c; c = c->next) {
                if (c->link != a->link || c->caller != CALLER_DISCARD)
                        continue;
                c->caller = CALLER_NONE;
                if (error < 0)
                        (void) sd_varlink_errorbo(
                                        c->link, VL_ERROR_HOST("UpdateFailed"),
                                        SD_JSON_BUILD_PAIR_STRING(
                                                        "state", luv_update_state_to_string(luv_update_state(
                                                                                 a->server->config.update))),
                                        SD_JSON_BUILD_PAIR_STRING("reason",
                                                                  reason ? reason : strerror(-error)));
                else
                        (void) sd_varlink_reply(c->link, NULL);
                break;
        }
        sd_varlink_unref(a->link);
        free(a);
}

static int run_discard(HostCall *h)
{
        Connection *c = h->connection;
        Server *s = c->server;
        _cleanup_free_ char *name = TAKE_PTR(h->machine), *printable = NULL;
        DiscardAnswer *a;
        Machine *m;
        int r;

        host_call_drop(h);
        m = luv_machine_registry_find(s->config.machines, name);
        if (!m) {
                printable = luv_printable(name);
                return sd_varlink_errorbo(c->link, VL_ERROR_HOST("NoSuchMachine"),
                                          SD_JSON_BUILD_PAIR_STRING("machine", strempty(printable)));
        }
        if (m->state != MACHINE_STRANDED)
                return sd_varlink_errorbo(c->link, VL_ERROR_HOST("NotStranded"),
                                          SD_JSON_BUILD_PAIR_STRING("machine", m->name));
        a = calloc(1, sizeof(DiscardAnswer));
        if (!a)
                return -ENOMEM;
        a->server = s;
        a->link = sd_varlink_ref(c->link);
        c->caller = CALLER_DISCARD;
        r = luv_update_discard(s->config.update, m, on_discarded, a);
        if (r >= 0)
                return 0;
        c->caller = CALLER_NONE;
        sd_varlink_unref(a->link);
        free(a);
        /* Somebody else discards it already. */
        return sd_varlink_errorbo(c->link, VL_ERROR_HOST("NotStranded"),
                                  SD_JSON_BUILD_PAIR_STRING("machine", name));
}

static int method_discard(sd_varlink *link, sd_json_variant *parameters, sd_varlink_method_flags_t flags,
                          void *userdata)
{
        static const sd_json_dispatch_field table[] = {
                { "machine", SD_JSON_VARIANT_STRING, sd_json_dispatch_const_string,
                  offsetof(TextParameters, machine), SD_JSON_MANDATORY },
                { "allowInteractiveAuthentication", SD_JSON_VARIANT_BOOLEAN, sd_json_dispatch_stdbool,
                  offsetof(TextParameters, interactive), SD_JSON_NULLABLE },
                {},
        };
        TextParameters p = {};
        Connection *c = userdata;
        HostCall *h;
        int r;

        r = luv_dispatch(c, parameters, flags, table, &p);
        if (r <= 0)
                return r;
        h = host_call_new(c, run_discard, false);
        if (!h)
                return -ENOMEM;
        if (luv_free_and_strdup(&h->machine, p.machine) < 0) {
                host_call_free(h);
                return -ENOMEM;
        }
        return authorise(h, "org.luvfio.host.discard", p.interactive);
}

static int run_inhibit(HostCall *h)
{
        Connection *c = h->connection;

        c->who = TAKE_PTR(h->who);
        c->why = TAKE_PTR(h->why);
        host_call_drop(h);
        c->caller = CALLER_INHIBIT;
        luv_log_struct(LOG_INFO, &(LogFields) { .message_id = LUVFIO_MESSAGE_INHIBITED },
                       "%s (pid %i, uid %u) forbids updates: %s", c->who, (int) c->peer.pid, c->peer.uid,
                       c->why);
        return luv_connection_notify(c, NULL);
}

static bool is_text(const char *s)
{
        if (!*s || strlen(s) > TEXT_MAX)
                return false;
        for (; *s; s++)
                if ((unsigned char) *s < 0x20 || *s == 0x7f)
                        return false;
        return true;
}

static int method_inhibit(sd_varlink *link, sd_json_variant *parameters, sd_varlink_method_flags_t flags,
                          void *userdata)
{
        static const sd_json_dispatch_field table[] = {
                { "who", SD_JSON_VARIANT_STRING, sd_json_dispatch_const_string,
                  offsetof(TextParameters, who), SD_JSON_MANDATORY },
                { "why", SD_JSON_VARIANT_STRING, sd_json_dispatch_const_string,
                  offsetof(TextParameters, why), SD_JSON_MANDATORY },
                { "allowInteractiveAuthentication", SD_JSON_VARIANT_BOOLEAN, sd_json_dispatch_stdbool,
                  offsetof(TextParameters, interactive), SD_JSON_NULLABLE },
                {},
        };
        TextParameters p = {};
        Connection *c = userdata;
        HostCall *h;
        int r;

        r = luv_dispatch(c, parameters, flags, table, &p);
        if (r <= 0)
                return r;
        if (!(flags & SD_VARLINK_METHOD_MORE))
                return sd_varlink_error(link, SD_VARLINK_ERROR_EXPECTED_MORE, NULL);
        if (!is_text(p.who))
                return sd_varlink_error_invalid_parameter_name(link, "who");
        if (!is_text(p.why))
                return sd_varlink_error_invalid_parameter_name(link, "why");
        h = host_call_new(c, run_inhibit, true);
        if (!h)
                return -ENOMEM;
        if (luv_free_and_strdup(&h->who, p.who) < 0 || luv_free_and_strdup(&h->why, p.why) < 0) {
                host_call_free(h);
                return -ENOMEM;
        }
        return authorise(h, "org.luvfio.host.inhibit", p.interactive);
}

/* Following. */

static int progress_to_json(const UpdateProgress *p, sd_json_variant **ret)
{
        _cleanup_(sd_json_variant_unrefp) sd_json_variant *report = NULL;
        const char *machine_state = luv_machine_state_to_string(p->machine_state);
        int r;

        if (p->report) {
                r = luv_report_to_json(p->report, /* with_phases= */ true, &report);
                if (r < 0)
                        return r;
        }
        return sd_json_buildo(ret, PAIR_STRING("updateId", p->update_id),
                              SD_JSON_BUILD_PAIR_STRING("state", luv_update_state_to_string(p->state)),
                              PAIR_STRING("message", p->message), PAIR_STRING("machine", p->machine),
                              PAIR_STRING("machineState", machine_state),
                              SD_JSON_BUILD_PAIR_CONDITION(p->total > 0, "done",
                                                           SD_JSON_BUILD_UNSIGNED(p->done)),
                              SD_JSON_BUILD_PAIR_CONDITION(p->total > 0, "total",
                                                           SD_JSON_BUILD_UNSIGNED(p->total)),
                              SD_JSON_BUILD_PAIR_CONDITION(report != NULL, "report",
                                                           SD_JSON_BUILD_VARIANT(report)));
}

static int method_monitor(sd_varlink *link, sd_json_variant *parameters, sd_varlink_method_flags_t flags,
                          void *userdata)
{
        _cleanup_(sd_json_variant_unrefp) sd_json_variant *v = NULL;
        Connection *c = userdata;
        Update *u = c->server->config.update;
        int r;

        r = luv_dispatch(c, parameters, flags, luv_no_parameters, NULL);
        if (r <= 0)
                return r;
        if (!(flags & SD_VARLINK_METHOD_MORE))
                return sd_varlink_error(link, SD_VARLINK_ERROR_EXPECTED_MORE, NULL);
        r = progress_to_json(
                        &(UpdateProgress) {
                                        .state = luv_update_state(u),
                                        .update_id = luv_update_id(u),
                                        .machine_state = _MACHINE_STATE_INVALID,
                        },
                        &v);
        if (r < 0)
                return r;
        c->caller = CALLER_MONITOR;
        return luv_connection_notify(c, v);
}

static void on_progress(const UpdateProgress *p, void *userdata)
{
        Server *s = userdata;
        sd_json_variant *v = NULL;
        int r;

        for (Connection *c = s->connections; c; c = c->next) {
                bool caller = (c->caller == CALLER_UPDATE || c->caller == CALLER_STAGE) && c->more;

                /* The report goes to its caller as the last reply. */
                if (c->caller != CALLER_MONITOR && (!caller || p->report))
                        continue;
                if (!v) {
                        r = progress_to_json(p, &v);
                        if (r < 0) {
                                luv_log_error(r, "Progress cannot be told");
                                break;
                        }
                }
                (void) luv_connection_notify(c, v);
        }
        sd_json_variant_unref(v);
}

static int reply_outcome(Connection *c, const UpdateOutcome *o)
{
        _cleanup_(sd_json_variant_unrefp) sd_json_variant *v = NULL;
        UpdateProgress p = {
                .state = luv_update_state(c->server->config.update),
                .update_id = o->update_id,
                .machine_state = _MACHINE_STATE_INVALID,
                .report = o->report,
        };
        int r;

        switch (o->end) {
        case UPDATE_END_BLOCKED:
                r = luv_findings_to_json(o->findings, &v);
                if (r < 0)
                        return r;
                return sd_varlink_errorbo(c->link, VL_ERROR_HOST("Blocked"),
                                          SD_JSON_BUILD_PAIR_VARIANT("findings", v));
        case UPDATE_END_BAD_KERNEL:
                return error_bad_kernel(c, strempty(o->reason));
        case UPDATE_END_ABORTED:
                return sd_varlink_errorbo(c->link, VL_ERROR_HOST("UpdateFailed"),
                                          SD_JSON_BUILD_PAIR_STRING("state",
                                                                    luv_update_state_to_string(o->state)),
                                          SD_JSON_BUILD_PAIR_STRING("reason", strempty(o->reason)),
                                          PAIR_STRING("machine", o->machine));
        case UPDATE_END_DRY_RUN:
                p.message = "the dry run passed all gates, machines run on";
                break;
        case UPDATE_END_STAGED:
                p.message = "staged";
                break;
        default:
                break;
        }
        r = progress_to_json(&p, &v);
        if (r < 0)
                return r;
        return sd_varlink_reply(c->link, v);
}

static void on_ended(const UpdateOutcome *o, void *userdata)
{
        Server *s = userdata;

        for (Connection *c = s->connections; c; c = c->next) {
                Caller caller = c->caller;
                int r;

                /* Of what is staged the aborter alone waits. */
                if (caller != CALLER_UPDATE && caller != CALLER_STAGE && caller != CALLER_ABORT)
                        continue;
                if (caller == CALLER_ABORT && o->end == UPDATE_END_STAGED)
                        continue;
                c->caller = CALLER_NONE;
                if (caller == CALLER_ABORT)
                        r = sd_varlink_reply(c->link, NULL);
                else
                        r = reply_outcome(c, o);
                /* As in host_call_run(). */
                if (r < 0)
                        (void) sd_varlink_error_errno(c->link, r);
        }
}

static void on_event(Machine *m, MachineEvent event, const char *update_id, uint64_t remaining_usec,
                     const char *reason, void *userdata)
{
        luv_server_send_event(m, event, update_id, remaining_usec, reason);
}

/* Parked calls are looked at again; Resumed is answered. */
static int on_unpark(sd_event_source *source, void *userdata)
{
        Server *s = userdata;

        for (Connection *c = s->connections; c; c = c->next) {
                _cleanup_(sd_json_variant_unrefp) sd_json_variant *parameters = NULL;
                int r;

                if (c->caller == CALLER_RESUMED && c->machine && c->machine->state != MACHINE_RESUMING) {
                        c->caller = CALLER_NONE;
                        c->machine = NULL;
                        (void) sd_varlink_reply(c->link, NULL);
                        luv_connection_touch(c);
                        continue;
                }
                if (c->caller != CALLER_PARKED)
                        continue;
                c->caller = CALLER_NONE;
                luv_connection_touch(c);
                r = sd_varlink_get_current_parameters(c->link, &parameters);
                if (r >= 0)
                        r = luv_machine_again(c, parameters);
                if (r < 0)
                        (void) sd_varlink_error_errno(c->link, r);
        }
        return 0;
}

static void on_settled(Machine *m, void *userdata)
{
        Server *s = userdata;
        int r = 0;

        if (!s->unpark)
                r = sd_event_add_defer(s->config.event, &s->unpark, on_unpark, s);
        if (r >= 0)
                r = sd_event_source_set_enabled(s->unpark, SD_EVENT_ONESHOT);
        if (r < 0)
                luv_log_error(r, "VMMs that wait for an answer do not get one");
}

static void add_inhibitors(PreflightFacts *facts, void *userdata)
{
        Server *s = userdata;

        for (Connection *c = s->connections; c; c = c->next)
                if (c->caller == CALLER_INHIBIT && luv_preflight_add_inhibitor(facts, c->who, c->why) < 0)
                        luv_log_error(-ENOMEM, "An inhibitor is overlooked");
}

const UpdateCallbacks luv_server_update_callbacks = {
        .progress = on_progress,
        .ended = on_ended,
        .event = on_event,
        .settled = on_settled,
        .inhibitors = add_inhibitors,
};

void luv_host_disconnected(Connection *c)
{
        if (c->caller == CALLER_INHIBIT)
                luv_log_info("%s (pid %i) lets updates go on", c->who, (int) c->peer.pid);
        c->caller = CALLER_NONE;
}

int luv_server_bind_host(Server *s, sd_varlink_server *v)
{
        int r;

        r = sd_varlink_server_add_interface(v, &vl_interface_org_luvfio_Host);
        if (r < 0)
                return r;
        return sd_varlink_server_bind_method_many(
                        v, "org.luvfio.Host.Describe", method_describe, "org.luvfio.Host.Check",
                        method_check, "org.luvfio.Host.Stage", method_stage, "org.luvfio.Host.Update",
                        method_update, "org.luvfio.Host.Abort", method_abort, "org.luvfio.Host.Monitor",
                        method_monitor, "org.luvfio.Host.ListMachines", method_list_machines,
                        "org.luvfio.Host.ListDevices", method_list_devices, "org.luvfio.Host.History",
                        method_history, "org.luvfio.Host.Analyze", method_analyze, "org.luvfio.Host.Discard",
                        method_discard, "org.luvfio.Host.Inhibit", method_inhibit);
}
