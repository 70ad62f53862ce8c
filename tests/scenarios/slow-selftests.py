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


# Of the page tables' KUnit tests, a module, what the series adds. The others are not made for more than one processor: they see
# pages lost where two have counted them.
KUNIT = "test_[fv]i*"  # test_find_run, test_find_run_large, test_visit_tables


def kunit(suites):
    # What a processor has counted is not to be summed up in the middle of them, as it is also done before it sleeps (nohz=off).
    return "echo 3600 >/proc/sys/vm/stat_interval\nsleep 3\nglob=/sys/module/kunit/parameters/filter_glob\n" + "".join(
        f"printf %s '{s}_iommu_test.{KUNIT}' >$glob\nmodprobe iommu_pt_kunit_test\nrmmod iommu_pt_kunit_test\n" for s in suites)


def iommufd(label, kernel, suites):
    """They have mock devices, and a kernel that checks itself; KASAN and lockdep look on. The KUnit tests count the page tables of
    all IOMMUs: let there be none."""
    result = selftests.host(label, kernel, "-m", "6144", "--no-iommu", "--append", scenario.DEBUG_CMDLINE + " nohz=off",
                            "--boot-deadline", "1200", "sh:" + selftests.BEGIN + "echo 256 >/proc/sys/vm/nr_hugepages\n"
                            "grep -q debugfs /proc/mounts || mount -t debugfs debugfs /sys/kernel/debug\n" +
                            kunit(suites) + selftests.single(IOMMU), deadline=5400)
    scenario.ok(result.ok, f"{label}: it gets to the end", result.why())
    scenario.ok(not result.splats(), f"{label}: the kernel complains of nothing", "\n".join(result.splats()[:20]))
    found = selftests.report(label, result, ["before"], DMABUF)
    scenario.ok(len(found) == len(IOMMU), f"{label}: both selftests ran", sorted(found))
    for suite in suites:
        counts = re.findall(rf"# {suite}_iommu_test: pass:(\d+) fail:(\d+)", result.serial())
        scenario.ok(counts == [("3", "0")], f"{label}: KUnit: {suite}_iommu_test",
                    counts or result.serial()[-3000:])


case("unpatched", "base")
case("patched", "a")
iommufd("iommufd-unpatched", "debug-base", [])
iommufd("iommufd", "debug", ["amdv1", "vtdss", "x86_64"])
scenario.done()
