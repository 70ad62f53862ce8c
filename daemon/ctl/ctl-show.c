/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <inttypes.h>
#include <stdarg.h>

#include "ctl/ctl-show.h"
#include "util/string-util.h"

#define ID_SHOWN 12
#define BAR_COLUMNS_MIN 20u
#define PHASES_SHOWN 8u

_printf_(4, 5) static int put(const Terminal *t, const char *label, Style style, const char *format, ...)
{
        _cleanup_free_ char *text = NULL, *clean = NULL;
        va_list ap;

        va_start(ap, format);
        text = luv_strfv(format, ap);
        va_end(ap);
        if (!text)
                return -ENOMEM;
        clean = ctl_clean(text);
        if (!clean)
                return -ENOMEM;
        fprintf(t->f, "%s%12s%s%s %s%s%s\n", ctl_style(t, STYLE_DIM), label, *label != '\0' ? ":" : " ",
                ctl_style_off(t, STYLE_DIM), ctl_style(t, style), clean, ctl_style_off(t, style));
        return 0;
}

static Style result_style(const char *result)
{
        return streq(result, "done") ? STYLE_GOOD : streq(result, "stranded") ? STYLE_BAD : STYLE_WARN;
}

static Style machine_style(const Machine *m)
{
        if (streq(m->state, "stranded"))
                return STYLE_BAD;
        return m->attached && streq(m->state, "running") ? STYLE_NONE : STYLE_WARN;
}

static const char *arrow(const Terminal *t)
{
        return t->unicode ? "\xe2\x86\x92" : "->";
}

const char *ctl_state_description(const char *state)
{
        static const struct {
                const char *state, *text;
        } states[] = {
                { "idle", "no update" },
                { "checking", "looking for blockers" },
                { "staging", "loading the kernel, preserving guest memory; machines run" },
                { "staged", "ready; machines run" },
                { "draining", "stopping other services of the host; machines run" },
                { "quiescing", "machines stop" },
                { "handing_over", "the kernel is about to be replaced" },
                { "restoring", "new kernel: taking sessions back" },
                { "rebinding", "new kernel: devices come back under their drivers" },
                { "resuming", "new kernel: machines take their memory back and run" },
                { "finishing", "new kernel: tidying up" },
        };

        for (size_t i = 0; i < ELEMENTSOF(states); i++)
                if (streq(states[i].state, state))
                        return states[i].text;
        return "";
}

char *ctl_progress_text(const Progress *p)
{
        const char *what = p->message ? p->message : strempty(p->machine_state);
        /* A sentence may name the machine itself. */
        bool named = p->machine && !strstr(what, p->machine);
        _cleanup_free_ char *text = NULL;
        char count[64] = "";

        if (p->total != CTL_UNSET && p->done != CTL_UNSET)
                snprintf(count, sizeof(count), "%s(%" PRIu64 " of %" PRIu64 ")",
                         named || *what != '\0' ? " " : "", p->done, p->total);
        text = luv_strf("%s%s%s%s", named ? p->machine : "", named && *what != '\0' ? ": " : "", what,
                        count);
        return text ? ctl_clean(text) : NULL;
}

static int show_summary(const Terminal *t, const char *label, const Report *r)
{
        char when[CTL_FORMAT_MAX], length[CTL_FORMAT_MAX];
        uint64_t worst = ctl_report_worst_blackout(r);
        _cleanup_free_ char *blackout = NULL, *kernels = NULL;

        blackout = worst == CTL_UNSET ? strdup("")
                                      : luv_strf(", blackout %s%s", r->n_machines > 1 ? "at most " : "",
                                                 ctl_format_usec(length, worst));
        kernels = r->to_kernel ? luv_strf("%s %s %s", r->from_kernel, arrow(t), r->to_kernel)
                               : strdup(r->from_kernel);
        if (!blackout || !kernels)
                return -ENOMEM;
        return put(t, label, result_style(r->result), "%s, %s, %s, %zu machine%s%s", r->result,
                   ctl_format_realtime(when, r->started_realtime_usec), kernels, r->n_machines,
                   r->n_machines == 1 ? "" : "s", blackout);
}

int ctl_show_description(const Terminal *t, const Description *d)
{
        _cleanup_free_ char *promises = strdup("");
        int r;

        for (size_t i = 0; promises && i < d->n_promises; i++) {
                char *more = luv_strf("%s%s%s %s", promises, i == 0 ? "" : ", ", d->promises[i].kind,
                                      d->promises[i].outcome);

                free(promises);
                promises = more;
        }
        if (!promises)
                return -ENOMEM;

        r = put(t, "luvfiod", STYLE_NONE, "%s%s", d->version,
                streq(d->backend, "simulated") ? ", simulated: no kernel is ever replaced" : "");
        if (r >= 0)
                r = put(t, "Kernel", STYLE_NONE, "%s", d->kernel);
        if (r >= 0)
                r = put(t, "State", streq(d->state, "idle") ? STYLE_GOOD : STYLE_WARN, "%s%s%s", d->state,
                        *ctl_state_description(d->state) != '\0' ? ", " : "",
                        ctl_state_description(d->state));
        if (r >= 0 && d->update_id)
                r = put(t, "Update", STYLE_NONE, "%s", d->update_id);
        if (r >= 0)
                r = put(t, "Over a jump", STYLE_NONE, "%s", promises);
        if (r >= 0)
                r = d->stranded > 0 ? put(t, "Machines", STYLE_BAD,
                                          "%" PRIu64 ", of which %" PRIu64 " stranded", d->machines,
                                          d->stranded)
                                    : put(t, "Machines", STYLE_NONE, "%" PRIu64, d->machines);
        if (r >= 0 && d->has_last_update) {
                r = show_summary(t, "Last update", &d->last_update);
                if (r >= 0 && d->last_update.reason)
                        r = put(t, "", STYLE_NONE, "%s", d->last_update.reason);
        }
        return r;
}

static int show_finding(const Terminal *t, const Finding *f, Style style)
{
        _cleanup_free_ char *id = ctl_clean(f->id), *severity = ctl_clean(f->severity),
                            *message = ctl_clean(f->message), *remedy = ctl_clean(f->remedy),
                            *machine = ctl_clean(f->machine), *device = ctl_clean(f->device);

        if (!id || !severity || !message || !remedy || !machine || !device)
                return -ENOMEM;
        fprintf(t->f, "%s%-8s%s %s%s%s", ctl_style(t, style), severity, ctl_style_off(t, style),
                ctl_style(t, STYLE_BOLD), id, ctl_style_off(t, STYLE_BOLD));
        if (f->machine)
                fprintf(t->f, "  machine %s", machine);
        if (f->device)
                fprintf(t->f, "  device %s", device);
        fprintf(t->f, "\n         %s\n", message);
        if (f->remedy)
                fprintf(t->f, "         %sRemedy:%s %s\n", ctl_style(t, STYLE_GOOD),
                        ctl_style_off(t, STYLE_GOOD), remedy);
        return 0;
}

int ctl_show_findings(const Terminal *t, const Finding *findings, size_t n)
{
        static const struct {
                const char *severity;
                Style style;
        } kinds[] = {
                { "blocker", STYLE_BAD },
                { "warning", STYLE_WARN },
                { "note", STYLE_DIM },
        };
        size_t counts[ELEMENTSOF(kinds)] = {}, known = 0;
        int r;

        for (size_t k = 0; k < ELEMENTSOF(kinds); k++)
                for (size_t i = 0; i < n; i++) {
                        if (!streq(findings[i].severity, kinds[k].severity))
                                continue;
                        r = show_finding(t, &findings[i], kinds[k].style);
                        if (r < 0)
                                return r;
                        counts[k]++;
                        known++;
                }
        /* Kinds of a later luvfiod. */
        for (size_t i = 0; known < n && i < n; i++) {
                bool shown = false;

                for (size_t k = 0; k < ELEMENTSOF(kinds); k++)
                        shown = shown || streq(findings[i].severity, kinds[k].severity);
                r = shown ? 0 : show_finding(t, &findings[i], STYLE_NONE);
                if (r < 0)
                        return r;
        }

        if (n > 0)
                fputc('\n', t->f);
        if (counts[0] > 0)
                fprintf(t->f, "%sBlocked%s: %zu blocker%s", ctl_style(t, STYLE_BAD),
                        ctl_style_off(t, STYLE_BAD), counts[0], counts[0] == 1 ? "" : "s");
        else
                fprintf(t->f, "%sReady%s: nothing stands against an update", ctl_style(t, STYLE_GOOD),
                        ctl_style_off(t, STYLE_GOOD));
        if (counts[1] > 0)
                fprintf(t->f, ", %zu warning%s", counts[1], counts[1] == 1 ? "" : "s");
        fputs(".\n", t->f);
        return 0;
}

static void add_number(Table *table, uint64_t n)
{
        if (n == CTL_UNSET)
                ctl_table_add(table, NULL, STYLE_NONE);
        else
                ctl_table_addf(table, STYLE_NONE, "%" PRIu64, n);
}

int ctl_show_machines(const Terminal *t, const Machine *machines, size_t n)
{
        static const char *const titles[] = { "MACHINE", "STATE",  "VMM", "UNIT",    "UID",    "PID",
                                              "JUMPS",   "MEMORY", "FDS", "DEVICES", "SESSION" };
        _cleanup_(ctl_table_done) Table table = {
                .titles = titles,
                .n_columns = ELEMENTSOF(titles),
                .right = 1u << 4 | 1u << 5 | 1u << 6 | 1u << 7 | 1u << 8,
        };
        int r;

        if (n == 0) {
                fputs("No machines are registered.\n", t->f);
                return 0;
        }
        for (size_t i = 0; i < n; i++) {
                const Machine *m = &machines[i];
                _cleanup_free_ char *devices = luv_strv_join(m->devices, " "), *state = NULL;
                char buf[CTL_FORMAT_MAX];

                state = m->attached ? strdup(m->state) : luv_strf("%s, detached", m->state);
                if (!devices || !state)
                        return -ENOMEM;
                ctl_table_add(&table, m->name, STYLE_BOLD);
                ctl_table_add(&table, state, machine_style(m));
                ctl_table_add(&table, m->vmm, STYLE_NONE);
                ctl_table_add(&table, m->unit, STYLE_NONE);
                add_number(&table, m->uid);
                add_number(&table, m->pid);
                ctl_table_addf(&table, STYLE_NONE, "%" PRIu64, m->generation);
                ctl_table_add(&table, ctl_format_bytes(buf, m->memory_bytes), STYLE_NONE);
                ctl_table_addf(&table, STYLE_NONE, "%" PRIu64, m->n_fds);
                ctl_table_add(&table, devices, STYLE_NONE);
                ctl_table_add(&table, m->session, STYLE_NONE);
        }
        r = ctl_table_print(&table, t);
        if (r < 0)
                return r;

        for (size_t i = 0; i < n; i++) {
                _cleanup_free_ char *name = NULL, *reason = NULL;

                if (!machines[i].reason)
                        continue;
                name = ctl_clean(machines[i].name);
                reason = ctl_clean(machines[i].reason);
                if (!name || !reason)
                        return -ENOMEM;
                fprintf(t->f, "%s%s%s: %s\n", ctl_style(t, STYLE_BOLD), name, ctl_style_off(t, STYLE_BOLD),
                        reason);
        }
        return 0;
}

int ctl_show_devices(const Terminal *t, const Device *devices, size_t n)
{
        static const char *const titles[] = { "DEVICE",  "MACHINE", "ID",        "DRIVER",        "PLUGIN",
                                              "PROMISE", "KERNEL",  "PRESERVED", "NOT PRESERVED", "REASON" };
        _cleanup_(ctl_table_done) Table table = { .titles = titles, .n_columns = ELEMENTSOF(titles) };

        if (n == 0) {
                fputs("No machine has a device.\n", t->f);
                return 0;
        }
        for (size_t i = 0; i < n; i++) {
                const Device *d = &devices[i];
                _cleanup_free_ char *kept = luv_strv_join(d->preserved, ", "),
                                    *lost = luv_strv_join(d->not_preserved, ", ");

                if (!kept || !lost)
                        return -ENOMEM;
                ctl_table_add(&table, d->address, STYLE_BOLD);
                ctl_table_add(&table, d->machine, STYLE_NONE);
                ctl_table_add(&table, d->id, STYLE_NONE);
                ctl_table_add(&table, d->driver, STYLE_NONE);
                ctl_table_add(&table, d->plugin, STYLE_NONE);
                ctl_table_add(&table, d->promise, STYLE_NONE);
                if (d->blocked_by)
                        ctl_table_addf(&table, STYLE_WARN, "%s, blocked by %s", strempty(d->kernel_state),
                                       d->blocked_by);
                else
                        ctl_table_add(&table, d->kernel_state, STYLE_NONE);
                ctl_table_add(&table, kept, STYLE_NONE);
                ctl_table_add(&table, lost, STYLE_NONE);
                ctl_table_add(&table, d->reason, STYLE_BAD);
        }
        return ctl_table_print(&table, t);
}

int ctl_show_history(const Terminal *t, const Report *reports, size_t n)
{
        static const char *const titles[] = { "UPDATE", "STARTED",  "FROM",     "TO",
                                              "RESULT", "BLACKOUT", "MACHINES", "REASON" };
        _cleanup_(ctl_table_done) Table table = {
                .titles = titles,
                .n_columns = ELEMENTSOF(titles),
                .right = 1u << 5 | 1u << 6,
        };

        if (n == 0) {
                fputs("There was no update yet.\n", t->f);
                return 0;
        }
        for (size_t i = 0; i < n; i++) {
                const Report *r = &reports[i];
                uint64_t worst = ctl_report_worst_blackout(r);
                char buf[CTL_FORMAT_MAX];

                ctl_table_addf(&table, STYLE_BOLD, "%.*s", ID_SHOWN, r->update_id);
                ctl_table_add(&table, ctl_format_realtime(buf, r->started_realtime_usec), STYLE_NONE);
                ctl_table_add(&table, r->from_kernel, STYLE_NONE);
                ctl_table_add(&table, r->to_kernel, STYLE_NONE);
                ctl_table_add(&table, r->result, result_style(r->result));
                ctl_table_add(&table, worst == CTL_UNSET ? NULL : ctl_format_usec(buf, worst), STYLE_NONE);
                ctl_table_addf(&table, STYLE_NONE, "%zu", r->n_machines);
                ctl_table_add(&table, r->reason, STYLE_NONE);
        }
        return ctl_table_print(&table, t);
}

static int show_stranded(const Terminal *t, const Report *r)
{
        for (size_t i = 0; i < r->n_machines; i++) {
                int k;

                if (!r->machines[i].stranded_reason)
                        continue;
                k = put(t, "Stranded", STYLE_BAD, "%s: %s", r->machines[i].machine,
                        r->machines[i].stranded_reason);
                if (k < 0)
                        return k;
        }
        return 0;
}

int ctl_show_result(const Terminal *t, const Report *r)
{
        int k;

        k = show_summary(t, "Update", r);
        if (k >= 0)
                k = put(t, "", STYLE_DIM, "%s", r->update_id);
        if (k >= 0 && r->reason)
                k = put(t, "Reason", STYLE_NONE, "%s", r->reason);
        if (k >= 0)
                k = show_stranded(t, r);
        return k;
}

/* Cells of a chart: the Ith tells phases of a machine from one another without colour. */
static const char *glyph(const Terminal *t, size_t i)
{
        static const char *const blocks[] = { "\xe2\x96\x88", "\xe2\x96\x91", "\xe2\x96\x93",
                                              "\xe2\x96\x92" };
        static const char *const letters[] = { "#", "-", "=", "+", "*", "%", "@", "o" };

        return t->unicode && i < ELEMENTSOF(blocks) ? blocks[i] : letters[i % ELEMENTSOF(letters)];
}

static unsigned column_of(uint64_t usec, uint64_t start, uint64_t end, unsigned columns)
{
        double x = (double) (usec - start) / (double) (end - start) * columns;

        return MIN((unsigned) (x + 0.5), columns);
}

static int show_host_phases(const Terminal *t, const Report *r)
{
        uint64_t end = 1;
        unsigned columns = t->columns > 30 + BAR_COLUMNS_MIN ? t->columns - 30 : BAR_COLUMNS_MIN;
        bool any = false;

        for (size_t i = 0; i < r->n_phases; i++)
                if (!r->phases[i].machine)
                        end = MAX(end, ctl_phase_end(&r->phases[i]));

        for (size_t i = 0; i < r->n_phases; i++) {
                const Phase *p = &r->phases[i];
                _cleanup_free_ char *name = NULL;
                char buf[CTL_FORMAT_MAX];
                unsigned from, to;

                if (p->machine)
                        continue;
                name = ctl_clean(p->name);
                if (!name)
                        return -ENOMEM;
                if (!any)
                        fprintf(t->f, "\n%sThe host%s\n", ctl_style(t, STYLE_BOLD),
                                ctl_style_off(t, STYLE_BOLD));
                any = true;
                from = column_of(p->start_usec, 0, end, columns - 1);
                to = MAX(column_of(ctl_phase_end(p), 0, end, columns), from + 1);
                fprintf(t->f, "  %-13s %11s  %*s", name, ctl_format_usec(buf, p->duration_usec), (int) from,
                        "");
                for (unsigned k = from; k < to; k++)
                        fputs(glyph(t, 0), t->f);
                fputc('\n', t->f);
        }
        return 0;
}

static int compare_u64(const void *a, const void *b)
{
        uint64_t x = *(const uint64_t *) a, y = *(const uint64_t *) b;

        return x < y ? -1 : x > y;
}

/* Of sorted values; between the two in the middle where there are two. */
static uint64_t median(const uint64_t *sorted, size_t n)
{
        uint64_t low = sorted[(n - 1) / 2], high = sorted[n / 2];

        return low + (high - low) / 2;
}

/* Names of machines' phases, in order of their first begin. */
static size_t collect_names(const Report *r, const char *names[static PHASES_SHOWN])
{
        size_t n = 0;

        for (size_t i = 0; i < r->n_phases; i++) {
                bool known = !r->phases[i].machine;

                for (size_t k = 0; k < n; k++)
                        known = known || streq(names[k], r->phases[i].name);
                if (!known && n < PHASES_SHOWN)
                        names[n++] = r->phases[i].name;
        }
        return n;
}

static char *draw_machine(const Terminal *t, const Report *r, const char *machine, const char *const *names,
                          size_t n_names, uint64_t start, uint64_t end, unsigned columns)
{
        _cleanup_free_ uint8_t *cells = calloc(columns, 1); /* 0: nothing, else a phase's number + 1 */
        _cleanup_free_ char *bar = NULL;
        unsigned used = 0;
        char *p;

        if (!cells)
                return NULL;
        for (size_t k = 0; k < n_names; k++)
                for (size_t i = 0; i < r->n_phases; i++) {
                        const Phase *phase = &r->phases[i];
                        unsigned from, to;

                        if (!streq_ptr(phase->machine, machine) || !streq(phase->name, names[k]))
                                continue;
                        from = column_of(phase->start_usec, start, end, columns - 1);
                        to = MAX(column_of(ctl_phase_end(phase), start, end, columns), from + 1);
                        memset(cells + from, (int) k + 1, to - from);
                        used = MAX(used, to);
                }

        bar = p = malloc((size_t) columns * 3 + 1);
        if (!bar)
                return NULL;
        for (unsigned i = 0; i < used; i++)
                p = stpcpy(p, cells[i] == 0 ? " " : glyph(t, cells[i] - 1u));
        *p = '\0';
        return TAKE_PTR(bar);
}

static int show_machine_phases(const Terminal *t, const Report *r)
{
        const char *names[PHASES_SHOWN], *titles[PHASES_SHOWN + 3];
        _cleanup_strv_ char **clean_names = NULL;
        size_t n_names, n_known = 0;
        uint64_t start = UINT64_MAX, end = 0;
        _cleanup_free_ uint64_t *known = NULL;
        _cleanup_(ctl_table_done) Table table = { .titles = titles, .right = ~1u };
        unsigned columns, used;
        char buf[CTL_FORMAT_MAX];
        size_t width = STRLEN("MACHINE");
        int k;

        if (r->n_machines == 0)
                return 0;
        n_names = collect_names(r, names);
        for (size_t i = 0; i < r->n_machines; i++) {
                uint64_t s, e;

                width = MAX(width, strlen(r->machines[i].machine));
                if (!ctl_report_machine_span(r, r->machines[i].machine, &s, &e))
                        continue;
                start = MIN(start, s);
                end = MAX(end, e);
        }
        known = calloc(r->n_machines, sizeof(uint64_t));
        if (!known)
                return -ENOMEM;

        titles[0] = "MACHINE";
        titles[1] = "BLACKOUT";
        clean_names = calloc(n_names + 1, sizeof(char *));
        if (!clean_names)
                return -ENOMEM;
        for (size_t i = 0; i < n_names; i++) {
                titles[2 + i] = clean_names[i] = ctl_clean(names[i]);
                if (!clean_names[i])
                        return -ENOMEM;
        }
        titles[2 + n_names] = "";
        table.n_columns = 3 + n_names;
        table.right &= ~(1u << (2 + n_names));
        used = (unsigned) (width + 2 + 10 + n_names * 10);
        columns = t->columns > used + BAR_COLUMNS_MIN ? t->columns - used : BAR_COLUMNS_MIN;

        for (size_t i = 0; i < r->n_machines; i++) {
                const MachineReport *m = &r->machines[i];
                _cleanup_free_ char *bar = NULL;

                ctl_table_add(&table, m->machine, m->stranded_reason ? STYLE_BAD : STYLE_BOLD);
                ctl_table_add(&table,
                              m->blackout_usec == CTL_UNSET ? NULL : ctl_format_usec(buf, m->blackout_usec),
                              STYLE_NONE);
                for (size_t j = 0; j < n_names; j++) {
                        uint64_t sum = 0;
                        bool any = false;

                        for (size_t p = 0; p < r->n_phases; p++)
                                if (streq_ptr(r->phases[p].machine, m->machine) &&
                                    streq(r->phases[p].name, names[j])) {
                                        if (__builtin_add_overflow(sum, r->phases[p].duration_usec, &sum))
                                                sum = UINT64_MAX;
                                        any = true;
                                }
                        ctl_table_add(&table, any ? ctl_format_usec(buf, sum) : NULL, STYLE_NONE);
                }
                if (end > start) {
                        bar = draw_machine(t, r, m->machine, names, n_names, start, end, columns);
                        if (!bar)
                                return -ENOMEM;
                }
                ctl_table_add(&table, bar ? bar : " ", STYLE_NONE);
                if (m->blackout_usec != CTL_UNSET)
                        known[n_known++] = m->blackout_usec;
        }

        fprintf(t->f, "\n%sThe machines' blackout%s", ctl_style(t, STYLE_BOLD),
                ctl_style_off(t, STYLE_BOLD));
        for (size_t i = 0; i < n_names; i++)
                fprintf(t->f, "%s%s %s", i == 0 ? "   " : "  ", glyph(t, i), clean_names[i]);
        fputc('\n', t->f);
        k = ctl_table_print(&table, t);
        if (k < 0)
                return k;
        if (n_known > 1) {
                qsort(known, n_known, sizeof(uint64_t), compare_u64);
                fprintf(t->f, "Median %s", ctl_format_usec(buf, median(known, n_known)));
                fprintf(t->f, ", longest %s.\n", ctl_format_usec(buf, known[n_known - 1]));
        }
        return 0;
}

int ctl_show_analysis(const Terminal *t, const Report *r)
{
        int k;

        k = ctl_show_result(t, r);
        if (k >= 0 && streq(r->clock, "realtime"))
                k = put(t, "Clock", STYLE_WARN,
                        "without an invariant TSC, times over the jump may be off by half a second");
        if (k >= 0)
                k = show_host_phases(t, r);
        if (k >= 0)
                k = show_machine_phases(t, r);
        return k;
}
