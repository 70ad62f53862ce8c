#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# scenario: Debian 13's systemd 257 and libvirt 11.3: a domain without passthrough, its disk under load, goes on in another kernel
# timeout: 1800
# full: yes

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "lib"))
import full  # noqa: E402 pylint: disable=wrong-import-position
import guest  # noqa: E402 pylint: disable=wrong-import-position
from full import scenario  # noqa: E402 pylint: disable=wrong-import-position

# How long its own clock may go on while it is handed over and its vCPUs stand, ms, and its I/O be late.
GAP = 20000
DISK = """<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/var/lib/libvirt/images/one.raw'/>
<target dev='vda' bus='virtio'/></disk>"""

CONFINED = r"""
check "it is confined by AppArmor" sh -c 'grep -q "libvirt.*(enforce)" /proc/$(cat /run/libvirt/qemu/one.pid)/attr/current'
"""

BEFORE = guest.SHELL + r"""
# In each new kernel libvirt looks first what QEMU can do.
resume_deadline 300
check "this is systemd 257" sh -c 'systemctl --version | head -n 1 | grep -w 257'
check "this is libvirt 11.3" sh -c 'virsh --version | grep "^11\.3"'
luvfiod_up
mkdir -p $logs /var/lib/libvirt/images
truncate -s 64M /var/lib/libvirt/images/one.raw
systemctl enable --quiet --now apparmor virtlogd.socket libvirtd.socket luvfio-libvirt.service
""" + guest.domain("one", disk="vda", net="eth0", more=DISK + guest.nic("tap0", "vhost")) + r"""
must "it starts" virsh start one
""" + CONFINED + r"""
must "it runs fio" begins one '^DISK vda'
check "it is to take part" virsh metadata one --uri https://luvfio.org/xmlns/libvirt/domain/1.0 --key luvfio \
        --set '<live-update/>' --config --live
virsh dumpxml --inactive one >/var/log/one.xml
must "luvfiod has its memory" wait_for 180 sh -c '[ "$(luvfioctl machines --json=short | jq ".machines[0].memoryBytes // 0")" -gt 0 ]'
must "nothing blocks an update" wait_for 60 luvfioctl check /boot/vmlinuz-b
check "frames to its NIC" frames tap0
uname -r >/var/log/before
luvfioctl update /boot/vmlinuz-b --deadline=30
echo "# luvfioctl update ended with $?"
explain
"""

AFTER = guest.SHELL + r"""
check "another kernel runs" sh -c '[ $(uname -r) != $(cat /var/log/before) ]'
check "it runs" wait_for 300 machine_is one running
check "libvirt forgets how it came" wait_for 120 forgotten one
check "libvirt has it running" test "$(virsh domstate one)" = running
virsh dumpxml --inactive one >/tmp/one.xml
check "its XML is as it was" diff /var/log/one.xml /tmp/one.xml
check "no saved image is left" test ! -e /var/lib/libvirt/qemu/save/one.save
""" + CONFINED + r"""
check "AppArmor denied nothing" sh -c '! dmesg | grep "apparmor=.DENIED"'
check "it goes on" wait_for 60 goes_on one $(beats one)
check "frames to its NIC" frames tap0
check "result: done" sh -c 'luvfioctl history --json=short | jq -e ".updates[0].result == \"done\""'
luvfioctl analyze | sed 's/^/# /'
# Longer than the time after which a driver gives a lost interrupt up.
sleep 35
cp $logs/one.log /out/
"""

result = full.run("trixie", "--image", "virt", "--suite", "trixie", "--append", "lsm=apparmor", "-m", "2048", *guest.host(),
                  "--script-deadline", "600", scripts=[BEFORE, AFTER])
full.report(result, ["before", "after"])
log = guest.read(result, "one")
print(f"# {log.summary()}")
guest.report("the guest", log, GAP, log.disk("vda", after=10, latency=GAP))
guest.vhost("the guest", log, 2)
scenario.done()
