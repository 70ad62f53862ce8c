/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "preflight/preflight.h"

void luv_check_loaded(const PreflightFacts *f, Findings *r)
{
        if (f->kernel_staged)
                return;
        /* A legacy image would be jumped into without a word, and everything preserved would be lost. */
        if (f->kexec_loaded > 0)
                luv_blocker(r, "kexec-loaded",
                            &(FindingSubject) { .remedy = "Unload it: \"kexec --unload\"." },
                            "A kexec image that luvfiod did not load is loaded already");
        else if (f->kexec_loaded < 0)
                luv_blocker(r, "kexec-unusable",
                            &(FindingSubject) { .remedy = "Boot a kernel with CONFIG_KEXEC_FILE." },
                            "Whether a kexec image is loaded cannot be told: %s",
                            strerror(-f->kexec_loaded));
}
