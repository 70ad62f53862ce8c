/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <stdarg.h>

#include "preflight/finding.h"
#include "util/string-util.h"

static const char *const luv_severity_table[_SEVERITY_MAX] = {
        [SEVERITY_BLOCKER] = "blocker",
        [SEVERITY_WARNING] = "warning",
        [SEVERITY_NOTE] = "note",
};
DEFINE_STRING_TABLE(luv_severity, Severity);

static void finding_done(Finding *f)
{
        free(f->id);
        free(f->machine);
        free(f->device);
        free(f->message);
        free(f->remedy);
}

void luv_findings_done(Findings *f)
{
        for (size_t i = 0; i < f->n; i++)
                finding_done(f->items + i);
        free(f->items);
        *f = (Findings) {};
}

static void add(Findings *f, const char *id, Severity severity, const FindingSubject *subject,
                const char *format, va_list ap)
{
        Finding new = { .severity = severity, .message = luv_strfv(format, ap) }, *items;

        items = reallocarray(f->items, f->n + 1, sizeof(Finding));
        if (items)
                f->items = items;
        if (!items || !new.message || luv_free_and_strdup(&new.id, id) < 0 ||
            (subject && (luv_free_and_strdup(&new.machine, subject->machine) < 0 ||
                         luv_free_and_strdup(&new.device, subject->device) < 0 ||
                         luv_free_and_strdup(&new.remedy, subject->remedy) < 0))) {
                finding_done(&new);
                f->incomplete = true;
                return;
        }
        f->items[f->n++] = new;
}

void luv_findings_add(Findings *f, const char *id, Severity severity, const FindingSubject *subject,
                      const char *format, ...)
{
        va_list ap;

        va_start(ap, format);
        add(f, id, severity, subject, format, ap);
        va_end(ap);
}

void luv_blocker(Findings *f, const char *id, const FindingSubject *subject, const char *format, ...)
{
        va_list ap;

        va_start(ap, format);
        add(f, id, SEVERITY_BLOCKER, subject, format, ap);
        va_end(ap);
}

void luv_warning(Findings *f, const char *id, const FindingSubject *subject, const char *format, ...)
{
        va_list ap;

        va_start(ap, format);
        add(f, id, SEVERITY_WARNING, subject, format, ap);
        va_end(ap);
}

void luv_note(Findings *f, const char *id, const FindingSubject *subject, const char *format, ...)
{
        va_list ap;

        va_start(ap, format);
        add(f, id, SEVERITY_NOTE, subject, format, ap);
        va_end(ap);
}

static int compare(const void *a, const void *b)
{
        const Finding *x = a, *y = b;
        int c;

        if (x->severity != y->severity)
                return x->severity < y->severity ? -1 : 1;
        c = strcmp(strempty(x->machine), strempty(y->machine));
        if (c == 0)
                c = strcmp(strempty(x->device), strempty(y->device));
        if (c == 0)
                c = strcmp(x->id, y->id);
        return c;
}

void luv_findings_sort(Findings *f)
{
        if (f->n > 1)
                qsort(f->items, f->n, sizeof(Finding), compare);
}

size_t luv_findings_blockers(const Findings *f)
{
        size_t n = f->incomplete ? 1 : 0;

        for (size_t i = 0; i < f->n; i++)
                n += f->items[i].severity == SEVERITY_BLOCKER;
        return n;
}

void luv_findings_sacrifice(Findings *f, char *const *sacrifice)
{
        for (size_t i = 0; i < f->n; i++) {
                Finding *x = f->items + i;
                char *message;

                if (x->severity != SEVERITY_BLOCKER || !x->machine ||
                    !luv_strv_contains(sacrifice, x->machine))
                        continue;
                message = luv_strf("%s; machine %s may be sacrificed and will be lost", x->message,
                                   x->machine);
                if (!message) {
                        f->incomplete = true;
                        continue;
                }
                free(x->message);
                x->message = message;
                x->severity = SEVERITY_WARNING;
        }
}
