#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# scenario: behind an IOMMU, updates that would lose a device are refused; a device that nobody takes over is blocked, and free
# timeout: 2400

import re
import sys
from pathlib import Path

LIB = Path(__file__).resolve().parent / "lib"
sys.path.insert(0, str(LIB))
import running  # noqa: E402 pylint: disable=wrong-import-position
from running import matches, scenario  # noqa: E402 pylint: disable=wrong-import-position

LEGACY = ["--iommu", "intremap=on", "--iommu", "caching-mode=on"]
SCALABLE = ["--iommu", "intremap=on", "--iommu", "scalable-mode=on", "--iommu", "fsts=on", "--append", "intel_iommu=on,sm_on"]
# What becomes of each: its session is finished without anything being retrieved, with only the iommufd, or when it is gone.
ABANDON = {"igb": "1", "virtio-rng 1": "cdev", "virtio-rng 2": "remove"}
# The first one refuses the update, and then runs through it with the other one, which uses the same page tables.
PAIR = ["virtio-rng 3", "edu"]
# How, as the kernel says it, and with what exit code of the jump.
REFUSE = {
    "REFUSE=order": ("was preserved before its iommufd", "22"),
    "REFUSE=cdev": ("is attached to an iommufd that is preserved, and is not preserved itself", "22"),
    "IRQS=1 BDF2=$other": ("live update refused: INTx interrupts are on", "16"),
}
# Seconds from one frame to the next, and from one of eight buffers to the next, of what is abandoned. What has come before the
# igb is up, it gets at once: there must be descriptors left.
PACE, PACE_DEBUG = (1, 3), (4, 15)

COMMON = """
set -e
cd /st/vfio
pci=/sys/bus/pci/devices
t=./vfio_pci_iommufd_test
holder() {
        for p in /proc/[0-9]*; do
                case "$(tr '\\0' ' ' <$p/cmdline)" in "$t -s 1 $1 ") echo ${p#/proc/} ;; esac
        done
}
refused() {
        jump /boot/vmlinuz-b || echo "refused with $?"
        dmesg | grep -E 'preserved|live update refused' | tail -n 1
}
state() {
        echo "$1 $(cat $pci/$2/liveupdate/state) $(od -An -tx2 -j4 -N2 $pci/$2/config)"
}
""" + f"pair=$(bdf {PAIR[0]}) other=$(bdf {PAIR[1]})\n"

BEFORE = COMMON + "vfio-bind $pair $other\n" + "".join(f"""
{how} $t -s 1 $pair
refused
kill -{"USR1" if "IRQS" in how else "KILL"} $(holder $pair)
sleep 1
""" for how in REFUSE) + "mark 3\n" + "".join(f"""
d=$(bdf {d})
echo "address {d} $d"
vfio-bind $d
$t -s 1 $d
""" for d in ABANDON) + """
echo "address pair $pair"
echo "address other $other"
mark 4
sleep 1
mark 1
exec jump /boot/vmlinuz-b
"""


# At mark 10 and 12 the tables are looked at from outside.
def after(period):
    return COMMON + "".join(f"""
d=$(bdf {d})
state 'incoming {d}:' $d
ABANDON={how} $t -s 2 $d
[ ! -e $pci/$d ] || state 'abandoned {d}:' $d
""" for d, how in ABANDON.items()) + f"""
mark 10
sleep {2 * period}
mark 11
MARK='mark 12; sleep 1' BDF2=$other $t -s 2 $pair
echo 1 >/sys/bus/pci/rescan
""" + "".join(f"""
d=$(bdf {d})
vfio-bind $d
$t -s 1 $d
""" for d in ABANDON) + f"""
sleep {period + 1}
mark 13
"""


def writers(lines):
    """Which devices have written to memory: there is only one igb."""
    return set(re.findall(r"virtio_rng_pushed rng 0x\w+|igb_rx_desc_buff_write", "\n".join(lines)))


def case(label, iommu, **kernels):
    def ok(condition, what, detail):
        return scenario.ok(condition, f"{label}: {what}", detail)

    first = kernels.get("first", "a")
    seconds, period = PACE_DEBUG if first == "debug" else PACE
    arguments = ["--file", f"{running.selftests(first)}:/st", *iommu, *running.debug(first)]
    for event in ("pci_cfg_write", "virtio_rng_pushed", "igb_rx_desc_buff_write", "vtd_dmar_enable", "vtd_dmar_fault"):
        arguments += ["--trace", event]
    for device in ["igb", *[f"virtio-rng,max-bytes=64,period={p}" for p in (period * 1000, period * 1000, 500)], "edu"]:
        arguments += ["--device", device]
    r = scenario.host(label, "--quiet", *arguments, "--outside",
                      running.outside(running.frames(period=seconds, burst=1), f"{LIB}/look-at-tables 4 10 12"),
                      "sh:" + BEFORE, "sh:" + after(period), **kernels)
    before, text, trace = r.output("before"), r.output("after"), r.trace()
    ok(r.ok, "a live update, when all has been set right", r.why())
    for how, (why, code) in REFUSE.items():
        ok(re.search(rf"^refused with {code}\n.*{why}", before, re.MULTILINE), f"{how.split()[0]}: it is refused: {why}", before)
    where = dict(re.findall(r"^address (\S.*) 0000:(\S+)$", before, re.MULTILINE))
    windows = [running.between(trace, *marks) for marks in ((1, 10), (10, 11), (11, 13))]
    if not ok(len(where) == len(ABANDON) + len(PAIR) and None not in windows, "the devices and the marks are there", before + text):
        return
    removed = where["virtio-rng 2"]
    ok(not r.splats(), "the kernels complain of nothing", "\n".join(r.splats()[:20]))

    for device in ABANDON:
        if where[device] != removed:
            ok(re.search(rf"^incoming {device}: incoming\s+\w{{3}}[4-7]\nabandoned {device}: finished\s+\w{{3}}[0-3]$", text, re.MULTILINE),
               f"{device}, which nobody takes over, is stopped", text)
    ok(re.search(rf"{removed}: liveupdate: removed without having been taken over: its DMA is stopped", r.serial()),
       "what is removed is stopped, too", r.serial()[-4000:])
    said = (r.out / "outside.out").read_text(errors="replace")
    before_it, without, taken_over = (running.translations(said, f"mark {mark}") for mark in (4, 10, 12))
    ok(removed not in without and all(where[d] in before_it and without.get(where[d]) and without[where[d]][1] != before_it[where[d]][1]
                                      for d in ABANDON if where[d] != removed),
       "the IOMMU has no entry of what is gone, and other page tables for what is stopped", said)
    pair = {table.get(where[d]) for table in (before_it, without, taken_over) for d in ("pair", "other")}
    ok(len(pair) == 1 and None not in pair, "those that share page tables have them, and the domain id, as before", said)
    ok("TEST PASSED" in text, "they are as they were", text)

    # The writer of the pair is the one that there was first.
    first_mark = next(n for n, line in enumerate(trace) if running.is_mark(line, 3))
    running_on, silent, again = (writers(lines) - writers(trace[:first_mark]) for lines in windows)
    ok(len(running_on) == len(ABANDON) and not silent, "it has written to memory until then, and then not any more", [running_on, silent])
    ok(again == running_on, "it can be used like any other device", again)
    faults = matches(trace, "vtd_dmar_fault")
    ok(not matches(trace, "vtd_dmar_enable enable 0") and not faults, "no device met a fault, and translation was never off",
       "\n".join(faults))


if scenario.FULL:
    case("legacy", LEGACY)
case("scalable", SCALABLE)
if scenario.FULL:
    case("debug", SCALABLE, first="debug", following="debug")
scenario.done()
