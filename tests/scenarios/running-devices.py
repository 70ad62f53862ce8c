#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# scenario: devices run through a live update, without an IOMMU, wherever they are, and nothing is written to them
# timeout: 3600

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "lib"))
import running  # noqa: E402 pylint: disable=wrong-import-position
from running import scenario  # noqa: E402 pylint: disable=wrong-import-position

KINDS = ["igb", "nvme", "virtio-rng", "edu"]
# Each kind directly on the root bus, behind a root port, behind a switch, behind a second host bridge: in the order of
# their addresses, which is that of bdf's numbers. With it, what a path there looks like.
PLACES = {
    "root": r"pci0000:00/[^/]+$",
    "root-port": r"pci0000:00(/[^/]+){2}$",
    "switch": r"pci0000:00(/[^/]+){4}$",
    "pxb": r"pci0000:40(/[^/]+){2}$",
}
DEVICES = [(kind, n, place) for n, place in enumerate(PLACES, 1) for kind in KINDS]
# In the first byte of the command register
BUS_MASTER = 0x04
# Bus numbers that the firmware leaves to a port with nothing in it, which stands before the switch. A kernel that gives numbers
# itself does not: so many numbers are others then.
GAP = 5

# Every device has a process of its own, and all of these run at a time.
COMMON = "set -e\ndevices='" + " ".join(f"{k}/{n}" for k, n, _ in DEVICES) + "'\n" + running.EVENTS + """
show() {
        ls /sys/bus/pci/devices | sed 's/^/topology /'
        for d in $devices; do readlink -f /sys/bus/pci/devices/$(bdf ${d%/*} ${d#*/}) | sed "s|^|path $d |"; done
}
config() {
        for d in $devices; do cp /sys/bus/pci/devices/$(bdf ${d%/*} ${d#*/})/config /out/$1-${d%/*}-${d#*/}; done
}
everyone() {
        n=10 pids=
        for d in $devices; do
                MARK="mark $n" COUNTS=1 ./vfio_pci_running_test -s $1 $(bdf ${d%/*} ${d#*/}) >/tmp/said-$n 2>&1 &
                pids="$pids $!" n=$((n + 1))
        done
        wait $pids || true
        n=10
        for d in $devices; do
                sed "s|^|$d: |" /tmp/said-$n
                n=$((n + 1))
        done
}
# wait_for COMMAND...: until it succeeds, or it is too late.
wait_for() {
        for i in $(seq 60); do
                ! "$@" >/dev/null 2>&1 || break
                sleep 1
        done
}
# all_are STATE: whether it was heard of each device
all_are() {
        [ $(grep -c "$1" /tmp/events) -ge $(echo $devices | wc -w) ]
}
cd /st/vfio
"""

BEFORE = COMMON + """
show
for d in $devices; do vfio-bind $(bdf ${d%/*} ${d#*/}); done
config pristine
events &
sleep 1
everyone 1
wait_for all_are outgoing
cat /tmp/events
mark 1
exec jump -a 'pci=assign-busses,realloc' /boot/vmlinuz-b
"""

AFTER = COMMON + """
show
dmesg | grep -F liveupdate:
rng=$(bdf virtio-rng)
echo "refused $(! echo $rng 2>&1 >/sys/bus/pci/drivers/virtio-pci/bind)"
echo virtio-pci >/sys/bus/pci/devices/$rng/driver_override
echo $rng >/sys/bus/pci/drivers_probe || true
test ! -e /sys/bus/pci/devices/$rng/driver
echo "refused $(! echo 1 2>&1 >/sys/bus/pci/devices/$(bdf virtio-rng 2)/reset)"
dmesg | tail -3
# All of what would have these devices otherwise
for driver in virtio-rng nvme igb; do modprobe $driver; done
for d in $devices; do
        test ! -e /sys/bus/pci/devices/$(bdf ${d%/*} ${d#*/})/driver && echo "free $d"
done
grep . /sys/bus/pci/devices/$rng/liveupdate/*
for d in /sys/block/vd*; do
        if [ "$(cat $d/serial)" = luvswap ]; then mkswap /dev/${d##*/}; swapon /dev/${d##*/}; fi
done
events &
# Longer than a period, so that something must come in every blackout
sleep 5
everyone 2
wait_for all_are finished
config closed
grep . /sys/bus/pci/devices/$rng/liveupdate/*
cat /tmp/events
for d in virtio-rng/virtio-pci nvme/nvme igb/igb; do
        at=/sys/bus/pci/devices/$(bdf ${d%/*})
        # Else it cannot be unbound
        grep -q finished $at/liveupdate/state
        echo ${at##*/} >/sys/bus/pci/drivers/vfio-pci/unbind
        echo ${d#*/} >$at/driver_override
        echo ${at##*/} >/sys/bus/pci/drivers_probe
        echo "driver $(basename $(readlink $at/driver))"
done
wait_for ls /dev/nvme0n1 /sys/class/net/eth0
ls /dev/nvme0n1 /sys/class/net
mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null || true
cat /sys/kernel/debug/pci_liveupdate
# The same command line, but nothing is preserved any more.
exec jump /boot/vmlinuz-b
"""

CONTROL = COMMON + """
tr ' ' '\\n' </proc/cmdline | grep ^pci=
show
"""


def arguments():
    """The devices, and who gives the virtio-rngs numbers that count up."""
    numbers = running.OUT / "numbers"
    numbers.write_bytes(b"".join(n.to_bytes(8, "little") for n in range(1 << 14)))
    result = ["--outside", running.frames(), *running.swap()]
    for kind, n, place in DEVICES:
        if kind == "virtio-rng":
            result += ["--qemu=-object", f"--qemu=rng-random,id=numbers{n},filename={numbers}"]
            kind += f",max-bytes=64,period={running.PERIOD * 1000},rng=numbers{n}"
        result += ["--device", f"{kind}@{place}"]
    result += ["--device", f"pcie-root-port,bus-reserve={GAP},chassis=99,slot=99@root"]
    for event in ("pci_cfg_write", "virtio_rng_pushed", "virtio_set_status", "igb_rx_desc_buff_write"):
        result += ["--trace", event]
    return result


def said(text, kind, n):
    return "".join(re.findall(rf"^{kind}/{n}: (.*\n)", text, re.MULTILINE))


def check_device(ok, debug, r, mark, kind, n, place):
    before, after = r.output("before"), r.output("after")
    what = f"{kind} at {place}"
    path = re.search(rf"^path {kind}/{n} (\S+)", after, re.MULTILINE)
    path = path[1] if path else "none"
    ok(re.search(PLACES[place], path), f"{what} is there", path)
    found = running.writes(r.trace(), path, mark)
    ok(not found, f"nothing was written to {what}, nor to what is above it", "\n".join(found))
    text = said(after, kind, n)
    ok("TEST PASSED" in text, f"{what} is as it was left, and its memory where and what it was",
       said(before, kind, n) + text)
    pages = [(int(a), int(b)) for a, b in re.findall(r"(\d+) pages of other memory were moved, (\d+) were swapped", text)]
    ok(len(pages) == 2 and min(b for _, b in pages) > 0, f"other memory was swapped out before {what} was taken over",
       pages)
    if kind == "igb" and not debug:
        during, pause = running.longest_pause(r.trace(), rf"igb_rx_desc_buff_write.* length: {48 + 16 * n}\b", mark)
        ok(during >= running.BURST and pause < running.PERIOD * 1.1,
           f"{what} has received frames each {running.PERIOD} s during the jump, and none is missing",
           f"{during} frames, longest pause {pause:.1f} s\n{text}")
    a, b = (r.out / "files" / f"{w}-{kind}-{n}" for w in ("pristine", "closed"))
    if not a.exists() or not b.exists():
        ok(False, f"{what} is closed as it was before it was opened", "it did not get that far")
        return
    a, b = bytearray(a.read_bytes()), b.read_bytes()
    # The firmware may have left it on; vfio-pci never gives a device back like that.
    a[4] &= ~BUS_MASTER
    where = [f"{i:#x}: {x:#x} {y:#x}" for i, (x, y) in enumerate(zip(a, b)) if x != y]
    ok(a == b, f"{what} is closed as it was before it was opened", where)


def case(label, first, following):
    # KASAN makes minutes of seconds, and then a device pauses because it has nothing left to do.
    debug = first == "debug"

    def ok(condition, what, detail=""):
        return scenario.ok(condition, f"{first}: {what}" if debug else what, detail)

    r = running.host(label, *arguments(), "sh:" + BEFORE, "sh:" + AFTER, "sh:" + CONTROL, first=first, following=following)
    before, after, trace = r.output("before"), r.output("after"), r.trace()
    ok(r.ok, f"{len(DEVICES)} devices through a live update", r.why())
    ok(not r.splats(), "the kernels complain of nothing", "\n".join(r.splats()[:20]))
    for mark, device in enumerate(DEVICES, 10):
        check_device(ok, debug, r, mark, *device)

    moved = [int(n) for n in re.findall(r"(\d+) pages of other memory were moved", after)]
    # Before and after it is bound, in the same way; but whether there is something to move at a time is a matter of chance.
    ok(sum(moved) > 0, "and other memory was moved", moved)

    if not debug:
        # Which one is which cannot be seen in the trace: it is looked at until the last of them is taken over.
        last = max((mark for mark, (kind, _, _) in enumerate(DEVICES, 10) if kind == "virtio-rng"),
                   key=lambda mark: len(running.between(trace, 1, mark) or []))
        rngs = sorted(set(re.findall(r"virtio_rng_pushed rng (\S+):", "\n".join(trace))))
        pauses = [running.longest_pause(trace, f"virtio_rng_pushed rng {rng}:", last) for rng in rngs]
        ok(len(rngs) == len(PLACES) and all(n > 0 and pause < running.PERIOD * 1.1 for n, pause in pauses),
           f"each virtio-rng has filled a buffer each {running.PERIOD} s during the jump, and the bytes are right", pauses)

    control = r.output("boot3")
    topology = [re.findall("^topology (.*)", text, re.MULTILINE) for text in (before, after, control)]
    buses = [sorted({int(address[5:7], 16) for address in found}) for found in topology]
    ok(GAP < max((b - a for a, b in zip(buses[0], buses[0][1:]) if b < 0x40), default=0),
       "the firmware has left out bus numbers", topology[0])
    ok(topology[0] == topology[1] and topology[0], "bus numbers are the same with pci=assign-busses,realloc", before + after)
    ok("pci=assign-busses,realloc" in control and len(topology[2]) == len(topology[0]) and topology[2] != topology[0],
       "and others when nothing is preserved", f"{topology[0]}\n{control}")

    refused = [len(re.findall(rf"not bound to {d}: it was preserved as vfio-pci", r.serial())) for d in ("virtio-pci", "nvme", "igb")]
    # Each once, and a virtio-rng that two more times are tried with.
    ok(refused == [len(PLACES) + 2, len(PLACES), len(PLACES)] and len(re.findall("^free ", after, re.MULTILINE)) == len(DEVICES),
       "drivers do not bind, built in or loaded, and one line says so each time", f"{refused}\n{after}")
    ok(len(re.findall(r"^refused .*(No such device|resource busy)", after, re.MULTILINE)) == 2,
       "nor does it when told to, and nobody can reset the device", after)
    rng = re.search(r"/([^/\n]*)$", re.search(r"^path virtio-rng/1 (\S+)", after, re.MULTILINE)[1])[1]
    shown = re.findall(rf"{rng}/liveupdate/(\w+):(.*)", after)
    handler = ("handler", "vfio-pci-cdev-v1")
    ok(shown == [("blocked_by", "session"), handler, ("retrieved", "0"), ("state", "incoming"),
                 handler, ("retrieved", "1"), ("state", "finished")], "sysfs says how far it is", shown)
    events = [re.findall(rf"^event {rng} (\w+)", text, re.MULTILINE) for text in (before, after)]
    ok(events == [["outgoing"], ["incoming", "finished"]], "so do its events", events)
    dropped = [int(n) for n in re.findall(r" incoming .* dropped-writes=(\d+)$", after, re.MULTILINE)]
    ok(len(dropped) >= len(DEVICES) and min(dropped) > 0,
       "debugfs counts what the kernel would have written to each, and to what is above it", after)
    ok(re.findall("^driver (.*)", after, re.MULTILINE) == ["virtio-pci", "nvme", "igb"] and "/dev/nvme0n1" in after and
       "eth0" in after, "when all is finished they do", after)


case("running", "a", "b")
if scenario.FULL:
    case("debug", "debug", "debug")
scenario.done()
