# SPDX-License-Identifier: LGPL-2.1-or-later
"""Makes the initramfs of the test guest (see tests/lib/guest/README.md). To be used in the build root."""

import shutil
import subprocess
from pathlib import Path

from . import cache, progress
from .paths import TESTS

GUEST = TESTS / "lib/guest"
BUSYBOX = next((p for p in map(Path, ("/usr/bin/busybox", "/bin/busybox")) if p.exists()), None)


def fio():
    """A static fio."""
    def make(folder):
        progress.run("building fio for the test guest (about two minutes)", [GUEST / "build-fio", folder])

    return cache.entry("guest-fio", [GUEST / "build-fio"], make) / "fio"


def initramfs():
    """busybox, fio, our init and the program that looks at everything."""
    def make(folder):
        root = folder / "root"
        for name in "bin proc sys dev tmp".split():
            (root / name).mkdir(parents=True)
        subprocess.run(["gcc", "-std=gnu17", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-pthread",
                        "-s", "-o", root / "bin/luvguest", GUEST / "guest.c"], check=True)
        shutil.copy2(fio(), root / "bin/fio")
        shutil.copy2(BUSYBOX, root / "bin/busybox")
        for applet in subprocess.run([BUSYBOX, "--list"], check=True, capture_output=True, text=True).stdout.split():
            if not (root / "bin" / applet).exists():
                (root / "bin" / applet).symlink_to("busybox")
        shutil.copy2(GUEST / "init", root / "init")
        names = subprocess.run(["find", ".", "-print0"], cwd=root, check=True, capture_output=True).stdout
        archive = subprocess.run(["cpio", "--null", "-o", "-H", "newc", "--quiet", "-R", "0:0"], cwd=root, input=names,
                                 check=True, capture_output=True).stdout
        (folder / "initrd").write_bytes(subprocess.run(["gzip", "-1n"], input=archive, check=True,
                                                       capture_output=True).stdout)
        shutil.rmtree(root)

    return cache.entry("guest", [BUSYBOX, fio(), GUEST / "guest.c", GUEST / "init"], make) / "initrd"
