/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "preflight/preflight.h"

/* The jump does not go through the service manager, so it carries nothing over for others. */
void luv_check_stores(const PreflightFacts *f, Findings *r)
{
        for (char **u = f->lost_stores; u && *u; u++)
                luv_warning(r, "fd-store-lost",
                            &(FindingSubject) { .remedy = "Expect the unit to start afresh." },
                            "The file descriptors that %s keeps over a kexec will be lost: the jump does "
                            "not go "
                            "through the service manager",
                            *u);
}
