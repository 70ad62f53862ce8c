#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# scenario: a device that was swapped, moved, changed or taken out during the jump is refused, and it does no DMA
# timeout: 3600

import re
import sys
from pathlib import Path

LIB = Path(__file__).resolve().parent / "lib"
sys.path.insert(0, str(LIB))
import running  # noqa: E402 pylint: disable=wrong-import-position
from running import scenario  # noqa: E402 pylint: disable=wrong-import-position

# Each behind a root port of its own: rp0, rp1... And one more port, with nothing in it.
DEVICES = ["igb", "nvme", "nvme", "e1000e,mac=52:54:00:6c:76:01@root-port", "igb", "e1000e,mac=52:54:00:6c:76:02@root-port", "igb"]
EMPTY = "pcie-root-port,chassis=50,slot=50"
# What happens to them at the jump, and what the kernel is to say of each that is not gone.
CHANGES = {
    "swapped": ("rp1:nvme0=virtio-rng-pci", r"\[1af4:1044\].* is not the device that was preserved: \[1b36:0010\]"),
    "gone": ("rp2:nvme1", None),
    "another one of its kind": ("rp3:e1000e0=e1000e,mac=52:54:00:6c:77:01",
                                r"\[8086:10d3\].* serial (\S+) is not the device .*: \[8086:10d3\].* serial (?!\1)\S+"),
    "moved": ("rp4:igb1=igb,netdev=net-igb1,mac=52:54:00:6c:75:01@pcie-root-port0", None),
    "changed": ("rp5:e1000e1=e1000e,mac=52:54:00:6c:76:02,subsys=4660",
                r"subsystem \[8086:1234\] class (\S+) revision (\S+) serial (\S+) is not the device .*"
                r" subsystem \[8086:0000\] class \1 revision \2 serial \3"),
    # These have no serial numbers. But it can be seen that it does not run.
    "alike": ("rp6:igb2=igb,netdev=net-igb2,mac=52:54:00:6c:77:02", "its BARs are not as they were"),
}

BEFORE = """
set -e
cd /st/vfio
devices="$(bdf igb 1) $(bdf nvme 1) $(bdf nvme 2) $(bdf 8086:10d3 1) $(bdf igb 2) $(bdf 8086:10d3 2) $(bdf igb 3)"
vfio-bind $devices
for d in $devices; do ./vfio_pci_running_test -s 1 $d & done
wait
ls -d /sys/bus/pci/devices/*
exec jump -a "where=$(echo $devices | tr ' ' ,)" /boot/vmlinuz-b
"""

AFTER = """
dmesg | grep -F liveupdate:
set -- $(sed 's/.*where=\\([^ ]*\\).*/\\1/; s/,/ /g' /proc/cmdline)
good=$1
shift
cd /st/vfio
for d; do
        at=/sys/bus/pci/devices/$d
        echo "## $d"
        if [ -e $at ]; then
                echo "blocked by $(cat $at/liveupdate/blocked_by)"
                echo "command $(od -An -tx2 -j4 -N2 $at/config)"
        else
                echo "nothing there"
        fi
        if [ -e $at ]; then
                vfio-bind $d
                dmesg | tail -n 1
        fi
        ./vfio_pci_running_test -s 2 $d
        dmesg | tail -n 4
        [ -e $at ] && echo "command $(od -An -tx2 -j4 -N2 $at/config)"
done
echo "## moved to"
for d in /sys/bus/pci/devices/*; do
        if [ "$(cat $d/device)" = 0x10c9 ] && [ "$(cat $d/liveupdate/state)" = none ]; then
                vfio-bind ${d##*/} && echo "${d##*/} is like any other"
        fi
done
echo "## $good"
./vfio_pci_running_test -s 2 $good
"""


def dma(text):
    """Whether it could do DMA before or after somebody wanted to have it."""
    commands = re.findall(r"^command\s+(\w{4})$", text, re.MULTILINE)
    return len(commands) != 2 or any(int(c, 16) & 4 for c in commands)


def changes(label, **kernels):
    def ok(condition, what, detail):
        return scenario.ok(condition, f"{label}: {what}", detail)

    outside = running.OUT / "outside.sh"
    arguments = " ".join(f"'{what}'" for what, _ in CHANGES.values())
    outside.write_text(f"#!/bin/sh\n{running.frames()} & p=$!\ntrap 'kill $p' TERM\n"
                       f"{LIB}/swap-device {arguments} || {{ kill $p; exit 1; }}\nwait\n")
    outside.chmod(0o755)
    devices = [x for d in DEVICES + [EMPTY] for x in ("--device", d)]
    r = running.host(label, *devices, "--qemu=-global", "--qemu=ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off",
                     "--trace", "none", "--outside", outside, "sh:" + BEFORE, "sh:" + AFTER, **kernels)
    after = r.output("after")
    ok(r.ok, "six devices change during the jump, another one does not", r.why())
    ok(not r.splats(), "the kernels complain of nothing", "\n".join(r.splats()[:20]))
    sections = re.findall(r"^## (\S.*)\n((?:(?!## ).*\n)*)", after, re.MULTILINE)
    if not ok(len(sections) == len(DEVICES) + 1, "all were looked at", after):
        return
    for (name, (_, message)), (bdf, text) in zip(CHANGES.items(), sections):
        if message:
            ok(re.search(rf"{bdf}: liveupdate: .*{message}", after) and "blocked by identity" in text,
               f"{name}: it is recognised", after)
            ok(not dma(text), f"{name}: it cannot do DMA", text)
            ok("it is not the device that was preserved" in text and "was not bound" in text,
               f"{name}: no driver binds to it", text)
            ok("Stale file handle" in text and "PASSED" not in text, f"{name}: it is not given out", text)
        else:
            ok("nothing there" in text, f"{name}: it is not where it was", text)
            ok("No such device" in text and "PASSED" not in text, f"{name}: it is not given out", text)
    ok("is like any other" in sections[-2][1], "where it was moved to it is a device like any other", after)
    ok("none is missing" in sections[-1][1] and "TEST PASSED" in sections[-1][1], "that one does not notice",
       sections[-1][1])


# What is on a root bus cannot be taken out. But the record of what it was can be changed: once so that it is of another
# revision, and in the second jump so that it is damaged.
RECORD_BEFORE = """
set -e
cd /st/vfio
vfio-bind $(bdf edu) $(bdf nvme) $(bdf virtio-rng)
for d in $(bdf edu) $(bdf nvme) $(bdf virtio-rng); do ./vfio_pci_running_test -s 1 $d; done
exec jump /boot/vmlinuz-b
"""

RECORD_AFTER = """
cd /st/vfio
edu=$(bdf edu) rng=$(bdf virtio-rng)
dmesg | grep -F liveupdate:
echo "blocked by $(cat /sys/bus/pci/devices/$edu/liveupdate/blocked_by)"
echo "command $(od -An -tx2 -j4 -N2 /sys/bus/pci/devices/$edu/config)"
vfio-bind $edu
./vfio_pci_running_test -s 2 $edu
echo "command $(od -An -tx2 -j4 -N2 /sys/bus/pci/devices/$edu/config)"
echo "## damaged"
./vfio_pci_running_test -s 2 $rng
ABANDON=1 ./vfio_pci_running_test -s 2 $rng
echo "finish failed with $?"
grep . /sys/bus/pci/devices/$rng/liveupdate/*
echo "command $(od -An -tx2 -j4 -N2 /sys/bus/pci/devices/$rng/config)"
dmesg | tail
echo "## good"
./vfio_pci_running_test -s 2 $(bdf nvme)
./vfio_pci_running_test -s 1 $(bdf nvme)
exec jump /boot/vmlinuz-a
"""


def record():
    r = running.host("record", "--device", "edu", "--device", "nvme",
                     "--device", f"virtio-rng,max-bytes=64,period={running.PERIOD * 1000}", "--trace", "none", "--outside", LIB / "edit-record",
                     "sh:" + RECORD_BEFORE, "sh:" + RECORD_AFTER, "sh:true")
    after = r.output("after")
    revision, _, rest = after.partition("## damaged\n")
    damaged, _, good = rest.partition("## good\n")
    scenario.ok(re.search(r"revision 10 serial \S+ is not the device that was preserved: .* revision 11 ", revision) and
                "blocked by identity" in revision, "a device on the root bus is not of the revision that it was: recognised", after)
    scenario.ok(not dma(revision), "it cannot do DMA", revision)
    scenario.ok("was not bound" in revision and "Stale file handle" in revision, "it is neither bound nor given out", revision)
    scenario.ok("Bad message" in damaged and "PASSED" not in damaged, "a device of which the record is damaged is not given out", damaged)
    scenario.ok(re.search(r"finish failed with [1-9]", damaged) and "liveupdate/state:incoming" in damaged,
                "its session cannot be finished, so that its memory stays what it is", damaged)
    scenario.ok(good.count("TEST PASSED") == 1, "another one does not notice", good)
    scenario.ok(r.json.get("verdict") == "panic" and
                re.search(r"Kernel panic - not syncing: PCI: liveupdate: cannot read which devices were preserved", r.serial()),
                "if the record of all devices is damaged, the kernel panics", r.why())


changes("changed")
if scenario.FULL:
    changes("debug", first="debug", following="debug")
record()
scenario.done()
