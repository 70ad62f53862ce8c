#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# scenario: a live update that is refused leaves running devices as they were; many in a row lose nothing
# timeout: 3600

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "lib"))
import running  # noqa: E402 pylint: disable=wrong-import-position
from running import scenario  # noqa: E402 pylint: disable=wrong-import-position

# Whose session ends before the jump, and after it without being retrieved; with what interrupts the others refuse the jump; which
# of them sleep.
LEAVES, ABANDONED = "edu 1", "virtio-rng 2"
# How often it does so.
ROUNDS = 10
# Seconds between two bursts of so many frames, and between two buffers of random numbers. It is not measured how long devices
# pause, and each update waits for some of these.
PERIOD, BURST = 2, 3
REFUSE = {"edu 2": "intx", "edu 3": "msi", "nvme 1": "msix"}
# An NVMe says that it keeps its state in D3hot; what an e1000e would lose, vfio-pci writes to it when it wakes up.
E1000E = "8086:10d3"
SLEEP = {"nvme 2": "low", "nvme 3": "d3hot", E1000E + " 1": "d3hot"}
PLAIN = ["igb 1", "virtio-rng 1"]
ALL = PLAIN + list(REFUSE) + list(SLEEP)

COMMON = running.EVENTS + """
set -e
[ -e /sys/kernel/debug/kho ] || mount -t debugfs debugfs /sys/kernel/debug
cd /st/vfio
t=./vfio_pci_running_test
pci=/sys/bus/pci/devices
holder() {
        for p in /proc/[0-9]*; do
                case "$(tr '\\0' ' ' <$p/cmdline)" in *"vfio_pci_running_test -s 1 $1 ") echo ${p#/proc/} ;; esac
        done
}
refused() {
        jump /boot/vmlinuz-b || echo "refused with $? for $1, igb is $(cat $pci/$(bdf igb)/liveupdate/state)"
        dmesg | grep -F 'live update refused' | tail -n 1
}
# How much KHO has been told of, to hand it over
handed() {
        ls -R /sys/kernel/debug/kho/out | grep -c .
}
# What lies in the lists of each CPU is free, but not in MemAvailable.
available() {
        awk '/^MemAvailable/ { n += $2 } $1 == "count:" { n += 4 * $2 } END { print n }' /proc/meminfo /proc/zoneinfo
}
free_now() {
        echo 3 >/proc/sys/vm/drop_caches
        sleep 1
        echo "$1 available: $(available)"
        awk -v when=$1 '/^SUnreclaim/ { print when, "slab:", $2 }' /proc/meminfo
        echo "$1 handed: $(handed)"
}
start() {
        for d in ALL; do
                d=$(bdf ${d%/*} ${d#*/})
                [ "$(basename $(readlink $pci/$d/driver))" = vfio-pci ]
                $t -s 1 $d &
        done
        wait
}
""".replace("ALL", " ".join(d.replace(" ", "/") for d in ALL))

BEFORE = COMMON + "vfio-bind " + " ".join(f"$(bdf {d})" for d in ALL + [LEAVES, ABANDONED]) + "\n" + "".join(
    f"{env}$t -s 1 $(bdf {d})\n" for env, d in
    [("", d) for d in PLAIN + [LEAVES, ABANDONED]] +
    [(f"IRQS={irqs} ", d) for d, irqs in REFUSE.items()] +
    [(f"POWER={power} ", d) for d, power in SLEEP.items()]) + f"""
echo "sleeping $(cat $pci/$(bdf nvme 2)/power_state $pci/$(bdf nvme 3)/power_state $pci/$(bdf {E1000E})/power_state | tr '\\n' ' ')"
bdf nvme 3 | sed 's/^0000:/asleep /'
bdf {E1000E} | sed 's/^0000:/restored /'
leaves=$(bdf {LEAVES})
echo "leaves: $(cat $pci/$leaves/liveupdate/state)"
n=0
while [ $n -lt {ROUNDS} ]; do
        kill $(holder $leaves)
        sleep 1
        echo "left: $(cat $pci/$leaves/liveupdate/state)"
        # The first rounds fill caches.
        [ $n -ne 2 ] || free_now early
        n=$((n + 1))
        [ $n -eq {ROUNDS} ] || $t -s 1 $leaves
done
free_now late
events &
sleep 1
igb=$(bdf igb)
# Each of them alone: it is always another one that has been frozen before.
""" + "".join(f"""
refused {irqs}
kill -USR1 $(holder $(bdf {d}))
sleep 1
""" for d, irqs in REFUSE.items()) + """
sed -n "s/^event $igb /igb came to be /p" /tmp/events
mark 1
exec jump /boot/vmlinuz-b
"""

CHECK = COMMON + "n=10\n" + """
dmesg | sed -n 's/.* \\([0-9]*\\)K reserved.*/reserved \\1/p'
echo "available $(available)"
awk '/^SUnreclaim/ { print "slab", $2 }' /proc/meminfo
for d in """ + " ".join(d.replace(" ", "/") for d in ALL) + """; do
        MARK="mark $n" $t -s 2 $(bdf ${d%/*} ${d#*/}) &
        n=$((n + 1))
done
wait
echo "handed $(handed)"
# What was handed over counts when it is given back.
awk '/^MemTotal/ { print "total", $2 }' /proc/meminfo
echo "structures $(grep -c . /sys/kernel/debug/pci_liveupdate) $(grep -c finished=1 /sys/kernel/debug/pci_liveupdate)"
"""

AFTER = CHECK.replace("n=10\n", f"""n=10
left=$(bdf {LEAVES}) abandoned=$(bdf {ABANDONED})
echo "left: $(cat $pci/$left/liveupdate/state)"
echo "abandoned: $(cat $pci/$abandoned/liveupdate/state) $(od -An -tx2 -j4 -N2 $pci/$abandoned/config)"
ABANDON=1 $t -s 2 $abandoned
echo "finished: $(cat $pci/$abandoned/liveupdate/state) $(od -An -tx2 -j4 -N2 $pci/$abandoned/config)"
echo virtio-pci >$pci/$abandoned/driver_override
echo $abandoned >/sys/bus/pci/drivers_probe
echo "driver $(basename $(readlink $pci/$abandoned/driver))"
""", 1)

NEXT = "start\nexec jump /boot/vmlinuz-$([ $((LUV_BOOT % 2)) = 1 ] && echo b || echo a)\n"


def case(label, updates, first, following):
    def ok(condition, what, detail):
        scenario.ok(condition, what if first == "a" else f"{first}: {what}", detail)

    devices = [f"virtio-rng,max-bytes=64,period={PERIOD * 1000}"] * 2 + ["igb"] + ["nvme"] * 3 + ["edu"] * 3 + ["e1000e@root-port"]
    scripts = [AFTER + NEXT] + [CHECK + NEXT] * (updates - 2) + [CHECK]
    r = running.host(label, *[x for d in devices for x in ("--device", d)], "--trace", "pci_cfg_write",
                     "--trace", "pci_pm_transition", "--outside", running.frames(PERIOD, BURST), "sh:" + BEFORE, *["sh:" + s for s in scripts],
                     first=first, following=following)
    stages = ["after"] + [f"boot{n}" for n in range(3, updates + 2)]
    before, after = r.output("before"), r.output("after")
    ok(r.ok, f"{updates} live updates in a row", r.why())
    ok(not r.splats(), "the kernels complain of nothing", "\n".join(r.splats()[:20]))

    refused = re.findall(r"^refused with (\d+) for (\w+), igb is (\w+)\n.*live update refused: (\S+) interrupts", before, re.MULTILINE)
    ok([(a, b, c, d.lower().replace("-", "")) for a, b, c, d in refused] ==
       [("16", irqs, "outgoing", irqs) for irqs in REFUSE.values()],
       "it is refused as long as a device has interrupts on, of each kind", before)
    ok(re.findall(r"^igb came to be (\w+)", before, re.MULTILINE) == ["frozen", "outgoing"] * len(REFUSE),
       "each time another one was frozen, and is not any more", before)
    ok("leaves: outgoing\nleft: none" in before and before.count("left: none") == ROUNDS and "left: none" in after,
       "who goes away before the jump is not in it", before)
    free = {(when, what): int(n) for when, what, n in re.findall(r"^(early|late) (\w+): (\d+)", before, re.MULTILINE)}
    used, slab = (free.get(("early", "available"), 0) - free.get(("late", "available"), 0),
                  free.get(("late", "slab"), 0) - free.get(("early", "slab"), 0))
    # KASAN keeps what is freed for a while. A preserved memfd is of 1.3 MiB.
    if first != "debug":
        ok(len(free) == 6 and used < 1024 and slab < 512, f"nor is any memory lost when that happens {ROUNDS} times", free)

    ok(free.get(("early", "handed"), 0) == free.get(("late", "handed")), "and nothing of it is handed over", free)

    sleeping = running.between(r.trace(), 1, 10 + ALL.index("nvme 3"))
    asleep, restored = (re.search(rf"^{what} (\S+)", before, re.MULTILINE) or ["", "none"] for what in ("asleep", "restored"))
    moved = [line for line in sleeping or ["no marks"] if f"pci_pm_transition nvme {asleep[1]}" in line or "no marks" in line]
    ok("sleeping D3hot D3hot D3hot" in before and not moved, "a device that its user has sent to D3hot stays there", moved or before)
    # Its PCI Express capability is written whenever a saved state is restored.
    mark = 10 + ALL.index(E1000E + " 1")
    ok(re.search(rf"pci_cfg_write pci-testdev \S+ @0xc <- {mark:#x}\n(?:.*\n)*?.*pci_pm_transition e1000e {restored[1]} .*\n"
                 rf"(?:.*\n){{0,200}}?.*pci_cfg_write e1000e {restored[1]} @0x(e8|f0) ", "\n".join(r.trace()) + "\n"),
       "what it was before it fell asleep is handed over, and restored when it wakes up", running.between(r.trace(), 1, mark))

    ok(re.search(r"abandoned: incoming\s+\w{3}[4-7]\nfinished: finished\s+\w{3}[0-3]\n", after) and
       "finished without having been taken over: its DMA is stopped" in r.serial() and "driver virtio-pci" in after,
       "a device whose session is finished without it stops, and is free", after)

    passed = [r.output(s).count("TEST PASSED") for s in stages]
    missing = [r.output(s).count("none is missing") for s in stages]
    ok(passed == [len(ALL)] * updates and missing == [2] * updates,
       "no device has noticed, neither the refusals nor the updates", [passed, missing])

    def same(pattern, what, slack, sign):
        found = [[int(n) for n in re.findall(pattern, r.output(s), re.MULTILINE)] for s in stages]
        # Kernel a comes every second time: compare like with like.
        now, then = found[-1], found[(updates - 1) % 2]
        ok(all(found) and min(min(n) for n in found) > 0 and sign * (now[0] - then[0]) <= slack, what, found)

    # KASAN keeps what is freed for a while.
    if first != "debug":
        same(r"^available (\d+)", "no memory is lost", 1024, -1)
        same(r"^slab (\d+)", "nor does it go to the kernel", 512, 1)
    same(r"^reserved (\d+)", "what is handed over does not get more", 64, 1)
    same(r"^total (\d+)", "all that was handed over is given back", 1024, -1)
    same(r"^handed (\d+)", "and in the end no more is handed over than there was", 0, 1)
    structures = [re.findall(r"^structures (\d+) (\d+)", r.output(s), re.MULTILINE) for s in stages]
    ok(all(len(s) == 1 and s[0][0] == s[0][1] for s in structures) and structures[-1] == structures[1],
       "all that the kernel keeps of devices is finished, and does not get more", structures)


case("refused", 10, "a", "b")
if scenario.FULL:
    case("debug", 3, "debug", "debug")
scenario.done()
