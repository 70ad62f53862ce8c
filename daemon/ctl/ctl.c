/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>

#include "ctl/ctl.h"
#include "ctl/ctl-show.h"
#include "config.h"
#include "ctl/svg.h"
#include "util/io.h"
#include "util/string-util.h"

/* For an id that was cut: how far back it is looked for. */
#define HISTORY_SEARCHED 10000
#define ID_PREFIX_MIN 4u

static ExitCode print_or_fail(Ctl *c, int r)
{
        return r < 0 ? ctl_fail_oom(c) : CTL_DONE;
}

/* Calls METHOD; with --json prints the reply and gives true in *ret_printed. */
static ExitCode call_and_print(Ctl *c, const char *method, sd_json_variant *parameters,
                               sd_json_variant **ret, bool *ret_printed)
{
        ExitCode code;

        code = ctl_call(c, &(Call) { .method = method, .parameters = parameters }, ret);
        *ret_printed = c->options.json != JSON_MODE_OFF;
        if (code == CTL_DONE && *ret_printed)
                code = ctl_print_json(c, *ret);
        return code;
}

static ExitCode show_machines(Ctl *c, sd_json_variant *v, bool only_if_any)
{
        Machine *machines = NULL;
        const char *bad;
        size_t n = 0;
        int r = 0;

        if (ctl_parse_machines(v, &machines, &n, &bad) < 0)
                return ctl_fail_reply(c, bad);
        if (n > 0 || !only_if_any) {
                if (only_if_any)
                        fputc('\n', c->out.f);
                r = ctl_show_machines(&c->out, machines, n);
        }
        ctl_machines_free(machines, n);
        return print_or_fail(c, r);
}

static ExitCode run_status(Ctl *c)
{
        _cleanup_(sd_json_variant_unrefp) sd_json_variant *v = NULL, *machines = NULL;
        _cleanup_(ctl_description_done) Description d = {};
        const char *bad;
        ExitCode code;
        bool printed;

        code = call_and_print(c, "Describe", NULL, &v, &printed);
        if (code != CTL_DONE || printed)
                return code;
        if (ctl_parse_description(v, &d, &bad) < 0)
                return ctl_fail_reply(c, bad);
        if (ctl_show_description(&c->out, &d) < 0)
                return ctl_fail_oom(c);
        code = ctl_call(c, &(Call) { .method = "ListMachines" }, &machines);
        return code == CTL_DONE ? show_machines(c, machines, true) : code;
}

static ExitCode run_machines(Ctl *c)
{
        _cleanup_(sd_json_variant_unrefp) sd_json_variant *v = NULL;
        ExitCode code;
        bool printed;

        code = call_and_print(c, "ListMachines", NULL, &v, &printed);
        return code != CTL_DONE || printed ? code : show_machines(c, v, false);
}

static ExitCode run_devices(Ctl *c)
{
        _cleanup_(sd_json_variant_unrefp) sd_json_variant *v = NULL;
        Device *devices = NULL;
        const char *bad;
        ExitCode code;
        bool printed;
        size_t n = 0;

        code = call_and_print(c, "ListDevices", NULL, &v, &printed);
        if (code != CTL_DONE || printed)
                return code;
        if (ctl_parse_devices(v, &devices, &n, &bad) < 0)
                return ctl_fail_reply(c, bad);
        code = print_or_fail(c, ctl_show_devices(&c->out, devices, n));
        ctl_devices_free(devices, n);
        return code;
}

static ExitCode run_abort(Ctl *c)
{
        _cleanup_(sd_json_variant_unrefp) sd_json_variant *v = NULL;
        ExitCode code;
        bool printed;

        code = call_and_print(c, "Abort", NULL, &v, &printed);
        if (code == CTL_DONE && !printed)
                fputs("The update is given up; all machines run.\n", c->out.f);
        return code;
}

static ExitCode run_discard(Ctl *c)
{
        _cleanup_(sd_json_variant_unrefp) sd_json_variant *v = NULL, *parameters = NULL;
        ExitCode code;
        bool printed;

        if (sd_json_buildo(&parameters, SD_JSON_BUILD_PAIR_STRING("machine", c->options.argument)) < 0)
                return ctl_fail_oom(c);
        code = call_and_print(c, "Discard", parameters, &v, &printed);
        if (code == CTL_DONE && !printed)
                fprintf(c->out.f, "Machine %s is given up.\n", c->options.argument);
        return code;
}

static ExitCode run_history(Ctl *c)
{
        _cleanup_(sd_json_variant_unrefp) sd_json_variant *v = NULL, *parameters = NULL;
        Report *reports = NULL;
        const char *bad;
        ExitCode code;
        bool printed;
        size_t n = 0;
        int r;

        if (c->options.lines > 0 &&
            sd_json_buildo(&parameters, SD_JSON_BUILD_PAIR_UNSIGNED("limit", c->options.lines)) < 0)
                return ctl_fail_oom(c);
        code = call_and_print(c, "History", parameters, &v, &printed);
        if (code != CTL_DONE || printed)
                return code;
        if (ctl_parse_reports(v, &reports, &n, &bad) < 0)
                return ctl_fail_reply(c, bad);
        r = ctl_show_history(&c->out, reports, n);
        ctl_reports_free(reports, n);
        return print_or_fail(c, r);
}

/* The whole id of the one update whose id begins with PREFIX. */
static ExitCode find_update(Ctl *c, const char *prefix, char **ret)
{
        _cleanup_(sd_json_variant_unrefp) sd_json_variant *v = NULL, *parameters = NULL;
        const char *bad, *found = NULL;
        Report *reports = NULL;
        size_t n = 0, matches = 0;
        ExitCode code;

        if (strlen(prefix) < ID_PREFIX_MIN)
                return ctl_fail(c, CTL_USAGE,
                                "'%s' is too short for an update's id: give at least %u characters.", prefix,
                                ID_PREFIX_MIN);
        if (sd_json_buildo(&parameters, SD_JSON_BUILD_PAIR_INTEGER("limit", HISTORY_SEARCHED)) < 0)
                return ctl_fail_oom(c);
        code = ctl_call(c, &(Call) { .method = "History", .parameters = parameters }, &v);
        if (code != CTL_DONE)
                return code;
        if (ctl_parse_reports(v, &reports, &n, &bad) < 0)
                return ctl_fail_reply(c, bad);
        for (size_t i = 0; i < n; i++)
                if (startswith(reports[i].update_id, prefix)) {
                        found = reports[i].update_id;
                        matches++;
                }
        ctl_reports_free(reports, n);
        if (matches == 0)
                return ctl_fail(c, CTL_FAILED, "There is no such update: '%s'.", prefix);
        if (matches > 1)
                return ctl_fail(c, CTL_FAILED, "'%s' is the begin of %zu updates' ids.", prefix, matches);
        *ret = strdup(found);
        return *ret ? CTL_DONE : ctl_fail_oom(c);
}

static ExitCode write_svg(Ctl *c, const Report *report)
{
        _cleanup_free_ char *data = NULL;
        size_t size = 0;
        bool failed;
        FILE *f;
        int r;

        f = open_memstream(&data, &size);
        if (!f)
                return ctl_fail_oom(c);
        ctl_svg_write(f, report);
        failed = ferror(f);
        if (fclose(f) != 0 || failed)
                return ctl_fail_oom(c);
        if (streq(c->options.svg, "-")) {
                if (fwrite(data, 1, size, c->out.f) != size)
                        return ctl_fail(c, CTL_FAILED, "Cannot write to stdout: %s.", strerror(errno));
                return CTL_DONE;
        }
        r = luv_write_file_atomic(AT_FDCWD, c->options.svg, data, size, 0644);
        if (r < 0)
                return ctl_fail(c, CTL_FAILED, "Cannot write %s: %s.", c->options.svg, strerror(-r));
        return CTL_DONE;
}

static ExitCode run_analyze(Ctl *c)
{
        _cleanup_(sd_json_variant_unrefp) sd_json_variant *v = NULL, *parameters = NULL;
        _cleanup_(ctl_report_done) Report report = {};
        _cleanup_free_ char *id = NULL;
        const char *wanted = c->options.argument, *bad = "report";
        sd_json_variant *member;
        ExitCode code;
        bool printed;

        if (wanted && !luv_id_valid(wanted)) {
                code = find_update(c, wanted, &id);
                if (code != CTL_DONE)
                        return code;
                wanted = id;
        }
        if (wanted && sd_json_buildo(&parameters, SD_JSON_BUILD_PAIR_STRING("updateId", wanted)) < 0)
                return ctl_fail_oom(c);
        code = call_and_print(c, "Analyze", parameters, &v, &printed);
        if (code != CTL_DONE || (printed && !c->options.svg))
                return code;
        member = sd_json_variant_by_key(v, "report");
        if (!member || ctl_parse_report(member, &report, &bad) < 0)
                return ctl_fail_reply(c, bad);
        if (!printed && !(c->options.svg && streq(c->options.svg, "-"))) {
                if (ctl_show_analysis(&c->out, &report) < 0)
                        return ctl_fail_oom(c);
        }
        return c->options.svg ? write_svg(c, &report) : CTL_DONE;
}

static ExitCode run_help(Ctl *c)
{
        ctl_help(c->out.f);
        return CTL_DONE;
}

static ExitCode run_version(Ctl *c)
{
        fprintf(c->out.f, "luvfioctl %s\n", LUVFIO_VERSION);
        return CTL_DONE;
}

ExitCode ctl_run(Ctl *c)
{
        static ExitCode (*const verbs[_VERB_MAX])(Ctl *) = {
                [VERB_STATUS] = run_status,   [VERB_CHECK] = ctl_update,    [VERB_STAGE] = ctl_update,
                [VERB_UPDATE] = ctl_update,   [VERB_ABORT] = run_abort,     [VERB_MACHINES] = run_machines,
                [VERB_DEVICES] = run_devices, [VERB_MONITOR] = ctl_monitor, [VERB_INHIBIT] = ctl_inhibit,
                [VERB_HISTORY] = run_history, [VERB_ANALYZE] = run_analyze, [VERB_DISCARD] = run_discard,
                [VERB_HELP] = run_help,       [VERB_VERSION] = run_version,
        };
        ExitCode code;

        code = verbs[c->options.verb](c);
        if ((fflush(c->out.f) != 0 || ferror(c->out.f)) && code == CTL_DONE)
                return ctl_fail(c, CTL_FAILED, "Cannot write to stdout: %s.", strerror(errno));
        return code;
}
