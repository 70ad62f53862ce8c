#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# scenario: the test host itself tells success from every kind of failure
# timeout: 600

import os
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))
from luvtest import scenario  # noqa: E402 pylint: disable=wrong-import-position

DEVICES = ["--device", "igb", "--device", "nvme@switch", "--device", "igb@switch",
           "--device", "virtio-rng,max-bytes=64,period=1000@pxb", "--device", "edu"]


def run(name, *arguments, following="b"):
    return scenario.host(name, "--quiet", *arguments, following=following)


def both():
    """Three boots by two jumps, every kind of device, files, marks, an outside script."""
    out = Path(os.environ.get("LUV_RUN", "."))
    outside = out / "outside.sh"
    outside.write_text("#!/bin/sh\nset -e\ncat > \"$LUV_OUT/netdev\" <<END\n$LUV_NET0_PORT $LUV_NET1_PEER\nEND\n"
                       "test -S \"$LUV_QMP\" && test -S \"$LUV_HMP\" && test -S \"$LUV_QTEST\"\necho seen\n")
    outside.chmod(0o755)
    show = ("set -e\nuname -r\nfor d in igb 'igb 2' nvme virtio-rng edu; do echo \"$d at $(bdf $d)\"; done\n"
            "echo file >/out/$LUV_STAGE\ntest -e /given/README.md\n")
    r = run("both", *DEVICES, "--file", f"{Path(__file__).parent}:/given", "--outside", outside, "--append", "quirk=1",
            "sh:" + show + "mark 17\njump -a second=1 /boot/vmlinuz-b\n",
            "sh:" + show + "mark 18\ngrep -q 'quirk=1.*second=1' /proc/cmdline\njump /boot/vmlinuz-a\n",
            "sh:" + show)
    scenario.ok(r.ok, "three scripts in three boots", r.why())
    boots = r.json["boots"]
    scenario.ok([b["how"] for b in boots] == ["first", "live", "live"], "each boot came by a live update", boots)
    scenario.ok(len({b["release"] for b in boots}) == 2 and boots[0]["release"] == boots[-1]["release"],
                "kernels a, b, a", boots)
    scenario.ok([s["jumped"] for s in r.json["scripts"]] == [True, True, False], "who jumped is known")
    places = [re.findall(r"^.* at .*$", r.output(s), re.MULTILINE) for s in ("before", "after", "boot3")]
    scenario.ok(len(places[0]) == 5 and places[0] == places[1] == places[2], "devices are where they were", places)
    scenario.ok(any("virtio-rng at 0000:4" in p for p in places[0]), "one is behind the second host bridge", places[0])
    scenario.ok(r.json["files"] == ["after", "before", "boot3"], "files came out of every boot", r.json["files"])
    scenario.ok("seen" in (r.out / "outside.out").read_text(), "the outside script found its sockets")
    trace = r.trace()
    marks = [i for i, line in enumerate(trace) if re.search(r"pci-testdev .* @0xc <- 0x1[12]\b", line)]
    scenario.ok(len(marks) == 2, "marks are in the trace", marks)
    scenario.ok(len(marks) == 2 and any("pci_cfg_write igb" in line for line in trace[marks[0]:marks[1]]),
                "so is what the new kernel wrote to the igb between them")


def failures():
    r = run("failing", "sh:echo said; exit 7")
    scenario.ok(r.code == 1 and r.json["scripts"][0]["exit"] == 7 and "said" in r.output(), "a failing script: 1", r.why())

    r = run("after-failing", "sh:jump /boot/vmlinuz-b", "sh:exit 3")
    scenario.ok(r.code == 1 and r.json["scripts"][1]["exit"] == 3, "one failing after the jump: 1", r.why())

    r = run("stalled", "--script-deadline", "3", "sh:sleep 100")
    scenario.ok(r.code == 3 and "before runs longer" in r.said, "a script that does not end: 3", r.why())

    r = run("no-jump", "--jump-deadline", "3", "sh:true", "sh:true")
    scenario.ok(r.code == 3 and "boot 2 was not reached" in r.said, "a jump that does not come: 3", r.why())

    r = run("panic", "--append", "sysrq_always_enabled=1", "sh:echo c >/proc/sysrq-trigger; sleep 100", "sh:true")
    scenario.ok(r.code == 4 and r.json["verdict"] == "panic" and "Kernel panic" in r.serial(), "a panic: 4", r.why())

    r = run("cold", "sh:reboot -f; sleep 100", "sh:true")
    scenario.ok(r.code == 4 and r.json["verdict"] == "reset", "a cold reboot: 4", r.why())

    r = run("cold-ok", "--reboot-ok", "sh:reboot -f; sleep 100", "sh:true")
    scenario.ok(r.ok and [b["how"] for b in r.json["boots"]] == ["first", "cold"], "a cold reboot that may be", r.why())

    r = run("no-kernel", "sh:jump /boot/initrd; echo $? >/out/code; jump /nowhere; echo $? >>/out/code")
    codes = (r.out / "files/code").read_text().split() if r.ok else []
    scenario.ok(codes == ["8", "2"], "jump's exit code is the errno", codes or r.why())

    outside = r.out.parent / "bad.sh"
    outside.write_text("#!/bin/sh\nexit 9\n")
    outside.chmod(0o755)
    r = run("outside-failing", "--outside", outside, "sh:sleep 20")
    scenario.ok(r.code == 5, "a failing outside script: 5", r.why())

    r = run("usage", "--device", "igb@moon", "sh:true")
    scenario.ok(r.code == 2 and "@moon" in r.said, "a place that does not exist: 2", r.why())


both()
failures()
scenario.done()
