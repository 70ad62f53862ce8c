/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "util/macro.h"

/* What speaks against an update. Ids are stable: they are documented, and scripts match them. */

typedef enum Severity {
        SEVERITY_BLOCKER,
        SEVERITY_WARNING,
        SEVERITY_NOTE,
        _SEVERITY_MAX,
        _SEVERITY_INVALID = -EINVAL,
} Severity;

const char *luv_severity_to_string(Severity s);
Severity luv_severity_from_string(const char *s);

typedef struct Finding {
        char *id;
        Severity severity;
        char *machine, *device; /* NULL: the host's */
        char *message, *remedy; /* sentences */
} Finding;

typedef struct Findings {
        Finding *items;
        size_t n;
        bool incomplete; /* memory ran out: that alone is a blocker */
} Findings;

void luv_findings_done(Findings *f);

/* What a finding is about; any may be NULL. */
typedef struct FindingSubject {
        const char *machine, *device, *remedy;
} FindingSubject;

/* Never fails to block: what cannot be noted for want of memory makes the list incomplete. */
_printf_(5, 6) void luv_findings_add(Findings *f, const char *id, Severity severity,
                                     const FindingSubject *subject, const char *format, ...);
_printf_(4, 5) void luv_blocker(Findings *f, const char *id, const FindingSubject *subject,
                                const char *format, ...);
_printf_(4, 5) void luv_warning(Findings *f, const char *id, const FindingSubject *subject,
                                const char *format, ...);
_printf_(4, 5) void luv_note(Findings *f, const char *id, const FindingSubject *subject, const char *format,
                             ...);

/* Blockers first, then by machine, device and id. */
void luv_findings_sort(Findings *f);
size_t luv_findings_blockers(const Findings *f);
/* Blockers of machines in SACRIFICE (NULL-terminated, may be NULL) become warnings that say so. */
void luv_findings_sacrifice(Findings *f, char *const *sacrifice);
