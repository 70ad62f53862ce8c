/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "preflight/preflight.h"

void luv_check_luo(const PreflightFacts *f, Findings *r)
{
        switch (f->luo) {
        case 0:
                break;
        case -ENOENT:
                luv_blocker(r, "luo-missing",
                            &(FindingSubject) {
                                            .remedy = "Boot a kernel with CONFIG_LIVEUPDATE and with kho=on "
                                                      "liveupdate=on on its command line." },
                            "The running kernel offers no /dev/liveupdate");
                break;
        case -EBUSY:
                luv_blocker(r, "luo-busy",
                            &(FindingSubject) { .remedy = "Find the holder with \"fuser /dev/liveupdate\" "
                                                          "and stop "
                                                          "it; only one process can have it open." },
                            "/dev/liveupdate is held open by another process");
                break;
        case -EIO:
                luv_blocker(r, "luo-damaged",
                            &(FindingSubject) { .remedy = "Reboot cold; this kernel will refuse live "
                                                          "updates until "
                                                          "then." },
                            "What the last kernel preserved could not be read by this one: /dev/liveupdate "
                            "answers EIO");
                break;
        default:
                luv_blocker(r, "luo-unusable", NULL, "/dev/liveupdate cannot be used: %s",
                            strerror(-f->luo));
        }
}
