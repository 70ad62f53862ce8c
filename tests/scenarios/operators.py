#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# scenario: an operator who is not root, a UKI as the next kernel, a machine that is sacrificed, a cold reboot instead
# timeout: 600

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "lib"))
import full  # noqa: E402 pylint: disable=wrong-import-position
import uki  # noqa: E402 pylint: disable=wrong-import-position
from full import scenario  # noqa: E402 pylint: disable=wrong-import-position

BEFORE = r"""
luvfiod_up
vfio-bind $(bdf igb)
must "machine with an igb" vmm good --device $(bdf igb)
must "machine that will hold an update up" vmm stubborn

# Users: alice is an operator, eve is nobody.
mkdir -p /etc/sysusers.d /etc/polkit-1/rules.d
printf 'u alice - Alice\nu eve - Eve\nm alice luvfio\n' >/etc/sysusers.d/operators.conf
systemd-sysusers
as() {
        user=$1
        shift
        systemd-run --quiet --wait --pipe --uid="$user" "$@"
}
check "the group may look" as alice luvfioctl status
check "and check a kernel" as alice luvfioctl check /boot/vmlinuz-b
refused "others may not even look" 7 'ot permitted' as eve luvfioctl status
for verb in 'stage /boot/vmlinuz-b' 'update /boot/vmlinuz-b' 'inhibit true' 'discard good'; do
        # shellcheck disable=SC2086
        refused "${verb%% *}: not without authorization" 7 'ermitted|uthori' as alice luvfioctl $verb
done
check "the machines run, nothing is staged" sh -c 'grep -qx 0 /sys/kernel/kexec_loaded'

cat >/etc/polkit-1/rules.d/10-alice.rules <<END
polkit.addRule(function(action, subject) {
        if (action.id == "org.luvfio.host.stage" && subject.user == "alice")
                return polkit.Result.YES;
});
END
systemctl restart polkit
check "stage: with authorization" as alice luvfioctl stage /boot/vmlinuz-b
check "it is staged" update_is staged
refused "abort: that was not in it" 7 'ermitted|uthori' as alice luvfioctl abort
check "root needs no polkit" luvfioctl abort
systemctl mask --now --quiet polkit
refused "without polkit: root alone" 7 'ermitted|uthori' as alice luvfioctl stage /boot/vmlinuz-b
check "which is still so" luvfioctl stage /boot/vmlinuz-b
check "idle again" luvfioctl abort
systemctl unmask --quiet polkit

# A machine that holds the update up, and may be lost; the kernel is in a UKI.
check "a UKI will do" luvfioctl check /usr/lib/next.efi
refused "half a UKI will not" 1 'kernel|UKI' sh -c 'head -c 3000000 /usr/lib/next.efi >/tmp/half && luvfioctl update /tmp/half'
orders stubborn silent-quiesce
refused "not sacrificed: it holds the update up" 4 stubborn luvfioctl update /usr/lib/next.efi --deadline=3
check "both run on" all_run good stubborn
refused "the machine to sacrifice has to be one" 1 nobody luvfioctl update /usr/lib/next.efi --sacrifice nobody
luvfioctl update /usr/lib/next.efi --sacrifice stubborn --deadline=3
echo "# luvfioctl update ended with $?"
explain
"""

AFTER = r"""
check "the kernel in the UKI runs" sh -c 'uname -r | grep -- -b'
check "good is finished" wait_for 40 grep -q "^good: finished" /var/log/rogue-good.log
check "good: RAM is identical" test "$(said good 'ram identical')" -eq 1
check "stubborn starts afresh" wait_for 40 sh -c "[ \$(grep -c '^stubborn: registered running, generation 0' /var/log/rogue-stubborn.log) -eq 2 ]"
check "nothing of stubborn came along" test "$(said stubborn ram)" -eq 0
check "both run" all_run good stubborn
check "the update is over" wait_for 20 update_is idle
check "result: done" sh -c 'luvfioctl history --json=short | jq -e ".updates[0].result == \"done\""'
check "ready for the next" wait_for 20 luvfioctl check /boot/vmlinuz-a

# A live update that cannot be had.
head -c 100000 /dev/urandom >/tmp/noise
refused "no cold reboot for a mistake" 1 'kernel|image' luvfioctl update /tmp/noise --fallback=cold
luvfioctl inhibit --who=backup --why=tapes sleep 1000 &
sleep 1
refused "blocked" 3 tapes luvfioctl update /boot/vmlinuz-a
sync
luvfioctl update /boot/vmlinuz-a --fallback=cold
echo "# luvfioctl update ended with $?"
sleep 100
"""

COLD = r"""
luvfiod_up
check "the first kernel runs" sh -c 'uname -r | grep -- -a'
vfio-bind $(bdf igb)
orders stubborn
systemctl restart rogue@good rogue@stubborn
check "the machines start afresh" wait_for 30 all_run good stubborn
"""

AGAIN = COLD + r"""
# One that is given up on the way.
orders good silent-quiesce
sync
luvfioctl update /boot/vmlinuz-b --deadline=3 --fallback=cold
echo "# luvfioctl update ended with $?"
sleep 100
"""

tree = Path(os.environ["LUV_RUN"]) / "uki-tree/usr/lib"
tree.mkdir(parents=True, exist_ok=True)
uki.make(tree / "next.efi", {
    ".osrel": b"ID=debian\n", ".cmdline": b"quiet", ".linux": (scenario.kernel("b") / "bzImage").read_bytes(),
})
result = full.run("operators", "--device", "igb", "--overlay", tree.parents[1], "--script-deadline", "240", "--reboot-ok",
                  scripts=[BEFORE, AFTER, AGAIN, COLD])
full.report(result, ["before", "after", "boot3", "boot4"])
# What ought to be refused and is not, is an update: it ends the first script.
scenario.ok("the machine to sacrifice has to be one" in result.output("before"), "before: all of it was tried")
boots = [b["how"] for b in result.json["boots"]]
scenario.ok(boots == ["first", "live", "cold", "cold"], "a live update, then two cold reboots", f"boots: {boots}")
scenario.done()
