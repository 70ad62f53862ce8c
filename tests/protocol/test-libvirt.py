#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""What libvirt's hook makes of a domain that is to be started: luvfio-libvirt --hook."""

import os
import subprocess

import tap
import vmm
from luvfiod import Daemon
from tap import equal, test, true

LIBVIRT = os.environ["LUVFIO_LIBVIRT"]


def domain(name, *devices):
    hostdevs = ""
    for d in devices:
        bus, slot, function = d[5:7], d[8:10], d[11]
        hostdevs += (f"<hostdev mode='subsystem' type='pci' managed='no'><source><address domain='0x{d[:4]}' bus='0x{bus}' "
                     f"slot='0x{slot}' function='0x{function}'/></source></hostdev>")
    return f"<domain type='kvm'><name>{name}</name><devices>{hostdevs}</devices></domain>"


def hook(socket, name, *devices, operation="prepare", part="begin", xml=None):
    """(whether it may start, what is said)"""
    p = subprocess.run([LIBVIRT, "--hook", name, operation, part, "-"], input=xml or domain(name, *devices), text=True,
                       capture_output=True, env={**os.environ, "LUVFIO_HOST_SOCKET": str(socket)}, timeout=60, check=False)
    true(p.returncode in (0, 1), f"exit code {p.returncode}: {p.stderr}")
    return p.returncode == 0, p.stderr


@test
def others_device():
    """a domain with a device of a machine is refused, whatever the machine does; without it, and the machine itself, not"""
    with Daemon() as d:
        d.vmm("web1", devices=["0000:01:00.0"])
        d.wait_machines("running")
        may, said = hook(d.host_path, "other", "0000:02:00.0", "0000:01:00.0")
        equal(may, False, "another domain with its device")
        true("0000:01:00.0" in said and "web1" in said, said)
        equal(hook(d.host_path, "other", "0000:02:00.0"), (True, ""), "another domain with another device")
        equal(hook(d.host_path, "web1", "0000:01:00.0"), (True, ""), "the machine's own domain")
        for operation, part in (("started", "begin"), ("release", "end"), ("prepare", "end"), ("migrate", "begin")):
            equal(hook(d.host_path, "other", "0000:01:00.0", operation=operation, part=part), (True, ""), f"{operation} {part}")


@test
def pending():
    """a domain whose machine is on its way is not started afresh: while it stands, and when it is stranded after the jump"""
    with Daemon("--resume-deadline=1") as d:
        v = d.vmm("web1", devices=["0000:01:00.0"])
        slow = d.vmm("slow")
        slow.set_policy(quiesce=vmm.SILENT)
        with d.begin(deadlineUSec=20000000):
            d.wait_for(lambda: d.machines()["web1"]["state"] == "quiesced", "web1 is quiesced")
            may, said = hook(d.host_path, "web1", "0000:01:00.0")
            equal(may, False, "while its vCPUs stand")
            true("must not be started afresh" in said, said)
            d.host("Abort")
        d.wait_machines("running")
        equal(hook(d.host_path, "web1", "0000:01:00.0"), (True, ""), "after the abort")
        slow.set_policy(quiesce=vmm.ANSWER)
        d.jump()
        equal(v.wait_dead() is not None, True, "the VMM has ended")
        d.wait_for(lambda: d.machines()["web1"]["state"] == "stranded", "web1 is stranded")
        equal(hook(d.host_path, "web1", "0000:01:00.0")[0], False, "while it is stranded")
        equal(hook(d.host_path, "other", "0000:01:00.0")[0], False, "another domain with its device")
        d.host("Discard", {"machine": "web1"})
        equal(hook(d.host_path, "web1", "0000:01:00.0"), (True, ""), "when it was given up")


@test
def nobody_there():
    """without a luvfiod nothing is refused; what is no domain is"""
    equal(hook("/nowhere/at/all", "web1", "0000:01:00.0"), (True, ""), "no luvfiod")
    may, said = hook("/nowhere/at/all", "web1", xml="<network/>")
    equal(may, False, "no domain")
    true("no XML" in said, said)


if __name__ == "__main__":
    tap.main()
