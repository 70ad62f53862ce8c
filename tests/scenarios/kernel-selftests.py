#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# scenario: the kernel's own live update and VFIO selftests, without our patches and with them
# timeout: 14400

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "lib"))
import selftests  # noqa: E402 pylint: disable=wrong-import-position
from selftests import IOMMU, SINGLE, SLOW, scenario  # noqa: E402 pylint: disable=wrong-import-position

# Stage 1 before the jump, stage 2 after it.
KEXEC = ["luo_kexec_simple", "luo_multi_session", "luo_stress_files", "luo_stress_sessions"]
# Ours, of the same form. The second is refused a jump before it agrees to one, and binds its devices itself afterwards.
OWN_KEXEC = ["luo_put_back"]
OWN_VFIO = "vfio_pci_liveupdate_test"
# This one, and what is no test. Those of running devices have scenarios of their own.
ELSEWHERE = {OWN_VFIO, "vfio_pci_running_test", "vfio_pci_iommufd_test", "vfio_pci_latch_test", "do_kexec.sh", "scripts", *OWN_KEXEC}

# What the debug kernel's allocator has lost by then.
LEAKS = scenario.LEAKS + "run kmemleak leaks\n"


def stage(number, tests):
    return "".join(f"run {t}-{number} /st/liveupdate/{t} -s {number}\n" for t in tests)


def vfio_stage(number):
    return (f"run {OWN_VFIO}-{number} env KERNEL=/boot/vmlinuz-b INITRAMFS=/boot/initrd /st/vfio/{OWN_VFIO} -s {number} "
            "$(bdf igb) $(bdf igb 2)\n")


def case(label, first, following):
    folder = scenario.kernel(first) / "selftests"
    debug = first == "debug"
    ours = (folder / "vfio" / OWN_VFIO).exists()
    kexec = KEXEC + (OWN_KEXEC if ours else [])
    jump = "jump /boot/vmlinuz-{}\n"
    leaks = LEAKS if debug else ""
    scripts = [selftests.script(SINGLE) + leaks + stage(1, kexec) + (vfio_stage(1) if ours else "") + jump.format("b"),
               selftests.BEGIN + stage(2, kexec) + (vfio_stage(2) if ours else "") + leaks + stage(1, kexec) + jump.format("a"),
               selftests.BEGIN + stage(2, kexec) + leaks]
    more = ["-m", "6144", "--append", scenario.DEBUG_CMDLINE] if debug else []
    result = selftests.host(label, first, *more, "--boot-deadline", "600", "--jump-deadline", "600", *["sh:" + s for s in scripts],
                            # KASAN makes minutes of seconds.
                            deadline=2400 if debug else 300, following=following)
    scenario.ok(result.ok, f"{label}: three boots by two live updates", result.why())
    scenario.ok(not result.splats(), f"{label}: the kernels complain of nothing", "\n".join(result.splats()[:20]))
    found = selftests.report(label, result, ["before", "after", "boot3"])
    if ours:
        suites = [s for s in re.findall(r"# (\w+): pass:(\d+) fail:(\d+)", result.serial()) if s[0] != "Totals"]
        scenario.ok({"luo_file", "kho_record", "pci_liveupdate", "iommu_liveupdate", "vtd_liveupdate"} <= {n for n, _, _ in suites} and
                    all(int(p) > 0 and int(f) == 0 for _, p, f in suites),
                    f"{label}: KUnit: {', '.join(sorted({n for n, _, _ in suites}))}", suites)
    known = {name for _, name, _ in SINGLE + SLOW + IOMMU} | set(KEXEC) | ELSEWHERE
    built = {p.name for p in folder.glob("*/*")}
    scenario.ok(built <= known, f"{label}: there is no selftest that nobody runs", sorted(built - known))
    wanted = len(SINGLE) + 4 * len(kexec) + (2 if ours else 0) + (3 if debug else 0)
    scenario.ok(len(found) == wanted, f"{label}: all {wanted} selftests ran", sorted(found))


case("unpatched", "base", "base")
case("patched", "a", "b")
if scenario.FULL:
    case("debug", "debug", "debug")
scenario.done()
