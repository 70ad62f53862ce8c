#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# scenario: the example VMM's drivers move data on igb and NVMe, after start, after stop, after a reset
# timeout: 300

import os
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))
from luvtest import scenario  # noqa: E402 pylint: disable=wrong-import-position

vmm = Path(os.environ["LUV_BUILD"]) / "docs/example-vmm/luvfio-example-vmm"
r = scenario.host("selftest", "--quiet", "--device", "igb", "--device", "nvme@switch", "--file", f"{vmm}:/vmm",
                  "sh:set -e\nvfio-bind $(bdf igb) $(bdf nvme)\n"
                  "exec /vmm --name x --selftest --device $(bdf igb) --device $(bdf nvme) --memory 64")
scenario.ok(r.ok, "the self test passes", r.why() + r.output())
passed = re.findall(r"^PASS (igb|nvme) \S+: \d+ rounds (after \w+)", r.output(), re.MULTILINE)
for when in ("after start", "after stop", "after reset"):
    for device in ("igb", "nvme"):
        scenario.ok((device, when) in passed, f"{device} {when}", r.output())
scenario.ok(not r.splats(), "the kernel complains of nothing", "\n".join(r.splats()))
scenario.done()
