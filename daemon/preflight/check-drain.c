/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "preflight/preflight.h"

void luv_check_drain(const PreflightFacts *f, Findings *r)
{
        if (f->simulated)
                return;
        if (f->drain_target_missing)
                luv_blocker(r, "drain-target-missing",
                            &(FindingSubject) { .remedy = "Install luvfiod's units." },
                            "The unit " LUVFIO_DRAIN_TARGET " is not there");
        for (size_t i = 0; i < f->n_machines; i++) {
                const PreflightMachine *m = f->machines + i;

                if (m->survives == 0)
                        luv_blocker(r, "machine-not-drain-safe",
                                    &(FindingSubject) {
                                                    .machine = m->name,
                                                    .remedy = "Let the unit say "
                                                              "WantedBy=" LUVFIO_DRAIN_TARGET
                                                              " and DefaultDependencies=no, and enable it.",
                                    },
                                    "The unit %s of machine %s would be stopped when the host is drained",
                                    m->unit ? m->unit : "(none)", m->name);
        }
}
