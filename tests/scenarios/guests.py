#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# scenario: eight guests at once in unmodified QEMU, with 1, 2 and 4 vCPUs and devices that use MSI-X and INTx
# timeout: 5400
# full: yes

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "lib"))
import eight  # noqa: E402 pylint: disable=wrong-import-position
import full  # noqa: E402 pylint: disable=wrong-import-position
import guest  # noqa: E402 pylint: disable=wrong-import-position
from full import scenario  # noqa: E402 pylint: disable=wrong-import-position


def nic(tap):
    """One by vhost, and one not."""
    return ["-netdev", f"tap,id=nic,ifname={tap},script=no,downscript=no,vhost={'on' if tap == 'tap0' else 'off'}",
            "-device", "virtio-net-pci,netdev=nic"] if tap else []


COMMON = eight.SHELL + r"""
leave() {
        cp $logs/*.log $logs/*.reset /out/
        journalctl -b -u 'luvfio-qemu@*' -u luvfiod --no-pager -o short-monotonic >/out/journal.$LUV_STAGE
}
trap leave EXIT
"""

# Devices that QEMU would reset in the next kernel.
RESET = ("ahci", "e1000e")

BEFORE = (COMMON + r"""
resume_deadline 300
luvfiod_up
vfio-bind @ADDRESSES@ @RESET@
""" + guest.unit("reset", devices=[eight.address(d) for d in RESET], memory=64) + r"""
must "luvfiod knows one with devices that QEMU would reset" wait_for 120 run_on 1
luvfioctl check /boot/vmlinuz-b >/tmp/check
for device in @RESET@; do
        check "check names $device" grep -q "would reset device $device" /tmp/check
done
refused "no update with it" '[1-9][0-9]*' 'would reset device' luvfioctl update /boot/vmlinuz-b
systemctl disable --quiet --now luvfio-qemu@reset
@START@
interrupts
must "luvfiod knows all" wait_for 60 run_on 8
luvfioctl check /boot/vmlinuz-b >/tmp/check
echo "# check: $?"
sed 's/^/# /' /tmp/check
settled $all
other_nics
uname -r >/var/log/before
mark 1
luvfioctl update /boot/vmlinuz-b --deadline=120
echo "# luvfioctl update ended with $?"
explain
""").replace("@ADDRESSES@", eight.ADDRESSES).replace("@RESET@", " ".join(map(eight.address, RESET))).replace(
    # One after another: eight that start at once take as long, and say nothing meanwhile.
    "@START@", "".join(guest.unit(
        name, *nic(tap), devices=[eight.address(device)], smp=smp, append=f"{eight.CALM} {append}", **eight.uses(device, tap)) +
        eight.begins(name, device) for name, (device, _, smp, append, tap) in eight.GUESTS.items()))

AFTER = COMMON + r"""
check "another kernel runs" sh -c '[ $(uname -r) != $(cat /var/log/before) ]'
for vm in $all; do
        check "$vm runs" wait_for 600 machine_is $vm running
        check "$vm: jumps" test "$(machine_field $vm generation)" -eq $((LUV_BOOT - 1))
        check "$vm: its unit is active" systemctl is-active luvfio-qemu@$vm
done
check "the update is over" wait_for 600 update_is idle
interrupts
for vm in $all; do
        check "$vm goes on" wait_for 120 goes_on $vm $(beats $vm)
done
other_nics
check "result: done" sh -c 'luvfioctl history --json=short | jq -e ".updates[0].result == \"done\""'
luvfioctl analyze | sed 's/^/# /'
# Twice as long as a driver takes to give a lost interrupt up.
sleep 60
mark 2
"""

result = eight.run("guests", *[w for device in RESET for w in ("--device", f"{device}@root")], scripts=[BEFORE, AFTER])
full.report(result, ["before", "after"])
eight.judge(result)
scenario.done()
