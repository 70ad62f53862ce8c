#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# scenario: unmodified QEMU whose luvfio-qemu is killed, whose new QEMU fails at first or for ever: guests go on, or are stranded until it is mended
# timeout: 3600
# full: yes

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "lib"))
import full  # noqa: E402 pylint: disable=wrong-import-position
import guest  # noqa: E402 pylint: disable=wrong-import-position
import running  # noqa: E402 pylint: disable=wrong-import-position
from full import scenario  # noqa: E402 pylint: disable=wrong-import-position

FRAMES = running.frames(period=0.5, burst=2)
# How long a guest's own clock may go on while it is being handed over and its vCPUs stand: ms, on slow machines.
GAP = 28000
# QEMU, but for what stands in the way of machine NAME: a file that makes it fail at the first start in a boot, or at each.
WRAPPER = """#!/bin/sh
name=${0##*/}
if [ -e /etc/fails.$name ] || { [ -e /etc/fails-once.$name ] && [ ! -e /run/failed.$name ]; }; then
        : >/run/failed.$name
        echo "$name fails" >&2
        exit 1
fi
exec qemu-system-x86_64 "$@"
"""

COMMON = guest.SHELL + r"""
agent() {
        systemctl show -P MainPID luvfio-qemu@$1
}
another_agent() {
        [ "$(agent $1)" -ne 0 ] && [ "$(agent $1)" -ne $2 ]
}
qemu_of() {
        head -n 1 /run/luvfio-qemu/$1/qemu | cut -d' ' -f1
}
stored() {
        [ "$(systemctl show -P NFileDescriptorStore luvfio-qemu@$1)" -eq $2 ]
}
is_well() {
        machine_is $1 running && [ "$(machine_field $1 attached)" = true ]
}
all_well() {
        for vm in disk net; do
                check "$1: $vm runs" wait_for 200 is_well $vm
                check "$1: $vm goes on" wait_for 60 goes_on $vm $(beats $vm)
                check "$1: nothing is kept of $vm" wait_for 10 stored $vm 0
        done
        check "$1: no session is left" test "$(systemctl show -P NFileDescriptorStore luvfiod)" -eq 0
}
leave() {
        cp $logs/*.log $logs/*.reset /out/
        journalctl -b -u 'luvfio-qemu@*' -u luvfiod --no-pager -o short-monotonic >/out/journal.$LUV_STAGE
}
trap leave EXIT
"""


def unit(name, **parameters):
    return guest.unit(name, **parameters).replace("\nqemu-system-x86_64\n", f"\n/usr/lib/wrapped/{name}\n", 1)


BEFORE = COMMON + r"""
resume_deadline 40
mkdir -p /etc/systemd/system/luvfio-qemu@.service.d
cat >/etc/systemd/system/luvfio-qemu@.service.d/dies.conf <<'END'
[Service]
Environment=LD_PRELOAD=/usr/lib/rogue/dies.so DIES=/run/dies.%i
END
systemctl daemon-reload
luvfiod_up
vfio-bind $(bdf nvme) $(bdf igb)
mkdir -p /usr/lib/wrapped
for vm in disk net; do
        cat >/usr/lib/wrapped/$vm <<'END'
""" + WRAPPER + r"""END
        chmod 755 /usr/lib/wrapped/$vm
done
""" + unit("disk", devices=["$(bdf nvme)"], smp=2, disk="nvme0n1") + unit("net", devices=["$(bdf igb)"], net="eth0") + r"""
must "disk runs fio" begins disk '^DISK nvme0n1'
must "net hears frames" begins net '^NET eth0 received=[1-9]'
must "a machine that can hold an update up" vmm slow
must "nothing blocks an update" wait_for 20 luvfioctl check /boot/vmlinuz-b

# luvfio-qemu is killed while nothing is under way.
for vm in disk net; do
        old=$(agent $vm) qemu=$(qemu_of $vm)
        kill -KILL $old
        check "killed: $vm has another luvfio-qemu" wait_for 20 another_agent $vm $old
        check "killed: $vm has the same QEMU" test "$(qemu_of $vm)" -eq $qemu
done
all_well killed
check "killed: nothing blocks an update" wait_for 20 luvfioctl check /boot/vmlinuz-b

# It is killed while it captures its guest: before QEMU stops, when QEMU is about to send its state, does so, and has done so.
for at in begun channel splice document; do
        for vm in disk net; do
                printf %s $at >/run/dies.$vm
                old=$(agent $vm)
                refused "killed at $at: $vm" 4 "machine $vm closed its connection" luvfioctl update /boot/vmlinuz-b --deadline=60
                check "killed at $at: $vm has another luvfio-qemu" wait_for 30 another_agent $vm $old
                all_well "killed at $at"
        done
done

# The update is given up when the guests are captured.
orders slow silent-quiesce
old=$(qemu_of disk)
refused "an update that is given up" 4 slow luvfioctl update /boot/vmlinuz-b --deadline=10
all_well "given up"
check "given up: disk has another QEMU" test "$(qemu_of disk)" -ne $old

# luvfio-qemu is killed when its guest is captured: systemd has kept what it had.
old=$(agent disk)
luvfioctl update /boot/vmlinuz-b --deadline=60 >/tmp/update 2>&1 &
check "captured" wait_for 90 machine_is disk quiesced
check "systemd keeps the guest" test "$(systemctl show -P NFileDescriptorStore luvfio-qemu@disk)" -gt 5
kill -KILL $old
wait $!
sed 's/^/# /' /tmp/update
check "captured: the update is over" wait_for 20 update_is idle
all_well captured
check "captured: disk has another luvfio-qemu" another_agent disk $old

# So is QEMU: all of the guest is here already.
old=$(qemu_of disk)
luvfioctl update /boot/vmlinuz-b --deadline=20 >/tmp/update 2>&1 &
check "captured again" wait_for 90 machine_is disk quiesced
kill -KILL $old
wait $!
sed 's/^/# /' /tmp/update
all_well "QEMU killed"
check "QEMU killed: disk has another one" test "$(qemu_of disk)" -ne $old
orders slow
check "nothing blocks an update" wait_for 60 luvfioctl check /boot/vmlinuz-b

for vm in disk net; do beats $vm >/var/log/beats.$vm; done
touch /etc/fails-once.disk /etc/fails.net
mark 1
luvfioctl update /boot/vmlinuz-b --deadline=60
echo "# luvfioctl update ended with $?"
explain
"""

AFTER = COMMON + r"""
check "disk runs" wait_for 120 machine_is disk running
check "disk goes on" wait_for 20 goes_on disk $(($(cat /var/log/beats.disk) + 10))
check "its QEMU had failed at first" test -e /run/failed.disk
check "the update is over" wait_for 90 update_is idle
check "net is stranded" wait_for 60 machine_is net stranded
machine_field net reason | sed 's/^/# net: /'
check "result: stranded" sh -c 'luvfioctl history --json=short | jq -e ".updates[0].result == \"stranded\""'
# Its luvfio-qemu tries again and again.
refused "no update over a stranded machine" 3 'Machine net is (stranded|resuming)' luvfioctl update /boot/vmlinuz-a
before=$(beats net)
sleep 5
check "net stands" test "$(beats net)" -eq $before
check "nobody tries it any more" systemctl stop luvfio-qemu@net
check "luvfiod is killed" kill_luvfiod
check "net is stranded still" wait_for 120 machine_is net stranded
check "disk goes on under another luvfiod" wait_for 60 is_well disk
mark 2
rm /etc/fails.net
# luvfio-qemu is killed when the guest runs, before it has said so: another takes it up.
printf resumed >/run/dies.net
systemctl start luvfio-qemu@net
check "net runs" wait_for 200 is_well net
check "its luvfio-qemu was killed" test ! -e /run/dies.net
mark 3
all_well mended
check "mended: the update is over" wait_for 20 update_is idle
for vm in disk net; do
        check "$vm: jumps" test "$(machine_field $vm generation)" -eq 1
done
check "nothing blocks the next update" wait_for 120 luvfioctl check /boot/vmlinuz-a
# Longer than the time after which a driver gives a lost interrupt up.
sleep 35
mark 4
"""

result = full.run("qemu-faults", "--image", "virt", "--device", "nvme", "--device", "igb", "-m", "3072", *guest.host(),
                  "--outside", FRAMES, "--script-deadline", "1200", scripts=[BEFORE, AFTER])
full.report(result, ["before", "after"])
for name in ("disk", "net"):
    log = guest.read(result, name)
    print(f"# {name}: {log.summary()}")
    use = log.disk("nvme0n1", after=10, latency=GAP) if name == "disk" else log.net("eth0", after=30, frames=20, missing=10**6)
    for what, bad in (("lives", log.life(beats=50, gap=GAP, period=guest.BEAT)), ("has nothing to complain about", log.said()),
                      ("has the use of its device", use)):
        scenario.ok(not bad, f"guest {name} {what}", "\n".join(bad[:20]))
trace = result.trace()
found = full.resets(full.between(trace, 1, 2) or ["the marks are missing (resettable_"])
scenario.ok(not found, "no device was reset, whatever was tried with it", "\n".join(found[:20]))
found = full.resets(full.between(trace, 2, 4) or ["the marks are missing (resettable_"])
scenario.ok(not found, "nor when its machine comes back", "\n".join(found[:20]))
scenario.done()
