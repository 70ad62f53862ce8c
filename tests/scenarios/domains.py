#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# scenario: eight domains of an unmodified libvirt at once, with 1, 2 and 4 vCPUs and devices that use MSI-X and INTx
# timeout: 5400
# full: yes

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "lib"))
import eight  # noqa: E402 pylint: disable=wrong-import-position
import full  # noqa: E402 pylint: disable=wrong-import-position
import guest  # noqa: E402 pylint: disable=wrong-import-position
from full import scenario  # noqa: E402 pylint: disable=wrong-import-position

COMMON = eight.SHELL + r"""
leave() {
        for vm in $all; do cp $logs/$vm.log /out/$vm.log; cp /var/log/libvirt/qemu/$vm.log /out/$vm.qemu; done
        journalctl -b --no-pager -o short-monotonic >/out/journal.$LUV_STAGE
}
trap leave EXIT
# has_memory NAME: luvfiod has.
has_memory() {
        [ "$(machine_field $1 memoryBytes)" -gt 0 ]
}
"""

BEFORE = COMMON + r"""
# In each new kernel libvirt looks first what QEMU can do.
resume_deadline 600
luvfiod_up
vfio-bind @ADDRESSES@
mkdir -p $logs
systemctl enable --quiet --now apparmor virtlogd.socket libvirtd.socket luvfio-libvirt.service
@START@
interrupts
for vm in $all; do
        must "luvfiod knows $vm, and has its memory" wait_for 200 has_memory $vm
done
# A while after libvirt was asked anything it looks what QEMU can do.
wait_for 60 luvfioctl check
virt-host-upgrade --check /boot/vmlinuz-b >/tmp/check
echo "# check: $?"
sed 's/^/# /' /tmp/check
settled $all
other_nics
uname -r >/var/log/before
mark 1
virt-host-upgrade --deadline=120 /boot/vmlinuz-b
echo "# virt-host-upgrade ended with $?"
explain
""".replace("@ADDRESSES@", eight.ADDRESSES).replace("@START@", "".join(guest.domain(
    name, device=eight.address(device), smp=smp, append=f"{eight.CALM} {append}", **eight.uses(device, tap),
    more=guest.nic(tap, "vhost" if tap == "tap0" else "qemu") if tap else "") + f"""
must "{name} starts" virsh start {name}
{eight.begins(name, device)}
check "{name} is to take part" virsh metadata {name} --uri https://luvfio.org/xmlns/libvirt/domain/1.0 --key luvfio --set '<live-update/>' --config --live
""" for name, (device, _, smp, append, tap) in eight.GUESTS.items()))

AFTER = COMMON + r"""
check "another kernel runs" sh -c '[ $(uname -r) != $(cat /var/log/before) ]'
for vm in $all; do
        check "$vm runs" wait_for 900 machine_is $vm running
done
check "the update is over" wait_for 600 update_is idle
check "libvirt forgets how they came" wait_for 300 forgotten $all
for vm in $all; do
        check "$vm: jumps" test "$(machine_field $vm generation)" -eq $((LUV_BOOT - 1))
        check "$vm: libvirt has it running" test "$(virsh domstate $vm)" = running
done
check "AppArmor denied nothing" sh -c '! dmesg | grep "apparmor=.DENIED"'
interrupts
for vm in $all; do
        check "$vm goes on" wait_for 120 goes_on $vm $(beats $vm)
done
other_nics
check "result: done" sh -c 'luvfioctl history --json=short | jq -e ".updates[0].result == \"done\""'
virsh list --all | sed 's/^/# /'
luvfioctl analyze | sed 's/^/# /'
# Twice as long as a driver takes to give a lost interrupt up.
sleep 60
mark 2
"""

result = eight.run("domains", "--append", "lsm=apparmor", scripts=[BEFORE, AFTER])
full.report(result, ["before", "after"])
eight.judge(result)
scenario.done()
