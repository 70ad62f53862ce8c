/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "preflight/preflight.h"
#include "util/string-util.h"

/* The jump does not go through the service manager, so it carries nothing over for others. */
void luv_check_stores(const PreflightFacts *f, Findings *r)
{
        for (char **u = f->lost_stores; u && *u; u++)
                /* Those of the system itself are there on every host, and expect it. */
                luv_findings_add(r, "fd-store-lost",
                                 startswith(*u, "systemd-") ? SEVERITY_NOTE : SEVERITY_WARNING,
                                 &(FindingSubject) { .remedy = "Expect the unit to start afresh." },
                                 "The file descriptors that %s keeps over a kexec will be lost: the jump "
                                 "does not go "
                                 "through the service manager",
                                 *u);
}
