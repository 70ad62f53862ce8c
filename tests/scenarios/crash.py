#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# scenario: SIGKILL of luvfiod in every state, before and after the jump, with /var empty; no machine is lost, no service either
# timeout: 700

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "lib"))
import full  # noqa: E402 pylint: disable=wrong-import-position
from full import scenario  # noqa: E402 pylint: disable=wrong-import-position

COMMON = r"""
# services active|inactive: one that belongs to the default target, and one that somebody has started
services() {
        [ "$(systemctl is-active plain@enabled.service plain@started.service | sort -u)" = "$1" ]
}

# luvfiod_said PATTERN: the one that runs now
luvfiod_said() {
        journalctl -b -q "_PID=$(systemctl show -P MainPID luvfiod.service)" | grep "$1"
}
"""

BEFORE = COMMON + r"""
# Every state lasts for as long as somebody is told to be slow, silent or busy: a plugin that starts (checking, rebinding),
# VMMs, a service that stops (draining), /dev/liveupdate that somebody has open (restoring: see "early"), FINISH of a
# session in the kernel (resuming, finishing).
unit() {
        mkdir -p "/etc/systemd/system/$(dirname "$1")"
        cat >"/etc/systemd/system/$1"
}
unit luvfio-plugin-host@vfio-pci.service.d/slow.conf <<'END'
[Service]
ExecStartPre=/bin/sh -c 'while grep -qsx slow /etc/rogue/plugin.orders; do sleep 0.1; done'
END
unit luvfiod.service.d/busy.conf <<'END'
[Service]
Environment=LD_PRELOAD=/usr/lib/rogue/busy.so
END
unit plain@.service <<'END'
[Service]
ExecStart=/bin/sleep infinity
ExecStop=/bin/sh -c 'while grep -qsx slow /etc/rogue/plain.orders; do sleep 0.1; done'
[Install]
WantedBy=multi-user.target
END
unit early.service <<'END'
[Unit]
DefaultDependencies=no
Before=luvfiod.service
ConditionPathExists=!/run/before-the-jump
[Service]
Type=notify
NotifyAccess=all
ExecStart=/bin/sh /etc/rogue/early
StandardOutput=append:/run/early.out
StandardError=inherit
[Install]
WantedBy=sysinit.target
END
mkdir -p /etc/rogue
cat >/etc/rogue/early <<'END'
. /usr/lib/rogue/guest.sh
exec 9<>/dev/liveupdate
systemd-notify --ready
check "restoring: reached" wait_for 20 update_is restoring
for i in 1 2; do
        check "restoring: killed and back, no. $i" kill_luvfiod
        check "restoring: still" update_is restoring
done
exec 9>&-
for i in 1 2; do
        check "rebinding: reached" wait_for 20 update_is rebinding
        check "rebinding: vm1 waits for its device" machine_is vm1 restoring
        check "rebinding: killed and back, no. $i" kill_luvfiod
done
orders plugin
check "rebinding: the device is back" wait_for 20 machine_is vm1 resuming
echo end
END
touch /run/before-the-jump
systemctl daemon-reload
systemctl enable --quiet early.service
systemctl enable --quiet --now plain@enabled.service
systemctl start plain@started.service

# Nothing of it is there after the jump.
mkdir -p /var/lib/luvfiod
mount -t tmpfs -o mode=0700 tmpfs /var/lib/luvfiod
luvfiod_up
igb=$(bdf igb)
vfio-bind $igb
must "machine with an igb" vmm vm1 --device $igb
must "machine without a device" vmm vm2

still() {
        if all_run vm1 vm2; then ok "$1: both machines run on"; else explain | sed 's/^/# /'; not_ok "$1: both machines run on"; fi
        check "$1: no image is loaded" wait_for 10 grep -qx 0 /sys/kernel/kexec_loaded
        check "$1: services run" wait_for 20 services active
        check "$1: nothing is frozen" sh -c '! grep -l 1 /sys/fs/cgroup/system.slice/system-rogue.slice/*/cgroup.freeze'
}

abort() {
        luvfioctl abort
}

# On its way back: it waits for the service that stops.
abort_and_kill() {
        luvfioctl abort &
        wait_for 20 luvfiod_said "given up while draining" && kill_luvfiod
}

check "idle: killed and back" kill_luvfiod
still idle

while read -r state who order ways; do
        for way in $ways; do
                orders $who $order
                [ $who != plugin ] || systemctl stop --quiet luvfio-plugin-host@vfio-pci.service
                luvfioctl update /boot/vmlinuz-b --deadline=60 >/tmp/update.out 2>&1 &
                update=$!
                check "$state: reached" wait_for 30 update_is $state
                case $state in
                quiescing | handing_over) check "$state: services are stopped" services inactive ;;
                esac
                check "$state: $way" $way
                orders $who
                wait $update
                still "$state, $way"
        done
done <<END
checking plugin slow kill_luvfiod
staging vm2 silent-prepare kill_luvfiod
draining plain slow kill_luvfiod abort_and_kill
quiescing vm2 silent-quiesce kill_luvfiod abort
handing_over vm2 silent-commit kill_luvfiod
END

check "staged" luvfioctl stage /boot/vmlinuz-b
check "staged: killed and back" kill_luvfiod
still staged
check "staged: ready for an update" wait_for 30 luvfioctl check /boot/vmlinuz-b

orders vm1 silent-resume
orders vm2 silent-resume
orders plugin slow
luvfioctl update /boot/vmlinuz-b --deadline=20
echo "# luvfioctl update ended with $?"
explain
"""

AFTER = COMMON + r"""
check "what came early has ended" wait_for 60 grep -qx end /run/early.out
cat /run/early.out
check "/var/lib/luvfiod was empty" sh -c '! mountpoint -q /var/lib/luvfiod'
wait_for 30 luvfioctl status
check "the machines wait for their VMMs" wait_for 30 machine_is vm1 resuming
for i in 1 2 3; do
        check "resuming: killed and back, no. $i" kill_luvfiod
        check "resuming: the machines are there again" wait_for 20 machine_is vm1 resuming
        check "resuming: the other one too" wait_for 20 machine_is vm2 resuming
done

# Between retrieve and finish.
for vm in vm1 vm2; do
        orders $vm hold-after-retrieve
        systemctl restart rogue@$vm.service
        check "$vm has retrieved" wait_for 20 grep -q "^$vm: retrieved" /var/log/rogue-$vm.log
done
# The device of a VMM that is gone comes out unbound for the next one, which else could not bind it.
systemctl kill -s KILL rogue@vm1.service
echo successor >>/var/log/rogue-vm1.log
systemctl restart rogue@vm1.service
check "retrieved, VMM dead: its successor has retrieved" \
        wait_for 20 sh -c 'sed 1,/^successor/d /var/log/rogue-vm1.log | grep -q "^vm1: retrieved"'
check "retrieved: killed and back" kill_luvfiod
check "retrieved: vm1 is there again" wait_for 20 machine_is vm1 resuming
# The VMM dies too, and luvfiod once more.
systemctl kill -s KILL rogue@vm1.service
check "retrieved, VMM dead: killed and back" kill_luvfiod
orders vm1
orders vm2
orders luvfiod luvfio-vm1-
systemctl stop rogue@vm1.service rogue@vm2.service
systemctl restart rogue@vm1.service rogue@vm2.service
check "resumed: vm1 cannot be finished yet" wait_for 30 luvfiod_said "session luvfio-vm1-.* cannot be finished"
check "resumed: killed and back" kill_luvfiod
orders luvfiod luvfio-host
for vm in vm1 vm2; do
        # Its VMM may be away when luvfiod is done, and then hears it when it is back.
        if wait_for 30 machine_is $vm running && wait_for 10 grep -q "^$vm: finished" /var/log/rogue-$vm.log; then
                ok "$vm runs under the new kernel"
        else
                explain | sed 's/^/# /'
                not_ok "$vm runs under the new kernel"
        fi
        check "$vm: RAM is identical" sh -c "grep -q '^$vm: ram identical' /var/log/rogue-$vm.log && ! grep -q CHANGED /var/log/rogue-$vm.log"
done
check "vm1 was not told that it runs before it did" \
        sh -c '! sed -n "/registered resuming/,/not resumed/p" /var/log/rogue-vm1.log | grep "attached running"'
check "no VMM failed" sh -c '! grep FAILED /var/log/rogue-*.log'
for i in 1 2; do
        check "finishing: reached" wait_for 20 update_is finishing
        check "finishing: the host's record cannot be finished yet" wait_for 5 luvfiod_said "session luvfio-host cannot be finished"
        check "finishing: killed and back, no. $i" kill_luvfiod
done
orders luvfiod
check "idle" wait_for 20 update_is idle
check "idle: services run under the new kernel" wait_for 20 services active
check "idle: killed and back" kill_luvfiod
check "idle: both machines run" all_run vm1 vm2
check "the next update is possible" wait_for 20 luvfioctl check /boot/vmlinuz-a
"""

result = full.run("crash", "--device", "igb", "--script-deadline", "420", scripts=[BEFORE, AFTER])
full.report(result, ["before", "after"])
scenario.done()
