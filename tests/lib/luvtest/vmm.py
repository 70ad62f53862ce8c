# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the example VMM says in its report."""

import json


def reports(path, event):
    """All lines of a report, of which there may be none, that are about one event."""
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()] if path.exists() else []
    return [line for line in lines if line["event"] == event]


def unharmed(resumed):
    """Memory and devices are as they were, and no device was reset on the way."""
    return resumed.get("ok") and resumed.get("stateSame") and resumed.get("checksumSame") and ran_on(resumed)


def ran_on(resumed):
    """It has devices, and none was reset on the way."""
    outcomes = [outcome for name, outcome in resumed.get("outcomes", {}).items() if name.startswith("vfio-")]
    return bool(outcomes) and set(outcomes) <= {"preserved", "running"}
