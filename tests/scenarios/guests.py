#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# scenario: eight guests at once in unmodified QEMU, with 1, 2 and 4 vCPUs and devices that use MSI-X, MSI and INTx
# timeout: 5400
# full: yes

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "lib"))
import full  # noqa: E402 pylint: disable=wrong-import-position
import guest  # noqa: E402 pylint: disable=wrong-import-position
import running  # noqa: E402 pylint: disable=wrong-import-position
from full import scenario  # noqa: E402 pylint: disable=wrong-import-position


def nic(tap, vhost):
    return ["-netdev", f"tap,id=nic,ifname={tap},script=no,downscript=no,vhost={vhost}", "-device", "virtio-net-pci,netdev=nic"]


# name: device, what it uses for interrupts, vCPUs, the guest's command line, another NIC. In this order they start: those with many
# vCPUs while there is little else on the host's one CPU.
INTX = "pci=nomsi"
GUESTS = {
    "disk1": ("nvme 1", "msix", 4, "", nic("tap0", "on")),
    "net1": ("igb 1", "msix", 2, "", []),
    "disk2": ("nvme 2", "intx", 1, INTX, nic("tap1", "off")),
    "disk3": ("ahci 1", "msi", 1, "", []),
    "net2": ("igb 2", "intx", 1, INTX, []),
    "net3": ("igb 3", "msix", 1, "", []),
    "net4": ("e1000e 1", "intx", 1, INTX, []),
    "net5": ("e1000e 2", "msix", 1, "", []),
}
DISKS = {"nvme": "nvme0n1", "ahci": "sda"}
DEVICES = [word for kind, count in (("nvme", 2), ("ahci", 1), ("igb", 3), ("e1000e", 2)) for word in ("--device", kind) * count]


def disk(device):
    return DISKS.get(device.split()[0], "")


# So few frames that the ring has room for all of them while a guest stands.
FRAMES = running.frames(period=2, burst=2)
# Eight guests share one emulated CPU: a slow heart, and little to do for disks. GAP: as in qemu.py, eight at once.
BEAT = 2000
CALM = f"luv.hb={BEAT} luv.jobs=1 luv.depth=2 luv.iops=4 luv.probe=1000"
GAP = 60000

COMMON = guest.SHELL + r"""
all="@ALL@"
leave() {
        cp $logs/*.log $logs/*.reset /out/
        journalctl -b -u 'luvfio-qemu@*' -u luvfiod --no-pager -o short-monotonic >/out/journal.$LUV_STAGE
}
trap leave EXIT
other_nics() {
        for tap in tap0 tap1; do
                ip link set $tap up
                check "frames to what is behind $tap" frames $tap
        done
}
# uses ADDRESS KIND: what the host has for the device's interrupts.
uses() {
        grep -q "vfio-$2.*($1)" /proc/interrupts
}
interrupts() {
@USES@
}
""".replace("@ALL@", " ".join(GUESTS)).replace("@USES@", "\n".join(
    f'        check "{name}: {device} uses {kind}" uses $(bdf {device}) {kind}' for name, (device, kind, *_) in GUESTS.items()))

BEFORE = COMMON + r"""
resume_deadline 300
luvfiod_up
vfio-bind @ADDRESSES@
@START@
interrupts
must "luvfiod knows all" wait_for 60 sh -c 'luvfioctl machines --json=short | jq -e "[.machines[] | select(.state == \"running\" and .attached)] | length == @COUNT@"'
luvfioctl check /boot/vmlinuz-b >/tmp/check
echo "# check: $?"
sed 's/^/# /' /tmp/check
settled $all
other_nics
uname -r >/var/log/before
mark 1
luvfioctl update /boot/vmlinuz-b --deadline=120
echo "# luvfioctl update ended with $?"
explain
""".replace("@ADDRESSES@", " ".join(f"$(bdf {device})" for device, *_ in GUESTS.values())).replace("@COUNT@", str(len(GUESTS))).replace(
    # One after another: eight that start at once take as long, and say nothing meanwhile.
    "@START@", "\n".join(guest.unit(
        name, *more, devices=[f"$(bdf {device})"], smp=smp, memory=192, disk=disk(device),
        net="" if disk(device) and not more else "eth0", append=f"{CALM} {append}") +
        f"""must "{name} uses its device" begins {name} '{"^DISK" if disk(device) else "^NET eth0 received=[1-9]"}'"""
        for name, (device, _, smp, append, more) in GUESTS.items()))

AFTER = COMMON + r"""
check "another kernel runs" sh -c '[ $(uname -r) != $(cat /var/log/before) ]'
for vm in $all; do
        check "$vm runs" wait_for 600 machine_is $vm running
        check "$vm: jumps" test "$(machine_field $vm generation)" -eq $((LUV_BOOT - 1))
        check "$vm: its unit is active" systemctl is-active luvfio-qemu@$vm
done
check "the update is over" wait_for 600 update_is idle
interrupts
for vm in $all; do
        check "$vm goes on" wait_for 120 goes_on $vm $(beats $vm)
done
other_nics
check "result: done" sh -c 'luvfioctl history --json=short | jq -e ".updates[0].result == \"done\""'
luvfioctl analyze | sed 's/^/# /'
# Twice as long as a driver takes to give a lost interrupt up.
sleep 60
mark 2
"""

result = full.run("guests", "--image", "virt", *DEVICES, "-m", "5120", *guest.host(), "--outside", FRAMES,
                  "--script-deadline", "3600", "--jump-deadline", "600", scripts=[BEFORE, AFTER])
full.report(result, ["before", "after"])
for vm, (passed, _, _, _, others) in GUESTS.items():
    log = guest.read(result, vm)
    path = result.out / f"files/settled.{vm}"
    settled = int(path.read_text()) if path.exists() else 0
    print(f"# {vm}: {log.summary()}")
    used = log.disk(disk(passed), after=settled, ios=50, latency=GAP) if disk(passed) else log.net("eth0", after=settled, frames=50)
    guest.report(f"guest {vm}", log, GAP, used, period=BEAT)
    if others:
        guest.vhost(f"guest {vm}", log, 2)
resets = full.resets(full.between(result.trace(), 1, 2) or ["the marks are missing (resettable_"])
scenario.ok(not resets, "no device was reset", "\n".join(resets[:20]))
scenario.done()
