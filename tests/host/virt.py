# SPDX-License-Identifier: LGPL-2.1-or-later
"""Makes the virt image: the full image's Debian, with QEMU and libvirt. Any change of this file makes a new one."""

import subprocess
from pathlib import Path

import full

PACKAGES = full.PACKAGES + [
    "qemu-system-x86", "qemu-utils", "seabios", "ipxe-qemu",
    # Debian builds the one daemon for all, libvirtd, and no virtqemud.
    "libvirt-daemon-driver-qemu", "libvirt-daemon-driver-network", "libvirt-daemon-driver-nodedev",
    "libvirt-daemon-driver-secret", "libvirt-daemon-driver-storage", "libvirt-daemon-driver-interface",
    "libvirt-daemon-driver-nwfilter", "libvirt-daemon-lock", "libvirt-daemon-log", "libvirt-daemon-system",
    "libvirt-daemon", "libvirt-clients", "libvirt0", "libvirt-glib-1.0-0",
    "apparmor", "socat", "openssh-server", "openssh-client",
]

# CPR with VFIO came with QEMU 10.1.
BACKPORTS = {"trixie": "src:qemu:any src:seabios:any src:ipxe:any"}

# Here, but not started: a test that wants libvirt says `systemctl start libvirtd.socket`.
NOT_STARTED = ["libvirt*", "virt*", "ssh*", "apparmor.service", "logrotate.timer"]

# For KVM inside, by the emulator's SVM.

CPU = "max,+svm"


def virt(suite):
    """The disk image of the virt image."""
    def finish(root):
        units = sorted(p.name for pattern in NOT_STARTED for p in (root / "usr/lib/systemd/system").glob(pattern)
                       if p.suffix in (".service", ".socket", ".timer", ".path") and "@" not in p.name)
        subprocess.run(["systemctl", f"--root={root}", "disable", *units], check=True, capture_output=True)
        # Nor the network that libvirt brings, which would want dnsmasq.
        (root / "etc/libvirt/qemu/networks/autostart/default.xml").unlink(missing_ok=True)

    return full.debian("virt", suite, PACKAGES, "4G", [Path(__file__)], BACKPORTS.get(suite, ""), finish)
