/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "preflight/preflight.h"

void luv_check_abi(const PreflightFacts *f, Findings *r)
{
        _cleanup_free_ char *reason = NULL;

        if (f->kernel_staged || !f->kernel_given || f->kernel_error < 0)
                return;
        if (!f->kernel.abi) {
                luv_blocker(r, "kernel-no-liveupdate",
                            &(FindingSubject) { .remedy = "Give a kernel that is built with live update." },
                            "The kernel %s has no table of live-update formats: it cannot take machines "
                            "over",
                            f->kernel.release ? f->kernel.release : "given");
                return;
        }
        if (!f->running_abi) {
                luv_blocker(r, "abi-unknown",
                            &(FindingSubject) { .remedy = "Boot a kernel that has luvfiod's series." },
                            "The running kernel does not say which live-update formats it writes: %s",
                            strerror(f->running_abi_error < 0 ? -f->running_abi_error : ENOENT));
                return;
        }
        if (luv_kexec_abi_compatible(f->running_abi, f->kernel.abi, &reason) < 0)
                luv_blocker(r, "abi-incompatible",
                            &(FindingSubject) { .remedy = "Choose a kernel that reads what the running one "
                                                          "writes." },
                            "The kernel %s cannot read what the running one preserves: %s",
                            f->kernel.release ? f->kernel.release : "given",
                            reason ? reason : "formats differ");
}
