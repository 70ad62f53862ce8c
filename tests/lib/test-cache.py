#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Entries of the cache folder that are broken or half written are made again, whoever keeps them."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

LIB = Path(__file__).resolve().parent
CHECKOUT = LIB.parents[1]
sys.path[:0] = [str(LIB), str(LIB.parent / "protocol")]

# pylint: disable=wrong-import-position
import tap  # noqa: E402
from luvtest import cache  # noqa: E402
from tap import equal, test, true  # noqa: E402


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


@test
def kernel_source():
    """the kernel's source (kernel/kernel): a download that is damaged is fetched again, one that is not is not"""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = folder / "made"
        (folder / "usr/src").mkdir(parents=True)
        (folder / "usr/src/linux-source.tar.xz").write_text("source\n" * 1000)
        stub(folder, "apt-cache", "echo '  Candidate: 7.3.4-1'")
        stub(folder, "apt-get", f'touch a.deb\necho >>"{made}"')
        stub(folder, "dpkg-deb", f'exec tar -C "{folder}" -c ./usr/src/linux-source.tar.xz')
        variables = environment(folder, LUVFIOD_IN_ROOT="1")

        def get():
            p = subprocess.run([CHECKOUT / "kernel/kernel", "fetch"], env=variables, check=True, stdout=subprocess.PIPE, text=True)
            return Path(p.stdout.strip())

        def whole(tarball, what):
            equal(tarball.read_text(), "source\n" * 1000, f"{what}: content")

        def cut(tarball):
            os.truncate(tarball, 100)

        def changed(tarball):
            st = tarball.stat()
            tarball.write_text("sOurce\n" * 1000)
            os.utime(tarball, ns=(st.st_atime_ns, st.st_mtime_ns))

        def gone(tarball):
            tarball.unlink()

        def no_sums(tarball):
            (tarball.parent / "SHA256SUMS").unlink()

        def empty_sums(tarball):
            os.truncate(tarball.parent / "SHA256SUMS", 0)

        def cut_sums(tarball):
            os.truncate(tarball.parent / "SHA256SUMS", 40)

        def cut_last_sum(tarball):
            sums = tarball.parent / "SHA256SUMS"
            os.truncate(sums, sums.stat().st_size - 4)

        def more_files(tarball):
            (tarball.parent / "more").touch()

        def half(tarball):
            tarball.parent.rename(tarball.parent.parent / ".tmp.half")

        damage_all(get, lambda: lines(made), (
            cut, changed, gone, no_sums, empty_sums, cut_sums, cut_last_sum, more_files, half,
        ), whole)  # fmt: skip


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
