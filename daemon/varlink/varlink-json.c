/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "util/string-util.h"
#include "varlink/server-private.h"

char *luv_printable(const char *s)
{
        char *out = malloc(strlen(s) * 4 + 1), *p = out;

        if (!out)
                return NULL;
        /* What is too long to be looked at need not be. */
        for (size_t n = 0; *s && n < 256; s++, n++) {
                unsigned char c = (unsigned char) *s;

                if (c < 0x20 || c >= 0x7f || c == '\\')
                        p += sprintf(p, "\\x%02x", c);
                else
                        *p++ = (char) c;
        }
        *p = 0;
        return out;
}

#define PAIR_STRING(name, s) SD_JSON_BUILD_PAIR_CONDITION((s) != NULL, name, SD_JSON_BUILD_STRING(s))

int luv_findings_to_json(const Findings *f, sd_json_variant **ret)
{
        _cleanup_(sd_json_variant_unrefp) sd_json_variant *array = NULL;
        int r;

        r = sd_json_variant_new_array(&array, NULL, 0);
        for (size_t i = 0; i < f->n && r >= 0; i++) {
                const Finding *x = f->items + i;

                r = sd_json_variant_append_arraybo(
                                &array, SD_JSON_BUILD_PAIR_STRING("id", x->id),
                                SD_JSON_BUILD_PAIR_STRING("severity", luv_severity_to_string(x->severity)),
                                PAIR_STRING("machine", x->machine), PAIR_STRING("device", x->device),
                                SD_JSON_BUILD_PAIR_STRING("message", x->message),
                                PAIR_STRING("remedy", x->remedy));
        }
        if (r >= 0 && f->incomplete)
                r = sd_json_variant_append_arraybo(
                                &array, SD_JSON_BUILD_PAIR_STRING("id", "out-of-memory"),
                                SD_JSON_BUILD_PAIR_STRING("severity", "blocker"),
                                SD_JSON_BUILD_PAIR_STRING(
                                                "message",
                                                "Memory ran out while luvfiod looked for blockers"));
        if (r < 0)
                return r;
        *ret = TAKE_PTR(array);
        return 0;
}

int luv_report_to_json(const Report *report, bool with_phases, sd_json_variant **ret)
{
        _cleanup_(sd_json_variant_unrefp) sd_json_variant *machines = NULL, *phases = NULL;
        int r;

        r = sd_json_variant_new_array(&machines, NULL, 0);
        for (size_t i = 0; i < report->n_machines && r >= 0; i++) {
                const ReportMachine *m = report->machines + i;

                r = sd_json_variant_append_arraybo(
                                &machines, SD_JSON_BUILD_PAIR_STRING("machine", m->machine),
                                SD_JSON_BUILD_PAIR_CONDITION(m->blackout_usec != UINT64_MAX, "blackoutUSec",
                                                             SD_JSON_BUILD_UNSIGNED(m->blackout_usec)),
                                PAIR_STRING("strandedReason", m->stranded_reason));
        }
        if (r >= 0)
                r = sd_json_variant_new_array(&phases, NULL, 0);
        for (size_t i = 0; i < report->n_phases && with_phases && r >= 0; i++) {
                const ReportPhase *p = report->phases + i;

                r = sd_json_variant_append_arraybo(&phases, SD_JSON_BUILD_PAIR_STRING("name", p->name),
                                                   PAIR_STRING("machine", p->machine),
                                                   SD_JSON_BUILD_PAIR_UNSIGNED("startUSec", p->start_usec),
                                                   SD_JSON_BUILD_PAIR_UNSIGNED("durationUSec",
                                                                               p->duration_usec));
        }
        if (r < 0)
                return r;
        return sd_json_buildo(
                        ret, SD_JSON_BUILD_PAIR_STRING("updateId", report->update_id),
                        SD_JSON_BUILD_PAIR_STRING("result", luv_report_result_to_string(report->result)),
                        PAIR_STRING("reason", report->reason),
                        SD_JSON_BUILD_PAIR_UNSIGNED("startedRealtimeUSec", report->started_realtime_usec),
                        SD_JSON_BUILD_PAIR_STRING("fromKernel", report->from_kernel),
                        PAIR_STRING("toKernel", report->to_kernel),
                        SD_JSON_BUILD_PAIR_STRING("clock", luv_timeline_clock_to_string(report->clock)),
                        SD_JSON_BUILD_PAIR_VARIANT("machines", machines),
                        SD_JSON_BUILD_PAIR_VARIANT("phases", phases));
}
