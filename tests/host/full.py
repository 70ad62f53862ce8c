# SPDX-License-Identifier: LGPL-2.1-or-later
"""Makes the full image, and others like it. This file is among what they are made from: any change of it makes new ones."""

import shutil
import subprocess
from pathlib import Path

import image
from luvtest import cache, progress

# The full image: Debian with systemd, and no more than what luvfiod and the example VMMs need.
PACKAGES = [
    "systemd", "systemd-sysv", "udev", "mount", "dbus", "polkitd", "kmod", "libjson-c5", "libcap2", "libglib2.0-0t64",
    "libseccomp2", "procps", "iproute2", "pciutils", "python3-minimal", "jq", "strace",
]

# What systemd starts by default and no test needs; it would only cost time in every boot.
MASKED = [
    "getty@tty1.service", "serial-getty@ttyS0.service", "getty.target", "systemd-firstboot.service",
    "systemd-networkd-wait-online.service", "systemd-hwdb-update.service", "ldconfig.service",
    "systemd-journal-catalog-update.service", "systemd-pcrphase.service", "systemd-pcrphase-sysinit.service",
    "systemd-pcrmachine.service", "systemd-tpm2-setup.service", "systemd-tpm2-setup-early.service",
    "systemd-update-utmp.service", "systemd-update-utmp-runlevel.service", "systemd-binfmt.service",
    "systemd-boot-random-seed.service", "dpkg-db-backup.timer", "systemd-tmpfiles-clean.timer",
    "fstrim.timer", "e2scrub_all.timer", "e2scrub_reap.service", "systemd-sysext.service",
    "systemd-confext.service", "systemd-rfkill.service", "systemd-rfkill.socket", "dev-hugepages.mount",
    "sys-kernel-tracing.mount", "systemd-modules-load.service", "modprobe@drm.service",
    "modprobe@configfs.service", "modprobe@efi_pstore.service", "modprobe@fuse.service", "modprobe@loop.service",
    "modprobe@dm_mod.service", "sys-fs-fuse-connections.mount", "sys-kernel-config.mount", "dev-mqueue.mount",
    "tmp.mount", "systemd-pstore.service", "proc-sys-fs-binfmt_misc.automount",
]

# The rules of udev that matter here: permissions, drivers, device units. The others run programs on every event
# of every device, which makes up most of a boot under emulation.
UDEV_SUBSYSTEMS = ["block", "pci", "net", "misc", "vfio-dev", "module"]
UDEV_RULES = ["50-udev-default.rules", "80-drivers.rules", "99-systemd.rules"]


def full(suite):
    """The disk image of the full image."""
    return debian("full", suite, PACKAGES, "3G")


def debian(name, suite, packages, size, inputs=(), backports="", finish=None):
    """A disk image of Debian with systemd, which runs the scripts. BACKPORTS is what an apt pin takes from there; finish(ROOT)
    has the last word, and what it does depends on INPUTS only."""
    files = ["first-boot", "luvhost.service"]
    inputs = [suite, *packages, size, backports, *MASKED, *map(image.tool, image.PROGRAMS), Path(__file__), *inputs]
    inputs += [image.GUEST / n for n in [*image.HELPERS, *files]]

    def make(folder):
        root = folder / "root"
        uri, options = image.mirror()
        (folder / "apt.conf").write_text(options)
        sources = [f"deb {uri} {suite} main"]
        hooks = []
        if backports:
            sources.append(f"deb {uri} {suite}-backports main")
            pin = folder / "pin"
            pin.write_text(f"Package: {backports}\nPin: release n={suite}-backports\nPin-Priority: 990\n")
            hooks = [f"--setup-hook=install -D -m 644 {pin} \"$1/etc/apt/preferences.d/backports\""]
        progress.run(f"making the {name} image: Debian {suite} (about a minute)", [
            "mmdebstrap", "--mode=root", "--variant=essential", "--format=directory",
            # A suite under development is not always published in time; its signature is checked all the same.
            f"--aptopt={folder}/apt.conf", "--aptopt=Acquire::Check-Valid-Until \"false\"",
            "--dpkgopt=force-unsafe-io", "--dpkgopt=path-exclude=/usr/share/doc/*",
            "--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
            f"--include={','.join(packages)}", *hooks, suite, str(root), *sources,
        ])
        image.install_helpers(root)
        image.install(image.GUEST / "first-boot", root / "usr/lib/luvhost/first-boot")
        image.install(image.GUEST / "luvhost.service", root / "usr/lib/systemd/system/luvhost.service", 0o644)
        systemctl = ["systemctl", f"--root={root}"]
        subprocess.run([*systemctl, "enable", "luvhost.service"], check=True, capture_output=True)
        subprocess.run([*systemctl, "mask", *MASKED], check=True, capture_output=True)
        subprocess.run([*systemctl, "set-default", "multi-user.target"], check=True, capture_output=True)
        for rule in (root / "usr/lib/udev/rules.d").iterdir():
            if rule.name not in UDEV_RULES:
                rule.unlink()
        # Nor is every terminal and every memory block to be looked at; what is plugged in later still is.
        trigger = root / "etc/systemd/system/systemd-udev-trigger.service.d/luvhost.conf"
        trigger.parent.mkdir(parents=True)
        trigger.write_text("[Service]\nExecStart=\nExecStart=-udevadm trigger --action=add" +
                           "".join(f" --subsystem-match={s}" for s in UDEV_SUBSYSTEMS) + "\n")
        (root / "usr/lib/udev/hwdb.bin").unlink(missing_ok=True)
        shutil.rmtree(root / "usr/lib/udev/hwdb.d", ignore_errors=True)
        (root / "etc/machine-id").write_text("6c75766669" + "0" * 21 + "1\n")
        # As on a host whose devices belong to machines: drivers for them are not loaded unasked.
        blacklist = root / "etc/modprobe.d/luvhost.conf"
        blacklist.parent.mkdir(parents=True, exist_ok=True)
        blacklist.write_text("".join(f"blacklist {m}\n" for m in ("igb", "igbvf", "nvme", "virtio_rng")))
        (root / "etc/hostname").write_text("luvhost\n")
        (root / "etc/fstab").write_text("")
        (root / "out").mkdir()
        (root / "var/log/journal").mkdir(exist_ok=True)
        journald = root / "etc/systemd/journald.conf.d/luvhost.conf"
        journald.parent.mkdir(parents=True, exist_ok=True)
        journald.write_text("[Journal]\nStorage=persistent\nSystemMaxUse=64M\nAudit=no\nRateLimitBurst=0\n")
        shutil.rmtree(root / "var/cache/apt", ignore_errors=True)
        shutil.rmtree(root / "var/lib/apt/lists", ignore_errors=True)
        if finish:
            finish(root)
        progress.run(f"making the {name} image's disk", [
            "mke2fs", "-q", "-t", "ext4", "-L", "luvroot", "-d", str(root), "-E", "lazy_itable_init=0,nodiscard",
            str(folder / "disk.raw"), size])
        shutil.rmtree(root)
        for left in ("apt.conf", "pin"):
            (folder / left).unlink(missing_ok=True)

    return cache.entry(f"{name}-{suite}", inputs, make) / "disk.raw"
