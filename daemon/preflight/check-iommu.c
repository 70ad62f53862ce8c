/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "preflight/preflight.h"

void luv_check_iommu(const PreflightFacts *f, Findings *r)
{
        if (f->simulated || f->n_devices == 0 || f->n_iommu_groups > 0)
                return;
        luv_blocker(r, "iommu-off",
                    &(FindingSubject) { .remedy = "Turn the IOMMU on in the firmware and on the kernel's "
                                                  "command "
                                                  "line." },
                    "The IOMMU is off on this host: devices of machines could write anywhere during the "
                    "update");
}
