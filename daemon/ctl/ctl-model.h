/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <systemd/sd-json.h>

#include "util/macro.h"

/*
 * luvfiod's replies as typed structs. Whoever is at the other end of the socket is not trusted: types are
 * checked, fields of later versions ignored. Strings belong to the JSON they came from, which must outlive
 * them. Parsers return -EBADMSG and the field in *ret_bad (a constant, or the JSON's).
 */

#define CTL_UNSET UINT64_MAX

typedef struct Finding {
        const char *id, *severity, *machine, *device, *message, *remedy;
} Finding;

typedef struct Machine {
        const char *name, *state, *reason, *vmm, *unit, *session;
        uint64_t uid, pid, generation, n_fds, memory_bytes; /* uid and pid may be CTL_UNSET */
        bool attached;
        char **devices;
} Machine;

typedef struct Device {
        const char *address, *machine, *id, *driver, *plugin, *promise, *kernel_state, *blocked_by, *reason;
        char **preserved, **not_preserved;
} Device;

typedef struct Phase {
        const char *name, *machine; /* machine NULL: the host's */
        uint64_t start_usec, duration_usec;
} Phase;

typedef struct MachineReport {
        const char *machine, *stranded_reason;
        uint64_t blackout_usec; /* CTL_UNSET: it never stood still, or has not come back */
} MachineReport;

typedef struct Report {
        const char *update_id, *result, *reason, *from_kernel, *to_kernel, *clock;
        uint64_t started_realtime_usec;
        MachineReport *machines;
        size_t n_machines;
        Phase *phases;
        size_t n_phases;
} Report;

typedef struct Promise {
        const char *kind, *outcome;
} Promise;

typedef struct Description {
        const char *version, *backend, *kernel, *state, *update_id;
        Promise *promises;
        size_t n_promises;
        uint64_t machines, stranded;
        Report last_update;
        bool has_last_update;
} Description;

typedef struct Progress {
        const char *update_id, *state, *message, *machine, *machine_state;
        uint64_t done, total; /* CTL_UNSET: cannot be counted */
        Report report;
        bool has_report;
} Progress;

int ctl_parse_description(sd_json_variant *v, Description *ret, const char **ret_bad);
void ctl_description_done(Description *d);

int ctl_parse_progress(sd_json_variant *v, Progress *ret, const char **ret_bad);
void ctl_progress_done(Progress *p);

int ctl_parse_report(sd_json_variant *v, Report *ret, const char **ret_bad);
void ctl_report_done(Report *r);
/* The longest of all machines'; CTL_UNSET if there is none. */
uint64_t ctl_report_worst_blackout(const Report *r);
/* When a machine's phases begin and end; false if it has none. */
bool ctl_report_machine_span(const Report *r, const char *machine, uint64_t *ret_start, uint64_t *ret_end);
/* Never runs over. */
uint64_t ctl_phase_end(const Phase *p);

/* Members KEY of the reply: arrays of structs. */
int ctl_parse_findings(sd_json_variant *v, Finding **ret, size_t *ret_n, const char **ret_bad);
int ctl_parse_machines(sd_json_variant *v, Machine **ret, size_t *ret_n, const char **ret_bad);
void ctl_machines_free(Machine *machines, size_t n);
int ctl_parse_devices(sd_json_variant *v, Device **ret, size_t *ret_n, const char **ret_bad);
void ctl_devices_free(Device *devices, size_t n);
int ctl_parse_reports(sd_json_variant *v, Report **ret, size_t *ret_n, const char **ret_bad);
void ctl_reports_free(Report *reports, size_t n);

/* A string member; NULL if it is absent, null or no string. */
const char *ctl_get_string(sd_json_variant *v, const char *key);
