#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# scenario: a VMM that does not come back, a device that was swapped, changed, moved, or is gone: stranded and reported, the others go on
# timeout: 600

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "lib"))
import full  # noqa: E402 pylint: disable=wrong-import-position
from full import scenario  # noqa: E402 pylint: disable=wrong-import-position

LIB = Path(__file__).resolve().parent / "lib"
MAC, OTHER = "mac=52:54:00:6c:76:02", "mac=52:54:00:6c:76:03"
# Each device is behind a root port of its own: rp0, rp1... And one more port, with nothing in it.
DEVICES = ["igb", "nvme", "nvme", f"e1000e,{MAC}", f"e1000e,{OTHER}", "pcie-root-port,chassis=50,slot=50"]
CHANGES = ["rp1:nvme0=virtio-rng-pci", "rp2:nvme1", f"rp3:e1000e0=e1000e,{MAC},subsys=4660",
           f"rp4:e1000e1=e1000e,netdev=net-e1000e1,{OTHER}@pcie-root-port0"]

BEFORE = r"""
resume_deadline 10
luvfiod_up
igb=$(bdf igb) nvme=$(bdf nvme 1) gone=$(bdf nvme 2) e1000e=$(bdf e1000e) moved=$(bdf e1000e 2)
vfio-bind $igb $nvme $gone $e1000e $moved
must "machine that will be late" vmm late --device $igb
must "machine whose device will be another" vmm swapped --device $nvme
must "machine whose device will be gone" vmm taken --device $gone
must "machine whose device will have changed" vmm changed --device $e1000e
must "machine whose device will be elsewhere" vmm moved --device $moved
must "machine without a device" vmm good
must "another that will never come back" vmm lost
orders late silent-resume
orders lost silent-resume
luvfioctl update /boot/vmlinuz-b --deadline=20
echo "# luvfioctl update ended with $?"
explain
"""

AFTER = r"""
check "good is finished" wait_for 40 grep -q "^good: finished" /var/log/rogue-good.log
check "the update is over" wait_for 40 update_is idle
check "good runs" machine_is good running
# stranded NAME REASON
stranded() {
        check "$1 is stranded" machine_is $1 stranded
        machine_field $1 reason >/tmp/reason
        sed "s/^/# $1: /" /tmp/reason
        check "$1: the reason is the right one" grep -E "$2" /tmp/reason
}
stranded late 'its VMM did not come back and resume within 10 seconds'
stranded lost 'its VMM did not come back and resume within 10 seconds'
stranded swapped 'there is another device now: 1af4:1044 .*, it was 1b36:0010 '
stranded changed 'there is another device now: 8086:10d3 subsystem 8086:1234 .*, it was 8086:10d3 subsystem 8086:0000 '
stranded taken 'it is not there any more'
stranded moved 'it is not there any more'
check "where the moved device is now it is like any other" grep -qx none /sys/bus/pci/devices/$(bdf e1000e 2)/liveupdate/state
for vm in swapped taken changed moved; do
        device=$(sed 's/.*--device //' /etc/rogue/$vm.env)
        check "the $vm device is named" sh -c "luvfioctl machines --json=short | jq -re '.machines[] | select(.name == \"$vm\") | .reason' | grep -F $device"
        refused "$vm: a VMM may not have it" 1 'FAILED|tranded' sh -c "systemctl restart rogue@$vm; sleep 2; tail -n 3 /var/log/rogue-$vm.log; exit 1"
        check "$vm is still stranded" machine_is $vm stranded
done
for vm in swapped changed; do
        device=$(sed 's/.*--device //' /etc/rogue/$vm.env)
        check "the kernel blocks the $vm device, and luvfioctl shows it" sh -c "luvfioctl devices | grep '$device.*incoming, blocked by identity'"
        check "it cannot do DMA" sh -c "[ \$((0x\$(od -An -tx2 -j4 -N2 /sys/bus/pci/devices/$device/config | tr -d ' ') & 4)) -eq 0 ]"
done
check "result: stranded" sh -c 'luvfioctl history --json=short | jq -e ".updates[0].result == \"stranded\""'
check "status says so" sh -c 'luvfioctl status | grep -i stranded'
refused "no update over stranded machines" 3 'stranded' luvfioctl update /boot/vmlinuz-a

# One comes back late.
mark 21
orders late
systemctl restart rogue@late
check "late is finished" wait_for 20 grep -q "^late: finished" /var/log/rogue-late.log
check "late runs" wait_for 10 machine_is late running
mark 22
check "late: RAM is identical" test "$(said late 'ram identical')" -eq 1

# The others are given up.
systemctl disable --now rogue@lost rogue@swapped rogue@taken rogue@changed rogue@moved 2>/dev/null
before=$(awk '/^MemAvailable/ { print $2 }' /proc/meminfo)
for vm in lost swapped taken changed moved; do
        check "$vm is given up" luvfioctl discard $vm
done
refused "discard of a machine that is not stranded" 1 'good' luvfioctl discard good
check "all are gone" sh -c '! luvfioctl machines | grep -E "lost|swapped|taken|changed|moved"'
sleep 1
after=$(awk '/^MemAvailable/ { print $2 }' /proc/meminfo)
check "their memory is free again ($before kB, then $after kB)" test $after -gt $((before + 30000))
check "ready for the next update" wait_for 20 luvfioctl check /boot/vmlinuz-a
luvfioctl update /boot/vmlinuz-a --deadline=20
echo "# luvfioctl update ended with $?"
explain
"""

LAST = r"""
for vm in good late; do
        check "$vm runs after a second update" wait_for 40 sh -c "[ \$(grep -c '^$vm: finished' /var/log/rogue-$vm.log) -eq 2 ]"
        check "$vm: RAM is identical" test "$(said $vm 'ram identical')" -eq 2
done
check "result: done" wait_for 20 sh -c 'luvfioctl history --json=short | jq -e ".updates[0].result == \"done\""'
"""

outside = Path(os.environ.get("LUV_RUN") or ".") / "outside.sh"
outside.write_text(f"#!/bin/sh\nexec {LIB}/swap-device {' '.join(CHANGES)}\n")
outside.chmod(0o755)
result = full.run("strand", *[x for d in DEVICES for x in ("--device", d)], "--script-deadline", "240",
                  # The root ports' own hotplug, not ACPI's, is what the script outside works.
                  "--qemu=-global", "--qemu=ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off",
                  "--outside", outside, scripts=[BEFORE, AFTER, LAST])
full.report(result, ["before", "after", "boot3"])
said = (result.out / "outside.out").read_text(errors="replace") if (result.out / "outside.out").exists() else ""
# From when late is told to resume, and so before it is stranded, until its VMM is started again.
stranded = full.between(result.trace(), 20, 21)
if scenario.ok(stranded is not None, "both marks are in the trace"):
    found = [line for line in stranded if "pci_cfg_write igb" in line] + full.resets(stranded)
    scenario.ok(not found, f"nothing is written to the stranded device, nor is it reset ({len(stranded)} lines of trace)",
                "\n".join(found[:10]))
scenario.ok(full.resets(full.between(result.trace(), 21, 22) or []), "its return did reset it, and the trace shows it")
scenario.ok("swapped" in said, "devices were swapped, taken out of their slots or moved while the kernel was replaced", said)
faults = [line for line in result.trace() if "vtd_dmar_fault" in line]
scenario.ok(not faults, "no device did DMA where it may not", "\n".join(faults[:10]))
scenario.done()
