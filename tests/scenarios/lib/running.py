# SPDX-License-Identifier: LGPL-2.1-or-later
"""For scenarios with devices that run through a live update: no IOMMU, the kernel's selftest in the tiny image, and
frames from outside."""

import os
import re
import sys
from datetime import datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "lib"))
from luvtest import scenario  # noqa: E402 pylint: disable=wrong-import-position

OUT = Path(os.environ.get("LUV_RUN") or ".")
# Seconds between two bursts of frames, and between two buffers of random numbers. QEMU itself pauses for half a second now
# and then while it emulates a busy kernel. Seven periods must be longer than the blackout: that is how many buffers wait.
PERIOD = 6
# Frames in a burst.
BURST = 8

# What the old kernel writes to QEMU's root ports when it lets go of the port's own services, whose interrupts would find no
# handler during the jump: register and value.
ALLOWED = {
    ("pcie-root-port", 0x70, 0): "root control: PME interrupt off",
    ("pcie-root-port", 0x74, 0x10000): "root status: PME cleared",
    ("pcie-root-port", 0x64, 0): "link control: bandwidth notifications off",
    ("pcie-root-port", 0x4a, 0): "MSI off",
    ("pcie-root-port", 0x04, 0x107): "command: INTx not disabled any more; I/O, memory, bus master and SERR stay on",
}

# For a shell: notes in /tmp/events what state devices come to be in.
EVENTS = """
events() {
        uevent sh -c 'test -z "$LIVEUPDATE_STATE" || echo "event ${DEVPATH##*/} $LIVEUPDATE_STATE" >>/tmp/events'
}
"""

# To the n-th igb go frames of 64 + 16 n bytes, by which the trace tells them apart. The bytes are what the selftest expects.
FRAMES = """#!/usr/bin/env python3
import os, socket, time
ports = []
while f"LUV_NET{len(ports)}_PORT" in os.environ:
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind(("127.0.0.1", int(os.environ[f"LUV_NET{len(ports)}_PEER"])))
    ports.append((s, ("127.0.0.1", int(os.environ[f"LUV_NET{len(ports)}_PORT"]))))
n, t = 0, time.monotonic()
while True:
    for n in range(n, n + BURST):
        head = b"\\xff" * 6 + b"\\x02\\0\\0\\0\\0\\1" + b"\\x88\\xb5" + b"%d\\0" % n
        for i, (s, to) in enumerate(ports):
            s.sendto(head + bytes((n + k) & 0xff for k in range(len(head), 64 + 16 * i)), to)
    n, t = n + 1, t + PERIOD
    time.sleep(max(0, t - time.monotonic()))
"""

# Two scripts beside each other.
BOTH = """#!/bin/sh
FIRST & p=$!
SECOND & q=$!
trap 'kill $p $q' TERM
wait
"""


def frames(period=PERIOD, burst=BURST):
    """The outside script that sends frames to every igb."""
    path = OUT / "frames.py"
    path.write_text(FRAMES.replace("PERIOD", str(period)).replace("BURST", str(burst)))
    path.chmod(0o755)
    return path


def outside(first, second):
    """The outside script that is both of two."""
    path = OUT / "outside.sh"
    path.write_text(BOTH.replace("FIRST", str(first)).replace("SECOND", str(second)))
    path.chmod(0o755)
    return path


def translations(said, when):
    """What an outside script has said that the IOMMU has: domain id and page tables by device."""
    return {bdf: (int(n), tables) for bdf, n, tables in
            re.findall(rf"^{when}: (\S+) has domain id (\d+), page tables at (\S+)", said, re.MULTILINE)}


def selftests(variant="a"):
    return os.environ.get("LUV_SELFTESTS") or scenario.kernel(variant) / "selftests"


def debug(first):
    """What the test host has to be told if it is the debug kernel: KASAN makes minutes of seconds."""
    return ["-m", "6144", "--append", scenario.DEBUG_CMDLINE, "--boot-deadline", "600", "--jump-deadline", "600",
            "--script-deadline", "1200"] if first == "debug" else []


def host(name, *arguments, first="a", following="b"):
    command = ["--quiet", "--no-iommu", "--append", "vfio.enable_unsafe_noiommu_mode=1", "--file", f"{selftests(first)}:/st",
               *debug(first)]
    return scenario.host(name, *command, *arguments, first=first, following=following)


def swap(size=64 << 20):
    """Arguments for a disk to swap to: /dev/vdd."""
    path = OUT / "swap.raw"
    with open(path, "wb") as f:
        f.truncate(size)
    return ["--device", "virtio-blk-pci,drive=swap,serial=luvswap@root",
            "--qemu=-drive", f"--qemu=if=none,id=swap,file={path},format=raw,cache=unsafe"]


def splats(result, bdf):
    """What the kernels complain of, without the faults of one device; each is announced."""
    return [line for line in result.splats()
            if f"Request device [0000:{bdf}] fault addr" not in line and "DRHD: handling fault status reg" not in line]


def requester(bdf):
    """Bus, slot and function as the IOMMU has them."""
    bus, slot, function = (int(x, 16) for x in re.split("[:.]", bdf))
    return bus << 8 | slot << 3 | function


def matches(lines, pattern):
    return [line for line in lines if re.search(pattern, line)]


def is_mark(line, number):
    return re.search(rf"pci_cfg_write pci-testdev \S+ @0xc <- {number:#x}$", line.strip()) is not None


def between(trace, first, last):
    """The lines from one mark to another; None if there are not both."""
    start = next((n for n, line in enumerate(trace) if is_mark(line, first)), None)
    end = next((n for n, line in enumerate(trace) if is_mark(line, last)), None)
    return None if start is None or end is None else trace[start:end]


def writes(trace, path, mark):
    """Config writes that are not allowed to a device, and to all bridges above it, from the jump (mark 1) to a mark."""
    addresses = set(re.findall(r"/\w{4}:(\w\w:\w\w\.\w)", path))
    lines = between(trace, 1, mark)
    if lines is None:
        return ["no marks"]
    found = []
    for line in lines:
        m = re.search(r"pci_cfg_write (\S+) (\S+) @(0x\w+) <- (0x\w+)", line)
        if m and m[2] in addresses and (m[1], int(m[3], 16), int(m[4], 16)) not in ALLOWED:
            found.append(m[0])
    return found


def moment(line):
    return datetime.fromisoformat(line.split()[0].replace("Z", "+00:00")).timestamp()


def longest_pause(trace, pattern, mark):
    """Of what the pattern says in the trace: how often it came between the jump and the mark, and the longest time that it
    did not come, in seconds, from before the jump until after the mark."""
    blackout = between(trace, 1, mark) or []
    times = [moment(line) for line in trace if re.search(pattern, line)]
    if not blackout or not times:
        return 0, float("inf")
    start, end = moment(blackout[0]), moment(blackout[-1])
    before = max((t for t in times if t <= start), default=float("-inf"))
    after = min((t for t in times if t >= end), default=float("inf"))
    during = sorted(t for t in times if start < t < end)
    moments = [before, *during, after]
    return len(during), max(b - a for a, b in zip(moments, moments[1:]))
