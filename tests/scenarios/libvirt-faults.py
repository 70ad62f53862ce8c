#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# scenario: a domain of libvirt whose agent, libvirtd or new QEMU dies: it goes on, or is stranded until it is mended
# timeout: 3600
# full: yes

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "lib"))
import full  # noqa: E402 pylint: disable=wrong-import-position
import guest  # noqa: E402 pylint: disable=wrong-import-position
from full import scenario  # noqa: E402 pylint: disable=wrong-import-position

# How long the guest's own clock may go on while it is being handed over and its vCPUs stand: ms, on slow machines.
GAP = 30000
# QEMU that does not take a guest over while /etc/fails is there.
WRAPPER = """#!/bin/sh
case "$*" in
*-incoming*)
        if [ -e /etc/fails ]; then
                echo "it fails" >&2
                exit 1
        fi
        ;;
esac
exec qemu-system-x86_64 "$@"
"""

COMMON = guest.SHELL + r"""
agent() {
        systemctl show -P MainPID luvfio-libvirt@disk
}
another() {
        [ "$($1)" -ne 0 ] && [ "$($1)" -ne $2 ]
}
libvirtd() {
        systemctl show -P MainPID libvirtd
}
# Once is enough: it looks at all of them.
watches_again() {
        [ "$(systemctl show -P NRestarts luvfio-libvirt)" -eq 1 ] && systemctl is-active luvfio-libvirt
}
metadata() {
        virsh metadata disk --uri https://luvfio.org/xmlns/libvirt/domain/1.0 --key luvfio "$@" --config --live
}
is_well() {
        machine_is disk running && [ "$(machine_field disk attached)" = true ] && [ "$(virsh domstate disk)" = running ]
}
well() {
        check "$1: disk runs" wait_for 200 is_well
        check "$1: disk goes on" wait_for 60 goes_on disk $(beats disk)
        check "$1: nothing is kept of it" wait_for 20 test "$(systemctl show -P NFileDescriptorStore luvfio-libvirt@disk)" -eq 0
        check "$1: no saved image is left" test ! -e /var/lib/libvirt/qemu/save/disk.save
        check "$1: nothing blocks an update" wait_for 120 luvfioctl check /boot/vmlinuz-b
        check "$1: no session is left" test "$(systemctl show -P NFileDescriptorStore luvfiod)" -eq 0
}
# captured WHEN COMMAND...: an update that is held up until the domain is captured, and what is done then; it is given up.
captured() {
        when=$1
        shift
        luvfioctl update /boot/vmlinuz-b --deadline=60 >/tmp/update 2>&1 &
        update=$!
        check "$when: disk is captured" wait_for 120 machine_is disk quiesced
        "$@"
        wait $update
        rc=$?
        sed 's/^/# /' /tmp/update
        check "$when: the update is given up" test $rc -eq 4
        well "$when"
}
leave() {
        cp $logs/disk.log /out/
        cp /var/log/libvirt/qemu/disk.log /out/disk.qemu
        journalctl -b --no-pager -o short-monotonic >/out/journal.$LUV_STAGE
}
trap leave EXIT
"""

BEFORE = COMMON + r"""
# In each new kernel libvirt looks first what QEMU can do.
resume_deadline 300
luvfiod_up
vfio-bind $(bdf nvme)
mkdir -p $logs /usr/lib/wrapped /etc/systemd/system/luvfio-libvirt@.service.d
cat >/etc/systemd/system/luvfio-libvirt@.service.d/dies.conf <<'END'
[Service]
Environment=LD_PRELOAD=/usr/lib/rogue/dies.so DIES=/run/dies.%i
END
systemctl daemon-reload
cat >/usr/lib/wrapped/qemu <<'END'
""" + WRAPPER + r"""END
chmod 755 /usr/lib/wrapped/qemu
systemctl enable --quiet --now virtlogd.socket libvirtd.socket luvfio-libvirt.service
""" + guest.domain("disk", device="$(bdf nvme)", disk="nvme0n1").replace("/usr/bin/qemu-system-x86_64", "/usr/lib/wrapped/qemu") + r"""
must "disk starts" virsh start disk
must "disk runs fio" begins disk '^DISK nvme0n1'
must "it is to take part" metadata --set '<live-update/>'
must "luvfiod knows it" wait_for 120 is_well
check "it is not to take part any more" metadata --remove
check "luvfiod does not know it any more" wait_for 60 sh -c '! luvfioctl machines | grep -q disk'
must "it is to, after all" metadata --set '<live-update/>'
must "luvfiod knows it again" wait_for 120 is_well
must "a machine that can hold an update up" vmm slow
well start
virsh dumpxml --inactive disk >/var/log/disk.xml

# Nothing is under way.
old=$(agent)
kill -KILL $old
check "agent killed: another" wait_for 30 another agent $old
well "agent killed"
old=$(libvirtd)
kill -KILL $old
check "libvirtd killed: virsh is answered" wait_for 60 virsh domstate disk
check "libvirtd killed: by another" another libvirtd $old
check "libvirtd killed: what looks for domains has begun anew" wait_for 60 watches_again
well "libvirtd killed"

# As in qemu-faults: while it captures the domain.
for at in channel document; do
        printf %s $at >/run/dies.disk
        old=$(agent)
        refused "agent killed at $at" 4 'machine disk closed its connection' luvfioctl update /boot/vmlinuz-b --deadline=60
        check "agent killed at $at: another" wait_for 30 another agent $old
        well "agent killed at $at"
done

# The domain is captured, and another machine holds the update up.
orders slow silent-quiesce
captured "given up" true
old=$(agent)
captured "agent killed when captured" kill -KILL $old
check "another agent" another agent $old
captured "libvirtd killed when captured" kill -KILL $(libvirtd)
orders slow
check "its XML is as it was" sh -c 'virsh dumpxml --inactive disk | diff /var/log/disk.xml -'

touch /etc/fails
beats disk >/var/log/beats
mark 1
luvfioctl update /boot/vmlinuz-b --deadline=60
echo "# luvfioctl update ended with $?"
explain
"""

AFTER = COMMON + r"""
check "disk is stranded" wait_for 400 machine_is disk stranded
machine_field disk reason | sed 's/^/# disk: /'
check "the update is over" wait_for 60 update_is idle
check "result: stranded" sh -c 'luvfioctl history --json=short | jq -e ".updates[0].result == \"stranded\""'
check "its saved image is there" test -e /var/lib/libvirt/qemu/save/disk.save
# Its agent tries again and again.
refused "no update over a stranded machine" 3 'Machine disk is (stranded|resuming)' luvfioctl update /boot/vmlinuz-a
sed -e 's/<name>disk/<name>thief/' -e '/<uuid>/d' /var/log/disk.xml >/tmp/thief.xml
check "another domain with its device" virsh define /tmp/thief.xml
refused "may not be started" '[1-9].*' 'hook|luvfio' virsh start thief
mark 2
rm /etc/fails
# The agent is killed when the guest runs, before it has said so: another takes it up.
printf resumed >/run/dies.disk
systemctl restart luvfio-libvirt@disk
mark 3
well mended
check "libvirt forgets how it came" wait_for 120 forgotten disk
check "its agent was killed" test ! -e /run/dies.disk
check "it has gone on where it was" goes_on disk $(cat /var/log/beats)
check "its XML is as it was" sh -c 'virsh dumpxml --inactive disk | diff /var/log/disk.xml -'
check "jumps" test "$(machine_field disk generation)" -eq 1
# libvirtd and the agent are killed in the new kernel.
kill -KILL $(libvirtd) $(agent)
well "both killed"
# Longer than the time after which a driver gives a lost interrupt up.
sleep 35
mark 4
"""

result = full.run("libvirt-faults", "--image", "virt", "--device", "nvme", "-m", "3072", *guest.host(),
                  "--script-deadline", "1200", scripts=[BEFORE, AFTER])
full.report(result, ["before", "after"])
log = guest.read(result, "disk")
print(f"# {log.summary()}")
for what, bad in (("lives", log.life(beats=50, gap=GAP, period=guest.BEAT)), ("has nothing to complain about", log.said()),
                  ("has the use of its device", log.disk("nvme0n1", after=10, latency=GAP))):
    scenario.ok(not bad, f"guest disk {what}", "\n".join(bad[:20]))
trace = result.trace()
for what, first, last in (("no device was reset, whatever was tried with it", 1, 2), ("nor when its machine comes back", 2, 4)):
    found = full.resets(full.between(trace, first, last) or ["the marks are missing (resettable_"])
    scenario.ok(not found, what, "\n".join(found[:20]))
scenario.done()
