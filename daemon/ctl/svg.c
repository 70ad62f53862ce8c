/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <inttypes.h>

#include "ctl/ctl-format.h"
#include "ctl/svg.h"
#include "util/string-util.h"

/* Pixels. */
#define WIDTH 1000
#define LEFT 170  /* of the lanes: names stand before it */
#define RIGHT 915 /* lengths stand behind it */
#define LANE 20
#define LEGEND 18 /* a row of the legend */
#define BAR 14
#define CHARACTER 6.6 /* of a label, about */
#define NAME_MAX_SHOWN 23u

#define TICKS_WANTED 8

/* What a lane shows; y grows as lanes are drawn. */
typedef struct Chart {
        FILE *f;
        const Report *report;
        uint64_t start, end; /* the stretch of time shown */
        uint64_t zero;       /* what the axis counts from */
        int y;
} Chart;

/* Middle tones, which stand out from white and from black. */
static const struct {
        const char *name, *colour;
} colours[] = {
        { "checking", "#8d99ae" }, { "staging", "#5b8def" },   { "staged", "#9bb8f2" },
        { "draining", "#7b6fd0" }, { "quiescing", "#d98e04" }, { "handing_over", "#d1603d" },
        { "kernel", "#c0392b" },   { "restoring", "#16a085" }, { "rebinding", "#2a9d8f" },
        { "resuming", "#43a047" }, { "finishing", "#7cb342" }, { "stop", "#d98e04" },
        { "wait", "#a0617a" },     { "resume", "#43a047" },
};

static const char *colour_of(const char *phase)
{
        for (size_t i = 0; i < ELEMENTSOF(colours); i++)
                if (streq(colours[i].name, phase))
                        return colours[i].colour;
        return "#888888";
}

void ctl_svg_escape(FILE *f, const char *text, size_t max)
{
        _cleanup_free_ char *clean = ctl_clean(text);
        size_t n = 0, width;

        if (!clean)
                return;
        width = ctl_width(clean);
        for (const char *p = clean; *p != '\0'; p++) {
                if (((unsigned char) *p & 0xc0) != 0x80) {
                        if (max > 0 && width > max && n == max - 1) {
                                fputs("\xe2\x80\xa6", f);
                                return;
                        }
                        n++;
                }
                switch (*p) {
                case '&':
                        fputs("&amp;", f);
                        break;
                case '<':
                        fputs("&lt;", f);
                        break;
                case '>':
                        fputs("&gt;", f);
                        break;
                case '"':
                        fputs("&quot;", f);
                        break;
                case '\'':
                        fputs("&#39;", f);
                        break;
                default:
                        fputc(*p, f);
                }
        }
}

static double x_of(const Chart *c, uint64_t usec)
{
        usec = MIN(MAX(usec, c->start), c->end);
        return LEFT + (double) (usec - c->start) / (double) (c->end - c->start) * (RIGHT - LEFT);
}

/* The least of 1, 2 and 5 times a power of ten that is at least USEC. */
static uint64_t round_step(uint64_t usec)
{
        uint64_t power = 1;

        while (power <= usec / 10)
                power *= 10;
        for (unsigned i = 0; i < 4; i++) {
                static const unsigned factors[] = { 1, 2, 5, 10 };

                if (power > UINT64_MAX / factors[i] || power * factors[i] >= usec)
                        return power > UINT64_MAX / factors[i] ? power : power * factors[i];
        }
        return power;
}

static void draw_axis(Chart *c, int height)
{
        uint64_t step = MAX(round_step((c->end - c->start) / TICKS_WANTED), (uint64_t) 1);
        char buf[CTL_FORMAT_MAX];

        for (uint64_t t = c->zero; t <= c->end; t += step) {
                double x = x_of(c, t);

                fprintf(c->f, "<line class=\"grid\" x1=\"%.1f\" y1=\"%d\" x2=\"%.1f\" y2=\"%d\"/>\n", x,
                        c->y, x, c->y + height);
                fprintf(c->f, "<text class=\"tick\" x=\"%.1f\" y=\"%d\">%s</text>\n", x, c->y + height + 13,
                        t == c->zero ? "0" : ctl_format_usec(buf, t - c->zero));
                if (t > UINT64_MAX - step)
                        break;
        }
}

static void draw_bar(Chart *c, const Phase *p, int y)
{
        char length[CTL_FORMAT_MAX], begin[CTL_FORMAT_MAX];
        uint64_t end = ctl_phase_end(p);
        double x, width;
        size_t room;

        if (end < c->start || p->start_usec > c->end)
                return;
        x = x_of(c, p->start_usec);
        width = MAX(x_of(c, end) - x, 0.8);
        room = (size_t) ((width - 6) > 0 ? (width - 6) / CHARACTER : 0);

        fprintf(c->f, "<g><title>");
        ctl_svg_escape(c->f, p->name, 0);
        fprintf(c->f,
                ": %s, from %s</title><rect x=\"%.1f\" y=\"%d\" width=\"%.1f\" height=\"%d\" rx=\"1\" "
                "fill=\"%s\"/>",
                ctl_format_usec(length, p->duration_usec), ctl_format_usec(begin, p->start_usec), x, y,
                width, BAR, colour_of(p->name));
        if (room >= MIN(ctl_width(p->name), (size_t) 4)) {
                fprintf(c->f, "<text class=\"in\" x=\"%.1f\" y=\"%d\">", x + 3, y + BAR - 3);
                ctl_svg_escape(c->f, p->name, room);
                if (room > ctl_width(p->name) + strlen(length))
                        fprintf(c->f, " %s", length);
                fputs("</text>", c->f);
        }
        fputs("</g>\n", c->f);
}

static void draw_name(Chart *c, const char *name)
{
        fprintf(c->f, "<text class=\"name\" x=\"%d\" y=\"%d\"><title>", LEFT - 8, c->y + BAR);
        ctl_svg_escape(c->f, name, 0);
        fputs("</title>", c->f);
        ctl_svg_escape(c->f, name, NAME_MAX_SHOWN);
        fputs("</text>\n", c->f);
}

/* A lane for the host (MACHINE NULL) or a machine. */
static void draw_lane(Chart *c, const char *machine)
{
        uint64_t start, end;

        draw_name(c, machine ? machine : "host");
        if (machine && ctl_report_machine_span(c->report, machine, &start, &end) && start <= c->end &&
            end >= c->start)
                fprintf(c->f,
                        "<rect class=\"blackout\" x=\"%.1f\" y=\"%d\" width=\"%.1f\" height=\"%d\"/>\n",
                        x_of(c, start), c->y, MAX(x_of(c, end) - x_of(c, start), 0.8), LANE);
        for (size_t i = 0; i < c->report->n_phases; i++)
                if (streq_ptr(c->report->phases[i].machine, machine))
                        draw_bar(c, &c->report->phases[i], c->y + (LANE - BAR) / 2);
        c->y += LANE;
}

/* A machine's lane if it has phases of its own; what is to be said of it otherwise. */
static void draw_machine(Chart *c, const MachineReport *m)
{
        int y = c->y + BAR;
        char buf[CTL_FORMAT_MAX];

        draw_lane(c, m->machine);
        if (m->blackout_usec != CTL_UNSET)
                fprintf(c->f, "<text class=\"length\" x=\"%d\" y=\"%d\">%s</text>\n", WIDTH - 12, y,
                        ctl_format_usec(buf, m->blackout_usec));
        if (!m->stranded_reason)
                return;
        fprintf(c->f, "<text class=\"bad\" x=\"%d\" y=\"%d\">stranded: ", LEFT + 4, y);
        ctl_svg_escape(c->f, m->stranded_reason, 110);
        fputs("</text>\n", c->f);
}

static void draw_title(Chart *c, const char *text)
{
        c->y += 20;
        fprintf(c->f, "<text class=\"title\" x=\"12\" y=\"%d\">%s</text>\n", c->y, text);
        c->y += 8;
}

/* A patch of each colour, in the order of the first begin. F NULL: only says how high that is. */
static int draw_legend(FILE *f, const Report *r, int y)
{
        int x = LEFT, top = y;

        for (size_t i = 0; i < r->n_phases; i++) {
                int width = 22 + (int) ((double) MIN(ctl_width(r->phases[i].name), (size_t) NAME_MAX_SHOWN) *
                                        CHARACTER);
                bool seen = false;

                for (size_t k = 0; k < i && !seen; k++)
                        seen = streq(r->phases[k].name, r->phases[i].name);
                if (seen)
                        continue;
                if (y == top || x + width > RIGHT) {
                        x = LEFT;
                        y += LEGEND;
                }
                if (f) {
                        fprintf(f,
                                "<rect x=\"%d\" y=\"%d\" width=\"10\" height=\"10\" fill=\"%s\"/><text "
                                "class=\"sub\" "
                                "x=\"%d\" y=\"%d\">",
                                x, y - 9, colour_of(r->phases[i].name), x + 14, y);
                        ctl_svg_escape(f, r->phases[i].name, NAME_MAX_SHOWN);
                        fputs("</text>\n", f);
                }
                x += width;
        }
        return y - top;
}

static void draw_header(Chart *c)
{
        const Report *r = c->report;
        uint64_t worst = ctl_report_worst_blackout(r);
        char buf[CTL_FORMAT_MAX];

        c->y = 24;
        fprintf(c->f, "<text class=\"head\" x=\"12\" y=\"%d\">Live update ", c->y);
        ctl_svg_escape(c->f, r->from_kernel, 40);
        if (r->to_kernel) {
                fputs(" \xe2\x86\x92 ", c->f);
                ctl_svg_escape(c->f, r->to_kernel, 40);
        }
        fputs(": ", c->f);
        ctl_svg_escape(c->f, r->result, 20);
        fputs("</text>\n", c->f);

        c->y += 17;
        fprintf(c->f, "<text class=\"sub\" x=\"12\" y=\"%d\">%s \xc2\xb7 ", c->y,
                ctl_format_realtime(buf, r->started_realtime_usec));
        ctl_svg_escape(c->f, r->update_id, 40);
        fprintf(c->f, " \xc2\xb7 %zu machine%s", r->n_machines, r->n_machines == 1 ? "" : "s");
        if (worst != CTL_UNSET)
                fprintf(c->f, " \xc2\xb7 longest blackout %s", ctl_format_usec(buf, worst));
        if (streq(r->clock, "realtime"))
                fputs(" \xc2\xb7 times over the jump may be off by half a second", c->f);
        fputs("</text>\n", c->f);
        if (r->reason) {
                c->y += 17;
                fprintf(c->f, "<text class=\"sub\" x=\"12\" y=\"%d\">", c->y);
                ctl_svg_escape(c->f, r->reason, 140);
                fputs("</text>\n", c->f);
        }
}

/* The whole update, and when machines stood still in it. False: there is nothing to show. */
static bool find_spans(const Report *r, uint64_t *ret_end, bool *ret_blackout, uint64_t *ret_stop,
                       uint64_t *ret_run)
{
        uint64_t end = 0, stop = UINT64_MAX, run = 0;

        for (size_t i = 0; i < r->n_phases; i++) {
                end = MAX(end, ctl_phase_end(&r->phases[i]));
                if (r->phases[i].machine) {
                        stop = MIN(stop, r->phases[i].start_usec);
                        run = MAX(run, ctl_phase_end(&r->phases[i]));
                }
        }
        *ret_end = end;
        *ret_blackout = run > stop;
        *ret_stop = stop;
        *ret_run = run;
        return end > 0;
}

void ctl_svg_write(FILE *f, const Report *report)
{
        Chart c = { .f = f, .report = report };
        uint64_t end, stop, run;
        bool any, blackout;
        int height;

        any = find_spans(report, &end, &blackout, &stop, &run);

        height = 24 + 17 + (report->reason ? 17 : 0) + 20;
        if (any)
                height += draw_legend(NULL, report, 0) + 28 + LANE + 20;
        if (blackout || report->n_machines > 0)
                height += 28 + (int) (report->n_machines + 1) * LANE + 20;

        fprintf(f,
                "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
                "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %d %d\" "
                "font-family=\"system-ui, sans-serif\" font-size=\"11\" fill=\"#777\">\n"
                "<style>\n"
                "svg { color-scheme: light dark }\n"
                "text, .sub, .tick { fill: #757575 }\n"
                ".head { font-size: 16px; font-weight: 600 }\n"
                ".title { font-weight: 600 }\n"
                ".tick { text-anchor: middle; font-size: 10px }\n"
                ".name, .length { text-anchor: end }\n"
                ".grid { stroke: #888; stroke-opacity: 0.3 }\n"
                ".blackout { fill: #888; fill-opacity: 0.25 }\n"
                "@media (prefers-color-scheme: light) { text { fill: #333 } }\n"
                "@media (prefers-color-scheme: dark) { text { fill: #ddd } }\n"
                ".in { fill: #fff; font-size: 10px }\n"
                ".bad { fill: #e0503f }\n"
                "</style>\n",
                WIDTH, height, WIDTH, height);
        draw_header(&c);

        if (any) {
                c.y += draw_legend(f, report, c.y);
                draw_title(&c, "The whole update");
                c.start = 0;
                c.end = end;
                c.zero = 0;
                draw_axis(&c, LANE);
                if (blackout)
                        fprintf(f,
                                "<rect class=\"blackout\" x=\"%.1f\" y=\"%d\" width=\"%.1f\" "
                                "height=\"%d\"/>\n",
                                x_of(&c, stop), c.y, MAX(x_of(&c, run) - x_of(&c, stop), 0.8), LANE);
                draw_lane(&c, NULL);
                c.y += 20;
        }

        if (blackout || report->n_machines > 0) {
                uint64_t margin = blackout ? (run - stop) / 40 + 1 : 0;

                draw_title(&c, blackout ? "The blackout: machines stand still where the ground is grey"
                                        : "Machines");
                c.start = blackout ? stop - MIN(stop, margin) : 0;
                c.end = blackout ? (run > UINT64_MAX - margin ? UINT64_MAX : run + margin)
                                 : MAX(end, (uint64_t) 1);
                c.zero = blackout ? stop : 0;
                draw_axis(&c, (int) (report->n_machines + 1) * LANE);
                draw_lane(&c, NULL);
                for (size_t i = 0; i < report->n_machines; i++)
                        draw_machine(&c, &report->machines[i]);
        }
        fputs("</svg>\n", f);
}
