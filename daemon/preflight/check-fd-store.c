/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <inttypes.h>

#include "preflight/preflight.h"

void luv_check_fd_store(const PreflightFacts *f, Findings *r)
{
        if (f->simulated)
                return;
        if (!f->store_available) {
                luv_blocker(r, "fd-store-missing",
                            &(FindingSubject) { .remedy = "Run luvfiod as luvfiod.service, with "
                                                          "FileDescriptorStoreMax= and "
                                                          "FileDescriptorStorePreserve=yes." },
                            "The service manager keeps no file descriptors for luvfiod: a crash of it would "
                            "lose "
                            "all sessions");
                return;
        }
        if (f->store_max > 0 && f->store_needed > f->store_max)
                luv_blocker(r, "fd-store-small",
                            &(FindingSubject) {
                                            .remedy = "Raise FileDescriptorStoreMax= of luvfiod.service." },
                            "%" PRIu64
                            " sessions have to be kept in the service manager's fd store, which takes "
                            "%" PRIu64,
                            f->store_needed, f->store_max);
}
