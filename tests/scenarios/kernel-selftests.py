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
          ("vfio", "vfio_pci_device_test", "$igb"), ("vfio", "vfio_dma_mapping_test", "$igb")]
SLOW = [("vfio", "vfio_pci_driver_test", "$igb"), ("vfio", "vfio_dma_mapping_mmio_test", "$igb"),
        ("vfio", "vfio_pci_sriov_uapi_test", "$igb")]
# Stage 1 before the jump, stage 2 after it.
KEXEC = ["luo_kexec_simple", "luo_multi_session", "luo_stress_files", "luo_stress_sessions"]

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


def stage(number):
    return "".join(f"run {t}-{number} /st/liveupdate/{t} -s {number}\n" for t in KEXEC)


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
        elif not scenario.subtests(title, text):
            scenario.ok(rc in (0, 4), title, text)
        elif rc not in (0, 4):
            scenario.ok(False, f"{title}: exit code {rc}", text)
    return found


def case(label, first, following):
    folder = scenario.kernel(first) / "selftests"
    debug = first == "debug"
    # KASAN makes minutes of seconds, and an hour of minutes.
    tests = SINGLE + (SLOW if scenario.FULL and not debug else [])
    tests = [t for t in tests if (folder / t[0] / t[1]).exists()]
    # Ours stand beside the kernel's, and follow the same form.
    known = {t[1] for t in SINGLE + SLOW} | set(KEXEC) | {"vfio_pci_device_init_perf_test"}
    own = [(d.name, p.name, "$igb") for d in sorted(folder.iterdir()) if d.is_dir() for p in sorted(d.iterdir())
           if p.is_file() and p.stat().st_mode & 0o100 and p.suffix == "" and p.name not in known
           and not p.name.startswith("luo_") and not p.name.startswith("vfio_pci_liveupdate_kexec")]
    before = "igb=$(bdf igb)\nvfio-bind $igb\necho 16 >/proc/sys/vm/nr_hugepages\n"
    before += "".join(f"run {name} /st/{where}/{name} {arguments}\n" for where, name, arguments in tests + own)
    jump = "jump /boot/vmlinuz-{}\n"
    leaks = LEAKS if debug else ""
    scripts = [RUN + before + leaks + stage(1) + jump.format("b"),
               RUN + stage(2) + leaks + stage(1) + jump.format("a"),
               RUN + stage(2) + leaks]
    result = scenario.host(label, "--quiet", "--device", "igb", "-m", "6144" if debug else "4096", "--append",
                           "hugepagesz=1G hugepages=1" + (f" {scenario.SCRATCH}" if debug else ""), "--script-deadline",
                           "2400" if scenario.FULL else "300",
                           "--boot-deadline", "600", "--jump-deadline", "600", "--file", f"{folder}:/st",
                           *["sh:" + s for s in scripts], first=first, following=following)
    scenario.ok(result.ok, f"{label}: three boots by two live updates", result.why())
    scenario.ok(not result.splats(), f"{label}: the kernels complain of nothing", "\n".join(result.splats()[:20]))
    found = report(label, result, ["before", "after", "boot3"])
    wanted = len(tests) + len(own) + 4 * len(KEXEC) + (3 if debug else 0)
    scenario.ok(len(found) == wanted, f"{label}: all {wanted} selftests ran", sorted(found))


case("unpatched", "base", "base")
case("patched", "a", "b")
if scenario.FULL:
    case("debug", "debug", "debug")
scenario.done()
