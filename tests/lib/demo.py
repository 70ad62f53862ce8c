# SPDX-License-Identifier: LGPL-2.1-or-later
"""tests/demo: builds everything, boots the test host, and replaces its kernel under a machine with a device."""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

# pylint: disable=wrong-import-position
from luvtest import progress, project, vmm  # noqa: E402
from luvtest.paths import CACHE, TESTS  # noqa: E402

LIB = TESTS / "lib"


def guest_files():
    """What the full image needs to run example machines."""
    return ["--file", f"{LIB}/vmm.sh:/usr/lib/luvhost/vmm.sh"]


def verdict(out, result):
    """(what is wrong, what is fine), from what the machine itself found and what luvfiod measured."""
    wrong, fine = [], []

    def need(condition, good, bad):
        (fine if condition else wrong).append(good if condition else bad)
        return condition

    boots = result.get("boots", [])
    need(len(boots) == 2 and boots[1]["how"] == "live",
         f"the kernel was replaced: {boots[0]['release'] if boots else '?'} -> {boots[-1]['release'] if boots else '?'}",
         "the new kernel was not reached by a live update")
    need(len({b["boot_id"] for b in boots}) == 2 and len({b["release"] for b in boots}) == 2,
         "it is a different kernel", "it is the same kernel")
    try:
        resumed = json.loads((out / "files/resumed.json").read_text())
    except (OSError, ValueError):
        wrong.append("the machine did not say that it resumed")
        return wrong, fine
    size = resumed.get("ramSize", 0) >> 20
    need(resumed.get("stateSame") and resumed.get("checksumSame") and not resumed.get("guestErrors"),
         f"all {size} MiB of the machine's memory are bit for bit what they were", "the machine's memory changed")
    devices = resumed.get("devices", [])
    need(devices and resumed.get("ok"),
         "its device works: " + ", ".join(f"{d['driver']} {d['bdf']}, {d.get('rounds', 0)} rounds of DMA compared"
                                          for d in devices),
         "its device does not work")
    heard, told = (sum(d.get(what, 0) for d in devices) for what in ("heard", "told"))
    need(vmm.ran_on(resumed) and heard,
         f"its device ran on: {heard} frames went from it into the machine's memory by DMA while it stood",
         f"its device did not run on: {resumed.get('outcomes')}, {heard} frames")
    need(told == 1, "the interrupt that its device had held back has arrived once",
         f"an interrupt that its device should have held back has arrived {told} times")
    try:
        report = json.loads((out / "files/analyze.json").read_text())
        report = report.get("report", report)
        need(report["result"] == "done", "the update is done", f"the update ended as {report['result']}")
        for machine in report["machines"]:
            need(machine.get("blackoutUSec") is not None,
                 f"machine {machine['machine']} stood still for {(machine.get('blackoutUSec') or 0) / 1e6:.2f} s "
                 f"(clock: {report['clock']})", f"machine {machine['machine']} has no blackout")
    except (OSError, ValueError, KeyError) as e:
        wrong.append(f"luvfioctl analyze gave nothing usable ({e})")
    need((out / "files/timeline.svg").is_file(), f"timeline: {out}/files/timeline.svg", "there is no timeline")
    return wrong, fine


def main():
    p = argparse.ArgumentParser(
        prog="tests/demo", description="Builds the kernels, the project and the test host (everything that does not "
        "change is kept in the cache folder), boots the host with kernel a, starts a machine that owns a network card, "
        "and replaces the kernel by b under it with luvfioctl update. Ends with a verdict.")
    p.add_argument("--out", default=str(CACHE / "demo"), help="where logs and timeline go (default: %(default)s)")
    p.add_argument("--suite", default="forky", choices=["forky", "trixie"], help="the host's Debian")
    args = p.parse_args()
    out = Path(args.out).resolve()
    start = time.monotonic()

    try:
        kernels = [project.kernel(v) for v in ("a", "b")]
        folder, _ = project.build("gcc")
        tree = project.install_tree(folder)
    except progress.Failed as e:
        print(f"\nFAILED: {e}")
        return 1

    rc = subprocess.run(
        [TESTS / "host/host", "--image", "full", "--suite", args.suite, "--kernel", kernels[0], "--next", kernels[1],
         "--device", "igb", "--outside", LIB / "demo/frames", "--overlay", tree, *guest_files(), "--out", out,
         LIB / "demo/before", LIB / "demo/after"],
        check=False).returncode
    try:
        result = json.loads((out / "result.json").read_text())
    except (OSError, ValueError):
        result = {}
    wrong, fine = verdict(out, result)
    if rc:
        wrong.insert(0, result.get("reason") or f"the test host ended with exit code {rc}")
    print()
    for text in fine:
        print(f"  yes: {text}")
    for text in wrong:
        print(f"  NO:  {text}")
    print(f"\n{'FAILED' if wrong else 'PASSED'} in {time.monotonic() - start:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
