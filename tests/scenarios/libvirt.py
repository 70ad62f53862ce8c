#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# scenario: domains of libvirt with a passed-through NVMe and igb go on in another kernel
# timeout: 3600
# full: yes

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "lib"))
import full  # noqa: E402 pylint: disable=wrong-import-position
import guest  # noqa: E402 pylint: disable=wrong-import-position
import running  # noqa: E402 pylint: disable=wrong-import-position
from full import scenario  # noqa: E402 pylint: disable=wrong-import-position

UPDATES = 5 if scenario.FULL else 1
# As in qemu.py, but libvirt takes minutes.
FRAMES = running.frames(period=1, burst=1)
GAP = 20000

COMMON = guest.SHELL + r"""
has_memory() {
        [ "$(machine_field $1 memoryBytes)" -gt 0 ]
}
# look NAME: what its QEMU is at.
look() {
        for i in 1 2; do
                virsh qemu-monitor-command $1 --hmp 'info status'
                virsh qemu-monitor-command $1 --hmp 'info registers -a' | grep -E 'CPU#|RIP|HLT'
                grep vfio /proc/interrupts
                sleep 3
        done
        tail -n 5 $logs/$1.log /var/log/libvirt/qemu/$1.log
        dmesg | tail -n 20
}
leave() {
        for vm in disk net; do cp $logs/$vm.log /out/$vm.log; cp /var/log/libvirt/qemu/$vm.log /out/$vm.qemu; done
        journalctl -b --no-pager -o short-monotonic >/out/journal.$LUV_STAGE
}
trap leave EXIT
"""

BEFORE = COMMON + r"""
# In each new kernel libvirt looks first what QEMU can do.
resume_deadline 300
luvfiod_up
vfio-bind $(bdf nvme) $(bdf igb)
mkdir -p $logs
systemctl enable --quiet --now apparmor virtlogd.socket libvirtd.socket luvfio-libvirt.service
""" + guest.domain("disk", device="$(bdf nvme)", smp=2, disk="nvme0n1", net="eth0", more=guest.nic("tap0", "vhost")) + guest.domain("net", device="$(bdf igb)", net="eth0") + r"""
for vm in disk net; do
        must "$vm starts" virsh start $vm
done
for vm in disk net; do
        check "$vm is confined by AppArmor" sh -c "grep -q 'libvirt.*(enforce)' /proc/$(cat /run/libvirt/qemu/$vm.pid)/attr/current"
done
must "disk runs fio" begins disk '^DISK nvme0n1'
must "net hears frames" begins net '^NET eth0 received=[1-9]'
for vm in disk net; do
        check "luvfiod does not know $vm, which has not asked for it" sh -c "! luvfioctl machines | grep -q $vm"
        check "$vm is to take part" virsh metadata $vm --uri https://luvfio.org/xmlns/libvirt/domain/1.0 --key luvfio \
                --set '<live-update/>' --config --live
        virsh dumpxml --inactive $vm >/var/log/$vm.xml
        virsh domuuid $vm >/var/log/$vm.uuid
done
for vm in disk net; do
        must "luvfiod knows $vm, and has its memory" wait_for 90 has_memory $vm
done
# A while after libvirt was asked anything it looks what QEMU can do.
wait_for 60 luvfioctl check
luvfioctl check /boot/vmlinuz-b >/tmp/check
echo "# check: $?"
sed 's/^/# /' /tmp/check
luvfioctl machines | sed 's/^/# /'
settled disk net
check "a dry run" luvfioctl update /boot/vmlinuz-b --dry-run
for vm in disk net; do
        check "$vm goes on" wait_for 60 goes_on $vm $(beats $vm)
done
check "frames to disk's other NIC" frames tap0
uname -r >/var/log/before
mark 1
virt-host-upgrade --deadline=30 /boot/vmlinuz-b
echo "# virt-host-upgrade ended with $?"
explain
journalctl -b -u libvirtd -u 'luvfio-libvirt*' --no-pager -o short-monotonic | tail -n 60 | sed 's/^/# /'
"""

AFTER = COMMON + r"""
check "another kernel runs" sh -c '[ $(uname -r) != $(cat /var/log/before) ]'
for vm in disk net; do
        check "$vm runs" wait_for 300 machine_is $vm running
done
check "the update is over" wait_for 300 update_is idle
check "libvirt forgets how they came" wait_for 120 forgotten disk net
for vm in disk net; do
        check "$vm: jumps" test "$(machine_field $vm generation)" -eq $((LUV_BOOT - 1))
        check "$vm: libvirt has it running" test "$(virsh domstate $vm)" = running
        check "$vm: the same domain" test "$(virsh domuuid $vm)" = "$(cat /var/log/$vm.uuid)"
        virsh dumpxml --inactive $vm >/tmp/$vm.xml
        check "$vm: its XML is as it was" diff /var/log/$vm.xml /tmp/$vm.xml
        check "$vm: no saved image is left" test ! -e /var/lib/libvirt/qemu/save/$vm.save
done
for vm in disk net; do
        check "$vm is confined by AppArmor" sh -c "grep -q 'libvirt.*(enforce)' /proc/$(cat /run/libvirt/qemu/$vm.pid)/attr/current"
done
check "AppArmor denied nothing" sh -c '! dmesg | grep "apparmor=.DENIED"'
for vm in disk net; do
        check "$vm goes on" wait_for 60 goes_on $vm $(beats $vm)
        [ -z "$failed_now" ] || look $vm | sed 's/^/# /'
done
check "frames to disk's other NIC" frames tap0
check "result: done" sh -c 'luvfioctl history --json=short | jq -e ".updates[0].result == \"done\""'
virsh list --all | sed 's/^/# /'
luvfioctl analyze | sed 's/^/# /'
# Twice as long as a driver takes to give a lost interrupt up.
sleep 60
mark 2
luvfioctl check >/tmp/check
sed 's/^/# /' /tmp/check
"""

AGAIN = AFTER + r"""
uname -r >/var/log/before
case $(uname -r) in *-a) next=b ;; *) next=a ;; esac
virt-host-upgrade --deadline=30 /boot/vmlinuz-$next
echo "# virt-host-upgrade ended with $?"
explain
journalctl -b -u libvirtd -u 'luvfio-libvirt*' --no-pager -o short-monotonic | tail -n 60 | sed 's/^/# /'
"""

result = full.run("libvirt", "--image", "virt", "--append", "lsm=apparmor", "--device", "nvme", "--device", "igb", "-m", "3072", *guest.host(),
                  "--outside", FRAMES, "--script-deadline", "1000", scripts=[BEFORE] + [AGAIN] * (UPDATES - 1) + [AFTER])
full.report(result, ["before", "after"] + [f"boot{i + 1}" for i in range(2, UPDATES + 1)])
guest.judge(result, GAP, UPDATES + 1)
resets = full.resets(full.between(result.trace(), 1, 2) or ["the marks are missing (resettable_"])
scenario.ok(not resets, "no device was reset", "\n".join(resets[:20]))
scenario.done()
