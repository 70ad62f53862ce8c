#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# scenario: the kernel's own VFIO selftests that take minutes, without our patches and with them
# timeout: 7200
# full: yes
# alone: yes

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "lib"))
import selftests  # noqa: E402 pylint: disable=wrong-import-position
from selftests import SLOW, scenario  # noqa: E402 pylint: disable=wrong-import-position


def case(label, kernel):
    result = selftests.host(label, kernel, "sh:" + selftests.script(SLOW), deadline=2400)
    scenario.ok(result.ok, f"{label}: it gets to the end", result.why())
    # They have the device write to what is not mapped.
    splats = [line for line in result.splats() if "DMAR: " not in line]
    scenario.ok(not splats, f"{label}: the kernel complains of nothing else", "\n".join(splats[:20]))
    found = selftests.report(label, result, ["before"])
    scenario.ok(len(found) == len(SLOW), f"{label}: all {len(SLOW)} selftests ran", sorted(found))


case("unpatched", "base")
case("patched", "a")
scenario.done()
