#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# scenario: interrupts left on are refused by each of three layers alone; no device is reset, the next update works
# timeout: 700

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "lib"))
import full  # noqa: E402 pylint: disable=wrong-import-position
from full import scenario  # noqa: E402 pylint: disable=wrong-import-position

# Either one of the two machines is the one with interrupts on: LUO freezes the one before or after the other.
BEFORE = r"""
luvfiod_up
igb=$(bdf igb) nvme=$(bdf nvme)
vfio-bind $igb $nvme
must "machine with an igb" vmm vm-igb --device $igb
must "machine with an NVMe" vmm vm-nvme --device $nvme
must "nothing blocks an update" luvfioctl check /boot/vmlinuz-b
# Behind an IOMMU whose iommufd is not handed over
cp /tmp/said /tmp/checked
for device in $igb $nvme; do
        check "check names $device as a device that will be reset" grep "Device $device of machine .* will be reset on the way" /tmp/checked
done
mark 1

# both WHAT: after a refusal both run, as luvfiod, the units and the VMMs themselves have it.
both() {
        if all_run vm-igb vm-nvme &&
           [ "$(said vm-igb 'runs on')" -eq "$1" ] && [ "$(said vm-nvme 'runs on')" -eq "$1" ]; then
                ok "$2: both machines run on"
        else
                explain | sed 's/^/# /'
                not_ok "$2: both machines run on"
        fi
}

aborts=0
for vm in vm-igb vm-nvme; do
        # Every type once; the other machine is there for the order of the two.
        device=$igb types='intx:INTx msi:MSI msix:MSI-X'
        [ $vm = vm-nvme ] && device=$nvme types=msix:MSI-X

        # The first layer: the VMM is asked.
        orders $vm silent-quiesce
        refused "first layer: $vm does not answer" 4 "$vm" luvfioctl update /boot/vmlinuz-b --deadline=3
        aborts=$((aborts + 1))
        both $aborts "first layer, $vm"

        # The second one: it says that interrupts are off, the plugin sees that they are not.
        for type in $types; do
                orders $vm leave-${type%%:*}
                refused "second layer: the plugin refuses ${type#*:} of $vm" 4 "$vm.*$device.*${type#*:}|$device.*${type#*:}.*$vm" \
                        luvfioctl update /boot/vmlinuz-b --deadline=20
                aborts=$((aborts + 1))
                both $aborts "second layer, $vm, ${type#*:}"
                check "second layer, $vm, ${type#*:}: the journal has machine, device, plugin and state" sh -c "
                        journalctl -b -u luvfiod -q -o json LUVFIO_VM=$vm LUVFIO_DEVICE=$device | tail -n 1 |
                        jq -e '.LUVFIO_PLUGIN == \"vfio-pci\" and .LUVFIO_STATE == \"quiescing\" and .LUVFIO_UPDATE_ID != null'"
        done

        # The third one: a plugin that does not look stands for none, and the kernel itself refuses.
        mkdir -p /etc/luvfiod
        echo "{\"devices\":[\"$igb\",\"$nvme\"],\"score\":1000}" >/etc/luvfiod/null.json
        systemctl enable --quiet --now luvfio-plugin-host@null.socket
        for type in $types; do
                orders $vm leave-${type%%:*}
                refused "third layer: the kernel refuses ${type#*:} of $vm" 4 \
                        "the kernel refused the jump: a device or file that is preserved is busy" \
                        luvfioctl update /boot/vmlinuz-b --deadline=20
                aborts=$((aborts + 1))
                both $aborts "third layer, $vm, ${type#*:}"
        done
        rm -f /etc/luvfiod/null.json
        systemctl disable --quiet --now luvfio-plugin-host@null.socket
        orders $vm
done
mark 2
check "the image is unloaded" grep -qx 0 /sys/kernel/kexec_loaded
luvfioctl update /boot/vmlinuz-b --deadline=20
echo "# luvfioctl update ended with $?"
"""

AFTER = r"""
case $(uname -r) in *-b*) ok "the new kernel runs" ;; *) not_ok "the new kernel runs: $(uname -r)" ;; esac
for vm in vm-igb vm-nvme; do
        check "$vm is finished" wait_for 40 grep -q "^$vm: finished" /var/log/rogue-$vm.log
        check "$vm runs" machine_is $vm running
        check "$vm made one jump" test "$(machine_field $vm generation)" -eq 1
        check "$vm: RAM is identical" test "$(said $vm 'ram identical')" -eq 1
done
wait_for 20 update_is idle
check "the update is done" sh -c 'luvfioctl history --json=short | jq -e ".updates[0].result == \"done\""'
grep -q FAILED /var/log/rogue-*.log && not_ok "no VMM failed: $(grep FAILED /var/log/rogue-*.log)"
"""

result = full.run("interrupts", "--device", "igb", "--device", "nvme", "--script-deadline", "420",
                  scripts=[BEFORE, AFTER])
full.report(result, ["before", "after"])
refused = full.between(result.trace(), 1, 2)
if scenario.ok(refused is not None, "both marks are in the trace"):
    found = full.resets(refused)
    scenario.ok(not found, f"no device was reset by any refused update ({len(refused)} lines of trace)",
                "\n".join(found[:10]))
# Behind an IOMMU that is not handed over, devices are reset: in .shutdown, as long as the IOMMU still holds them.
text = "\n".join(result.trace())
after = text[text.rfind("pci-testdev 00:1e.0 @0xc <- 0x2"):]
after, off, _ = after.partition("vtd_dmar_enable enable 0")
found = full.resets(after.splitlines())
scenario.ok(off and all(any(kind in line for line in found) for kind in ("igb", "nvme")),
            "the update that went on reset both before the IOMMU was off", "\n".join(found) or after[-4000:])
scenario.done()
