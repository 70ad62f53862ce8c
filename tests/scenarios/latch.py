#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# scenario: latched interrupts, raised before, in and after the jump, arrive once each; others are refused as ever
# timeout: 21600

import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "lib"))
import running  # noqa: E402 pylint: disable=wrong-import-position
from running import scenario  # noqa: E402 pylint: disable=wrong-import-position

# One frame to each igb, at each jump, when the old kernel has let go of all COUNT devices.
FRAME = """#!/usr/bin/env python3
import os, socket, time
ports = []
while f"LUV_NET{len(ports)}_PORT" in os.environ:
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind(("127.0.0.1", int(os.environ[f"LUV_NET{len(ports)}_PEER"])))
    ports.append((s, ("127.0.0.1", int(os.environ[f"LUV_NET{len(ports)}_PORT"]))))
jumps = 1
while True:
    while open(os.environ["LUV_SERIAL"], "rb").read().count(b"left running for the next kernel") < jumps * COUNT:
        time.sleep(0.02)
    for s, to in ports:
        s.sendto(b"\\xff" * 6 + b"\\x02\\0\\0\\0\\0\\1" + b"\\x88\\xb5" + bytes(50), to)
    jumps += 1
"""

# Each igb has nine events in a jump: over 1,000 with many devices in few jumps, and with --full also in as many jumps.
EVENTS = 9
MANY = [(8, 14)] + ([(1, 1000)] if scenario.FULL else [])
# In one run of the test host
BATCH = 100
# At once
HOSTS = 3

# Device, interrupts, what stage 2 is told.
DEVICES = [
    ("igb 1", "msix", "FRAMES=1"),
    ("igb 2", "msix", "LEAVE=1"),
    ("igb 3", "msix", "ABANDON=1"),
    ("igb 4", "msi", "FRAMES=1"),
    ("edu 1", "intx", ""),
    ("edu 2", "msi", ""),
]

COMMON = """
set -e
cd /st/vfio
t=./vfio_pci_latch_test
holder() {
        for p in /proc/[0-9]*; do
                case "$(tr '\\0' ' ' <$p/cmdline)" in *"vfio_pci_latch_test -s $1 $2 ") echo ${p#/proc/} ;; esac
        done
}
refused() {
        jump /boot/vmlinuz-b || echo "refused with $?"
        dmesg | grep -F 'live update refused' | tail -n 1
}
"""


def start(devices, stage=1, env="", end=""):
    return "".join(f"IRQS={irqs} {env} $t -s {stage} $(bdf {d}){end}\n" for d, irqs, _ in devices)


def before(devices):
    return (COMMON + "vfio-bind " + " ".join(f"$(bdf {d})" for d, _, _ in devices) + "\n" + start(devices) +
            "".join(f"refused\nkill -USR1 $(holder 1 $(bdf {d}))\nsleep 1\n" for d, _, _ in devices) +
            "mark 1\nexec jump /boot/vmlinuz-b\n")


def after(devices):
    return COMMON + "mark 2\n" + "".join(f"IRQS={irqs} {then} $t -s 2 $(bdf {d})\n" for d, irqs, then in devices)


def outside(label, count):
    path = running.OUT / f"{label}.py"
    path.write_text(FRAME.replace("COUNT", str(count)))
    path.chmod(0o755)
    return path


def host(label, devices, *scripts, **kernels):
    return running.host(label, *[x for d, _, _ in devices for x in ("--device", d.split()[0])], "--trace", "pci_cfg_write",
                        "--outside", outside(label, len(devices)), *["sh:" + s for s in scripts], **kernels)


def case(label, **kernels):
    r = host(label, DEVICES, before(DEVICES), after(DEVICES), **kernels)
    scenario.ok(r.ok, f"{label}: a live update", r.why())
    scenario.ok(not r.splats(), f"{label}: the kernels complain of nothing", "\n".join(r.splats()[:20]))
    said = r.output("before") + r.output("after")
    scenario.ok(said.count("refused with 16") == len(DEVICES), f"{label}: refused as long as anything is on and not latched", said)
    scenario.ok(r.output("after").count("TEST PASSED") == len(DEVICES),
                f"{label}: what was raised has arrived once, nothing else has", said)
    arrived = re.findall(r"(\d+) events of the jump have arrived, each once", r.output("after"))
    scenario.ok(arrived == [str(EVENTS), "1", "1"], f"{label}: of MSI-X {EVENTS}, of MSI that of a frame in the jump, of INTx one", said)
    # Its address in config space of the igb that QEMU has: 0x70. The two highest bits are Enable and Function Mask.
    flags = [int(v, 16) >> 14 for v in re.findall(r"pci_cfg_write igb \S+ @0x72 <- (0x\w+)",
                                                  "\n".join(running.between(r.trace(), 1, 2) or ["no marks"]))]
    scenario.ok(not flags, f"{label}: nobody wrote to the MSI-X capability of any igb meanwhile", flags)


def many(count, all_jumps):
    igbs = [(f"igb {n}", "msix", "FRAMES=1") for n in range(1, count + 1)]
    # Latched when nothing speaks against a live update any more.
    latch = "".join(f"kill -USR1 $(holder 1 $(bdf {d}))\n" for d, _, _ in igbs)
    jump = 'n=0\nuntil jump /boot/vmlinuz-{}; do [ $((n += 1)) -lt 20 ]; sleep 0.2; done\n'
    bind = "vfio-bind " + " ".join(f"$(bdf {d})" for d, _, _ in igbs) + "\n"
    leave = start(igbs, end=" &") + "wait\n" + latch + jump
    deliver = start(igbs, stage=2, env="FRAMES=1", end=" &") + "wait\n"
    batches = [min(BATCH, all_jumps - n) for n in range(0, all_jumps, BATCH)]

    def run(n, jumps):
        scripts = [COMMON + bind + leave.format("b"), *[COMMON + deliver + leave.format("ab"[k % 2]) for k in range(jumps - 1)],
                   COMMON + deliver]
        return host(f"many-{count}-{n}", igbs, *scripts)

    # They mostly wait.
    with ThreadPoolExecutor(HOSTS) as pool:
        results = list(pool.map(run, range(len(batches)), batches))
    for jumps, r in zip(batches, results):
        scenario.ok(r.ok, f"{jumps} jumps with {count} devices", r.why())
        scenario.ok(not r.splats(), f"{count} devices: the kernels complain of nothing", "\n".join(r.splats()[:20]))
        text = "".join(r.output(s["output"].removesuffix(".out")) for s in r.json["scripts"])
        arrived = [int(m) for m in re.findall(r"(\d+) events of the jump have arrived, each once", text)]
        scenario.ok(len(arrived) == jumps * count and sum(arrived) == EVENTS * len(arrived),
                    f"{sum(arrived)} events have arrived, none is lost, none came twice", text[-3000:])


case("latch")
for devices, number in MANY:
    many(devices, number)

TWO = [("igb 1", "msix", "FRAMES=1"), ("edu 1", "intx", "")]
AGAIN = COMMON + start(TWO, 2, "AGAIN=1") + "exec jump /boot/vmlinuz-a\n"
result = host("latch-again", TWO, before(TWO), AGAIN, after(TWO))
scenario.ok(result.ok and result.output("boot3").count("TEST PASSED") == len(TWO),
            "they stay latched over a second live update, if nobody has turned them on", result.why() + result.output("boot3"))

if scenario.FULL:
    case("latch-debug", first="debug", following="debug")
scenario.done()
