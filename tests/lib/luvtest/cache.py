# SPDX-License-Identifier: LGPL-2.1-or-later
"""Entries of the cache folder, in the form that tests/lib/cache.sh describes."""

import contextlib
import fcntl
import hashlib
import os
import shutil
import stat
from pathlib import Path

from .paths import CACHE


def key(*inputs):
    """Digests what an entry is made from: strings, bytes, and paths of files (their content counts)."""
    h = hashlib.sha256()
    for i in inputs:
        data = i.read_bytes() if isinstance(i, Path) else i if isinstance(i, bytes) else str(i).encode()
        h.update(len(data).to_bytes(8, "little") + data)
    return h.hexdigest()[:16]


def digest(folder):
    """The state of a folder: names, sizes and modification times of all files, and where links lead."""
    lines = []
    for top, dirs, files in os.walk(folder):
        for name in dirs + files:
            path = os.path.join(top, name)
            st = os.lstat(path)
            if stat.S_ISLNK(st.st_mode):
                lines.append(f"{os.path.relpath(path, folder)} -> {os.readlink(path)}\n")
            elif stat.S_ISREG(st.st_mode):
                lines.append(f"{os.path.relpath(path, folder)} {st.st_size} {st.st_mtime_ns}\n")
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def valid(path):
    stamp = Path(f"{path}.stamp")
    try:
        return path.is_dir() and stamp.read_text().strip() == digest(path)
    except OSError:
        return False


@contextlib.contextmanager
def lock(name):
    """One maker of an entry at a time."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / f"{name}.lock", "w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


def entry(name, inputs, make):
    """Returns the folder NAME-KEY, which make(folder) fills if it is not there or is damaged."""
    path = CACHE / f"{name}-{key(*inputs)}"
    if valid(path):
        return path
    with lock(name):
        if valid(path):
            return path
        temporary = Path(f"{path}.new")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            make(temporary)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        stamp = Path(f"{path}.stamp")
        stamp.unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)
        temporary.rename(path)
        os.sync()
        stamp.with_suffix(".stampnew").write_text(digest(path) + "\n")
        stamp.with_suffix(".stampnew").rename(stamp)
        # Entries of the same name made from other inputs are not used any more by this checkout; they stay
        # for a week, for another checkout or an older commit.
        for old in CACHE.glob(f"{name}-????????????????"):
            if old != path and old.stat().st_mtime < path.stat().st_mtime - 7 * 86400:
                Path(f"{old}.stamp").unlink(missing_ok=True)
                shutil.rmtree(old, ignore_errors=True)
        return path
