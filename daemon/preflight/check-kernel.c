/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "preflight/preflight.h"
#include "util/string-util.h"

void luv_check_kernel(const PreflightFacts *f, Findings *r)
{
        if (f->kernel_staged)
                return;
        if (!f->kernel_given) {
                luv_note(r, "kernel-not-given",
                         &(FindingSubject) { .remedy = "Name the kernel, so that it is looked at too." },
                         "No kernel was given: neither image nor command line were checked");
                return;
        }
        if (f->kernel_error < 0)
                luv_blocker(r, "kernel-invalid",
                            &(FindingSubject) { .remedy = "Give a bzImage for x86-64, or a unified kernel "
                                                          "image that "
                                                          "holds one." },
                            "The kernel image will not do: %s",
                            f->kernel_reason ? f->kernel_reason : strerror(-f->kernel_error));
        if (f->initrd_reason)
                luv_blocker(r, "initrd-invalid", NULL, "The initrd will not do: %s", f->initrd_reason);
}
