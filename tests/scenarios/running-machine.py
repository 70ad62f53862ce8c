#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# scenario: a machine whose igb never stops receiving, by luvfioctl update; one that never comes back has its igb made safe
# timeout: 600

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "lib"))
import full  # noqa: E402 pylint: disable=wrong-import-position
import running  # noqa: E402 pylint: disable=wrong-import-position
from full import scenario  # noqa: E402 pylint: disable=wrong-import-position

# Seconds between two frames, and how long none may come: QEMU itself pauses now and then.
PERIOD = 1
PAUSE = 3

COMMON = r"""
device() {
        luvfioctl devices --json=short | jq -e --arg d "$1" ".devices[] | select(.address == \$d) | $2"
}
config_word() {
        od -An -tx2 "-j$2" -N2 "/sys/bus/pci/devices/$1/config" | tr -d ' '
}
igb=$(bdf igb 1) other=$(bdf igb 2)
echo "path $(readlink -f /sys/bus/pci/devices/$igb)"
"""

BEFORE = COMMON + r"""
resume_deadline 10
luvfiod_up
vfio-bind $igb $other
must "machine with an igb" vmm runs --igb $igb
must "machine that will not come back" vmm lost --igb $other
refused "luvfiod may not have devices without an IOMMU" 3 'may not retrieve them' luvfioctl check /boot/vmlinuz-b
echo CapabilityBoundingSet=CAP_SYS_RAWIO >>/etc/systemd/system/luvfiod.service.d/deadline.conf
systemctl daemon-reload
systemctl restart luvfiod
must "now it may" wait_for 20 luvfioctl check /boot/vmlinuz-b
for vm in runs lost; do
        check "$vm is told that its igb will run on" grep -q "outcome of .*: running" /var/log/rogue-$vm.log
        sed -n 's/.*igb \(.*\) has its ring at/ring \1/p' /var/log/rogue-$vm.log
done
luvfioctl check /boot/vmlinuz-b >/tmp/check
sed 's/^/# /' /tmp/check
for d in $igb $other; do
        check "$d: promise" device $d '.promise == "latched"'
        check "$d: what is preserved" device $d '.preserved == ["owner", "state", "dma", "interrupts"]'
        check "$d: what is not" device $d '.notPreserved == ["iommu", "sriov"]'
        check "$d: no live update yet" device $d '.kernelState == "none" and .blockedBy == null'
        check "check says what is preserved of $d" grep -q "$d.*preserves: owner, state, dma, interrupts; not: iommu" /tmp/check
done
check "check finds no reset" sh -c '! grep "will be reset" /tmp/check'
check "check warns of the IOMMU" grep -q 'for tests only' /tmp/check
check "Describe" sh -c 'luvfioctl status | grep "vfio running"'
luvfioctl devices | sed 's/^/# /'
sleep 3
orders lost silent-resume
luvfioctl update /boot/vmlinuz-b --deadline=30
echo "# luvfioctl update ended with $?"
explain
"""

AFTER = COMMON + r"""
check "runs is finished" wait_for 60 grep -q "^runs: finished" /var/log/rogue-runs.log
check "its igb ran on" test "$(said runs 'outcome of .*: running')" -eq 2
check "all frames have come" grep "^runs: igb ran on" /var/log/rogue-runs.log
grep "^runs: igb ran on" /var/log/rogue-runs.log
check "nothing failed" sh -c '! grep FAILED /var/log/rogue-runs.log'
check "its igb is finished" wait_for 10 device $igb '.kernelState == "finished" and .blockedBy == null and .driver == "vfio-pci"'
check "and will run on again" device $igb '.preserved == ["owner", "state", "dma", "interrupts"]'
check "the update is over" wait_for 60 update_is idle

check "lost is stranded" machine_is lost stranded
luvfioctl devices | sed 's/^/# /'
check "its igb waits for it" device $other '.kernelState == "incoming" and .blockedBy == "session" and .driver == "vfio-pci"'
check "and runs on" sh -c "[ \$((0x$(config_word $other 4) & 4)) -ne 0 ]"
orders lost hold-after-retrieve
systemctl restart rogue@lost
check "lost comes late, and takes its igb over" wait_for 20 grep -q '^lost: retrieved, holds' /var/log/rogue-lost.log
systemctl disable --now rogue@lost 2>/dev/null
check "it ends, and is stranded again" wait_for 20 machine_is lost stranded
check "its igb waits and runs on, all the same" sh -c "[ \$((0x$(config_word $other 4) & 4)) -ne 0 ]"
mark 20
sleep 4
check "lost is given up" luvfioctl discard lost
mark 21
check "its igb cannot do DMA" sh -c "[ \$((0x$(config_word $other 4) & 4)) -eq 0 ]"
check "it has no driver" test ! -e /sys/bus/pci/devices/$other/driver
check "it is a device like any other" grep -qx finished /sys/bus/pci/devices/$other/liveupdate/state
check "nothing blocks it" sh -c "! grep . /sys/bus/pci/devices/$other/liveupdate/blocked_by"
check "its plugin has made it safe" sh -c '! journalctl -b -u luvfiod --no-pager -q | grep "could not be made safe"'
sleep 4
mark 22
dmesg | grep -F liveupdate: | sed 's/^/# /'
explain | sed 's/^/# /'
vfio-bind $other
luvfioctl update /boot/vmlinuz-a --deadline=30
echo "# luvfioctl update ended with $?"
"""

LAST = COMMON + r"""
check "runs is finished again" wait_for 60 sh -c "[ \$(grep -c '^runs: finished' /var/log/rogue-runs.log) -eq 2 ]"
check "its igb ran on again" test "$(said runs 'igb ran on')" -eq 2
check "nothing failed" sh -c '! grep FAILED /var/log/rogue-runs.log'
grep "^runs: igb ran on" /var/log/rogue-runs.log
check "result: done" wait_for 20 sh -c 'luvfioctl history --json=short | jq -e ".updates[0].result == \"done\""'
"""


def ring(text, which):
    """A pattern for the trace: the igb reads one of the descriptors of its ring, to fill what it points to."""
    rings = re.findall(r"^ring \S+ (0x[0-9a-f]+)", text, re.MULTILINE)
    return rf"e1000e_rx_descr .*({rings[which]}|{rings[which][:-3]}[0-9a-f]{{3}})\b" if len(rings) > which else "no ring"


result = full.run("running-machine", "--no-iommu", "--append", "vfio.enable_unsafe_noiommu_mode=1", "--device", "igb", "--device",
                  "igb", "--trace", "pci_cfg_write", "--trace", "e1000e_rx_descr", "--outside",
                  running.frames(period=PERIOD, burst=1), "--script-deadline", "300", scripts=[BEFORE, AFTER, LAST])
full.report(result, ["before", "after", "boot3"])
before, trace = result.output("before"), result.trace()
path = (re.search(r"^path (\S+)", before, re.MULTILINE) or ["", "none"])[1]
found = running.writes(trace, path, 10)
scenario.ok(path.count("/") > 4 and not found, "nothing is written to the igb, nor to the root port above it, from the jump until its VMM does",
            path + "\n" + "\n".join(found))
frames, pause = running.longest_pause(trace, ring(before, 0), 10)
scenario.ok(frames >= 2 and pause < PAUSE, f"{frames} frames in the blackout, {pause:.1f} s without one at most")
lines = [running.between(trace, *marks) or [] for marks in ((20, 21), (21, 22))]
heard = [sum(bool(re.search(ring(before, 1), line)) for line in part) for part in lines]
scenario.ok(heard[0] > 0 and heard[1] == 0, "the other igb goes on until its machine is given up, and not a frame longer", heard)
scenario.done()
