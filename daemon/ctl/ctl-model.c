/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "ctl/ctl-model.h"
#include "util/string-util.h"

#define M SD_JSON_MANDATORY
#define N SD_JSON_NULLABLE
#define STRING(type, name, field, flags)                                                                    \
        { name, SD_JSON_VARIANT_STRING, sd_json_dispatch_const_string, offsetof(type, field), flags }
#define NUMBER(type, name, field, flags)                                                                    \
        { name, _SD_JSON_VARIANT_TYPE_INVALID, dispatch_number, offsetof(type, field), flags }
#define BOOLEAN(type, name, field, flags)                                                                   \
        { name, SD_JSON_VARIANT_BOOLEAN, sd_json_dispatch_stdbool, offsetof(type, field), flags }

/* A number that is not negative. sd-json's own would take strings too, and no null. */
static int dispatch_number(const char *name, sd_json_variant *v, sd_json_dispatch_flags_t flags,
                           void *userdata)
{
        uint64_t *n = userdata;

        if ((flags & SD_JSON_NULLABLE) && sd_json_variant_is_null(v)) {
                *n = CTL_UNSET;
                return 0;
        }
        if (!sd_json_variant_is_unsigned(v))
                return -EINVAL;
        *n = sd_json_variant_unsigned(v);
        return 0;
}

/* An array of strings. */
static int dispatch_strings(const char *name, sd_json_variant *v, sd_json_dispatch_flags_t flags,
                            void *userdata)
{
        _cleanup_strv_ char **strings = NULL;
        char ***to = userdata;

        if ((flags & SD_JSON_NULLABLE) && sd_json_variant_is_null(v))
                return 0;
        if (!sd_json_variant_is_array(v))
                return -EINVAL;
        for (size_t i = 0; i < sd_json_variant_elements(v); i++) {
                sd_json_variant *e = sd_json_variant_by_index(v, i);
                int r;

                if (!sd_json_variant_is_string(e))
                        return -EINVAL;
                r = luv_strv_extend(&strings, sd_json_variant_string(e));
                if (r < 0)
                        return r;
        }
        luv_strv_free(*to);
        *to = TAKE_PTR(strings);
        return 0;
}

static int parse(sd_json_variant *v, const sd_json_dispatch_field table[], void *to, const char **ret_bad)
{
        const char *bad = NULL;
        int r;

        r = sd_json_dispatch_full(v, table, NULL, SD_JSON_ALLOW_EXTENSIONS, to, &bad);
        if (r >= 0)
                return 0;
        if (r == -ENOMEM)
                return r;
        *ret_bad = bad ? bad : "the object";
        return -EBADMSG;
}

typedef int (*parse_t)(sd_json_variant *v, void *to, const char **ret_bad);

/* Member KEY, an array, parsed into new structs of SIZE. On failure those which were parsed are there, too.
 */
static int parse_array(sd_json_variant *v, const char *key, size_t size, parse_t parse_one, void **ret,
                       size_t *ret_n, const char **ret_bad)
{
        sd_json_variant *array = sd_json_variant_by_key(v, key);
        size_t n;
        char *items;

        if (!array || !sd_json_variant_is_array(array)) {
                *ret_bad = key;
                return -EBADMSG;
        }
        n = sd_json_variant_elements(array);
        items = calloc(n + 1, size);
        if (!items)
                return -ENOMEM;
        *ret = items;
        for (*ret_n = 0; *ret_n < n; (*ret_n)++) {
                int r = parse_one(sd_json_variant_by_index(array, *ret_n), items + *ret_n * size, ret_bad);

                if (r < 0)
                        return r;
        }
        return 0;
}

static int parse_finding(sd_json_variant *v, void *to, const char **ret_bad)
{
        static const sd_json_dispatch_field table[] = {
                STRING(Finding, "id", id, M),
                STRING(Finding, "severity", severity, M),
                STRING(Finding, "machine", machine, N),
                STRING(Finding, "device", device, N),
                STRING(Finding, "message", message, M),
                STRING(Finding, "remedy", remedy, N),
                {},
        };

        return parse(v, table, to, ret_bad);
}

static int parse_machine(sd_json_variant *v, void *to, const char **ret_bad)
{
        static const sd_json_dispatch_field table[] = {
                STRING(Machine, "name", name, M),
                STRING(Machine, "state", state, M),
                STRING(Machine, "reason", reason, N),
                STRING(Machine, "vmm", vmm, N),
                STRING(Machine, "unit", unit, N),
                STRING(Machine, "session", session, N),
                NUMBER(Machine, "uid", uid, N),
                NUMBER(Machine, "pid", pid, N),
                BOOLEAN(Machine, "attached", attached, M),
                NUMBER(Machine, "generation", generation, M),
                NUMBER(Machine, "fileDescriptors", n_fds, M),
                NUMBER(Machine, "memoryBytes", memory_bytes, M),
                { "devices", SD_JSON_VARIANT_ARRAY, dispatch_strings, offsetof(Machine, devices), M },
                {},
        };
        Machine *m = to;
        int r;

        *m = (Machine) { .uid = CTL_UNSET, .pid = CTL_UNSET };
        r = parse(v, table, m, ret_bad);
        if (r < 0)
                m->devices = luv_strv_free(m->devices);
        return r;
}

static void device_done(Device *d)
{
        d->preserved = luv_strv_free(d->preserved);
        d->not_preserved = luv_strv_free(d->not_preserved);
}

static int parse_device(sd_json_variant *v, void *to, const char **ret_bad)
{
        static const sd_json_dispatch_field table[] = {
                STRING(Device, "address", address, M),
                STRING(Device, "machine", machine, N),
                STRING(Device, "id", id, N),
                STRING(Device, "driver", driver, N),
                STRING(Device, "plugin", plugin, N),
                STRING(Device, "promise", promise, N),
                STRING(Device, "kernelState", kernel_state, N),
                STRING(Device, "blockedBy", blocked_by, N),
                { "preserved", _SD_JSON_VARIANT_TYPE_INVALID, dispatch_strings, offsetof(Device, preserved),
                  N },
                { "notPreserved", _SD_JSON_VARIANT_TYPE_INVALID, dispatch_strings,
                  offsetof(Device, not_preserved), N },
                STRING(Device, "reason", reason, N),
                {},
        };
        int r;

        r = parse(v, table, to, ret_bad);
        if (r < 0)
                device_done(to);
        return r;
}

static int parse_phase(sd_json_variant *v, void *to, const char **ret_bad)
{
        static const sd_json_dispatch_field table[] = {
                STRING(Phase, "name", name, M),
                STRING(Phase, "machine", machine, N),
                NUMBER(Phase, "startUSec", start_usec, M),
                NUMBER(Phase, "durationUSec", duration_usec, M),
                {},
        };

        return parse(v, table, to, ret_bad);
}

static int parse_machine_report(sd_json_variant *v, void *to, const char **ret_bad)
{
        static const sd_json_dispatch_field table[] = {
                STRING(MachineReport, "machine", machine, M),
                NUMBER(MachineReport, "blackoutUSec", blackout_usec, N),
                STRING(MachineReport, "strandedReason", stranded_reason, N),
                {},
        };

        *(MachineReport *) to = (MachineReport) { .blackout_usec = CTL_UNSET };
        return parse(v, table, to, ret_bad);
}

static int parse_promise(sd_json_variant *v, void *to, const char **ret_bad)
{
        static const sd_json_dispatch_field table[] = {
                STRING(Promise, "kind", kind, M),
                STRING(Promise, "outcome", outcome, M),
                {},
        };

        return parse(v, table, to, ret_bad);
}

int ctl_parse_report(sd_json_variant *v, Report *ret, const char **ret_bad)
{
        static const sd_json_dispatch_field table[] = {
                STRING(Report, "updateId", update_id, M),
                STRING(Report, "result", result, M),
                STRING(Report, "reason", reason, N),
                NUMBER(Report, "startedRealtimeUSec", started_realtime_usec, M),
                STRING(Report, "fromKernel", from_kernel, M),
                STRING(Report, "toKernel", to_kernel, N),
                STRING(Report, "clock", clock, M),
                {},
        };
        _cleanup_(ctl_report_done) Report report = {};
        int r;

        r = parse(v, table, &report, ret_bad);
        if (r >= 0)
                r = parse_array(v, "machines", sizeof(MachineReport), parse_machine_report,
                                (void **) &report.machines, &report.n_machines, ret_bad);
        if (r >= 0)
                r = parse_array(v, "phases", sizeof(Phase), parse_phase, (void **) &report.phases,
                                &report.n_phases, ret_bad);
        if (r < 0)
                return r;
        *ret = report;
        report = (Report) {};
        return 0;
}

static int parse_report(sd_json_variant *v, void *to, const char **ret_bad)
{
        return ctl_parse_report(v, to, ret_bad);
}

void ctl_report_done(Report *r)
{
        free(r->machines);
        free(r->phases);
        *r = (Report) {};
}

uint64_t ctl_report_worst_blackout(const Report *r)
{
        uint64_t worst = CTL_UNSET;

        for (size_t i = 0; i < r->n_machines; i++)
                if (r->machines[i].blackout_usec != CTL_UNSET &&
                    (worst == CTL_UNSET || r->machines[i].blackout_usec > worst))
                        worst = r->machines[i].blackout_usec;
        return worst;
}

uint64_t ctl_phase_end(const Phase *p)
{
        uint64_t end;

        return __builtin_add_overflow(p->start_usec, p->duration_usec, &end) ? UINT64_MAX : end;
}

bool ctl_report_machine_span(const Report *r, const char *machine, uint64_t *ret_start, uint64_t *ret_end)
{
        uint64_t start = UINT64_MAX, end = 0;
        bool found = false;

        for (size_t i = 0; i < r->n_phases; i++) {
                if (!streq_ptr(r->phases[i].machine, machine))
                        continue;
                found = true;
                start = MIN(start, r->phases[i].start_usec);
                end = MAX(end, ctl_phase_end(&r->phases[i]));
        }
        if (found) {
                *ret_start = start;
                *ret_end = end;
        }
        return found;
}

/* An optional member that is a report. */
static int parse_optional_report(sd_json_variant *v, const char *key, Report *ret, bool *ret_has,
                                 const char **ret_bad)
{
        sd_json_variant *report = sd_json_variant_by_key(v, key);

        if (!report || sd_json_variant_is_null(report))
                return 0;
        *ret_has = true;
        return ctl_parse_report(report, ret, ret_bad);
}

int ctl_parse_description(sd_json_variant *v, Description *ret, const char **ret_bad)
{
        static const sd_json_dispatch_field table[] = {
                STRING(Description, "version", version, M),    STRING(Description, "backend", backend, M),
                STRING(Description, "kernel", kernel, M),      STRING(Description, "state", state, M),
                STRING(Description, "updateId", update_id, N), NUMBER(Description, "machines", machines, M),
                NUMBER(Description, "stranded", stranded, M),  {},
        };
        _cleanup_(ctl_description_done) Description d = {};
        int r;

        r = parse(v, table, &d, ret_bad);
        if (r >= 0)
                r = parse_array(v, "promises", sizeof(Promise), parse_promise, (void **) &d.promises,
                                &d.n_promises, ret_bad);
        if (r >= 0)
                r = parse_optional_report(v, "lastUpdate", &d.last_update, &d.has_last_update, ret_bad);
        if (r < 0)
                return r;
        *ret = d;
        d = (Description) {};
        return 0;
}

void ctl_description_done(Description *d)
{
        free(d->promises);
        ctl_report_done(&d->last_update);
        *d = (Description) {};
}

int ctl_parse_progress(sd_json_variant *v, Progress *ret, const char **ret_bad)
{
        static const sd_json_dispatch_field table[] = {
                STRING(Progress, "updateId", update_id, N),
                STRING(Progress, "state", state, M),
                STRING(Progress, "message", message, N),
                STRING(Progress, "machine", machine, N),
                STRING(Progress, "machineState", machine_state, N),
                NUMBER(Progress, "done", done, N),
                NUMBER(Progress, "total", total, N),
                {},
        };
        Progress p = { .done = CTL_UNSET, .total = CTL_UNSET };
        int r;

        r = parse(v, table, &p, ret_bad);
        if (r >= 0)
                r = parse_optional_report(v, "report", &p.report, &p.has_report, ret_bad);
        if (r < 0)
                return r;
        *ret = p;
        return 0;
}

void ctl_progress_done(Progress *p)
{
        ctl_report_done(&p->report);
        *p = (Progress) {};
}

int ctl_parse_findings(sd_json_variant *v, Finding **ret, size_t *ret_n, const char **ret_bad)
{
        _cleanup_free_ void *items = NULL;
        size_t n = 0;
        int r;

        r = parse_array(v, "findings", sizeof(Finding), parse_finding, &items, &n, ret_bad);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(items);
        *ret_n = n;
        return 0;
}

int ctl_parse_machines(sd_json_variant *v, Machine **ret, size_t *ret_n, const char **ret_bad)
{
        void *items = NULL;
        size_t n = 0;
        int r;

        r = parse_array(v, "machines", sizeof(Machine), parse_machine, &items, &n, ret_bad);
        if (r < 0) {
                ctl_machines_free(items, n);
                return r;
        }
        *ret = items;
        *ret_n = n;
        return 0;
}

void ctl_machines_free(Machine *machines, size_t n)
{
        for (size_t i = 0; i < n; i++)
                luv_strv_free(machines[i].devices);
        free(machines);
}

int ctl_parse_devices(sd_json_variant *v, Device **ret, size_t *ret_n, const char **ret_bad)
{
        void *items = NULL;
        size_t n = 0;
        int r;

        r = parse_array(v, "devices", sizeof(Device), parse_device, &items, &n, ret_bad);
        if (r < 0) {
                ctl_devices_free(items, n);
                return r;
        }
        *ret = items;
        *ret_n = n;
        return 0;
}

void ctl_devices_free(Device *devices, size_t n)
{
        for (size_t i = 0; i < n; i++)
                device_done(&devices[i]);
        free(devices);
}

int ctl_parse_reports(sd_json_variant *v, Report **ret, size_t *ret_n, const char **ret_bad)
{
        void *items = NULL;
        size_t n = 0;
        int r;

        r = parse_array(v, "updates", sizeof(Report), parse_report, &items, &n, ret_bad);
        if (r < 0) {
                ctl_reports_free(items, n);
                return r;
        }
        *ret = items;
        *ret_n = n;
        return 0;
}

void ctl_reports_free(Report *reports, size_t n)
{
        for (size_t i = 0; i < n; i++)
                ctl_report_done(&reports[i]);
        free(reports);
}

const char *ctl_get_string(sd_json_variant *v, const char *key)
{
        sd_json_variant *s = sd_json_variant_by_key(v, key);

        return s && sd_json_variant_is_string(s) ? sd_json_variant_string(s) : NULL;
}
