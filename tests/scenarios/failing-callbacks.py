#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# scenario: each callback that can fail does so, for each preserved file: devices and machines run on, and the next update succeeds
# timeout: 7200

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "lib"))
import full  # noqa: E402 pylint: disable=wrong-import-position
import running  # noqa: E402 pylint: disable=wrong-import-position
from running import scenario  # noqa: E402 pylint: disable=wrong-import-position

# One more edu is preserved the second time.
DEVICES = ["igb 1", "virtio-rng 1", "nvme 1", "edu 1", "edu 2"]
PRESERVE = ["pci_luo_flb_preserve", "memfd_luo_preserve", "vfio_pci_luo_preserve"]
FREEZE = ["memfd_luo_freeze", "vfio_pci_luo_freeze"]

# Of what machines behind an IOMMU preserve, and how often it is called for two of them. The first memfd is the host's record, with
# nothing before it, the fourth is of the second machine: main() has each of several fail to freeze.
MACHINES_PRESERVE = [("memfd_luo_preserve", 1), ("memfd_luo_preserve", 4), ("iommu_luo_flb_preserve", 1), ("pci_luo_flb_preserve", 1),
                     ("iommufd_luo_preserve", 1), ("iommufd_luo_preserve", 2), ("vfio_pci_luo_preserve", 1), ("vfio_pci_luo_preserve", 2)]
MACHINES_FREEZE = [("memfd_luo_freeze", 1), ("memfd_luo_freeze", 4), ("iommufd_luo_freeze", 1), ("iommufd_luo_freeze", 2),
                   ("vfio_pci_luo_freeze", 1), ("vfio_pci_luo_freeze", 2)]
# What fails in the next kernel, with what error and the how manyth time, and how many machines are stranded by it.
MACHINES_AFTER = [
    # In the middle of it, and page tables that are in use are given up.
    ("iommufd_luo_read", 74, 1, 1),
    ("iommufd_luo_retrieve", 12, 1, 1),
    ("vfio_pci_luo_retrieve", 12, 1, 1),
    # The host's record, of which there are two.
    ("memfd_luo_retrieve", 12, 1, 0),
    # A machine's own.
    ("memfd_luo_retrieve", 12, 3, 1),
    # These are tried again.
    ("iommufd_luo_retrieve", 11, 1, 0),
    ("vfio_pci_luo_retrieve", 11, 1, 0),
    ("luo_file_can_finish_one", 16, 1, 0),
    ("luo_file_can_finish_one", 16, 3, 0),
]

FAIL_IN = """
[ -e /sys/kernel/debug/fail_function ] || mount -t debugfs debugfs /sys/kernel/debug
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
"""

COMMON = """
cd /st/vfio
t=./vfio_pci_running_test
pci=/sys/bus/pci/devices
igb=$(bdf igb) rng=$(bdf virtio-rng) nvme=$(bdf nvme) edu1=$(bdf edu 1) edu2=$(bdf edu 2) edu3=$(bdf edu 3)
""" + FAIL_IN + """
holder() {
        for p in /proc/[0-9]*; do
                case "$(tr '\\0' ' ' <$p/cmdline)" in *"vfio_pci_running_test -s 1 $1 ") echo ${p#/proc/} ;; esac
        done
}
failed() {
        echo "$1 failed $((1 - $(cat $fail/times))) times"
        echo >$fail/inject
}
# not_finished DEVICE: each of the two files of its session speaks against it once
not_finished() {
        for n in 1 2; do
                fail_in luo_file_can_finish_one 16 $n
                $t -s 2 $1
                failed luo_file_can_finish_one
                echo "not finished: $(cat $pci/$1/liveupdate/state)"
        done
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
export ABANDON=1
not_finished $edu1
$t -s 2 $edu1
unset ABANDON
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
vfio-bind $edu1 $edu2 $edu3
for d in $igb $rng $nvme $edu1 $edu2 $edu3; do $t -s 1 $d; done
exec jump /boot/vmlinuz-a
"""

LAST = COMMON + """
not_finished $edu3
$t -s 2 $edu3
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
"""

# Of the debug kernel only
LAST_LEAKS = scenario.LEAKS + """
leaks >/tmp/leaks && echo "no leaks"
cat /tmp/leaks
"""


def main(label, first, following):
    def ok(condition, what, detail):
        scenario.ok(condition, f"{first}: {what}", detail)

    debug = first == "debug"
    devices = [f"virtio-rng,max-bytes=64,period={running.PERIOD * 1000}", "igb", "nvme", "edu", "edu", "edu"]
    r = running.host(label, *[x for d in devices for x in ("--device", d)], "--trace", "none",
                     "--outside", running.frames(period=1, burst=1), "sh:" + BEFORE, "sh:" + AFTER,
                     "sh:" + LAST + (LAST_LEAKS if debug else ""), first=first, following=following)
    before, after, last = r.output("before"), r.output("after"), r.output("boot3")
    ok(r.ok, "two live updates after all", r.why())
    ok(not r.splats(), "the kernels complain of nothing", "\n".join(r.splats()[:20]))
    for function in PRESERVE:
        ok(before.count(f"{function} failed 1 times") == len(DEVICES), f"{function} has failed for each device", before)
    tried = len(PRESERVE) * len(DEVICES)
    ok(before.count("not preserved at first: Cannot allocate memory") == tried and
       before.count("STAGE 1] Child") == tried, "what was not preserved can be preserved afterwards", before)
    for function in FREEZE:
        refused = re.findall(rf"^refused with (\d+) by {function} (\d), (\d+) of (\d+) are not frozen\n{function} failed 1 times$",
                             before, re.MULTILINE)
        ok([(a, b) for a, b, _, _ in refused] == [("12", str(n + 1)) for n in range(len(DEVICES))] and
           all(c == d != "0" for _, _, c, d in refused),
           f"{function} has failed for each file, and each time all were as before", before)
    for function in ("memfd_luo_retrieve", "vfio_pci_luo_retrieve"):
        ok((after + last).count(f"{function} failed 1 times") == len(DEVICES), f"{function} has failed for each device",
           after + last)
    ok(len(re.findall(r"memfd \(errno: Cannot allocate memory", after)) == 2 and
       len(re.findall(r"device \(errno: Cannot allocate memory", after)) == 2, "what was not retrieved stays so", after)
    ok(len(re.findall(r"^edu \d: finished\s+\w{3}[0-3]$", after, re.MULTILINE)) == 2,
       "its device stops when the session is finished", after)
    ok(after.count("not retrieved at first: Resource temporarily unavailable") == 3 and
       after.count("TEST PASSED") == 3 and "none is missing" in after,
       "what could be tried again is retrieved, and no device has noticed", after)
    refused = [text.count("luo_file_can_finish_one failed 1 times\nnot finished: incoming\n") for text in (after, last)]
    ok(refused == [2, 2] and (after + last).count("finish (errno: Device or resource busy") == 4,
       "a session of which one file cannot be finished is not, whether they were retrieved or not", after + last)
    ok(last.count("TEST PASSED") == len(DEVICES) + 1 and last.count("not retrieved at first") == len(DEVICES),
       "the next update succeeds with all of them", last)
    if debug:
        ok("no leaks" in last, "and its kernel loses no memory", last)


# The whole way, with luvfiod and two machines. What is to fail in the next kernel does so before luvfiod asks for anything.
INJECT = FAIL_IN + """
fail_in $(cat /etc/inject)
"""
UNIT = """
[Unit]
DefaultDependencies=no
Before=luvfiod.service
ConditionPathExists=/etc/inject
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/bin/sh /usr/lib/luvhost/inject
[Install]
WantedBy=luvfiod.service
"""

MACHINES_COMMON = FAIL_IN + """
REPORTS=/var/log
last_update() {
        luvfioctl status --json=short | jq -re 'select(.state == "idle") | .lastUpdate.updateId'
}
another_update() {
        local id
        id=$(last_update) && [ "$id" != "$1" ]
}
update() {
        luvfioctl update --deadline=300s --cmdline="$(next_cmdline)" /boot/vmlinuz-b
}
resumed_well() {
        grep '"event":"resumed"' /var/log/$1.report | jq -se 'length == 1' &&
                grep '"event":"resumed"' /var/log/$1.report | jq -e '.ok and .checksumSame and .stateSame'
}
machines_run() {
        for vm in vm1 vm2; do
                wait_for 60 machine_is $vm running && systemctl is-active --quiet luvfio-example-vmm@$vm || return 1
                ! grep '"failed"' /var/log/$vm.report || return 1
        done
        wait_for 60 update_is idle
}
# next FUNCTION ERRNO N: the update in which this fails
next() {
        echo $* >/etc/inject
        # Not because something has taken too long just now
        wait_for 300 luvfioctl check /boot/vmlinuz-b
        last_update >/var/log/last-update
        for vm in vm1 vm2; do : >/var/log/$vm.report; done
        sync
        update
        echo "# luvfioctl update ended with $?"
        explain
}
"""

MACHINES_BEFORE = MACHINES_COMMON + f"""
cat >/usr/lib/luvhost/inject <<'END'
{INJECT}
END
cat >/etc/systemd/system/inject.service <<'END'
{UNIT}
END
systemctl enable --quiet inject.service
luvfiod_up
for i in 1 2; do
        vfio-bind $(bdf igb $i)
        vmm_define vm$i --device $(bdf igb $i) --memory 64
        systemctl daemon-reload
        systemctl start luvfio-example-vmm@vm$i
done
must "two machines run" machines_run
attempt() {{
        fail_in $1 12 $2
        refused "$1, $2: the update is given up" 4 'Cannot allocate memory' update
        check "$1, $2: it has failed" grep -qx 0 $fail/times
        echo >$fail/inject
        check "$1, $2: the machines run on" machines_run
        check "$1, $2: nothing is frozen or preserved any more" sh -c '! grep -r "outgoing\\|frozen" /sys/bus/pci/devices/*/liveupdate/state'
}}
""" + "".join(f"attempt {f} {n}\n" for f, n in MACHINES_PRESERVE + MACHINES_FREEZE)

# After a jump. How many machines are stranded is $stranded.
MACHINES_AFTER_ONE = MACHINES_COMMON + """
check "the update is over" wait_for 300 another_update $(cat /var/log/last-update)
check "$(cat /etc/inject): it has failed" grep -qx 0 $fail/times
echo >$fail/inject
names=$(luvfioctl machines --json=short | jq -r '.machines[] | select(.state == "stranded") | .name')
if [ $stranded = 0 ]; then
        check "no machine is stranded" test -z "$names"
else
        check "one machine is stranded" test $(echo $names | wc -w) = 1
        echo "# $names: $(machine_field $names reason)"
fi
for vm in vm1 vm2; do
        igb=$(bdf igb ${vm#vm})
        at=/sys/bus/pci/devices/$igb
        if [ $vm != "$names" ]; then
                check "$vm runs" machine_is $vm running
                check "$vm: RAM and device are right" resumed_well $vm
                continue
        fi
        check "$vm: the device is nobody else's" grep -qx incoming $at/liveupdate/state
        check "$vm: and blocked" grep -qx session $at/liveupdate/blocked_by
        if [ -e $at/driver ]; then
                refused "$vm: who wants to open it is told so" '[1-9].*' 'busy|EBUSY' \
                        sh -c "exec 9<>/dev/vfio/devices/$(ls $at/vfio-dev)"
        else
                # Its record was lost, and nobody has bound it.
                check "$vm: there is nothing to open" test ! -e $at/vfio-dev
        fi
        refused "no update over a stranded machine" 3 stranded update
        systemctl stop luvfio-example-vmm@$vm
        check "$vm is given up" luvfioctl discard $vm
        check "$vm: its device is like any other" sh -c "! grep -x incoming $at/liveupdate/state"
        : >/var/log/$vm.report
        vfio-bind $igb
        systemctl reset-failed luvfio-example-vmm@$vm
        check "$vm starts afresh with it" systemctl start luvfio-example-vmm@$vm
done
must "both machines run" machines_run
"""

MACHINES_LAST = scenario.LEAKS + """
leaks >/tmp/leaks && ok "no memory is lost" || { sed 's/^/# /' /tmp/leaks; not_ok "no memory is lost"; }
"""


def machines():
    following = [f"next {f} {errno} {n}\n" for f, errno, n, _ in MACHINES_AFTER] + [MACHINES_LAST]
    scripts = [MACHINES_BEFORE + following[0]]
    for (_, _, _, stranded), then in zip(MACHINES_AFTER, following[1:]):
        scripts.append(f"stranded={stranded}\n" + MACHINES_AFTER_ONE + then)
    r = full.run("machines", "-m", "5120", "--append", scenario.DEBUG_CMDLINE, "--device", "igb", "--device", "igb",
                 "--boot-deadline", "1200", "--jump-deadline", "1200", "--script-deadline", "2400", scripts=scripts,
                 first="debug", following="debug")
    full.report(r, ["before", "after"] + [f"boot{n}" for n in range(3, len(scripts) + 1)], "machines: ")
    failed = "".join(r.output(s["output"].removesuffix(".out")) for s in r.json["scripts"])
    tried = len(MACHINES_PRESERVE) + len(MACHINES_FREEZE) + len(MACHINES_AFTER)
    scenario.ok(len(re.findall(r"^ok \d+ - .*: it has failed$", failed, re.MULTILINE)) == tried,
                f"machines: all {tried} failures came to pass", failed[-3000:])


# The functions of kernel b cannot be made to fail.
main("failing", "a", "a")
if scenario.FULL:
    main("debug", "debug", "debug")
    machines()
scenario.done()
