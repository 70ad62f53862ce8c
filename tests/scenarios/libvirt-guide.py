#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# scenario: docs/libvirt-guide.md, word for word: a domain with an NVMe that takes part, and virt-host-upgrade
# timeout: 1200
# full: yes

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "lib"))
import full  # noqa: E402 pylint: disable=wrong-import-position
import guest  # noqa: E402 pylint: disable=wrong-import-position
from full import scenario  # noqa: E402 pylint: disable=wrong-import-position

# As in libvirt.py.
GAP = 20000
TEXT = (Path(__file__).resolve().parents[2] / "docs/libvirt-guide.md").read_text()
BLOCKS = re.findall(r"^```(sh|xml)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
XML = next(text for kind, text in BLOCKS if kind == "xml")
ENABLE, METADATA, CHECK, UPGRADE, AFTERWARDS = (text for kind, text in BLOCKS if kind == "sh")


def domain():
    """What any domain has, with what the guide adds."""
    def inner(element, text=XML):
        return re.search(rf"<{element}[^>]*>(.*?)</{element}>", text, re.DOTALL)[1]

    bare = guest.DOMAIN.format(name="web1", memory=256, smp=2, machine="q35", folder=guest.FOLDER, logs=guest.LOGS, hostdev=inner("devices"),
                               more="", append=f'{guest.kernel_command_line(disk="nvme0n1")} {guest.CALM}')
    for element in ("memoryBacking", "qemu:commandline"):
        bare = re.sub(rf"(<{element}>).*?(</{element}>)", lambda m, e=element: m[1] + inner(e) + m[2], bare, flags=re.DOTALL)
    return f"mkdir -p {guest.LOGS}\ncat >/tmp/web1.xml <<END\n{bare}\nEND\n"


def guide(what, text):
    """A block of the guide, each line a check."""
    return "".join(f"must '{what}: {line.split('--')[0].strip()}' sh -c {quoted(line)}\n" for line in text.splitlines())


def quoted(text):
    return "'" + text.replace("'", "'\\''") + "'"


BEFORE = guest.SHELL + r"""
cp /boot/vmlinuz-b /boot/vmlinuz-next
# In each new kernel libvirt looks first what QEMU can do, which is slow under emulation.
resume_deadline 300
systemctl enable --quiet --now apparmor virtlogd.socket libvirtd.socket
check "the guide's device is this one" test "$(bdf nvme)" = 0000:01:00.0
vfio-bind $(bdf nvme)
""" + guide("needed", ENABLE) + domain() + r"""
must "web1 can be defined" virsh define /tmp/web1.xml
must "web1 starts" virsh start web1
must "web1 runs fio" begins web1 '^DISK nvme0n1'
""" + guide("taking part", METADATA) + r"""
must "luvfiod knows web1, and has its memory" wait_for 180 sh -c '[ "$(luvfioctl machines --json=short | jq ".machines[0].memoryBytes // 0")" -gt 0 ]'
# A while after libvirt was asked anything it looks what QEMU can do.
wait_for 60 luvfioctl check
""" + guide("in the way", CHECK) + r"""
sed 's/^/# /' /tmp/said
uname -r >/var/log/before
""" + UPGRADE + r"""
echo "# virt-host-upgrade ended with $?"
explain
"""

AFTER = guest.SHELL + r"""
check "another kernel runs" sh -c '[ $(uname -r) != $(cat /var/log/before) ]'
must "web1 runs" wait_for 300 machine_is web1 running
check "web1 goes on" wait_for 60 goes_on web1 $(beats web1)
check "the update is over" wait_for 60 update_is idle
check "libvirt forgets how it came" wait_for 120 forgotten web1
""" + guide("afterwards", AFTERWARDS) + r"""
check "virsh list says running" sh -c "virsh list | grep -w 'web1 *running'"
check "history says done" sh -c "luvfioctl history | grep done"
check "analyze shows what web1 lost" sh -c "luvfioctl analyze | grep -E '^web1 +[0-9]'"
# Longer than the time after which a driver gives a lost interrupt up.
sleep 35
cp /var/log/luvguest/web1.log /out/
"""

result = full.run("guide", "--image", "virt", "--append", "lsm=apparmor", "--device", "nvme", "-m", "2048", *guest.host(),
                  "--script-deadline", "600", scripts=[BEFORE, AFTER])
full.report(result, ["before", "after"])
log = guest.read(result, "web1")
print(f"# {log.summary()}")
guest.report("web1", log, GAP, log.disk("nvme0n1", after=10, latency=GAP))
scenario.done()
