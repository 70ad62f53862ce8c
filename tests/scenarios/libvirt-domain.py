#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# scenario: what an administrator has of a domain and of the host is the same in the next kernel: console, snapshots, events, hooks
# timeout: 1800
# full: yes

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "lib"))
import full  # noqa: E402 pylint: disable=wrong-import-position
import guest  # noqa: E402 pylint: disable=wrong-import-position
from full import scenario  # noqa: E402 pylint: disable=wrong-import-position

# As in libvirt.py.
GAP = 20000
# Snapshots of a running domain are kept in its disk.
DISK = """<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/var/lib/libvirt/images/one.qcow2'/>
<target dev='vda' bus='virtio'/></disk>"""
MANAGED = guest.domain("managed", device="$(bdf igb)", memory=64).replace("managed='no'", "managed='yes'")

COMMON = guest.SHELL + r"""
takes_part() {
        virsh metadata $1 --uri https://luvfio.org/xmlns/libvirt/domain/1.0 --key luvfio --set '<live-update/>' --live $2
}
has_memory() {
        [ "$(machine_field $1 memoryBytes)" -gt 0 ]
}
# console NAME: virsh's, on a terminal, has what the guest says.
console() {
        python3 - $1 <<'END'
import os, select, sys, time
pid, fd = os.forkpty()
if not pid:
    os.execvp("virsh", ["virsh", "console", sys.argv[1]])
said, end = b"", time.monotonic() + 60
while b"\nHB " not in said and time.monotonic() < end:
    if select.select([fd], [], [], 1)[0]:
        said += os.read(fd, 4096)
os.write(fd, b"\x1d")
print(said.decode(errors="replace"))
sys.exit(b"\nHB " not in said)
END
}
# throttled NAME IOPS: by what libvirt says and by what QEMU does.
throttled() {
        virsh blkdeviotune $1 vda | grep "total_iops_sec *: $2$" && virsh qemu-monitor-command $1 --hmp 'info block' | grep "iops=$2 "
}
leave() {
        for vm in one managed; do cp /var/log/libvirt/qemu/$vm.log /out/$vm.qemu; done
        journalctl -b --no-pager -o short-monotonic >/out/journal.$LUV_STAGE
}
trap leave EXIT
"""

BEFORE = COMMON + r"""
# In each new kernel libvirt looks first what QEMU can do.
resume_deadline 300
luvfiod_up
mkdir -p $logs /var/lib/libvirt/images /etc/luvfio/host-upgrade.d
qemu-img create -q -f qcow2 /var/lib/libvirt/images/one.qcow2 64M
# It would shut each guest down with the host, for which it would wait longer than this test.
printf 'ON_SHUTDOWN=shutdown\nSHUTDOWN_TIMEOUT=1200\n' >/etc/default/libvirt-guests
systemctl enable --quiet --now apparmor virtlogd.socket libvirtd.socket luvfio-libvirt.service libvirt-guests luvfio-host-upgrade
cat >/etc/luvfio/host-upgrade.d/10-note <<'END'
#!/bin/sh
read -r line
echo "$1" >>/var/log/states
[ ! -e /run/refuses-$1 ]
END
chmod 755 /etc/luvfio/host-upgrade.d/10-note
""" + guest.domain("one", disk="vda", memory=128, more=DISK) + r"""
check "it is started with the host" virsh autostart one
must "it starts" virsh start one
must "it runs fio" begins one '^DISK vda'
check "it is to take part" takes_part one --config
check "it is throttled" virsh blkdeviotune one vda --total-iops-sec 500 --live --config
virsh dumpxml --inactive one >/var/log/one.xml
must "luvfiod has its memory" wait_for 180 has_memory one
must "nothing blocks an update" wait_for 60 luvfioctl check /boot/vmlinuz-b

# A device that libvirt would give back to its driver when the old QEMU ends.
""" + MANAGED + r"""
must "a domain with a managed device starts" virsh start managed
check "it is to take part" takes_part managed
check "its agent has looked at it" wait_for 180 sh -c 'luvfioctl check /boot/vmlinuz-b | grep "is managed"'
refused "no update with it" 3 "device $(bdf igb) is managed by libvirt" virt-host-upgrade --check /boot/vmlinuz-b
check "it is ended" virsh destroy managed
check "luvfiod does not know it any more" wait_for 60 sh -c '! luvfioctl machines | grep managed'
must "nothing blocks an update" wait_for 60 luvfioctl check /boot/vmlinuz-b

rm /var/log/states
for state in check begin; do
        touch /run/refuses-$state
        refused "the administrator's script refuses at $state" '[34]' "10-note refuses at $state" virt-host-upgrade /boot/vmlinuz-b
        rm /run/refuses-$state
        check "and nothing is under way" wait_for 60 update_is idle
done
check "it was called at each state" test "$(tr '\n' ' ' </var/log/states)" = "check check staged begin aborted "
rm /var/log/states
must "nothing blocks an update" wait_for 60 luvfioctl check /boot/vmlinuz-b
uname -r >/var/log/before
virt-host-upgrade --deadline=30 /boot/vmlinuz-b
echo "# virt-host-upgrade ended with $?"
explain
"""

AFTER = COMMON + r"""
check "another kernel runs" sh -c '[ $(uname -r) != $(cat /var/log/before) ]'
check "it runs" wait_for 300 machine_is one running
check "the update is over" wait_for 60 update_is idle
check "it goes on" wait_for 60 goes_on one $(beats one)
check "libvirt forgets how it came" wait_for 120 forgotten one
check "it runs on" wait_for 60 machine_is one running
check "jumps" test "$(machine_field one generation)" -eq 1
check "libvirt has it running" sh -c "virsh list | grep -w 'one *running'"
virsh dumpxml --inactive one >/tmp/one.xml
check "its XML is as it was" diff /var/log/one.xml /tmp/one.xml
check "it is to be started with the host" sh -c "virsh dominfo one | grep 'Autostart: *enable'"
check "libvirt-guests is active" systemctl is-active libvirt-guests
check "the administrator's script was called at each state" wait_for 60 sh -c '[ "$(tr "\n" " " </var/log/states)" = "check staged begin done " ]'
check "its console" console one
check "it is throttled" throttled one 500
check "it is to be otherwise" virsh blkdeviotune one vda --total-iops-sec 400 --live
check "and is" throttled one 400
virsh event one --event lifecycle --loop --timeout 60 >/tmp/events &
events=$!
sleep 3
check "it stands" virsh suspend one
check "it goes on again" virsh resume one
wait $events
for event in Suspended Resumed; do
        check "libvirt tells of it: $event" grep "$event" /tmp/events
done
check "AppArmor denied nothing" sh -c '! dmesg | grep "apparmor=.DENIED"'
# Longer than the time after which a driver gives a lost interrupt up.
sleep 35
cp $logs/one.log /out/

# From here on it goes back, too.
check "a snapshot of its state" virsh snapshot-create-as one state
check "libvirt has it" sh -c "virsh snapshot-list one | grep -w 'state.*running'"
sleep 10
last=$(beats one)
check "back to it" virsh snapshot-revert one state
check "it is back, and goes on" wait_for 60 sh -c "[ \$(grep '^HB ' $logs/one.log | tail -n 2 | head -n 1 | cut -d' ' -f2) -lt $last ]"
check "it goes on" wait_for 60 goes_on one $last
check "it is saved" virsh save one /var/lib/libvirt/images/one.save
check "luvfiod does not know it any more" wait_for 60 sh -c '! luvfioctl machines | grep one'
last=$(beats one)
check "and comes back" virsh restore /var/lib/libvirt/images/one.save
check "it goes on" wait_for 60 goes_on one $last
check "luvfiod has its memory" wait_for 180 has_memory one
check "nothing blocks an update" wait_for 60 luvfioctl check /boot/vmlinuz-a
check "AppArmor denied nothing" sh -c '! dmesg | grep "apparmor=.DENIED"'
"""

result = full.run("domain", "--image", "virt", "--append", "lsm=apparmor", "--device", "igb", "-m", "2048", *guest.host(),
                  "--script-deadline", "900", scripts=[BEFORE, AFTER])
full.report(result, ["before", "after"])
log = guest.read(result, "one")
print(f"# {log.summary()}")
guest.report("the guest", log, GAP, log.disk("vda", after=10, latency=GAP))
scenario.done()
