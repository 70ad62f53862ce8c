# SPDX-License-Identifier: LGPL-2.1-or-later
"""For scenarios that run the kernel's selftests in the tiny image."""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "lib"))
from luvtest import scenario  # noqa: E402 pylint: disable=wrong-import-position

# Folder, name, and arguments; $igb is bound to vfio-pci.
SINGLE = [("liveupdate", "liveupdate", ""), ("vfio", "vfio_iommufd_setup_test", "$igb"),
          ("vfio", "vfio_pci_device_test", "$igb"), ("vfio", "vfio_dma_mapping_test", "$igb"),
          ("vfio", "vfio_pci_device_init_perf_test", "$igb $(bdf igb 2)")]
# These take minutes under emulation, and give up after 30 s if something else runs beside them.
SLOW = [("vfio", "vfio_pci_driver_test", "$igb"), ("vfio", "vfio_dma_mapping_mmio_test", "$igb"),
        ("vfio", "vfio_pci_sriov_uapi_test", "$igb")]
# Of iommufd, in kernels with what these need to look inside; the other kernels do not have that.
IOMMU = [("iommu", "iommufd", ""), ("iommu", "iommufd_fail_nth", "")]

BEGIN = """
ulimit -n 65536
run() {
        name=$1
        shift
        echo "## begin $name"
        "$@"
        echo "## end $name $?"
}
"""


def single(tests):
    return "".join(f"run {name} /st/{where}/{name} {arguments}\n" for where, name, arguments in tests)


def script(tests):
    """Runs tests that need one boot only. So many huge pages that not all of them are in KHO's scratch memory, where none can be pinned."""
    return BEGIN + "igb=$(bdf igb)\nvfio-bind $igb $(bdf igb 2)\necho 512 >/proc/sys/vm/nr_hugepages\n" + single(tests)


# KHO's scratch memory is twice what is reserved when it is made, a huge page of 1 GiB among it, in one piece: with less memory
# there is none where KASLR has put the kernel into the middle.
def host(label, first, *arguments, deadline, **kernels):
    return scenario.host(label, "--quiet", "-m", "8192", "--device", "igb", "--device", "igb", "--append",
                         "hugepagesz=1G hugepages=1 kunit.enable=1 vfio_pci.enable_sriov=1", "--script-deadline", str(deadline),
                         "--file", f"{scenario.kernel(first) / 'selftests'}:/st", *arguments, first=first, **kernels)


def sections(text):
    """What each test printed and its exit code."""
    return {m[1]: (m[2], int(m[3])) for m in
            re.finditer(r"^## begin (\S+)\n(.*?)^## end \1 (\d+)$", text, re.MULTILINE | re.DOTALL)}


def report(label, result, stages, broken="(?!)"):
    found = {}
    for s in stages:
        found.update({(s, k): v for k, v in sections(result.output(s)).items()})
    for (s, name), (text, rc) in found.items():
        title = f"{label}: {name}"
        if re.search(r"-[12]$", name):
            scenario.ok(rc == 0, f"{title} ({s})", text)
        elif rc == 4:
            scenario.skip(title, (text.strip().splitlines() or ["no reason given"])[-1])
        elif not scenario.subtests(title, text, broken):
            scenario.ok(rc == 0, title, text)
        elif rc and not re.search(rf"^not ok \d+ {broken}$", text, re.MULTILINE):
            scenario.ok(False, f"{title}: exit code {rc}", text)
    return found
