#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# scenario: SIGKILL of luvfiod in every state, before and after the jump, with /var empty; no machine is lost
# timeout: 700

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "lib"))
import full  # noqa: E402 pylint: disable=wrong-import-position
from full import scenario  # noqa: E402 pylint: disable=wrong-import-position

KILL = r"""
main_pid() {
        systemctl show -P MainPID luvfiod.service
}

# kill_luvfiod: and wait until another one answers.
kill_luvfiod() {
        old=$(main_pid)
        kill -KILL "$old"
        wait_for 20 sh -c "[ \$(systemctl show -P MainPID luvfiod.service) -ne $old ] && [ \$(systemctl show -P MainPID luvfiod.service) -ne 0 ]" || return 1
        wait_for 20 luvfioctl status
}
"""

BEFORE = KILL + r"""
# Nothing of it is there after the jump.
mkdir -p /var/lib/luvfiod
mount -t tmpfs -o mode=0700 tmpfs /var/lib/luvfiod
luvfiod_up
igb=$(bdf igb)
vfio-bind $igb
must "machine with an igb" vmm vm1 --device $igb
must "machine without a device" vmm vm2

check "idle: killed and back" kill_luvfiod
check "idle: both machines run" all_run vm1 vm2
check "idle: ready for an update" wait_for 20 luvfioctl check /boot/vmlinuz-b

for event in prepare:staging quiesce:quiescing commit:handing_over; do
        state=${event#*:}
        orders vm2 silent-${event%:*}
        luvfioctl update /boot/vmlinuz-b --deadline=60 >/tmp/update.out 2>&1 &
        check "$state: reached" wait_for 30 sh -c "luvfioctl status --json=short | jq -e '.state == \"$state\"'"
        check "$state: killed and back" kill_luvfiod
        wait $!
        orders vm2
        if all_run vm1 vm2; then ok "$state: both machines run on"; else explain | sed 's/^/# /'; not_ok "$state: both machines run on"; fi
        check "$state: no image is loaded" wait_for 10 grep -qx 0 /sys/kernel/kexec_loaded
        check "$state: ready for an update" wait_for 30 luvfioctl check /boot/vmlinuz-b
        check "$state: nothing is frozen" sh -c '! grep -l 1 /sys/fs/cgroup/system.slice/system-rogue.slice/*/cgroup.freeze'
done

check "staged" luvfioctl stage /boot/vmlinuz-b
check "staged: killed and back" kill_luvfiod
if all_run vm1 vm2; then ok "staged: both machines run on"; else explain | sed 's/^/# /'; not_ok "staged: both machines run on"; fi
check "staged: no image is loaded" wait_for 10 grep -qx 0 /sys/kernel/kexec_loaded
check "staged: ready for an update" wait_for 30 luvfioctl check /boot/vmlinuz-b

orders vm1 silent-resume
orders vm2 silent-resume
luvfioctl update /boot/vmlinuz-b --deadline=20
echo "# luvfioctl update ended with $?"
explain
"""

AFTER = KILL + r"""
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
systemctl restart rogue@vm1.service
check "retrieved, VMM dead: its successor has retrieved" \
        wait_for 20 sh -c '[ $(grep -c "^vm1: retrieved" /var/log/rogue-vm1.log) -ge 2 ]'
check "retrieved: killed and back" kill_luvfiod
check "retrieved: vm1 is there again" wait_for 20 machine_is vm1 resuming
# The VMM dies too, and luvfiod once more.
systemctl kill -s KILL rogue@vm1.service
check "retrieved, VMM dead: killed and back" kill_luvfiod
orders vm1
orders vm2
systemctl stop rogue@vm1.service rogue@vm2.service
systemctl restart rogue@vm1.service rogue@vm2.service
for vm in vm1 vm2; do
        if wait_for 30 grep -q "^$vm: finished" /var/log/rogue-$vm.log && machine_is $vm running; then
                ok "$vm runs under the new kernel"
        else
                explain | sed 's/^/# /'
                not_ok "$vm runs under the new kernel"
        fi
        check "$vm: RAM is identical" sh -c "grep -q '^$vm: ram identical' /var/log/rogue-$vm.log && ! grep -q CHANGED /var/log/rogue-$vm.log"
done
check "no VMM failed" sh -c '! grep VFIO_DEVICE_ /var/log/rogue-*.log'
check "idle" wait_for 20 update_is idle
check "idle: killed and back" kill_luvfiod
check "idle: both machines run" all_run vm1 vm2
check "the next update is possible" wait_for 20 luvfioctl check /boot/vmlinuz-a
"""

result = full.run("crash", "--device", "igb", "--script-deadline", "420", scripts=[BEFORE, AFTER])
full.report(result, ["before", "after"])
scenario.done()
