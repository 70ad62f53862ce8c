/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "preflight/preflight.h"

/* A machine that never registered is one that nobody would miss until it is gone. */
void luv_check_processes(const PreflightFacts *f, Findings *r)
{
        for (size_t i = 0; i < f->n_processes; i++) {
                const PreflightProcess *p = f->processes + i;

                luv_blocker(r, "process-unregistered",
                            &(FindingSubject) { .remedy = "Stop it, or let its VMM register with luvfiod." },
                            "The process %s (pid %i%s%s) has an open %s file and belongs to no registered "
                            "machine: "
                            "it would be lost",
                            p->name, (int) p->pid, p->unit ? ", " : "", p->unit ? p->unit : "", p->holds);
        }
}
