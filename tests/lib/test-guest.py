#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is concluded from the test guest's log: a good one is good, and each thing that can go wrong is found."""

import sys
from pathlib import Path

LIB = Path(__file__).resolve().parent
sys.path[:0] = [str(LIB), str(LIB.parent / "protocol"), str(LIB.parent / "scenarios/lib")]

# pylint: disable=wrong-import-position
import guest  # noqa: E402
import tap  # noqa: E402
from tap import equal, test, true  # noqa: E402

SECONDS = 30


def good():
    """The lines of a guest that ran undisturbed, with an NVMe and an igb."""
    lines = ["[    0.000000] Linux version 7\r", "START luvguest", "ID boot=aa uptime=1.00 cpus=1"]
    for second in range(SECONDS):
        for tenth in range(10):
            t = 1 + second + (tenth + 1) / 10
            lines.append(f"HB {second * 10 + tenth + 1} {t:.3f} {t:.3f} 100 101")
        lines.append(f"DISK nvme0n1 ios={second * 500} bytes={second << 20} inflight=3 probes={second * 40} maxlat=20 age=0")
        # What had waited before came first.
        lines.append(f"NET eth0 received={20 + second * 20} highest={500 + second * 20} missing=480 duplicate=0 corrupted=0 "
                     "old=0 nic=253 socket=0")
        if second % 5 == 4:
            lines.append(f"ID boot=aa uptime={second + 2}.00 cpus=1")
    return lines


def complaints(lines, end="\n"):
    log = guest.Log("\n".join(lines) + end)
    return {"life": log.life(beats=SECONDS * 9), "said": log.said(), "disk": log.disk("nvme0n1", after=20),
            "net": log.net("eth0", after=20)}


def found(lines, *where):
    """There is something to complain about just where it is expected."""
    equal(sorted(k for k, v in complaints(lines).items() if v), sorted(where), str(complaints(lines)))


def change(pattern, to, since=0):
    """A good log with another text in the lines after SINCE."""
    lines = good()
    true(any(pattern in line for line in lines[since:]), f"{pattern} is there")
    return lines[:since] + [line.replace(pattern, to) for line in lines[since:]]


def insert(*more, at=200):
    lines = good()
    return lines[:at] + list(more) + lines[at:]


@test
def undisturbed():
    """a good log"""
    found(good())
    equal(complaints(good() + ["HB 9"], end="")["life"], [], "a line that is cut off in the end")


@test
def other_qemu():
    """a log that another QEMU goes on with, half a second of the guest's time later"""
    lines = good()
    at = next(i for i, line in enumerate(lines) if line.startswith("HB 151 "))
    for i in range(at, len(lines)):
        word, *rest = lines[i].split()
        if word == "HB":
            gap = 600 if i == at else 100
            lines[i] = f"HB {rest[0]} {float(rest[1]) + 0.5:.3f} {float(rest[2]) + 0.5:.3f} {gap} 600"
    found(lines)
    log = guest.Log("\n".join(lines) + "\n")
    true(log.life(beats=10, gap=300), "the gap is found where less is allowed")


@test
def restarted():
    """a guest that started again"""
    lines = good()
    found(lines + [line.replace("boot=aa", "boot=bb") for line in lines], "life")
    found(insert("START luvguest"), "life")
    found(change("ID boot=aa uptime=6", "ID boot=bb uptime=6"), "life")
    found(change("uptime=16.00", "uptime=1.00"), "life")


@test
def heartbeats():
    """heartbeats that are missing, come twice, are late or go back in time"""
    found([line for line in good() if not line.startswith("HB 77 ")], "life")
    found(insert("HB 77 8.700 8.700 100 101"), "life")
    found(change("HB 77 8.700 8.700 100 ", "HB 77 8.700 8.700 2900 "), "life")
    found(change("HB 77 8.700 8.700", "HB 77 8.400 8.400"), "life")
    found(change("HB 77 8.700 8.700", "HB 77 8.700 8.400"), "life")
    found(change("HB 77 8.700 8.700 100 101", "HB 77 8.7"), "life")
    lines = good()
    at = next(i for i, line in enumerate(lines) if line.startswith("HB 150 "))
    found(lines[:at], "life")
    true(guest.Log("").life(), "an empty log")
    # All later ones are three seconds late, though each says that it is not.
    late = [line if not line.startswith("HB ") or int(line.split()[1]) < 77 else
            "HB {} {:.3f} {:.3f} 100 101".format(line.split()[1], *(float(x) + 3 for x in line.split()[2:4])) for line in lines]
    found(late, "life")


@test
def errors():
    """what fio, the probe, the guest's kernel and its init say"""
    for line in ("FIO-ERROR fio on nvme0n1 ended (exit code 84)", "FIO-ERROR verify: bad magic header 0",
                 "DISK-ERROR nvme0n1 miscompare at 4096", "ERROR there is no nvme0n1",
                 "DMESG nvme nvme0: I/O tag 3 (0003) QID 1 timeout, aborting req_op:READ(0) size:4096",
                 "DMESG igb 0000:01:00.0 eth0: Reset adapter", "[   12.0] Kernel panic - not syncing: no init"):
        found(insert(line), "said")
    equal(guest.Log("START\nDMESG sched: DL replenish lagged too much\n").said(), [], "what is allowed")
    true("reset?" in guest.Log("START\nDMESG igb: Reset adapter\n").said()[0], "a reset is called one")


@test
def disk():
    """a disk that hangs, is slow, or does nothing"""
    lines = good()
    half = len(lines) // 2
    stands = change("ios=", "ios=", 0)
    ios = next(line for line in lines[half:] if line.startswith("DISK")).split()[2]
    for i in range(half, len(stands)):
        if stands[i].startswith("DISK"):
            stands[i] = stands[i].replace(stands[i].split()[2], ios)
    found(stands, "disk")
    found(change("maxlat=20 age=0", "maxlat=9000 age=0", len(lines) - 30), "disk")
    found(change("maxlat=20 age=0", "maxlat=0 age=9000", len(lines) - 30), "disk")
    found([line for line in lines if not line.startswith("DISK")], "disk")
    found([line for i, line in enumerate(lines) if not line.startswith("DISK") or i < 30], "disk")
    found([line.replace("probes=" + line.split()[5][7:], "probes=7") if line.startswith("DISK") else line for line in lines],
          "disk")


@test
def net():
    """frames that are missing, come twice, are damaged, or stop"""
    lines = good()
    end = len(lines) - 30
    found(change("missing=480", "missing=481", end), "net")
    found(change("duplicate=0", "duplicate=1", end), "net")
    found(change("corrupted=0", "corrupted=1", end), "net")
    found(change("old=0", "old=1", end), "net")
    found(change("nic=253", "nic=254", end), "net")
    found(change("socket=0", "socket=1", end), "net")
    received = [line.split()[2] for line in lines if line.startswith("NET")]
    found([line if not line.startswith("NET") or i < len(lines) // 2 else line.replace(line.split()[2], received[SECONDS // 2])
           for i, line in enumerate(lines)], "net")
    found([line for line in lines if not line.startswith("NET")], "net")
    log = guest.Log("\n".join(change("missing=480", "missing=490", end)) + "\n")
    equal(log.net("eth0", after=20, missing=10), [], "as many as are allowed")
    true(log.net("eth0", after=20, missing=9), "more than are allowed")


@test
def words():
    """QEMU's command line"""
    text = guest.command("one", "-trace", "x*", devices=["$(bdf nvme)"], smp=4, disk="nvme0n1", append="luv.iops=100")
    for part in ('"-smp" "4"', '"vfio-pci,host=$(bdf nvme),iommufd=iommufd0,id=hostdev0,bus=rp0"', ",append=on",
                 " luv.disk=nvme0n1 luv.iops=100", '"-trace" "x*"', "aux-ram-share=on", ",share=on"):
        true(part in text, f"{part} in {text}")
    true("luv.net" not in text, "what is not asked for is not there")


if __name__ == "__main__":
    tap.main()
