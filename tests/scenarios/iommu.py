#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# scenario: devices behind an IOMMU run through live updates with their iommufds; what is not preserved reaches nothing
# timeout: 3600

import re
import sys
from pathlib import Path

LIB = Path(__file__).resolve().parent / "lib"
sys.path.insert(0, str(LIB))
import running  # noqa: E402 pylint: disable=wrong-import-position
from running import matches, scenario  # noqa: E402 pylint: disable=wrong-import-position

SCALABLE = "intel_iommu=on,sm_on"
# What the IOMMU is like, what the kernels have to be told of it, whether the virtio-rng shares its context table with the edu (then
# it also comes before others, one of which would get its domain id if that was free), and whether there is a second update.
CASES = {
    "legacy": (["intremap=on", "caching-mode=on"], "", True, True),
    "39 bits": (["intremap=on", "aw-bits=39"], "", False, scenario.FULL),
    "second stage": (["intremap=on", "caching-mode=on", "scalable-mode=on"], SCALABLE, True, scenario.FULL),
    "first stage": (["intremap=on", "scalable-mode=on", "fsts=on"], SCALABLE, False, True),
}
# What the IOMMU says in the trace if there is no context table for a device, and if there is no entry in it.
NO_ROOT_ENTRY, NO_CONTEXT_ENTRY = "1", "2"
# Seconds from one frame to the next, and milliseconds from one buffer of the virtio-rng to the next. What has come before the igb
# is up, it gets at once: there must be descriptors left.
PACE, PACE_DEBUG = (1, 800), (4, 4000)
# In the first update the files of one device are retrieved through that of the device, which is attached to a HWPT of its own.
DEVICES = {"igb": "HWPT=1 ORDER=cdev", "virtio-rng": "COUNTS=1"}

COMMON = "set -e\ncd /st/vfio\n" + """
path() {
        for d in igb virtio-rng edu; do readlink -f /sys/bus/pci/devices/$(bdf $d) | sed "s|^|path $d |"; done
}
"""

# Whoever looks at the IOMMU's tables at a mark has half a second to do so.
BEFORE = COMMON + "path\n" + "".join(f"vfio-bind $(bdf {d})\n{e} ./vfio_pci_iommufd_test -s 1 $(bdf {d})\n"
                                     for d, e in DEVICES.items()) + """
mark 3
sleep 0.5
mark 1
exec jump /boot/vmlinuz-b
"""


def after(marks, again=""):
    lines = "".join(f"MARK='mark {mark}; sleep 0.5' {e} {again} ./vfio_pci_iommufd_test -s 2 $(bdf {d}) 2>&1 | sed 's|^|{d}: |'\n"
                    for mark, (d, e) in zip(marks, DEVICES.items()))
    return COMMON + "path\ndmesg | grep -E 'DMAR|iommufd|liveupdate' || true\n" + lines


AGAIN = after((10, 11), "AGAIN=1") + """
mark 4
sleep 0.5
mark 2
exec jump /boot/vmlinuz-a
"""
# Of each jump: the stage after it, the mark when all devices are taken over, and those at which the IOMMU's tables are looked at:
# before the jump, and when one device is taken over.
JUMPS = {1: ("after", 11, (3, 10)), 2: ("boot3", 21, (4, 20))}


def address(text, device):
    """As QEMU's trace has it."""
    m = re.search(rf"^path {device} \S*\w{{4}}:(\w\w:\w\w\.\w)$", text, re.MULTILINE)
    return m and m[1]


def check_jump(label, r, jump, last_jump, where, reason):
    def ok(condition, what, detail):
        return scenario.ok(condition, f"{label}: jump {jump}: {what}", detail)

    stage, last, _ = JUMPS[jump]
    text, trace = r.output(stage), r.trace()
    lines = running.between(trace, jump, last)
    if not ok(lines is not None, "it is in the trace", r.why()):
        return
    before = trace[:trace.index(lines[0])]
    preserved = [where[d] for d in DEVICES]
    for device in DEVICES:
        said = "".join(re.findall(rf"^{device}: (.*\n)", text, re.MULTILINE))
        # In the middle it ends as in the beginning: all is preserved again.
        passed = "TEST PASSED" if jump == last_jump else "You may now perform kexec reboot"
        ok(passed in said and "Bail out" not in said, f"{device} and its iommufd are as they were, its memory too", said)
    for what, register in (("translation", "dmar"), ("interrupt remapping", "ir")):
        switch = rf"vtd_{register}_enable enable"
        ok(matches(before, f"{switch} 1") and not matches(lines, f"{switch} 0"), f"{what}, which was on, was never off",
           "\n".join(matches(trace, switch)))
    roots = matches(trace, r"vtd_reg_dmar_root")
    ok(len({re.search(r"addr (0x\w+)", line)[1] for line in roots}) == 1 and matches(before, r"vtd_reg_dmar_root") and
       not matches(lines, r"vtd_reg_dmar_root"), "the root table stayed where it was", "\n".join(roots))
    faults = [(int(sid, 16), why) for sid, why in re.findall(r"vtd_dmar_fault sid (0x\w+) fault (\w+)", "\n".join(lines))]
    edu = running.requester(where["edu"])
    ok({sid for sid, _ in faults} <= {edu}, "no device that was preserved has met a fault", faults)
    ok({why for sid, why in faults if sid == edu} == {reason}, f"the edu has met fault {reason}", faults)
    switch = r"vtd_switch_address_space Device {} .*enabled="
    ok(all(matches(before, switch.format(bdf) + "1") and not matches(lines, switch.format(bdf) + "0") for bdf in preserved),
       "none of them had another address space for a moment", "\n".join(matches(trace, "vtd_switch_address_space")))
    for device, pattern in (("igb", r"igb_rx_desc_buff_write"), ("virtio-rng", r"virtio_rng_pushed")):
        n = len(matches(lines, pattern))
        ok(n > 0, f"{device} has written to memory {n} times in the blackout", running.longest_pause(lines, pattern, last)[1])


def check_tables(label, said, jump, preserved):
    """Of what the outside script has seen in the IOMMU's tables."""
    def ok(condition, what):
        return scenario.ok(condition, f"{label}: jump {jump}: {what}", said)

    marks = JUMPS[jump][2]
    before, within, later = (running.translations(said, when) for when in (f"mark {marks[0]}", f"jump {jump}", f"mark {marks[1]}"))
    kept = {bdf: before.get(bdf) for bdf in preserved}
    ok(None not in kept.values() and within == kept, "the IOMMU has entries of what was preserved, and of nobody else")
    ok({bdf: later.get(bdf) for bdf in kept} == kept, "when the next kernel runs, they have the domain ids and page tables that they had")
    others = {n for bdf, (n, _) in later.items() if bdf not in kept}
    ok(others and not others & {n for n, _ in filter(None, kept.values())}, f"none of these ids is one of the {len(others)} of others")


def case(label, name, first="a", following="b"):
    iommu, cmdline, shared, twice = CASES[name]
    jumps = [1, 2] if twice and first == "a" else [1]
    numbers = running.OUT / "numbers"
    numbers.write_bytes(b"".join(n.to_bytes(8, "little") for n in range(1 << 14)))
    marks = " ".join(str(m) for jump in jumps for m in JUMPS[jump][2])
    seconds, period = PACE_DEBUG if first == "debug" else PACE
    outside = running.outside(running.frames(period=seconds, burst=1), f"{LIB}/force-dma {marks}")
    arguments = [x for p in iommu for x in ("--iommu", p)]
    if cmdline:
        arguments += ["--append", cmdline]
    for event in ("pci_cfg_write", "virtio_rng_pushed", "virtio_set_status", "igb_rx_desc_buff_write", "vtd_dmar_enable", "vtd_ir_enable",
                  "vtd_dmar_fault", "vtd_reg_dmar_root", "vtd_switch_address_space"):
        arguments += ["--trace", event]
    scripts = [BEFORE] + ([AGAIN, after((20, 21))] if len(jumps) == 2 else [after((10, 11))])
    # Of few letters, since there is a socket in a folder of that name
    r = scenario.host(re.sub(r"\W+", "-", label), "--quiet", "--file", f"{running.selftests(first)}:/st", *arguments,
                      *running.debug(first), "--outside", outside,
                      "--qemu=-object", f"--qemu=rng-random,id=numbers,filename={numbers}", "--device", "igb", "--device", "edu@root",
                      "--device", f"virtio-rng,max-bytes=64,period={period},rng=numbers@{'root' if shared else 'root-port'}",
                      *["sh:" + s for s in scripts], first=first, following=following)
    before, trace = r.output("before"), r.trace()
    scenario.ok(r.ok, f"{label}: {len(jumps)} live updates", r.why())
    where = {d: address(before, d) for d in [*DEVICES, "edu"]}
    # The kernel says of the edu what QEMU does.
    splats = running.splats(r, where["edu"])
    scenario.ok(not splats, f"{label}: the kernels complain of nothing", "\n".join(splats[:20]))
    if not scenario.ok(all(where.values()), f"{label}: the devices are there", before):
        return
    said = (r.out / "outside.out").read_text(errors="replace")
    for jump in jumps:
        check_jump(label, r, jump, jumps[-1], where, NO_CONTEXT_ENTRY if shared else NO_ROOT_ENTRY)
        check_tables(label, said, jump, [where[d] for d in DEVICES])
    for device, mark in zip(DEVICES, (10, 11)):
        path = re.search(rf"^path {device} (\S+)", before, re.MULTILINE)[1]
        found = running.writes(trace, path, mark)
        scenario.ok(not found, f"{label}: nothing was written to {device}, nor to what is above it", "\n".join(found))
    scenario.ok(re.findall(r"the edu has (.*)", said) == ["written nothing"] * len(jumps),
                f"{label}: the edu, which was told to do DMA in each blackout, has reached nothing", said)


def control():
    """The same edu without an IOMMU: it does write."""
    r = scenario.host("control", "--quiet", "--no-iommu", "--device", "edu@root", "--trace", "none", "--outside", LIB / "force-dma",
                      "sh:exec jump /boot/vmlinuz-b", "sh:sleep 2")
    said = (r.out / "outside.out").read_text(errors="replace")
    scenario.ok(r.ok and "the edu has written memory" in said, "without an IOMMU it has", f"{said}\n{r.why()}")


for kind in CASES:
    case(kind, kind)
control()
if scenario.FULL:
    for kind in ("second stage", "first stage"):
        case(f"debug, {kind}", kind, first="debug", following="debug")
scenario.done()
