#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# scenario: unmodified QEMU: Linux guests with a passed-through NVMe and igb go on in another kernel
# timeout: 3600

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "lib"))
import full  # noqa: E402 pylint: disable=wrong-import-position
import guest  # noqa: E402 pylint: disable=wrong-import-position
import running  # noqa: E402 pylint: disable=wrong-import-position
from full import scenario  # noqa: E402 pylint: disable=wrong-import-position

# How often there and back; for how many seconds the guests then have to go on: twice as long as a driver takes to give a lost interrupt up.
# A second vCPU costs minutes on an emulated CPU.
UPDATES, LASTS, VCPUS = (5, 60, 2) if scenario.FULL else (1, 5, 1)
# So few frames that the ring has room for all of them while a guest stands.
FRAMES = running.frames(period=0.5, burst=1)
# How long a guest's own clock may go on while it is being handed over and its vCPUs stand: ms, on slow machines. A
# driver's own patience is longer.
GAP = 28000

COMMON = guest.SHELL + r"""
leave() {
        cp $logs/*.log $logs/*.reset /out/
        journalctl -b -u 'luvfio-qemu@*' -u luvfiod --no-pager -o short-monotonic >/out/journal.$LUV_STAGE
}
trap leave EXIT
"""

BEFORE = COMMON + r"""
luvfiod_up
vfio-bind $(bdf nvme) $(bdf igb)
""" + guest.unit(
    "disk", "-netdev", "tap,id=tap0,ifname=tap0,script=no,downscript=no,vhost=on", "-device", "virtio-net-pci,netdev=tap0",
    devices=["$(bdf nvme)"], smp=VCPUS, disk="nvme0n1", net="eth0") + guest.unit("net", devices=["$(bdf igb)"], net="eth0") + r"""
must "disk runs fio" begins disk '^DISK nvme0n1'
must "net hears frames" begins net '^NET eth0 received=[1-9]'
ip link set tap0 up
must "luvfiod knows both" sh -c 'luvfioctl machines --json=short | jq -e "[.machines[] | select(.state == \"running\" and .attached)] | length == 2"'
luvfioctl check /boot/vmlinuz-b >/tmp/check
echo "# check: $?"
sed 's/^/# /' /tmp/check
luvfioctl machines | sed 's/^/# /'
settled disk net
check "a dry run" luvfioctl update /boot/vmlinuz-b --dry-run
for vm in disk net; do
        check "$vm goes on" wait_for 60 goes_on $vm $(beats $vm)
done
check "frames to disk's other NIC" frames tap0
uname -r >/var/log/before
mark 1
luvfioctl update /boot/vmlinuz-b --deadline=30
echo "# luvfioctl update ended with $?"
explain
"""

AFTER = COMMON + r"""
check "another kernel runs" sh -c '[ $(uname -r) != $(cat /var/log/before) ]'
for vm in disk net; do
        check "$vm runs" wait_for 300 machine_is $vm running
        check "$vm: jumps" test "$(machine_field $vm generation)" -eq $((LUV_BOOT - 1))
        check "$vm: its unit is active" systemctl is-active luvfio-qemu@$vm
done
check "the update is over" wait_for 300 update_is idle
for vm in disk net; do
        check "$vm goes on" wait_for 60 goes_on $vm $(beats $vm)
done
ip link set tap0 up
check "frames to disk's other NIC" frames tap0
check "result: done" sh -c 'luvfioctl history --json=short | jq -e ".updates[0].result == \"done\""'
for vm in disk net; do
        check "$vm's weight is that of others" wait_for 60 as_others machine.slice/luvfio-qemu@$vm.service
done
check "nothing is kept of it" test "$(systemctl show -P NFileDescriptorStore luvfio-qemu@disk)" -eq 0
luvfioctl analyze | sed 's/^/# /'
sleep @LASTS@
mark 2
luvfioctl check >/tmp/check
sed 's/^/# /' /tmp/check
""".replace("@LASTS@", str(LASTS))

AGAIN = AFTER + r"""
uname -r >/var/log/before
case $(uname -r) in *-a) next=b ;; *) next=a ;; esac
luvfioctl update /boot/vmlinuz-$next --deadline=30
echo "# luvfioctl update ended with $?"
explain
"""

result = full.run("qemu", "--image", "virt", "--device", "nvme", "--device", "igb", "-m", "3072", *guest.host(),
                  "--outside", FRAMES, "--script-deadline", "1000", scripts=[BEFORE] + [AGAIN] * (UPDATES - 1) + [AFTER])
full.report(result, ["before", "after"] + [f"boot{i + 1}" for i in range(2, UPDATES + 1)])
guest.judge(result, GAP, UPDATES + 1)
resets = full.resets(full.between(result.trace(), 1, 2) or ["the marks are missing (resettable_"])
scenario.ok(not resets, "no device was reset", "\n".join(resets[:20]))
scenario.done()
