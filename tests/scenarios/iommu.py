#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# scenario: devices behind an IOMMU run through two live updates with their iommufds; what is not preserved reaches nothing
# timeout: 2400

import re
import sys
from pathlib import Path

LIB = Path(__file__).resolve().parent / "lib"
sys.path.insert(0, str(LIB))
import running  # noqa: E402 pylint: disable=wrong-import-position
from running import scenario  # noqa: E402 pylint: disable=wrong-import-position

# What the IOMMU is like, and what the kernels have to be told of it.
CASES = {
    "legacy": (["intremap=on", "caching-mode=on"], ""),
    "39 bits": (["intremap=on", "aw-bits=39"], ""),
    "second stage": (["intremap=on", "caching-mode=on", "scalable-mode=on"], "intel_iommu=on,sm_on"),
    "first stage": (["intremap=on", "scalable-mode=on", "fsts=on"], "intel_iommu=on,sm_on"),
}
# In the first update the files of one device are retrieved through that of the device, which is attached to a HWPT of its own.
DEVICES = {"igb": "HWPT=1 ORDER=cdev", "virtio-rng": "COUNTS=1"}

COMMON = "set -e\ncd /st/vfio\n" + """
path() {
        for d in igb virtio-rng edu; do readlink -f /sys/bus/pci/devices/$(bdf $d) | sed "s|^|path $d |"; done
}
"""

BEFORE = COMMON + "path\n" + "".join(f"vfio-bind $(bdf {d})\n{e} ./vfio_pci_iommufd_test -s 1 $(bdf {d})\n" for d, e in DEVICES.items()) + """
mark 1
exec jump /boot/vmlinuz-b
"""


def after(marks, then):
    lines = "".join(f"MARK='mark {mark}' {e} {then} ./vfio_pci_iommufd_test -s 2 $(bdf {d}) 2>&1 | sed 's|^|{d}: |'\n"
                    for mark, (d, e) in zip(marks, DEVICES.items()))
    return COMMON + "path\ndmesg | grep -E 'DMAR|iommufd|liveupdate' || true\n" + lines


AFTER = after((10, 11), "AGAIN=1") + """
mark 2
exec jump /boot/vmlinuz-a
"""
LAST = after((20, 21), "")


def address(text, device):
    """Bus, device and function as QEMU's trace has them."""
    m = re.search(rf"^path {device} \S*\w{{4}}:(\w\w):(\w\w)\.(\w)$", text, re.MULTILINE)
    return tuple(int(x, 16) for x in m.groups()) if m else None


def check_jump(label, r, trace, first, last, stage, where):
    def ok(condition, what, detail):
        return scenario.ok(condition, f"{label}: {what}", detail)

    text = r.output(stage)
    lines = running.between(trace, first, last)
    if not ok(lines is not None, f"jump {first} is in the trace", r.why()):
        return
    for device in DEVICES:
        said = "".join(re.findall(rf"^{device}: (.*\n)", text, re.MULTILINE))
        # In the middle it ends as in the beginning: all is preserved again.
        passed = "You may now perform kexec reboot" if stage == "after" else "TEST PASSED"
        ok(passed in said and "Bail out" not in said, f"jump {first}: {device} and its iommufd are as they were, its memory too", said)
    off = [line for line in lines if re.search(r"vtd_(dmar|ir)_enable enable 0", line)]
    ok(not off, f"jump {first}: neither translation nor interrupt remapping was ever off", "\n".join(off))
    roots = {m[1] for line in trace if (m := re.search(r"vtd_reg_dmar_root addr (0x\w+)", line))}
    moved = [line for line in lines if "vtd_reg_dmar_root" in line]
    ok(not moved, f"jump {first}: the root table stayed where it was", f"{roots}\n" + "\n".join(moved))
    sids = {d: b << 8 | s << 3 | f for d, (b, s, f) in where.items()}
    faults = [line for line in lines if (m := re.search(r"vtd_dmar_fault sid (0x\w+)", line)) and int(m[1], 16) != sids["edu"]]
    ok(not faults, f"jump {first}: no device that was preserved has met a fault", "\n".join(faults[:20]))
    switched = [line for line in lines if (m := re.search(r"vtd_switch_address_space Device (\w\w):(\w\w)\.(\w) .*enabled=0", line))
                and tuple(int(x, 16) for x in m.groups()) in [where[d] for d in DEVICES]]
    ok(not switched, f"jump {first}: none had another address space for a moment", "\n".join(switched))
    for device, pattern in (("igb", r"igb_rx_desc_buff_write"), ("virtio-rng", r"virtio_rng_pushed")):
        n, pause = running.longest_pause(lines, pattern, last)
        n = sum(bool(re.search(pattern, line)) for line in lines)
        ok(n > 0, f"jump {first}: {device} has written to memory {n} times in the blackout", pause)


def case(label, iommu, cmdline):
    numbers = running.OUT / "numbers"
    numbers.write_bytes(b"".join(n.to_bytes(8, "little") for n in range(1 << 14)))
    outside = running.OUT / "outside.sh"
    outside.write_text(f"#!/bin/sh\n{running.frames(period=1, burst=1)} & p=$!\ntrap 'kill $p' TERM\n"
                       f"{LIB}/force-dma &\nq=$!\ntrap 'kill $p $q' TERM\nwait\n")
    outside.chmod(0o755)
    arguments = [x for p in iommu for x in ("--iommu", p)]
    if cmdline:
        arguments += ["--append", cmdline]
    for event in ("pci_cfg_write", "virtio_rng_pushed", "virtio_set_status", "igb_rx_desc_buff_write", "vtd_dmar_enable", "vtd_ir_enable",
                  "vtd_dmar_fault", "vtd_reg_dmar_root", "vtd_switch_address_space"):
        arguments += ["--trace", event]
    # Of few letters, since there is a socket in a folder of that name
    r = scenario.host(re.sub(r"\W+", "-", label), "--quiet", "--file", f"{running.selftests()}:/st", *arguments, "--outside", outside,
                      "--qemu=-object", f"--qemu=rng-random,id=numbers,filename={numbers}", "--device", "igb", "--device", "edu@root",
                      "--device", "virtio-rng,max-bytes=64,period=2000,rng=numbers",
                      "sh:" + BEFORE, "sh:" + AFTER, "sh:" + LAST)
    before, trace = r.output("before"), r.trace()
    scenario.ok(r.ok, f"{label}: two live updates", r.why())
    where = {d: address(before, d) for d in [*DEVICES, "edu"]}
    # The kernel says of the edu what QEMU does.
    splats = [line for line in r.splats() if "DMAR" not in line]
    scenario.ok(not splats, f"{label}: the kernels complain of nothing", "\n".join(splats[:20]))
    if not scenario.ok(all(where.values()), f"{label}: the devices are there", before):
        return
    for first, last, stage in ((1, 11, "after"), (2, 21, "boot3")):
        check_jump(label, r, trace, first, last, stage, where)
    for device, mark in zip(DEVICES, (10, 11)):
        path = re.search(rf"^path {device} (\S+)", before, re.MULTILINE)[1]
        found = running.writes(trace, path, mark)
        scenario.ok(not found, f"{label}: nothing was written to {device}, nor to what is above it", "\n".join(found))
    said = (r.out / "outside.out").read_text(errors="replace")
    scenario.ok(re.findall(r"the edu has (.*)", said) == ["written nothing"] * 2,
                f"{label}: the edu, which was told to do DMA in each blackout, has reached nothing", said)


def control():
    """The same edu without an IOMMU: it does write."""
    r = scenario.host("control", "--quiet", "--no-iommu", "--device", "edu@root", "--trace", "none", "--outside", LIB / "force-dma",
                      "sh:exec jump /boot/vmlinuz-b", "sh:sleep 2")
    said = (r.out / "outside.out").read_text(errors="replace")
    scenario.ok(r.ok and "the edu has written memory" in said, "without an IOMMU it has", f"{said}\n{r.why()}")


for name, (properties, command_line) in CASES.items():
    case(name, properties, command_line)
control()
scenario.done()
