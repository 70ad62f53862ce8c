#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# scenario: the kernel's own VFIO and iommufd selftests that take minutes, without our patches and with them
# timeout: 14400
# full: yes
# alone: yes

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "lib"))
import selftests  # noqa: E402 pylint: disable=wrong-import-position
from selftests import IOMMU, SLOW, scenario  # noqa: E402 pylint: disable=wrong-import-position


def case(label, kernel):
    result = selftests.host(label, kernel, "sh:" + selftests.script(SLOW), deadline=2400)
    scenario.ok(result.ok, f"{label}: it gets to the end", result.why())
    # They have the device write to what is not mapped.
    splats = [line for line in result.splats() if "DMAR: " not in line]
    scenario.ok(not splats, f"{label}: the kernel complains of nothing else", "\n".join(splats[:20]))
    found = selftests.report(label, result, ["before"])
    scenario.ok(len(found) == len(SLOW), f"{label}: all {len(SLOW)} selftests ran", sorted(found))


# The file descriptor of the mock dma-buf that these ask for is not told them by the kernel, whatever is in this one.
DMABUF = r"iommufd_ioas\.\w+\.dmabuf_(simple|revoke)"


def iommufd(label, kernel, suites):
    """They have mock devices, and a kernel that checks itself; KASAN and lockdep look on. The KUnit tests of the page tables are
    a module: they want nobody else to have any, and so there is no IOMMU."""
    result = selftests.host(label, kernel, "-m", "6144", "--no-iommu", "--append", scenario.DEBUG_CMDLINE, "--boot-deadline", "900",
                            "sh:" + selftests.BEGIN + "echo 256 >/proc/sys/vm/nr_hugepages\n"
                            "grep -q debugfs /proc/mounts || mount -t debugfs debugfs /sys/kernel/debug\n" +
                            "modprobe iommu_pt_kunit_test\n" + selftests.single(IOMMU), deadline=5400)
    scenario.ok(result.ok, f"{label}: it gets to the end", result.why())
    scenario.ok(not result.splats(), f"{label}: the kernel complains of nothing", "\n".join(result.splats()[:20]))
    found = selftests.report(label, result, ["before"], DMABUF)
    scenario.ok(len(found) == len(IOMMU), f"{label}: both selftests ran", sorted(found))
    for suite in suites:
        counts = re.findall(rf"# {suite}_iommu_test: pass:(\d+) fail:(\d+)", result.serial())
        scenario.ok(len(counts) == 1 and int(counts[0][0]) > 0 and counts[0][1] == "0", f"{label}: KUnit: {suite}_iommu_test",
                    counts or result.serial()[-3000:])


case("unpatched", "base")
case("patched", "a")
for name, variant in (("iommufd-unpatched", "debug-base"), ("iommufd", "debug")):
    iommufd(name, variant, ["amdv1", "vtdss", "x86_64"])
scenario.done()
