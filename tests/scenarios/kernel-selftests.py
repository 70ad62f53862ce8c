#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# scenario: the kernel's own live update and VFIO selftests, without our patches and with them
# timeout: 14400

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))
from luvtest import scenario  # noqa: E402 pylint: disable=wrong-import-position

# One boot is enough for these. vfio_pci_driver_test copies for minutes under emulation.
SINGLE = [("liveupdate", "liveupdate", ""), ("vfio", "vfio_iommufd_setup_test", "$igb"),
          ("vfio", "vfio_pci_device_test", "$igb"), ("vfio", "vfio_dma_mapping_test", "$igb"),
          ("vfio", "vfio_pci_device_init_perf_test", "$igb $(bdf igb 2)")]
SLOW = [("vfio", "vfio_pci_driver_test", "$igb"), ("vfio", "vfio_dma_mapping_mmio_test", "$igb"),
        ("vfio", "vfio_pci_sriov_uapi_test", "$igb")]
# Stage 1 before the jump, stage 2 after it.
KEXEC = ["luo_kexec_simple", "luo_multi_session", "luo_stress_files", "luo_stress_sessions"]
# Ours, of the same form. The second is refused a jump before it agrees to one, and binds its devices itself afterwards.
OWN_KEXEC = ["luo_put_back"]
OWN_VFIO = "vfio_pci_liveupdate_test"
# This one, and what is no test. Those of running devices have scenarios of their own.
ELSEWHERE = {OWN_VFIO, "vfio_pci_running_test", "do_kexec.sh", "scripts", *OWN_KEXEC}

RUN = """
ulimit -n 65536
run() {
        name=$1
        shift
        echo "## begin $name"
        "$@"
        echo "## end $name $?"
}
"""


# What the debug kernel's allocator has lost by then.
LEAKS = scenario.LEAKS + "run kmemleak leaks\n"


def stage(number, tests):
    return "".join(f"run {t}-{number} /st/liveupdate/{t} -s {number}\n" for t in tests)


def vfio_stage(number):
    return (f"run {OWN_VFIO}-{number} env KERNEL=/boot/vmlinuz-b INITRAMFS=/boot/initrd /st/vfio/{OWN_VFIO} -s {number} "
            "$(bdf igb) $(bdf igb 2)\n")


def sections(text):
    """What each test printed and its exit code."""
    return {m[1]: (m[2], int(m[3])) for m in
            re.finditer(r"^## begin (\S+)\n(.*?)^## end \1 (\d+)$", text, re.MULTILINE | re.DOTALL)}


def report(label, result, stages):
    found = {}
    for s in stages:
        found.update({(s, k): v for k, v in sections(result.output(s)).items()})
    for (s, name), (text, rc) in found.items():
        title = f"{label}: {name}"
        if re.search(r"-[12]$", name):
            scenario.ok(rc == 0, f"{title} ({s})", text)
        elif rc == 4:
            scenario.skip(title, (text.strip().splitlines() or ["no reason given"])[-1])
        elif not scenario.subtests(title, text):
            scenario.ok(rc == 0, title, text)
        elif rc:
            scenario.ok(False, f"{title}: exit code {rc}", text)
    return found


def case(label, first, following):
    folder = scenario.kernel(first) / "selftests"
    debug = first == "debug"
    # KASAN makes minutes of seconds, and an hour of minutes.
    tests = SINGLE + (SLOW if scenario.FULL and not debug else [])
    ours = (folder / "vfio" / OWN_VFIO).exists()
    kexec = KEXEC + (OWN_KEXEC if ours else [])
    before = "igb=$(bdf igb)\nvfio-bind $igb $(bdf igb 2)\necho 16 >/proc/sys/vm/nr_hugepages\n"
    before += "".join(f"run {name} /st/{where}/{name} {arguments}\n" for where, name, arguments in tests)
    jump = "jump /boot/vmlinuz-{}\n"
    leaks = LEAKS if debug else ""
    scripts = [RUN + before + leaks + stage(1, kexec) + (vfio_stage(1) if ours else "") + jump.format("b"),
               RUN + stage(2, kexec) + (vfio_stage(2) if ours else "") + leaks + stage(1, kexec) + jump.format("a"),
               RUN + stage(2, kexec) + leaks]
    append = "hugepagesz=1G hugepages=1 kunit.enable=1 vfio_pci.enable_sriov=1"
    result = scenario.host(label, "--quiet", "--device", "igb", "--device", "igb", "-m", "6144" if debug else "4096",
                           "--append", append + (f" {scenario.DEBUG_CMDLINE}" if debug else ""),
                           "--script-deadline", "2400" if scenario.FULL else "300", "--boot-deadline", "600", "--jump-deadline", "600", "--file", f"{folder}:/st",
                           *["sh:" + s for s in scripts], first=first, following=following)
    scenario.ok(result.ok, f"{label}: three boots by two live updates", result.why())
    scenario.ok(not result.splats(), f"{label}: the kernels complain of nothing", "\n".join(result.splats()[:20]))
    found = report(label, result, ["before", "after", "boot3"])
    if ours:
        suites = [s for s in re.findall(r"# (\w+): pass:(\d+) fail:(\d+)", result.serial()) if s[0] != "Totals"]
        scenario.ok({"luo_file", "kho_record", "pci_liveupdate"} <= {n for n, _, _ in suites} and all(int(p) > 0 and int(f) == 0 for _, p, f in suites),
                    f"{label}: KUnit: {', '.join(sorted({n for n, _, _ in suites}))}", suites)
    known = {name for _, name, _ in SINGLE + SLOW} | set(KEXEC) | ELSEWHERE
    built = {p.name for p in folder.glob("*/*")}
    scenario.ok(built <= known, f"{label}: there is no selftest that nobody runs", sorted(built - known))
    wanted = len(tests) + 4 * len(kexec) + (2 if ours else 0) + (3 if debug else 0)
    scenario.ok(len(found) == wanted, f"{label}: all {wanted} selftests ran", sorted(found))


case("unpatched", "base", "base")
case("patched", "a", "b")
if scenario.FULL:
    case("debug", "debug", "debug")
scenario.done()
