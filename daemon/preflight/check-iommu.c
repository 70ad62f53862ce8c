/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "preflight/preflight.h"

void luv_check_iommu(const PreflightFacts *f, Findings *r)
{
        FindingSubject s = {
                .remedy = "Turn the IOMMU on in the firmware and on the kernel's command line."
        };
        size_t running = 0;

        if (f->simulated || f->n_devices == 0 || f->n_iommu_groups > 0)
                return;
        for (size_t i = 0; i < f->n_devices; i++)
                running += luv_fd_preserved_running(f->devices[i].preserved);
        if (running < f->n_devices) {
                luv_blocker(r, "iommu-off", &s,
                            "The IOMMU is off on this host: devices of machines could write anywhere during "
                            "the update");
                return;
        }
        /* VFIO's no-IOMMU mode: nothing is isolated, ever, and the update changes nothing of it. */
        if (f->may_noiommu) {
                luv_warning(r, "iommu-off", &s,
                            "The IOMMU is off on this host: devices of machines can write anywhere, which "
                            "is "
                            "for tests only");
                return;
        }
        s.remedy = "Turn the IOMMU on; for tests, give luvfiod CAP_SYS_RAWIO (CapabilityBoundingSet=).";
        luv_blocker(r, "iommu-off", &s,
                    "The IOMMU is off on this host: devices of machines can write anywhere, and luvfiod may "
                    "not retrieve them after the jump");
}
