/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "preflight/preflight.h"

void luv_check_cmdline(const PreflightFacts *f, Findings *r)
{
        _cleanup_free_ char *reason = NULL;

        if (f->kernel_staged || !f->kernel_given || !f->cmdline)
                return;
        if (luv_kexec_check_cmdline(f->cmdline, &reason) < 0)
                luv_blocker(r, "cmdline-unfit",
                            &(FindingSubject) { .remedy = "Give a command line with kho=on liveupdate=on, "
                                                          "and an "
                                                          "IOMMU that is not turned off." },
                            "The new kernel's command line will not do: %s",
                            reason ? reason : "it was refused");
}
