# SPDX-License-Identifier: LGPL-2.1-or-later
"""clang-tidy over the C sources, each looked at again only when something it is compiled from changed.

What was found clean is remembered in the cache folder, by source: the command it is compiled with, the checks, the
compiler's version, and a digest of each file of the project that it includes. System headers are those of the build
root, which is part of the key."""

import concurrent.futures
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

from . import cache, progress, project
from .paths import CACHE, CHECKOUT

CHECKED = ("daemon/", "plugins/", "docs/example-vmm/")
STORE = CACHE / "clang-tidy"


def digest(path):
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return None


def configure():
    """A build folder in which nothing is built: it says how each source is compiled."""
    folder = project.WORK / "build-tidy"
    setup = ["meson", "setup", "--prefix=/usr", str(folder), str(CHECKOUT)]
    project.WORK.mkdir(parents=True, exist_ok=True)
    if not project.stale(folder, setup) and \
            subprocess.run(["ninja", "-C", str(folder), "build.ninja"], check=False, stdin=subprocess.DEVNULL,
                           capture_output=True).returncode == 0:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    progress.run("configuring (clang-tidy)", setup, log=project.WORK / "build-tidy.log",
                 env={**os.environ, "CC": "clang"})
    (folder / "luvtest-setup").write_text("\n".join(setup))
    return folder


def sources(build):
    """Source (relative to the checkout): its entry in the build folder's compile_commands.json."""
    found = {}
    for entry in json.loads((build / "compile_commands.json").read_text()):
        path = os.path.relpath(os.path.realpath(os.path.join(entry["directory"], entry["file"])),
                               os.path.realpath(CHECKOUT))
        if path.startswith(CHECKED):
            found.setdefault(path, entry)
    return found


def includes(entry):
    """The files of the project that a source is made from: absolute path: digest."""
    # What names an output, or asks for a list of dependencies of its own, is left out.
    command = []
    skip = False
    for word in shlex.split(entry["command"]):
        if skip or word in ("-o", "-MF", "-MQ"):
            skip = not skip
        elif word not in ("-c", "-MD"):
            command.append(word)
    p = subprocess.run([*command, "-MM"], cwd=entry["directory"], check=False, stdin=subprocess.DEVNULL,
                       capture_output=True, text=True)
    if p.returncode:
        return None
    names = shlex.split(p.stdout.replace("\\\n", " ").partition(":")[2])
    return {n: digest(n) for n in sorted(os.path.realpath(os.path.join(entry["directory"], n)) for n in names)}


def common():
    """What every result depends on."""
    version = subprocess.run(["clang-tidy", "--version"], check=True, capture_output=True, text=True).stdout
    root = subprocess.run([str(CHECKOUT / "tests/root"), "path"], check=True, capture_output=True, text=True).stdout
    return cache.key(version, root, CHECKOUT / ".clang-tidy")


def known_clean(stamp, entry, key):
    try:
        known = json.loads(stamp.read_text())
        return known["key"] == key and known["command"] == entry["command"] and \
            all(digest(p) == d for p, d in known["files"].items())
    except (OSError, ValueError, KeyError):
        return False


def look(build, source, entry, key):
    """Returns what clang-tidy has to say against a source: empty is good."""
    stamp = STORE / cache.key(str(CHECKOUT), source)
    if known_clean(stamp, entry, key):
        return ""
    # Before it is looked at: a change that is made meanwhile is looked at the next time.
    files = includes(entry)
    p = subprocess.run(["clang-tidy", "--quiet", "-p", str(build), str(CHECKOUT / source)], check=False,
                       stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                       errors="replace")
    said = "\n".join(line for line in p.stdout.splitlines() if not re.match(r"\d+ warnings? (generated|treated)", line))
    if p.returncode:
        return said or f"exit code {p.returncode}"
    if files:
        STORE.mkdir(parents=True, exist_ok=True)
        temporary = stamp.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps({"key": key, "command": entry["command"], "files": files}))
        temporary.rename(stamp)
    return ""


def run(wanted):
    """Looks at the sources that are WANTED; yields (source, what is said against it, how far it is, of how many)."""
    key = common()
    build = configure()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        running = {pool.submit(look, build, s, e, key): s for s, e in sorted(sources(build).items()) if wanted(s)}
        for i, future in enumerate(concurrent.futures.as_completed(running)):
            yield running[future], future.result(), i + 1, len(running)
