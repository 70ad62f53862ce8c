/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "report/report.h"
#include "util/string-util.h"

static const char *const luv_report_result_table[_REPORT_RESULT_MAX] = {
        [REPORT_DONE] = "done",
        [REPORT_STRANDED] = "stranded",
        [REPORT_ABORTED] = "aborted",
};
DEFINE_STRING_TABLE(luv_report_result, ReportResult);

Report *luv_report_free(Report *r)
{
        if (!r)
                return NULL;
        free(r->update_id);
        free(r->reason);
        free(r->from_kernel);
        free(r->to_kernel);
        for (size_t i = 0; i < r->n_machines; i++) {
                free(r->machines[i].machine);
                free(r->machines[i].stranded_reason);
        }
        free(r->machines);
        for (size_t i = 0; i < r->n_phases; i++) {
                free(r->phases[i].name);
                free(r->phases[i].machine);
        }
        free(r->phases);
        free(r);
        return NULL;
}

int luv_report_new(const char *update_id, ReportResult result, const char *reason, const char *from_kernel,
                   const char *to_kernel, Report **ret)
{
        _cleanup_(luv_report_freep) Report *r = NULL;

        r = calloc(1, sizeof(Report));
        if (!r)
                return -ENOMEM;
        r->result = result;
        r->clock = TIMELINE_CLOCK_NONE;
        if (luv_free_and_strdup(&r->update_id, update_id) < 0 ||
            luv_free_and_strdup(&r->reason, reason) < 0 ||
            luv_free_and_strdup(&r->from_kernel, from_kernel) < 0 ||
            luv_free_and_strdup(&r->to_kernel, to_kernel) < 0)
                return -ENOMEM;
        *ret = TAKE_PTR(r);
        return 0;
}

int luv_report_add_machine(Report *r, const char *machine, uint64_t blackout_usec,
                           const char *stranded_reason)
{
        _cleanup_free_ char *name = NULL, *reason = NULL;
        ReportMachine *m;

        if (luv_free_and_strdup(&name, machine) < 0 || luv_free_and_strdup(&reason, stranded_reason) < 0)
                return -ENOMEM;
        m = reallocarray(r->machines, r->n_machines + 1, sizeof(ReportMachine));
        if (!m)
                return -ENOMEM;
        r->machines = m;
        m[r->n_machines++] = (ReportMachine) {
                .machine = TAKE_PTR(name),
                .blackout_usec = blackout_usec,
                .stranded_reason = TAKE_PTR(reason),
        };
        return 0;
}

int luv_report_add_phase(Report *r, const char *name, const char *machine, uint64_t start_usec,
                         uint64_t duration_usec)
{
        _cleanup_free_ char *n = NULL, *m = NULL;
        ReportPhase *p;

        if (luv_free_and_strdup(&n, name) < 0 || luv_free_and_strdup(&m, machine) < 0)
                return -ENOMEM;
        p = reallocarray(r->phases, r->n_phases + 1, sizeof(ReportPhase));
        if (!p)
                return -ENOMEM;
        r->phases = p;
        p[r->n_phases++] = (ReportPhase) {
                .name = TAKE_PTR(n),
                .machine = TAKE_PTR(m),
                .start_usec = start_usec,
                .duration_usec = duration_usec,
        };
        return 0;
}

int luv_report_set_timeline(Report *r, const Timeline *t)
{
        r->started_realtime_usec = t->started_realtime_usec;
        r->clock = luv_timeline_clock(t);
        for (size_t i = 0; i < t->n_phases; i++) {
                const TimelinePhase *p = t->phases + i;
                uint64_t start, end;
                int q;

                if (p->end_usec == 0)
                        continue;
                start = p->incoming ? luv_timeline_to_outgoing(t, p->start_usec) : p->start_usec;
                end = p->incoming ? luv_timeline_to_outgoing(t, p->end_usec) : p->end_usec;
                start -= MIN(start, t->started_usec);
                end -= MIN(end, t->started_usec);
                q = luv_report_add_phase(r, p->name, p->machine, start, end - MIN(start, end));
                if (q < 0)
                        return q;
        }
        return 0;
}

static int compare_phases(const void *a, const void *b)
{
        const ReportPhase *x = a, *y = b;

        if (x->start_usec != y->start_usec)
                return x->start_usec < y->start_usec ? -1 : 1;
        /* The longer one holds the other. */
        if (x->duration_usec != y->duration_usec)
                return x->duration_usec > y->duration_usec ? -1 : 1;
        return 0;
}

void luv_report_sort(Report *r)
{
        if (r->n_phases > 1)
                qsort(r->phases, r->n_phases, sizeof(ReportPhase), compare_phases);
}
