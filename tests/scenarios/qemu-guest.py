#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# scenario: the virt image: Linux guests in QEMU with KVM, one with an NVMe and one with an igb, by iommufd
# timeout: 900
# full: yes

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "lib"))
import guest  # noqa: E402 pylint: disable=wrong-import-position
import running  # noqa: E402 pylint: disable=wrong-import-position
from luvtest import scenario  # noqa: E402 pylint: disable=wrong-import-position

DISK = guest.command("disk", devices=["$(bdf nvme)"], smp=2, disk="nvme0n1")
NET = guest.command("net", devices=["$(bdf igb)"], net="eth0")

SCRIPT = f"""
. {guest.FOLDER}/qemu.sh
seconds() {{ date +%s.%N; }}
vfio-bind $(bdf nvme) $(bdf igb) || exit 1
begin=$(seconds)
guest_start disk {DISK}
guest_start net {NET}
for name in disk net; do
        guest_wait $name 400 '^HB 1 ' || exit 1
        echo "$name: first heartbeat $(echo "$begin $(seconds)" | awk '{{ printf "%.1f", $2 - $1 }}') s after the start"
done
guest_wait net 120 '^NET eth0 received=[1-9]' || exit 1
sleep 16
for name in disk net; do
        qmp $name query-status
        guest_end $name || exit 1
done
dmesg | grep -iE 'vfio|nvme|igb' | tail -n 20
"""

r = scenario.host("host", "--quiet", "--image", "virt", "--device", "nvme", "--device", "igb", *guest.host(),
                  "--outside", running.frames(period=0.1, burst=2), "sh:" + SCRIPT)
for line in r.output().splitlines():
    print(f"# {line}")
scenario.ok(r.ok, "the run", r.why())
disk, net = guest.read(r, "disk"), guest.read(r, "net")
for name, log in (("disk", disk), ("net", net)):
    print(f"# {name}: {log.summary()}")
    for what, bad in (("lives", log.life(beats=100)), ("has nothing to complain about", log.said())):
        scenario.ok(not bad, f"guest {name} {what}", "\n".join(bad))
for what, bad in (("disk: fio goes on", disk.disk("nvme0n1", after=10)), ("net: all frames arrive", net.net("eth0", after=30, frames=100))):
    scenario.ok(not bad, f"guest {what}", "\n".join(bad))
scenario.ok(len(re.findall(r'"status": "running"', r.output())) == 2, "both run to the end", r.output())
scenario.ok(not r.splats(), "the host's kernel has nothing to complain about", "\n".join(r.splats()))
scenario.done()
