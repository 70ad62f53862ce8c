# SPDX-License-Identifier: LGPL-2.1-or-later
"""For scenarios in Python: run the test host, report single tests as TAP."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from .paths import CHECKOUT, TESTS

FULL = bool(os.environ.get("LUV_FULL"))
TREE = os.environ.get("LUV_TREE", "")

_count = 0
_failed = 0


def kernel(variant):
    """The result folder of a kernel variant."""
    name = f"LUV_KERNEL_{variant.upper().replace('-', '_')}"
    known = os.environ.get(name)
    if not known:
        built = subprocess.run([CHECKOUT / "kernel/kernel", "build", variant], check=True, stdout=subprocess.PIPE,
                               text=True)
        known = os.environ[name] = built.stdout.strip().splitlines()[-1]
    return Path(known)


# For the debug kernel's command line. KASAN's shadow, an eighth of memory, is taken from KHO's scratch areas in the next
# kernel, and the default of twice what was taken in this one is more than can be had in one piece. And while identify_cpu()
# has forgotten the CPU's features, KASAN takes memory for that of four levels of page tables: an interrupt in that moment
# is a false report with five. Units of the full image are not to run into systemd's timeouts only because all is slow.
DEBUG_CMDLINE = "kho_scratch=64M,256M,1200M no5lvl systemd.default_timeout_start_sec=15min"

# For a shell on the debug kernel. kmemleak takes nothing for lost that is younger than five seconds, and looks twice to
# be sure. Only what the series touches counts.
LEAKS = r"""
leaks() {
        leaks=/sys/kernel/debug/kmemleak
        [ -e $leaks ] || mount -t debugfs debugfs /sys/kernel/debug
        sleep 6
        echo scan >$leaks && echo scan >$leaks || return 1
        ! awk -v ours='luo|liveupdate|kho|vfio|iommufd' '
                function look() { if (r ~ ours) { printf "%s", r; n++ } r = "" }
                /^unreferenced/ { look() }
                { r = r $0 "\n" }
                END { look(); exit !n }' $leaks
}
"""


def ok(condition, what, detail=""):
    """One test. The detail of a failed one goes before it."""
    global _count, _failed
    _count += 1
    if not condition:
        _failed += 1
        for line in str(detail).splitlines():
            print(f"# {line}")
    print(f"{'ok' if condition else 'not ok'} {_count} - {what}", flush=True)
    return bool(condition)


def skip(what, why):
    global _count
    _count += 1
    print(f"ok {_count} - {what} # SKIP {why}", flush=True)


def subtests(prefix, text, broken="(?!)"):
    """Repeats the TAP lines that were printed inside, each as a test of its own; returns how many. What is known to be broken
    (a pattern) has to fail."""
    found = 0
    for line in text.splitlines():
        m = re.match(r"\s*(not ok|ok) \d+\s*-?\s*(.*)", line)
        if not m:
            continue
        found += 1
        what, _, directive = m[2].partition("# ")
        if directive.upper().startswith("SKIP"):
            skip(f"{prefix}: {what.strip()}", directive[4:].strip())
        elif re.fullmatch(broken, what.strip()):
            ok(m[1] != "ok", f"{prefix}: {what.strip()} fails as ever")
        else:
            ok(m[1] == "ok", f"{prefix}: {what.strip()}")
    return found


def done():
    print(f"1..{_count}")
    sys.exit(1 if _failed else 0)


class Result:
    """What a run of the test host gave."""

    def __init__(self, out, code, said):
        self.out, self.code, self.said = out, code, said
        path = out / "result.json"
        self.json = json.loads(path.read_text()) if path.exists() else {"ok": False, "scripts": [], "boots": []}

    @property
    def ok(self):
        return self.code == 0

    def output(self, stage="before"):
        path = self.out / f"{stage}.out"
        return path.read_text(errors="replace") if path.exists() else ""

    def trace(self):
        path = self.out / "trace.log"
        return path.read_text(errors="replace").splitlines() if path.exists() else []

    def serial(self):
        path = self.out / "serial.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def splats(self):
        """What the kernels complained about."""
        return [line for line in self.serial().splitlines() if re.search(
            r"BUG:|WARNING:|KASAN|UBSAN|Oops|general protection|INFO: (task|rcu)|possible .*(deadlock|recursi)|"
            r"DMAR:.*fault|Bad page|nobody cared|unchecked MSR access|"
            # After these lockdep does not look any more.
            r"trying to register non-static key|turning off the locking correctness validator", line)]

    def why(self):
        """For a failed test: what the test host said last."""
        return "\n".join(self.said.splitlines()[-60:])


def host(name, *arguments, first="a", following="b"):
    """Runs the test host; name is the folder of its output."""
    out = Path(os.environ.get("LUV_RUN") or CHECKOUT / "build-scenario") / name
    command = [os.environ.get("LUV_HOST") or TESTS / "host/host", "--kernel", kernel(first), "--next", kernel(following),
               "--out", out, *arguments]
    p = subprocess.run([str(c) for c in command], check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                       stderr=subprocess.STDOUT, text=True, errors="replace")
    return Result(out, p.returncode, p.stdout)
