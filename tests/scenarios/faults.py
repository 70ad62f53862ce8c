#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# scenario: a host that is not as it should be: each fault is named, machines run on, the next update works
# timeout: 700

import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "lib"))
import full  # noqa: E402 pylint: disable=wrong-import-position
from full import scenario  # noqa: E402 pylint: disable=wrong-import-position

BEFORE = r"""
luvfiod_up
igb=$(bdf igb) nvme=$(bdf nvme)
vfio-bind $igb $nvme
must "machine with an igb" vmm vm1 --device $igb

# A machine of an ordinary user: root may take up any. Its VMM has to wait for luvfiod, which opens the socket to it.
mkdir -p /etc/systemd/system/rogue@vm2.service.d
printf '[Unit]\nAfter=luvfiod.service\n[Service]\nUser=daemon\nGroup=luvfio\n' >/etc/systemd/system/rogue@vm2.service.d/user.conf
systemctl daemon-reload
must "machine of another user" vmm vm2
must "nothing blocks an update" luvfioctl check /boot/vmlinuz-b

still() {
        if all_run vm1 vm2; then ok "$1: the machines run on"; else explain | sed 's/^/# /'; not_ok "$1: the machines run on"; fi
        check "$1: no image is loaded" wait_for 10 grep -qx 0 /sys/kernel/kexec_loaded
        check "$1: ready again" wait_for 20 luvfioctl check /boot/vmlinuz-b
}

# drop_in TEXT: luvfiod with it, and without if it is empty.
drop_in() {
        mkdir -p /run/systemd/system/luvfiod.service.d
        printf '[Service]\n%s\n' "$1" >/run/systemd/system/luvfiod.service.d/fault.conf
        systemctl daemon-reload
        systemctl restart luvfiod
        wait_for 20 all_run vm1 vm2
}

# A second unit of the same user.
check "a second unit of the same uid cannot claim a machine" \
        systemd-run --quiet --wait --pipe -p User=daemon -p Group=luvfio --unit=thief /usr/lib/rogue/rogue-vmm --claim vm2
still "claim"

# Somebody who holds a device or a KVM machine, and never registered.
for held in $nvme kvm; do
        kind=VFIO
        [ $held = kvm ] && kind=KVM
        systemd-run --quiet --unit=holder-$kind /usr/lib/rogue/rogue-vmm --hold $held
        check "holder of $held" wait_for 10 sh -c "journalctl -b -u holder-$kind | grep -q 'holds $held'"
        refused "an unregistered holder of $kind is found" 3 "rogue-vmm.*$kind|$kind.*rogue-vmm" luvfioctl update /boot/vmlinuz-b
        refused "and so is its unit" 3 "holder-$kind.service" luvfioctl check /boot/vmlinuz-b
        systemctl stop holder-$kind
        still "holder of $kind"
done

# Somebody else has the live update device open.
sh -c 'exec 9<>/dev/liveupdate; exec sleep 1000' &
sleep 0.5
refused "/dev/liveupdate is busy" '[34]' /dev/liveupdate luvfioctl update /boot/vmlinuz-b --deadline=3
kill $!
still "liveupdate busy"

# It is not there at all.
mv /dev/liveupdate /dev/liveupdate.away
refused "/dev/liveupdate is absent" 3 /dev/liveupdate luvfioctl update /boot/vmlinuz-b
mv /dev/liveupdate.away /dev/liveupdate
still "liveupdate absent"

# It answers EIO; luvfiod, started anew, then cannot know what may have come from another kernel.
drop_in 'Environment=LD_PRELOAD=/usr/lib/rogue/eio.so'
refused "/dev/liveupdate answers EIO" 3 'EIO' luvfioctl update /boot/vmlinuz-b
check "EIO: the machines run on" all_run vm1 vm2
check "EIO: who is new may have come from another kernel, and is stranded" \
        sh -c '/usr/lib/rogue/rogue-vmm --claim newcomer | grep "newcomer: .*record of the update"'
check "EIO: shown as such" machine_is newcomer stranded
check "EIO: reported" sh -c 'luvfioctl status --json=short | jq -e ".lastUpdate.result == \"stranded\""'
check "EIO: and can be given up" luvfioctl discard newcomer
drop_in ''
still "liveupdate EIO"

# An image that was loaded by the old call.
check "an image is loaded by kexec_load" /usr/lib/rogue/legacy-kexec
refused "an image that somebody else loaded" 3 'loaded' luvfioctl update /boot/vmlinuz-b
check "it is still loaded" grep -qx 1 /sys/kernel/kexec_loaded
jump --unload
still "loaded image"

# Images and command lines that will not do.
head -c 100000 /dev/urandom >/tmp/noise
refused "an image that is no kernel" 1 'kernel|image' luvfioctl update /tmp/noise
head -c 1000000 /boot/vmlinuz-b >/tmp/half
refused "half a kernel" 1 'kernel|image' luvfioctl update /tmp/half
for missing in kho liveupdate; do
        line=$(sed "s/ *\b$missing=on//" /proc/cmdline)
        refused "a command line without $missing=on" 1 "$missing" luvfioctl update /boot/vmlinuz-b --cmdline="$line"
done
truncate -s 400M /tmp/initrd
refused "an image that does not fit" 4 'fit' luvfioctl update /boot/vmlinuz-b --initrd=/tmp/initrd
rm /tmp/initrd
still "bad images"

# A memfd with more holes than the host has memory.
must "a machine with 64 GiB of holes" vmm vm3 --holes 65536
refused "not enough memory to fill a sparse memfd" 3 'vm3.*memory|memory.*vm3' luvfioctl update /boot/vmlinuz-b
systemctl disable --now rogue@vm3 2>/dev/null
check "vm3 goes with its VMM" wait_for 10 sh -c '! luvfioctl machines | grep vm3'
still "sparse memfd"

# No room in the fd store.
drop_in FileDescriptorStoreMax=1
refused "the fd store is full" '[34]' '[Ss]tore' luvfioctl update /boot/vmlinuz-b --deadline=10
drop_in ''
still "fd store"

# No room for the history: said, and nothing else.
mkdir -p /var/lib/luvfiod
mount -t tmpfs -o size=4k tmpfs /var/lib/luvfiod
dd if=/dev/zero of=/var/lib/luvfiod/fill bs=4k count=100 2>/dev/null
systemctl restart luvfiod
wait_for 20 all_run vm1 vm2
check "disk full: check says so" sh -c 'luvfioctl check /boot/vmlinuz-b | grep -i "report.*kept"'
orders vm1 silent-quiesce
refused "disk full: an update that is given up" 4 vm1 luvfioctl update /boot/vmlinuz-b --deadline=3
orders vm1
check "disk full: its report can be had from luvfiod" sh -c 'luvfioctl status --json=short | jq -e ".lastUpdate.result == \"aborted\""'
check "disk full: and that it will be lost is in the journal" sh -c 'journalctl -b -u luvfiod | grep -i "report.*No space left"'
umount /var/lib/luvfiod
systemctl restart luvfiod
still "disk full"

# An inhibitor.
luvfioctl inhibit --who=backup --why="tapes are turning" sleep 1000 &
sleep 1
refused "an inhibitor" 3 'tapes are turning' luvfioctl update /boot/vmlinuz-b
kill $!
still "inhibitor"

# Two at once; the first one's VMM does not answer.
orders vm2 silent-prepare
luvfioctl update /boot/vmlinuz-b --deadline=30 >/tmp/first 2>&1 &
first=$!
check "an update is under way" wait_for 20 update_is staging
refused "a second update beside it" 1 'under way|progress' luvfioctl update /boot/vmlinuz-b
refused "nor may anybody stage" 1 'under way|progress' luvfioctl stage /boot/vmlinuz-b
check "the first one is given up" luvfioctl abort
wait $first
check "and says so" test $? -eq 4
orders vm2
still "two updates"

# The VMM with a device dies when it should stop.
orders vm1 die-quiesce
refused "a VMM that dies at quiesce" 4 vm1 luvfioctl update /boot/vmlinuz-b --deadline=20
orders vm1
check "vm1 is gone" wait_for 10 sh -c '! luvfioctl machines | grep vm1'
check "vm2 runs" wait_for 20 machine_is vm2 running
systemctl reset-failed rogue@vm1
systemctl start rogue@vm1
check "vm1 starts again with its device" wait_for 20 machine_is vm1 running
still "dead VMM"

# It writes on after it has said that it would not; the other one lets it.
orders vm1 run-after-commit
orders vm2 late-commit
luvfioctl update /boot/vmlinuz-b --deadline=20
echo "# luvfioctl update ended with $?"
explain
"""

AFTER = r"""
wait_for 30 all_run vm1 vm2
for vm in vm1 vm2; do
        check "$vm is finished" wait_for 40 grep -q "^$vm: finished" /var/log/rogue-$vm.log
        check "$vm: RAM is identical" test "$(said $vm 'ram identical')" -eq 1
done
grep -h 'last write after commit' /var/log/rogue-vm1.log
luvfioctl analyze --json=short >/out/analyze.json
check "no VMM failed" sh -c '! grep FAILED /var/log/rogue-*.log'

# `systemctl reboot` is a cold one, whatever was staged.
orders vm1
orders vm2
check "staged" luvfioctl stage /boot/vmlinuz-a
check "an image is loaded" grep -qx 1 /sys/kernel/kexec_loaded
systemctl stop luvfiod.service
check "stopping luvfiod unloads it" grep -qx 0 /sys/kernel/kexec_loaded
check "the machines run on" sh -c 'systemctl is-active rogue@vm1 && systemctl is-active rogue@vm2'
systemctl start luvfiod.service
check "ready again" wait_for 30 luvfioctl check /boot/vmlinuz-a
check "staged again" luvfioctl stage /boot/vmlinuz-a
sync
systemctl reboot
sleep 100
"""

LAST = r"""
luvfiod_up
vfio-bind $(bdf igb)
systemctl restart rogue@vm1
check "the machines start afresh" wait_for 30 all_run vm1 vm2
check "ready for an update" wait_for 20 luvfioctl check /boot/vmlinuz-b
"""

result = full.run("faults", "--device", "igb", "--device", "nvme", "--script-deadline", "400", "--reboot-ok",
                  scripts=[BEFORE, AFTER, LAST])
full.report(result, ["before", "after", "boot3"])
# What ought to be refused and is not, is an update: it ends the first script.
scenario.ok("dead VMM: ready again" in result.output("before"), "before: all faults were tried")
boots = [b["how"] for b in result.json["boots"]]
scenario.ok(boots == ["first", "live", "cold"], "a live update, then a cold reboot", f"boots: {boots}")

# A VMM that runs on after Committed writes until it is frozen; unfrozen it would write until the very end, which is
# later than reboot(2).
stamp = re.search(r"last write after commit (\d+)", result.output("after"))
analyze = result.out / "files/analyze.json"
if scenario.ok(stamp and analyze.exists(), "the rogue VMM wrote after it had committed"):
    report = json.loads(analyze.read_text())
    report = report.get("report", report)
    kernel = next(p for p in report["phases"] if p["name"] == "kernel" and not p.get("machine"))
    reboot = report["startedRealtimeUSec"] + kernel["startUSec"]
    scenario.ok(int(stamp[1]) < reboot, f"it was frozen {reboot - int(stamp[1])} us before reboot(2)",
                f"last write {int(stamp[1]) - reboot} us after reboot(2)")
scenario.done()
