#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# scenario: twenty updates in a row, to and fro between two kernels, under four machines with a device each
# full: yes
# alone: yes
# timeout: 7200

import json
import os
import sys
from pathlib import Path

LIB = Path(__file__).resolve().parents[1] / "lib"
sys.path.insert(0, str(LIB))
from luvtest import scenario, vmm  # noqa: E402 pylint: disable=wrong-import-position

UPDATES = 20
MACHINES = 4

count = Path(os.environ["LUV_RUN"]) / "machines"
count.write_text(f"{MACHINES}\n")
r = scenario.host("soak", "--quiet", "--image", "full", "--overlay", scenario.TREE, "-m", "4096",
                  *["--device", "igb"] * MACHINES, "--file", f"{LIB}/vmm.sh:/usr/lib/luvhost/vmm.sh",
                  "--file", f"{count}:/usr/lib/luvhost/machines", *[LIB / "bench/updates"] * (UPDATES + 1))
scenario.ok(r.ok, f"{UPDATES} updates", r.why())
for machine in (f"vm{i}" for i in range(1, MACHINES + 1)):
    resumed = vmm.reports(r.out / f"files/{machine}.report", "resumed")
    good = [x for x in resumed if vmm.unharmed(x)]
    scenario.ok(len(resumed) == UPDATES and len(good) == UPDATES, f"{machine} resumed unharmed from each of them",
                "\n".join(json.dumps(x) for x in resumed if x not in good))
memory = [int(p.read_text().split()[-2]) for p in sorted(r.out.glob("files/memory-*"))]
scenario.ok(memory and max(memory) < 10 << 10, "luvfiod stays under 10 MiB", memory)
scenario.ok(not r.splats(), "the kernels complain of nothing", "\n".join(r.splats()[:20]))
scenario.done()
