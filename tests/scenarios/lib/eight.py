# SPDX-License-Identifier: LGPL-2.1-or-later
"""Eight guests at once, with 1, 2 and 4 vCPUs and devices that use MSI-X and INTx: what they are, and what is said of them."""

import full
import guest
import running
from full import scenario

# name: device, what it uses for interrupts, vCPUs, the guest's command line, the tap device of another NIC. In this order they start:
# those with many vCPUs while there is little else on the host's one CPU. (No guest has plain MSI: QEMU's devices that have it and no MSI-X
# have no function level reset.)
INTX = "pci=nomsi"
GUESTS = {
    "disk1": ("nvme 1", "msix", 4, "", "tap0"),
    "net1": ("igb 1", "msix", 2, "", None),
    "disk2": ("nvme 2", "intx", 1, INTX, "tap1"),
    "disk3": ("nvme 3", "msix", 1, "", None),
    "net2": ("igb 2", "intx", 1, INTX, None),
    "net3": ("igb 3", "msix", 1, "", None),
    "net4": ("igb 4", "intx", 1, INTX, None),
    "net5": ("igb 5", "msix", 1, "", None),
}
NAMES = " ".join(GUESTS)
DISKS = {"nvme": "nvme0n1"}
MEMORY = 192
# Eight guests share one emulated CPU: a slow heart, for it is at its serial port that a busy vCPU was seen to stand, and little to do for
# disks. GAP: as in qemu.py, eight at once; one of four vCPUs may stand for as long while others start, and the guest is not to call
# that a stall.
BEAT = 5000
GAP = 60000
CALM = f"luv.hb={BEAT} luv.jobs=1 luv.depth=2 luv.iops=4 luv.probe=1000 rcupdate.rcu_cpu_stall_timeout={GAP // 1000}"


def disk(device):
    """What the guest has of the device if that is a disk."""
    return DISKS.get(device.split()[0], "")


def address(device):
    """Shell text."""
    return f"$(bdf {device})"


ADDRESSES = " ".join(address(device) for device, *_ in GUESTS.values())


def uses(device, tap):
    """For guest.unit() and guest.domain(): what the guest uses."""
    return {"disk": disk(device), "net": "" if disk(device) and not tap else "eth0", "memory": MEMORY}


def begins(name, device):
    """Shell text: it is heard of its device."""
    return f"""must "{name} uses its device" begins {name} '{"^DISK" if disk(device) else "^NET eth0 received=[1-9]"}'\n"""


# What scripts have of it inside the host.
SHELL = guest.SHELL + r"""
all="@ALL@"
other_nics() {
        for tap in tap0 tap1; do
                ip link set $tap up
                check "frames to what is behind $tap" frames $tap
        done
}
# uses ADDRESS KIND: what the host has for the device's interrupts.
uses() {
        grep -q "vfio-$2.*($1)" /proc/interrupts
}
interrupts() {
@USES@
}
# run_on COUNT: so many of them are in luvfiod's hands, running.
run_on() {
        luvfioctl machines --json=short | jq -e "[.machines[] | select(.state == \"running\" and .attached)] | length == $1"
}
""".replace("@ALL@", NAMES).replace("@USES@", "\n".join(
    f'        check "{name}: {device} uses {kind}" uses {address(device)} {kind}' for name, (device, kind, *_) in GUESTS.items()))


def run(name, *arguments, scripts):
    """In the test host, whose devices they are, while frames arrive: so few that the ring has room for all while a guest stands."""
    kinds = [device.split()[0] for device, *_ in GUESTS.values()]
    return full.run(name, "--image", "virt", *[w for k in sorted(set(kinds)) for w in ("--device", k) * kinds.count(k)],
                    "-m", "5120", *guest.host(), "--outside", running.frames(period=2, burst=2), "--script-deadline", "3600",
                    "--jump-deadline", "600", *arguments, scripts=scripts)


def judge(result):
    """Each has lived on, had its device all the time, and none was reset between marks 1 and 2."""
    for vm, (passed, _, _, _, tap) in GUESTS.items():
        log = guest.read(result, vm)
        path = result.out / f"files/settled.{vm}"
        settled = int(path.read_text()) if path.exists() else 0
        print(f"# {vm}: {log.summary()}")
        used = log.disk(disk(passed), after=settled, ios=50, latency=GAP) if disk(passed) else log.net("eth0", after=settled, frames=50)
        guest.report(f"guest {vm}", log, GAP, used, period=BEAT)
        if tap:
            guest.vhost(f"guest {vm}", log, 2)
    resets = full.resets(full.between(result.trace(), 1, 2) or ["the marks are missing (resettable_"])
    scenario.ok(not resets, "no device was reset", "\n".join(resets[:20]))
