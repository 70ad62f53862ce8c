#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# scenario: under Debian 13's systemd 257, which knows nothing of live updates: there and back, killed, given up
# timeout: 600

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "lib"))
import full  # noqa: E402 pylint: disable=wrong-import-position
from full import scenario  # noqa: E402 pylint: disable=wrong-import-position

BEFORE = r"""
check "this is systemd 257" sh -c 'systemctl --version | head -n 1 | grep -w 257'
luvfiod_up
vfio-bind $(bdf igb) $(bdf nvme)
mkdir -p /etc/luvfio/example-vmm
for device in igb nvme; do
        vm=vm-$device
        echo "ARGS=--device $(bdf $device) --report /var/log/$vm.json" >/etc/luvfio/example-vmm/$vm.conf
        systemctl enable --quiet luvfio-example-vmm@$vm
        check "$vm starts" systemctl start luvfio-example-vmm@$vm
        check "$vm runs" wait_for 10 machine_is $vm running
done
must "nothing blocks an update" wait_for 20 luvfioctl check /boot/vmlinuz-b
for i in Host Machine; do
        check "org.luvfio.$i is described" sh -c "varlinkctl introspect unix:/run/luvfiod/org.luvfio.$i org.luvfio.$i | grep -q '^interface'"
done

# The fd store of this systemd holds sessions while luvfiod is away.
check "staged" luvfioctl stage /boot/vmlinuz-b
old=$(systemctl show -P MainPID luvfiod)
check "sessions are stored" sh -c '[ $(systemctl show -P NFileDescriptorStore luvfiod) -eq 3 ]'
kill -KILL $old
check "staged, killed: another luvfiod answers" wait_for 20 sh -c "[ \$(systemctl show -P MainPID luvfiod) -ne $old ] && luvfioctl status"
check "and has taken all back" wait_for 20 grep -qx 0 /sys/kernel/kexec_loaded
for vm in vm-igb vm-nvme; do
        check "$vm runs on" wait_for 20 machine_is $vm running
done
check "no session is stored any more" wait_for 20 sh -c '[ $(systemctl show -P NFileDescriptorStore luvfiod) -eq 0 ]'
check "ready again" wait_for 20 luvfioctl check /boot/vmlinuz-b
luvfioctl update /boot/vmlinuz-b
echo "# luvfioctl update ended with $?"
explain
"""

CHECK = r"""
for vm in vm-igb vm-nvme; do
        check "$vm: generation @JUMPS@" wait_for 60 sh -c "[ \$(luvfioctl machines --json=short | jq '.machines[] | select(.name == \"$vm\") | .generation') -eq @JUMPS@ ]"
        check "$vm runs" wait_for 60 machine_is $vm running
        check "$vm: RAM and device are right" sh -c "grep '\"resumed\"' /var/log/$vm.json | tail -n 1 | jq -e '.ok and .checksumSame and .stateSame'"
        check "$vm: nothing failed" sh -c "! grep '\"failed\"' /var/log/$vm.json"
done
check "the update is over" wait_for 60 update_is idle
check "result: done" sh -c 'luvfioctl history --json=short | jq -e ".updates[0].result == \"done\" and (.updates | length) == @JUMPS@"'
check "no unit failed" sh -c '[ -z "$(systemctl --failed --plain --no-legend | grep luvfio)" ]'
check "no session is stored any more" wait_for 20 sh -c '[ $(systemctl show -P NFileDescriptorStore luvfiod) -eq 0 ]'
"""

AFTER = CHECK.replace("@JUMPS@", "1") + r"""
luvfioctl update /boot/vmlinuz-a
echo "# luvfioctl update ended with $?"
explain
"""

LAST = CHECK.replace("@JUMPS@", "2") + r"""
# `systemctl reboot` is a cold one, whatever was staged; this systemd makes a kexec of it if an image is loaded.
check "staged" luvfioctl stage /boot/vmlinuz-b
sync
systemctl reboot
sleep 100
"""

COLD = r"""
check "the first kernel runs" sh -c 'uname -r | grep -- -a'
check "and two updates were made" sh -c 'luvfioctl history --json=short | jq -e "[.updates[] | select(.result == \"done\")] | length == 2"'
"""

result = full.run("trixie", "--suite", "trixie", "--device", "igb", "--device", "nvme", "-m", "3072", "--script-deadline", "240",
                  "--reboot-ok", scripts=[BEFORE, AFTER, LAST, COLD])
full.report(result, ["before", "after", "boot3", "boot4"])
boots = [b["how"] for b in result.json["boots"]]
scenario.ok(boots == ["first", "live", "live", "cold"], "there and back, then a cold reboot", f"boots: {boots}")
scenario.done()
