# SPDX-License-Identifier: LGPL-2.1-or-later
"""Builds of the project and of its kernels, kept between runs."""

import os
import shutil

from . import cache, progress
from .paths import CACHE, CHECKOUT

# Where this checkout's builds and logs are.
WORK = CACHE / "check" / cache.key(str(CHECKOUT))

BUILDS = {
    "gcc": ({"CC": "ccache gcc"}, []),
    "clang-sanitizers": ({"CC": "ccache clang"}, ["-Db_sanitize=address,undefined", "-Db_lundef=false",
                                                  "-Dfuzzers=true"]),
}


def stale(folder, setup):
    """Whether a build folder was configured in another way than it would be now."""
    try:
        return (folder / "luvtest-setup").read_text() != "\n".join(setup)
    except OSError:
        return True


def build(name):
    """Configures and compiles one variant; returns its folder and the log's text. Raises progress.Failed."""
    environment, options = BUILDS[name]
    folder = WORK / f"build-{name}"
    log = WORK / f"build-{name}.log"
    environment = {**os.environ, **environment}
    setup = ["meson", "setup", "--prefix=/usr", "--sysconfdir=/etc", "--localstatedir=/var", "-Dwerror=true",
             "--buildtype=debugoptimized", *options, str(folder), str(CHECKOUT)]
    WORK.mkdir(parents=True, exist_ok=True)
    for fresh in (False, True):
        if fresh or not (folder / "build.ninja").exists() or stale(folder, setup):
            shutil.rmtree(folder, ignore_errors=True)
            progress.run(f"configuring ({name})", setup, log=log, env=environment)
            (folder / "luvtest-setup").write_text("\n".join(setup))
            fresh = True
        try:
            progress.run(f"compiling ({name})", ["ninja", "-C", str(folder)], log=log, env=environment)
            return folder, log.read_text(errors="replace")
        except progress.Failed:
            # A build folder of another day may be at fault; a fresh one decides.
            if fresh:
                raise
    raise AssertionError("not reached")


def install_tree(folder):
    """What meson installs, for the images."""
    tree = WORK / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    progress.run("installing into a tree for the images",
                 ["meson", "install", "-C", str(folder), "--no-rebuild", "--destdir", str(tree)])
    return tree


def kernel(variant):
    """Builds a kernel if its inputs changed; returns the result folder. Raises progress.Failed."""
    WORK.mkdir(parents=True, exist_ok=True)
    path = WORK / f"kernel-{variant}.path"
    path.unlink(missing_ok=True)
    progress.run(f"kernel {variant} (minutes, if its inputs changed)",
                 ["sh", "-c", f"'{CHECKOUT}/kernel/kernel' build {variant} > '{path}'"],
                 log=WORK / f"kernel-{variant}.log")
    lines = path.read_text().strip().splitlines()
    if not lines:
        raise progress.Failed(f"kernel/kernel build {variant} named no folder")
    return lines[-1]
