/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "preflight/preflight.h"

void luv_check_inhibitors(const PreflightFacts *f, Findings *r)
{
        for (size_t i = 0; i < f->n_inhibitors; i++)
                luv_blocker(r, "inhibited",
                            &(FindingSubject) { .remedy = "Wait, or ask who holds it to let go." },
                            "%s forbids updates: %s", f->inhibitors[i].who, f->inhibitors[i].why);
}
