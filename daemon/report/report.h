/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "report/timeline.h"
#include "util/macro.h"

/* An update that has ended: what is told to the callers and kept in the history. */

typedef enum ReportResult {
        REPORT_DONE,
        REPORT_STRANDED,
        REPORT_ABORTED,
        _REPORT_RESULT_MAX,
        _REPORT_RESULT_INVALID = -EINVAL,
} ReportResult;

const char *luv_report_result_to_string(ReportResult r);
ReportResult luv_report_result_from_string(const char *s);

typedef struct ReportMachine {
        char *machine;
        uint64_t blackout_usec; /* UINT64_MAX: not known */
        char *stranded_reason;
} ReportMachine;

/* Microseconds from the begin of the update, on the old kernel's clock. */
typedef struct ReportPhase {
        char *name;
        char *machine;
        uint64_t start_usec, duration_usec;
} ReportPhase;

typedef struct Report {
        char *update_id;
        ReportResult result;
        char *reason;
        uint64_t started_realtime_usec;
        char *from_kernel, *to_kernel;
        TimelineClock clock;
        ReportMachine *machines;
        size_t n_machines;
        ReportPhase *phases;
        size_t n_phases;
} Report;

Report *luv_report_free(Report *r);
DEFINE_CLEANUP(Report *, luv_report_free);

int luv_report_new(const char *update_id, ReportResult result, const char *reason, const char *from_kernel,
                   const char *to_kernel, Report **ret);
int luv_report_add_machine(Report *r, const char *machine, uint64_t blackout_usec,
                           const char *stranded_reason);
int luv_report_add_phase(Report *r, const char *name, const char *machine, uint64_t start_usec,
                         uint64_t duration_usec);
/* All phases of T that have ended, on one clock; call luv_report_sort() when the last one is in. */
int luv_report_set_timeline(Report *r, const Timeline *t);
void luv_report_sort(Report *r);
