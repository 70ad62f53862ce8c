#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# scenario: another machine checks, updates and follows the host over ssh, by the example in docs/fleet
# timeout: 900

import concurrent.futures
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "lib"))
import full  # noqa: E402 pylint: disable=wrong-import-position
from full import scenario  # noqa: E402 pylint: disable=wrong-import-position

NETWORK = r"""
up() {
        modprobe -q igb
        wait_for 20 test -e /sys/bus/pci/devices/$(bdf igb)/net
        eth=$(ls /sys/bus/pci/devices/$(bdf igb)/net)
        ip link set lo up
        ip link set "$eth" address 52:54:00:00:00:$1 up
        ip addr add "10.0.0.$1/24" dev "$eth"
}
network() {
        { ip -s addr; ip neigh; grep "$eth" /proc/interrupts; } | sed 's/^/# /'
}
"""

# Who may log in is not what this is about.
SERVER = NETWORK + r"""
up 1
mkdir -p /etc/ssh/sshd_config.d
printf 'PermitRootLogin yes\nPermitEmptyPasswords yes\nUsePAM no\n' >/etc/ssh/sshd_config.d/fleet.conf
ssh-keygen -A >/dev/null
sed -i 's/^root:[^:]*:/root::/' /etc/shadow /etc/passwd
must "sshd" systemctl start ssh
"""

BEFORE = SERVER + r"""
luvfiod_up
must "a machine" vmm vm1
uname -r >/var/log/before
"""

AFTER = SERVER + r"""
check "another kernel runs" sh -c '[ $(uname -r) != $(cat /var/log/before) ]'
check "the machine is finished" wait_for 60 grep -q "^vm1: finished" /var/log/rogue-vm1.log
check "its RAM is identical" test "$(said vm1 'ram identical')" -eq 1
check "the other side has seen the end" wait_for 200 test -e /var/log/seen
[ -z "$failed_now" ] || network
"""

CLIENT = NETWORK + r"""
up 2
mkdir -p /root/.ssh
printf 'StrictHostKeyChecking accept-new\nConnectTimeout 5\nServerAliveInterval 2\nLogLevel ERROR\n' >/root/.ssh/config
export HOME=/root
must "sshd answers" wait_for 200 ssh root@10.0.0.1 true
url=ssh-unix:root@10.0.0.1:/run/luvfiod/org.luvfio.Host
check "luvfiod is there" wait_for 60 varlinkctl call $url org.luvfio.Host.Describe '{}'
check "its interface is documented" sh -c "varlinkctl introspect $url org.luvfio.Host | grep -q 'Replaces the kernel'"
check "luvfioctl takes such an address" wait_for 60 sh -c "luvfioctl --socket $url machines | grep vm1"
check "who follows a host that is idle can stop" sh -c "timeout 60 varlinkctl --more --timeout=5 call $url org.luvfio.Host.Monitor '{}'; [ \$? != 124 ]"
refused "a kernel that is none" 1 'kernel' /usr/lib/update-host root@10.0.0.1 /etc/passwd
ssh root@10.0.0.1 luvfioctl inhibit sleep 5 &
sleep 2
refused "while somebody forbids updates" 1 'inhibit' /usr/lib/update-host root@10.0.0.1 /boot/vmlinuz-b
wait
ssh root@10.0.0.1 'mkdir -p /etc/rogue; echo silent-quiesce >/etc/rogue/vm1.orders'
refused "a machine that holds it up: given up, with the report" 1 '^aborted: ' /usr/lib/update-host root@10.0.0.1 /boot/vmlinuz-b
sed 's/^/# /' /tmp/said
check "and the reason" sh -c "luvfioctl --socket $url history --json=short | jq -e '.updates[0].reason | test(\"vm1\")'"
ssh root@10.0.0.1 'rm /etc/rogue/vm1.orders'
LIMIT=300 /usr/lib/update-host root@10.0.0.1 /boot/vmlinuz-b >/tmp/update 2>&1
rc=$?
sed 's/^/# /' /tmp/update
check "it ends with 0" test $rc -eq 0
[ -z "$failed_now" ] || network
for state in draining quiescing handing_over; do
        check "it told of $state" grep -q "^$state" /tmp/update
done
check "and what became of it" grep -q '^done: .*-a to .*-b' /tmp/update
check "and for how long the machine stood" grep -Eq '^vm1: stood for [1-9]' /tmp/update
check "another kernel answers" sh -c 'ssh root@10.0.0.1 uname -r | grep -q -- -b'
ssh root@10.0.0.1 touch /var/log/seen
"""


def ports():
    """Two that are free."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as a, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as b:
        for s in (a, b):
            s.bind(("127.0.0.1", 0))
        return a.getsockname()[1], b.getsockname()[1]


def run(name, own, other, scripts):
    return full.run(name, "--image", "virt", "-m", "1536", "--script-deadline", "500", "--jump-deadline", "300", "--qemu=-netdev",
                    f"--qemu=dgram,id=fleet,local.type=inet,local.host=127.0.0.1,local.port={own},"
                    f"remote.type=inet,remote.host=127.0.0.1,remote.port={other}",
                    "--device", "igb,netdev=fleet", *(("--file", f"{EXAMPLE}:/usr/lib/update-host") if name == "client" else ()),
                    scripts=scripts)


EXAMPLE = Path(__file__).resolve().parents[2] / "docs/fleet/update-host"
one, two = ports()
full.overlay()
with concurrent.futures.ThreadPoolExecutor(2) as pool:
    server = pool.submit(run, "server", one, two, [BEFORE, AFTER])
    client = pool.submit(run, "client", two, one, [CLIENT])
full.report(server.result(), ["before", "after"], "host ")
full.report(client.result(), ["before"], "other ")
scenario.done()
