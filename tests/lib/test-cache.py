#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Entries of the cache folder that are broken or half written are made again, whoever keeps them."""

import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

LIB = Path(__file__).resolve().parent
CHECKOUT = LIB.parents[1]
sys.path[:0] = [str(LIB), str(LIB.parent / "protocol")]

# pylint: disable=wrong-import-position
import tap  # noqa: E402
from luvtest import cache  # noqa: E402
from tap import contains, equal, test, true  # noqa: E402


def fill(folder):
    """An entry as a maker leaves it."""
    (folder / "usr/bin").mkdir(parents=True)
    (folder / "etc").mkdir()
    (folder / "usr/bin/tool").write_text("whole\n")
    (folder / "usr/bin/other").symlink_to("tool")
    (folder / "usr/sbin").symlink_to("bin")
    (folder / "etc/empty").touch()


def truncated(entry):
    os.truncate(entry / "usr/bin/tool", 2)


def file_gone(entry):
    (entry / "etc/empty").unlink()


def written_later(entry):
    (entry / "usr/bin/tool").write_text("wrong\n")
    os.utime(entry / "usr/bin/tool", (1, 1))


def link_gone(entry):
    (entry / "usr/bin/other").unlink()


def link_elsewhere(entry):
    (entry / "usr/sbin").unlink()
    (entry / "usr/sbin").symlink_to("../etc")


def more(entry):
    (entry / "usr/more").touch()


def stamp_gone(entry):
    Path(f"{entry}.stamp").unlink()


def stamp_empty(entry):
    os.truncate(f"{entry}.stamp", 0)


def half_written(entry):
    """Killed while it was made."""
    stamp_gone(entry)
    entry.rename(f"{entry}.new")
    truncated(Path(f"{entry}.new"))
    (Path(f"{entry}.new") / "usr/half").touch()


def not_renamed_yet(entry):
    """Killed while it was made again."""
    stamp_gone(entry)
    shutil.copytree(entry, f"{entry}.new", symlinks=True)
    truncated(entry)


DAMAGES = (
    truncated, file_gone, written_later, link_gone, link_elsewhere, more, stamp_gone, stamp_empty, half_written,
    not_renamed_yet,
)  # fmt: skip


def is_whole(entry, what):
    equal((entry / "usr/bin/tool").read_text(), "whole\n", f"{what}: content")
    found = sorted(str(p.relative_to(entry)) for p in entry.rglob("*") if not p.is_dir() or p.is_symlink())
    equal(found, ["etc/empty", "usr/bin/other", "usr/bin/tool", "usr/sbin"], f"{what}: what is in it")
    true(not Path(f"{entry}.new").exists(), f"{what}: half of an entry is left")


def damage_all(get, count, damages=DAMAGES, whole=is_whole):
    """GET returns the entry, COUNT how often it was made: once, and once more for each damage."""
    entry = get()
    whole(entry, "fresh")
    for damage in damages:
        made = count()
        equal(get(), entry, "the entry's name")
        equal(count(), made, "made again though nothing was wrong")
        damage(entry)
        equal(get(), entry, f"{damage.__name__}: the entry's name")
        equal(count(), made + 1, f"{damage.__name__}: how often it was made")
        whole(entry, damage.__name__)


def stub(folder, name, script):
    (folder / name).write_text(f"#!/bin/sh\nset -e\n{script}\n")
    (folder / name).chmod(0o755)


def environment(folder, **variables):
    """Programs of FOLDER come before those of the system."""
    return {**os.environ, "LUVFIOD_CACHE": f"{folder}/cache", "PATH": f"{folder}:{os.environ['PATH']}", **variables}


def lines(path):
    return len(path.read_text().splitlines()) if path.exists() else 0


@test
def images():
    """images and tools (cache.py): an entry that is damaged is made again, one that is not is not"""
    with tempfile.TemporaryDirectory() as folder:
        cache.CACHE = Path(folder)
        made = []

        def make(entry):
            made.append(1)
            fill(entry)

        damage_all(lambda: cache.entry("thing", ["input"], make), lambda: len(made))
        true(cache.entry("thing", ["other input"], make) != cache.entry("thing", ["input"], make), "keys are the same")


@test
def images_not_made():
    """images and tools (cache.py): a maker that fails leaves nothing that is believed"""
    with tempfile.TemporaryDirectory() as folder:
        cache.CACHE = Path(folder)

        def fail(entry):
            fill(entry)
            raise OSError("disk full")

        try:
            cache.entry("thing", ["input"], fail)
        except OSError:
            pass
        equal([p.name for p in Path(folder).iterdir()], ["thing.lock"], "what is left")
        is_whole(cache.entry("thing", ["input"], fill), "made after all")


@test
def build_root():
    """the build root (tests/root): one that is damaged is made again, one that is not is not"""
    if os.getuid() != 0:
        raise tap.Skip("tests/root is for root")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = folder / "made"
        fill(folder / "template")
        # No root is made: it would take minutes.
        stub(folder, "mmdebstrap", f'while [ "$1" != trixie ]; do shift; done\ncp -a "{folder}/template" "$2"\necho >>"{made}"')
        variables = environment(folder, LUVFIOD_MIRROR="file:/nowhere")
        variables.pop("LUVFIOD_IN_ROOT", None)

        def get():
            subprocess.run([CHECKOUT / "tests/root"], env=variables, check=True, stdout=sys.stderr)
            path = subprocess.run([CHECKOUT / "tests/root", "path"], env=variables, check=True, capture_output=True, text=True)
            return Path(path.stdout.strip())

        damage_all(get, lambda: lines(made))


# What has a SHA256SUMS: the damaged thing is a file beside it.

def cut(file):
    os.truncate(file, 100)


def changed(file):
    st = file.stat()
    file.write_bytes(file.read_bytes().swapcase())
    os.utime(file, ns=(st.st_atime_ns, st.st_mtime_ns))


def gone(file):
    file.unlink()


def no_sums(file):
    (file.parent / "SHA256SUMS").unlink()


def empty_sums(file):
    os.truncate(file.parent / "SHA256SUMS", 0)


def cut_sums(file):
    os.truncate(file.parent / "SHA256SUMS", 40)


def cut_last_sum(file):
    sums = file.parent / "SHA256SUMS"
    os.truncate(sums, sums.stat().st_size - 4)


def more_files(file):
    (file.parent / "more").touch()


def half(file):
    file.parent.rename(file.parent.parent / ".tmp.half")


SEALED = (cut, changed, gone, no_sums, empty_sums, cut_sums, cut_last_sum, more_files, half)

# All of Linux that kernel/kernel looks at.
SOURCE = {
    ".gitignore": "/*\n",
    "main.c": "one\ntwo\nthree\n",
    "host.c": "four\n",
    "Makefile": """tinyconfig: ; : >$(O)/.config
olddefconfig modules headers: ;
bzImage: ; mkdir -p $(O)/arch/x86/boot && yes kernel | head -n 1000 >$(O)/arch/x86/boot/bzImage && \\
	cp main.c $(O)/System.map && echo >>$(MADE)
kernelrelease: ; echo 7.3
modules_install: ; mkdir -p $(INSTALL_MOD_PATH)
""",
    "scripts/checkpatch.pl": "#!/bin/sh\n",
    "scripts/kconfig/merge_config.sh": "#!/bin/sh\nshift 3\ncat \"$@\" >merged && mv merged \"$KCONFIG_CONFIG\"\n",
    **{f"tools/testing/selftests/{s}/Makefile": "all: ; touch $(OUTPUT)/test\n" for s in ("liveupdate", "vfio", "iommu")},
    "tools/testing/selftests/liveupdate/do_kexec.sh": "",
    "tools/testing/selftests/vfio/scripts/setup.sh": "",
}

PATCH = """From: Somebody <somebody@example.org>
Date: Thu, 1 Jan 2026 00:00:00 +0000
Subject: [PATCH] {file}: change it

---
diff --git a/{file} b/{file}
--- a/{file}
+++ b/{file}
@@ -1 +1 @@
-{old}
+{new}
"""


class Kernel:
    """kernel/kernel with a source and a series that are small."""

    def __init__(self, folder):
        self.folder = folder
        self.made = folder / "made"
        self.cache = folder / "cache/kernel"
        kernel = folder / "kernel"
        (kernel / "patches").mkdir(parents=True)
        (kernel / "config").mkdir()
        shutil.copy(CHECKOUT / "kernel/kernel", kernel)
        (kernel / "BASE").write_text("package=linux-source-7.3\nsuite=trixie-backports\nversion=7.3.4-1\n")
        (kernel / "series").write_text("0001-main.patch\n")
        (kernel / "patches/0001-main.patch").write_text(PATCH.format(file="main.c", old="one", new="ONE").replace(
            "@@ -1 +1 @@\n-one\n+ONE\n", "@@ -1,3 +1,3 @@\n-one\n+ONE\n two\n three\n"))
        (kernel / "test-host.patch").write_text(PATCH.format(file="host.c", old="four", new="FOUR"))
        for name in ("common", "series", "a", "errors"):
            (kernel / f"config/{name}.config").write_text(f"CONFIG_{name.upper()}=y\n")
        stub(folder, "apt-cache", f'echo "  Candidate: $(cat "{folder}/version")"')
        stub(folder, "apt-get", f'touch a.deb\necho >>"{folder}/downloads"')
        stub(folder, "dpkg-deb", f'exec tar -C "{folder}" -c ./usr/src/linux-source.tar.xz')
        stub(folder, "depmod", ":")
        self.offer("7.3.4-1")

    def offer(self, version, **changes):
        """What the suite has now."""
        (self.folder / "version").write_text(version)
        (self.folder / "usr/src").mkdir(parents=True, exist_ok=True)
        with tarfile.open(self.folder / "usr/src/linux-source.tar.xz", "w:xz") as tar:
            for name, text in {**SOURCE, **changes}.items():
                info = tarfile.TarInfo(f"linux/{name}")
                info.size = len(text)
                info.mode = 0o755
                tar.addfile(info, io.BytesIO(text.encode()))

    def run(self, *command):
        return subprocess.run([self.folder / "kernel/kernel", *command], check=False, capture_output=True, text=True,
                              env=environment(self.folder, LUVFIOD_IN_ROOT="1", MADE=str(self.made)))

    def get(self, *command):
        p = self.run(*command)
        equal(p.returncode, 0, p.stderr)
        return Path(p.stdout.strip())


@test
def kernel_source():
    """the kernel's source (kernel/kernel): a download that is damaged is fetched again, one that is not is not"""
    with tempfile.TemporaryDirectory() as name:
        kernel = Kernel(Path(name))
        text = (kernel.folder / "usr/src/linux-source.tar.xz").read_bytes()

        def whole(tarball, what):
            true(tarball.read_bytes() == text, f"{what}: content")

        damage_all(lambda: kernel.get("fetch"), lambda: lines(kernel.folder / "downloads"), SEALED, whole)


@test
def kernel_result():
    """a kernel's build (kernel/kernel): one that is damaged is made again, one that is not is not"""
    with tempfile.TemporaryDirectory() as name:
        kernel = Kernel(Path(name))

        def whole(image, what):
            equal(image.read_text(), "kernel\n" * 1000, f"{what}: content")
            equal((image.parent / "System.map").read_text(), "ONE\ntwo\nthree\n", f"{what}: what it was built of")
            true(not (image.parent / "more").exists(), f"{what}: what was in it before")

        damage_all(lambda: kernel.get("build", "a") / "bzImage", lambda: lines(kernel.made), SEALED, whole)


@test
def kernel_tree():
    """the kernel's tree (kernel/kernel): one that is broken is unpacked again, one that is not is not"""
    with tempfile.TemporaryDirectory() as name:
        kernel = Kernel(Path(name))
        tree = kernel.cache / "tree"

        def edited():
            (tree / "main.c").write_text("other\n")
            (tree / "more").touch()

        def locked():
            (tree / ".git/index.lock").touch()

        def head_locked():
            (tree / ".git/HEAD.lock").touch()
            edited()

        def no_head():
            os.truncate(tree / ".git/HEAD", 0)

        def no_objects():
            shutil.rmtree(tree / ".git/objects")

        def half_unpacked():
            (tree / ".git/luvfio-source").unlink()
            (tree / "Makefile").unlink()

        def gone_tree():
            shutil.rmtree(tree)

        kernel.get("check")
        for damage in (edited, locked, head_locked, no_head, no_objects, half_unpacked, gone_tree):
            damage()
            p = kernel.run("check")
            equal(p.returncode, 0, f"{damage.__name__}: {p.stderr}")
            equal("unpacking" in p.stderr, damage is not edited, f"{damage.__name__}: unpacked again")
            equal((tree / "main.c").read_text(), "ONE\ntwo\nthree\n", f"{damage.__name__}: the series")
            equal((tree / "host.c").read_text(), "FOUR\n", f"{damage.__name__}: the test host's patch")
            true(not (tree / "more").exists(), f"{damage.__name__}: what was there before")


@test
def kernel_series():
    """a series that no longer applies (kernel/kernel) is refused with a clear word, before anything is compiled"""
    with tempfile.TemporaryDirectory() as name:
        kernel = Kernel(Path(name))
        kernel.get("check")
        kernel.offer("7.3.9-1", **{"main.c": "one\nand a half\ntwo\nthree\n"})
        for command in (("check",), ("build", "a")):
            p = kernel.run(*command)
            equal(p.returncode, 1, p.stderr)
            contains(p.stderr, "kernel: 0001-main.patch does not apply to linux-source-7.3 7.3.9-1 (the series was last used "
                     "with 7.3.4-1): run 'kernel/kernel tree DIR', mend the patch there, then 'kernel/kernel refresh DIR'\n")
        equal(lines(kernel.made), 0, "kernels compiled")
        kernel.offer("7.3.10-1")
        kernel.get("check")


@test
def same_sight():
    """cache.py and cache.sh see the same changes of an entry"""

    def by_shell(folder):
        script = f'. "{LIB}/cache.sh"; cache_digest "$1"'
        return subprocess.run(["bash", "-euc", script, "-", folder], check=True, capture_output=True, text=True).stdout

    def empty_folder(folder):
        (folder / "usr/empty").mkdir()

    for change in (truncated, file_gone, written_later, link_gone, link_elsewhere, more, empty_folder):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "entry"
            folder.mkdir()
            fill(folder)
            before = by_shell(folder), cache.digest(folder)
            equal((by_shell(folder), cache.digest(folder)), before, "digests of what has not changed")
            change(folder)
            seen = [a != b for a, b in zip(before, (by_shell(folder), cache.digest(folder)))]
            equal(seen, [change is not empty_folder] * 2, f"{change.__name__}: seen by cache.sh and by cache.py")


if __name__ == "__main__":
    tap.main()
