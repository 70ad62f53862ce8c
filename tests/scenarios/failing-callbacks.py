#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# scenario: each callback that can fail does so, for each preserved file: devices run on, and the next update succeeds
# timeout: 3600
# full: yes

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "lib"))
import running  # noqa: E402 pylint: disable=wrong-import-position
from running import scenario  # noqa: E402 pylint: disable=wrong-import-position

DEVICES = ["igb 1", "virtio-rng 1", "nvme 1", "edu 1", "edu 2"]
PRESERVE = ["pci_luo_flb_preserve", "memfd_luo_preserve", "vfio_pci_luo_preserve"]
FREEZE = ["memfd_luo_freeze", "vfio_pci_luo_freeze"]

COMMON = """
cd /st/vfio
t=./vfio_pci_running_test
pci=/sys/bus/pci/devices
igb=$(bdf igb) rng=$(bdf virtio-rng) nvme=$(bdf nvme) edu1=$(bdf edu 1) edu2=$(bdf edu 2)
mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null
fail=/sys/kernel/debug/fail_function
# fail_in FUNCTION ERRNO N: its Nth call from now on, and only that one
fail_in() {
        echo >$fail/inject
        echo $1 >$fail/inject || exit 1
        printf %#x -$2 >$fail/$1/retval
        echo 100 >$fail/probability
        echo $3 >$fail/space
        echo 0 >$fail/verbose
        echo 1 >$fail/times
}
holder() {
        for p in /proc/[0-9]*; do
                case "$(tr '\\0' ' ' <$p/cmdline)" in *"vfio_pci_running_test -s 1 $1 ") echo ${p#/proc/} ;; esac
        done
}
failed() {
        echo "$1 failed $((1 - $(cat $fail/times))) times"
        echo >$fail/inject
}
"""

BEFORE = COMMON + f"""
vfio-bind $igb $rng $nvme $edu1 $edu2
# Whoever is alone begins the record that all devices share.
for f in {' '.join(PRESERVE)}; do
        for d in $igb $rng $nvme $edu1 $edu2; do
                fail_in $f 12 1
                $t -s 1 $d
                failed $f
                [ $f = vfio_pci_luo_preserve ] || kill $(holder $d)
                sleep 1
        done
done
for f in {' '.join(FREEZE)}; do
        for n in 1 2 3 4 5; do
                fail_in $f 12 $n
                jump /boot/vmlinuz-b
                echo "refused with $? by $f $n, $(grep -c 'outgoing .*frozen=0' /sys/kernel/debug/pci_liveupdate)" \
                        "of $(grep -c outgoing /sys/kernel/debug/pci_liveupdate) are not frozen"
                failed $f
        done
done
exec jump /boot/vmlinuz-b
"""

AFTER = COMMON + """
fail_in memfd_luo_retrieve 12 1
$t -s 2 $edu1
failed memfd_luo_retrieve
$t -s 2 $edu1
ABANDON=1 $t -s 2 $edu1
echo "edu 1: $(cat $pci/$edu1/liveupdate/state) $(od -An -tx2 -j4 -N2 $pci/$edu1/config)"
fail_in vfio_pci_luo_retrieve 12 1
$t -s 2 $edu2
failed vfio_pci_luo_retrieve
$t -s 2 $edu2
ABANDON=1 $t -s 2 $edu2
echo "edu 2: $(cat $pci/$edu2/liveupdate/state) $(od -An -tx2 -j4 -N2 $pci/$edu2/config)"
fail_in memfd_luo_retrieve 11 1
$t -s 2 $rng
failed memfd_luo_retrieve
fail_in vfio_pci_luo_retrieve 11 1
$t -s 2 $nvme
failed vfio_pci_luo_retrieve
fail_in memfd_luo_retrieve 11 1
$t -s 2 $igb
failed memfd_luo_retrieve
vfio-bind $edu1 $edu2
for d in $igb $rng $nvme $edu1 $edu2; do $t -s 1 $d; done
exec jump /boot/vmlinuz-a
"""

LAST = COMMON + """
for d in $rng $igb $edu1; do
        fail_in vfio_pci_luo_retrieve 11 1
        $t -s 2 $d
        failed vfio_pci_luo_retrieve
done
for d in $nvme $edu2; do
        fail_in memfd_luo_retrieve 11 1
        $t -s 2 $d
        failed memfd_luo_retrieve
done
""" + scenario.LEAKS + """
leaks >/tmp/leaks && echo "no leaks"
cat /tmp/leaks
"""


def main():
    devices = [f"virtio-rng,max-bytes=64,period={running.PERIOD * 1000}", "igb", "nvme", "edu", "edu"]
    r = running.host("failing", *[x for d in devices for x in ("--device", d)], "--trace", "none",
                     "--outside", running.frames(period=1, burst=1), "sh:" + BEFORE, "sh:" + AFTER, "sh:" + LAST,
                     first="debug", following="debug")
    before, after, last = r.output("before"), r.output("after"), r.output("boot3")
    scenario.ok(r.ok, "two live updates after all", r.why())
    scenario.ok(not r.splats(), "the kernels complain of nothing", "\n".join(r.splats()[:20]))
    for function in PRESERVE:
        scenario.ok(before.count(f"{function} failed 1 times") == len(DEVICES), f"{function} has failed for each device", before)
    tried = len(PRESERVE) * len(DEVICES)
    scenario.ok(before.count("not preserved at first: Cannot allocate memory") == tried and
                before.count("STAGE 1] Child") == tried, "what was not preserved can be preserved afterwards", before)
    for function in FREEZE:
        refused = re.findall(rf"^refused with (\d+) by {function} (\d), (\d+) of (\d+) are not frozen\n{function} failed 1 times$",
                             before, re.MULTILINE)
        scenario.ok([(a, b) for a, b, _, _ in refused] == [("12", str(n + 1)) for n in range(len(DEVICES))] and
                    all(c == d != "0" for _, _, c, d in refused),
                    f"{function} has failed for each file, and each time all were as before", before)
    for function in ("memfd_luo_retrieve", "vfio_pci_luo_retrieve"):
        scenario.ok((after + last).count(f"{function} failed 1 times") == len(DEVICES), f"{function} has failed for each device",
                    after + last)
    scenario.ok(len(re.findall(r"memfd \(errno: Cannot allocate memory", after)) == 2 and
                len(re.findall(r"device \(errno: Cannot allocate memory", after)) == 2, "what was not retrieved stays so", after)
    scenario.ok(len(re.findall(r"^edu \d: finished\s+\w{3}[0-3]$", after, re.MULTILINE)) == 2,
                "its device stops when the session is finished", after)
    scenario.ok(after.count("not retrieved at first: Resource temporarily unavailable") == 3 and
                after.count("TEST PASSED") == 3 and "none is missing" in after,
                "what could be tried again is retrieved, and no device has noticed", after)
    scenario.ok(last.count("TEST PASSED") == len(DEVICES) and last.count("not retrieved at first") == len(DEVICES), "the next update succeeds with all of them", last)
    scenario.ok("no leaks" in last, "and its kernel loses no memory", last)


main()
scenario.done()
