#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# scenario: ten live updates of the whole host with KASAN, lockdep and kmemleak looking on: nothing is lost, and nothing gets more
# full: yes
# timeout: 10800

import json
import os
import re
import sys
from pathlib import Path

LIB = Path(__file__).resolve().parents[1] / "lib"
sys.path.insert(0, str(LIB))
from luvtest import scenario, vmm  # noqa: E402 pylint: disable=wrong-import-position

MACHINES = ("vm1", "vm2")
UPDATES = 10
# What is to be the same after each update, and by how many kB (or how many) it may differ. MemTotal has what was handed over
# and given back, SecPageTables the IOMMU's page tables; the last three are counted.
WATCHED = {"MemTotal": 1024, "SecPageTables": 16, "Percpu": 256, "VmallocUsed": 8192,
           "devices": 0, "groups": 0, "handed": 0}
# Before each update, and after the last: what was lost on the way. A dry run preserves and takes it all back.
SCRIPT = scenario.LEAKS + """
. /usr/lib/luvhost/vmm.sh
if [ $LUV_BOOT -gt 1 ]; then
        wait_for 300 update_number $((LUV_BOOT - 1))
        luvfioctl update --dry-run --deadline=240s --cmdline="$(next_cmdline)" /boot/vmlinuz-a || echo "dry run failed"
        leaks >/out/leaks-$LUV_BOOT && : >/out/looked-$LUV_BOOT
        for vm in /etc/luvfio/example-vmm/*; do
                wait_for 60 machine_is $(basename $vm .conf) running
        done
        echo 3 >/proc/sys/vm/drop_caches
        {
                cat /proc/meminfo
                echo "devices $(grep -c . /sys/kernel/debug/pci_liveupdate)"
                echo "groups $(ls /sys/kernel/iommu_groups | wc -l)"
                echo "handed $(ls -R /sys/kernel/debug/kho/out | wc -l)"
        } >/out/watched-$LUV_BOOT
fi
# Not because something has taken too long just now
wait_for 300 luvfioctl check /boot/vmlinuz-b
export DEADLINE=300s
exec /usr/lib/luvhost/updates
"""

run = Path(os.environ["LUV_RUN"])
(run / "machines").write_text(f"{len(MACHINES)}\n")
r = scenario.host("host", "--quiet", "--image", "full", "--overlay", scenario.TREE, "-m", "4096",
                  "--append", scenario.DEBUG_CMDLINE,
                  *["--device", "igb"] * len(MACHINES), "--boot-deadline", "1200", "--jump-deadline", "1200",
                  "--script-deadline", "1800", "--file", f"{LIB}/vmm.sh:/usr/lib/luvhost/vmm.sh",
                  "--file", f"{run}/machines:/usr/lib/luvhost/machines",
                  "--file", f"{LIB}/bench/updates:/usr/lib/luvhost/updates",
                  *[f"sh:{SCRIPT}"] * (UPDATES + 1), first="debug", following="debug")
scenario.ok(r.ok, f"{UPDATES} updates", r.why())
for machine in MACHINES:
    resumed = vmm.reports(r.out / f"files/{machine}.report", "resumed")
    scenario.ok(len(resumed) == UPDATES and all(map(vmm.unharmed, resumed)), f"{machine} resumed unharmed from each of them",
                "\n".join(map(json.dumps, resumed)))
for boot in range(2, UPDATES + 2):
    leaks = r.out / f"files/leaks-{boot}"
    scenario.ok((r.out / f"files/looked-{boot}").exists(), f"no memory is lost in boot {boot}",
                leaks.read_text() if leaks.exists() else "kmemleak was not asked")
watched = [p.read_text() for p in sorted(r.out.glob("files/watched-*"), key=lambda p: int(p.name.split("-")[1]))]
scenario.ok(len(watched) == UPDATES, "it was looked after each of them")
for name, slack in WATCHED.items():
    values = [int(v) for text in watched for v in re.findall(rf"^{name}:?\s+(\d+)", text, re.MULTILINE)]
    scenario.ok(len(values) == UPDATES and min(values) > 0 and max(values) - min(values) <= slack, f"{name} stays the same", values)
scenario.ok(not r.splats(), "the kernels complain of nothing", "\n".join(r.splats()[:20]))
scenario.done()
