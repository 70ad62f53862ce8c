#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# scenario: devices run through a live update, without an IOMMU, and nothing is written to them
# timeout: 900

import os
import re
import sys
from datetime import datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))
from luvtest import scenario  # noqa: E402 pylint: disable=wrong-import-position

# Directly on the root bus, behind a root port, behind a switch, behind a second host bridge
DEVICES = {"igb": "root-port", "nvme": "switch", "virtio-rng": "pxb", "edu": "root"}
# Milliseconds. Seven of them must be longer than the blackout: that is how many buffers wait in its queue.
PERIOD = 6000
# In the first byte of the command register
BUS_MASTER = 0x04

# Registers of QEMU's root ports that the old kernel writes to when it lets go of the port's own services. Their
# interrupts would find no handler during the jump.
ALLOWED = {
    ("pcie-root-port", 0x70): "root control: PME interrupt off",
    ("pcie-root-port", 0x74): "root status: PME cleared",
    ("pcie-root-port", 0x64): "link control: bandwidth notifications off",
    ("pcie-root-port", 0x4a): "MSI off",
    ("pcie-root-port", 0x04): "command: INTx not disabled any more, all else as it was",
}

FRAMES = """#!/usr/bin/env python3
import os, socket, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("127.0.0.1", int(os.environ["LUV_NET0_PEER"])))
n, t = 0, time.monotonic()
while True:
    s.sendto((b"\\xff" * 6 + b"\\x02\\0\\0\\0\\0\\1" + b"\\x88\\xb5" + b"%d\\0" % n).ljust(64, b"\\0"),
             ("127.0.0.1", int(os.environ["LUV_NET0_PORT"])))
    n, t = n + 1, t + 0.25
    time.sleep(max(0, t - time.monotonic()))
"""

COMMON = "set -e\nkinds='" + " ".join(DEVICES) + "'\n" + """
show() {
        ls /sys/bus/pci/devices | sed 's/^/topology /'
        for k in $kinds; do readlink -f /sys/bus/pci/devices/$(bdf $k) | sed "s/^/path $k /"; done
}
config() {
        for k in $kinds; do cp /sys/bus/pci/devices/$(bdf $k)/config /out/$1-$k; done
}
cd /st/vfio
"""

BEFORE = COMMON + """
show
for k in $kinds; do vfio-bind $(bdf $k); done
config pristine
for k in $kinds; do ./vfio_pci_running_test -s 1 $(bdf $k); done
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
echo "refused $(! echo 1 2>&1 >/sys/bus/pci/devices/$rng/reset)"
dmesg | tail -3
grep . /sys/bus/pci/devices/$rng/liveupdate/*
n=10
for k in $kinds; do
        MARK="mark $n" ./vfio_pci_running_test -s 2 $(bdf $k)
        n=$((n + 1))
done
config closed
grep . /sys/bus/pci/devices/$rng/liveupdate/*
echo $rng >/sys/bus/pci/drivers/vfio-pci/unbind
echo virtio-pci >/sys/bus/pci/devices/$rng/driver_override
echo $rng >/sys/bus/pci/drivers_probe
echo "driver $(basename $(readlink /sys/bus/pci/devices/$rng/driver))"
mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null || true
cat /sys/kernel/debug/pci_liveupdate
"""


def writes(trace, path, mark):
    """Config writes to a device, and to all bridges above it, from the jump to the mark."""
    addresses = set(re.findall(r"/\w{4}:(\w\w:\w\w\.\w)", path))
    found, on = [], False
    for line in trace:
        m = re.search(r"pci_cfg_write (\S+) (\S+) @(0x\w+) <- (0x\w+)", line)
        if not m:
            continue
        name, address, register, value = m[1], m[2], int(m[3], 16), int(m[4], 16)
        if name == "pci-testdev" and register == 0xc:
            if value == mark:
                return found
            on = on or value == 1
        elif on and address in addresses and (name, register) not in ALLOWED:
            found.append(m[0])
    return found + ["no end mark"]


def pauses(trace):
    """Seconds between one buffer that the virtio-rng has filled and the next, from the jump to the end of it all."""
    times, on = [], False
    for line in trace:
        on = on or "pci-testdev" in line and "@0xc <- 0x1" in line and "@0xc <- 0x1" == line.strip()[-11:]
        if "virtio_rng_pushed" in line:
            times.append((datetime.fromisoformat(line.split()[0].replace("Z", "+00:00")), on))
    return [(b - a).total_seconds() for (a, _), (b, during) in zip(times, times[1:]) if during]


def main():
    out = Path(os.environ.get("LUV_RUN", "."))
    outside = out / "frames.py"
    outside.write_text(FRAMES)
    outside.chmod(0o755)
    folder = scenario.kernel("a") / "selftests"
    paced = {"virtio-rng": f",max-bytes=64,period={PERIOD}"}
    arguments = [x for kind, place in DEVICES.items() for x in ("--device", f"{kind}{paced.get(kind, '')}@{place}")]
    arguments += ["--trace", "pci_cfg_write", "--trace", "virtio_rng_pushed", "--trace", "virtio_set_status"]
    r = scenario.host("running", "--quiet", "--no-iommu", "--append", "vfio.enable_unsafe_noiommu_mode=1", *arguments,
                      "--file", f"{folder}:/st", "--outside", outside, "sh:" + BEFORE, "sh:" + AFTER)
    before, after = r.output("before"), r.output("after")
    scenario.ok(r.ok, "four devices through a live update", r.why())
    scenario.ok(not r.splats(), "the kernels complain of nothing", "\n".join(r.splats()[:20]))
    for kind, place in DEVICES.items():
        path = re.search(rf"^path {kind} (\S+)", after, re.MULTILINE)
        found = writes(r.trace(), path[1], 10 + list(DEVICES).index(kind)) if path else ["it is gone"]
        scenario.ok(not found, f"nothing was written to {kind} at {place}, nor to what is above it", "\n".join(found))
    scenario.ok(after.count("TEST PASSED") == len(DEVICES), "each is as it was left, and its memory where it was", after)
    scenario.ok(re.search(r"none is missing", after), "igb has gone on receiving, and no frame is missing", after)
    gaps = pauses(r.trace())
    scenario.ok(len(gaps) >= 2 and max(gaps) < PERIOD / 1000 * 1.1, f"virtio-rng has filled a buffer each {PERIOD} ms", gaps)
    scenario.ok(re.findall("^topology.*", before, re.MULTILINE) == re.findall("^topology.*", after, re.MULTILINE),
                "bus numbers are the same with pci=assign-busses,realloc", before + after)
    scenario.ok(re.search(r"not bound to virtio-pci: it was preserved as vfio-pci", after),
                "the driver that is built in does not bind", after)
    scenario.ok(len(re.findall(r"^refused .*(No such device|resource busy)", after, re.MULTILINE)) == 2,
                "nor does it when told to, and nobody can reset the device", after)
    scenario.ok("driver virtio-pci" in after, "when all is finished it binds", after)
    for kind in DEVICES:
        a, b = (r.out / "files" / f"{w}-{kind}" for w in ("pristine", "closed"))
        if not scenario.ok(a.exists() and b.exists(), f"{kind}'s config space was read before and after"):
            continue
        a, b = bytearray(a.read_bytes()), b.read_bytes()
        # The firmware may have left it on; vfio-pci never gives a device back like that.
        a[4] &= ~BUS_MASTER
        where = [f"{i:#x}: {x:#x} {y:#x}" for i, (x, y) in enumerate(zip(a, b)) if x != y]
        scenario.ok(a == b, f"{kind} is closed as it was before it was opened", where)


WRONG_BEFORE = """
set -e
cd /st/vfio
for d in $(bdf nvme 1) $(bdf nvme 2) $(bdf igb); do
        vfio-bind $d
        ./vfio_pci_running_test -s 1 $d
done
exec jump -a "where=$(bdf nvme 1),$(bdf nvme 2),$(bdf igb)" /boot/vmlinuz-b
"""

WRONG_AFTER = """
dmesg | grep -F liveupdate:
where=$(sed 's/.*where=\\([^ ]*\\).*/\\1/' /proc/cmdline)
swapped=$(echo $where | cut -d, -f1) gone=$(echo $where | cut -d, -f2) igb=$(echo $where | cut -d, -f3)
cd /st/vfio
echo "blocked by $(cat /sys/bus/pci/devices/$swapped/liveupdate/blocked_by)"
echo "command $(od -An -tx2 -j4 -N2 /sys/bus/pci/devices/$swapped/config)"
vfio-bind $swapped
./vfio_pci_running_test -s 2 $swapped
test -e /sys/bus/pci/devices/$gone || echo "$gone is gone"
./vfio_pci_running_test -s 2 $igb
"""


def wrong():
    out = Path(os.environ.get("LUV_RUN", "."))
    outside = out / "wrong.sh"
    outside.write_text(f"#!/bin/sh\n{out}/frames.py & p=$!\ntrap 'kill $p' TERM\n"
                       f"{Path(__file__).resolve().parent}/lib/swap-device || exit 1\nwait\n")
    outside.chmod(0o755)
    folder = scenario.kernel("a") / "selftests"
    r = scenario.host("wrong", "--quiet", "--no-iommu", "--append", "vfio.enable_unsafe_noiommu_mode=1", "--device", "igb",
                      "--device", "nvme", "--device", "nvme", "--qemu=-global",
                      "--qemu=ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off", "--file", f"{folder}:/st",
                      "--outside", outside, "sh:" + WRONG_BEFORE, "sh:" + WRONG_AFTER)
    after = r.output("after")
    scenario.ok(r.ok, "a device that was swapped, one that was taken out, one that is as it was", r.why())
    scenario.ok(not r.splats(), "the kernels complain of nothing", "\n".join(r.splats()[:20]))
    scenario.ok(re.search(r"is not the device that was preserved: \[1b36:0010\]", after) and "blocked by identity" in after,
                "the swapped one is recognised", after)
    scenario.ok(re.search(r"^command\s+0[0-9a-f]{2}[0-3]$", after, re.MULTILINE), "it cannot do DMA", after)
    scenario.ok("not bound to virtio-pci: it is not the device" in after and "was not bound" in after, "no driver binds to it", after)
    scenario.ok("Stale file handle" in after, "it is not given out", after)
    scenario.ok("is gone" in after, "another is gone", after)
    scenario.ok("none is missing" in after and "TEST PASSED" in after, "the third does not notice", after)


ROW_BEFORE = """
set -e
cd /st/vfio
vfio-bind $(bdf igb) $(bdf nvme) $(bdf virtio-rng)
for k in igb virtio-rng; do ./vfio_pci_running_test -s 1 $(bdf $k); done
IRQS=1 ./vfio_pci_running_test -s 1 $(bdf nvme)
for i in 1 2 3; do
        jump /boot/vmlinuz-b || echo "refused with $?, igb is $(cat /sys/bus/pci/devices/$(bdf igb)/liveupdate/state)"
done
killall -USR1 vfio_pci_running_test
sleep 1
exec jump /boot/vmlinuz-b
"""

ROW_NEXT = """
set -e
cd /st/vfio
awk '/^MemAvailable/ { print "available", $2 }' /proc/meminfo
for k in nvme igb virtio-rng; do ./vfio_pci_running_test -s 2 $(bdf $k); done
[ $LUV_BOOT -lt $LUV_SCRIPTS ] || exit 0
for k in igb virtio-rng nvme; do ./vfio_pci_running_test -s 1 $(bdf $k); done
exec jump /boot/vmlinuz-$([ $((LUV_BOOT % 2)) = 1 ] && echo b || echo a)
"""


def row():
    """A live update that is refused three times, and then several in a row."""
    updates = 10 if scenario.FULL else 3
    folder = scenario.kernel("a") / "selftests"
    r = scenario.host("row", "--quiet", "--no-iommu", "--append", "vfio.enable_unsafe_noiommu_mode=1", "--device", "igb",
                      "--device", "nvme", "--device", f"virtio-rng,max-bytes=64,period={PERIOD}", "--trace", "none",
                      "--file", f"{folder}:/st", "--outside", Path(os.environ.get("LUV_RUN", ".")) / "frames.py",
                      "sh:" + ROW_BEFORE, *["sh:" + ROW_NEXT] * updates)
    stages = ["after"] + [f"boot{n}" for n in range(3, updates + 2)]
    scenario.ok(r.ok, f"{updates} live updates in a row", r.why())
    scenario.ok(not r.splats(), "the kernels complain of nothing", "\n".join(r.splats()[:20]))
    scenario.ok(r.output("before").count("refused with 16, igb is outgoing") == 3,
                "refused as long as another device has interrupts on", r.output("before"))
    passed = [r.output(s).count("TEST PASSED") for s in stages]
    scenario.ok(passed == [3] * updates, "no device has noticed, neither the refusals nor the updates", passed)
    available = [int(n) for s in stages for n in re.findall(r"^available (\d+)", r.output(s), re.MULTILINE)]
    # Kernel a comes every second time: compare like with like.
    scenario.ok(len(available) == updates and available[-1] > available[(updates - 1) % 2] - 8192,
                "no memory is lost", available)


main()
wrong()
row()
scenario.done()
