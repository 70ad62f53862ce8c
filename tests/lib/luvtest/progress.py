# SPDX-License-Identifier: LGPL-2.1-or-later
"""Long steps, shown while they run: what is done, for how long, and a bar where the length is known.

On a terminal one line is redrawn; elsewhere plain lines are printed."""

import os
import re
import subprocess
import sys
import tempfile
import threading
import time

_lock = threading.Lock()
_BAR = re.compile(rb"\[ *(\d+)/(\d+)\]|\b(\d{1,3})%")


class Failed(Exception):
    """A step failed; its log has been shown."""


def bar(done, total, width=20):
    if total <= 0 or done > total:
        return ""
    n = done * width // total
    return f" [{'#' * n}{'.' * (width - n)}] {done}/{total}"


def say(text, stream=None):
    """A plain line, which does not get mixed up with a step's."""
    stream = stream or sys.stderr
    with _lock:
        if stream.isatty():
            stream.write("\r\033[K")
        stream.write(text + "\n")
        stream.flush()


class Step:
    """with Step("what it does", expected=SECONDS) as s: ... s.at(3, 10) ..."""

    def __init__(self, what, expected=None, stream=None):
        self.what = what
        self.expected = expected
        self.stream = stream or sys.stderr
        self.detail = ""
        self.log = None
        self._stop = threading.Event()

    def at(self, done, total):
        self.detail = bar(done, total)

    def note(self, text):
        self.detail = f" ({text})" if text else ""

    def _bar(self, now):
        if self.detail:
            return self.detail
        if self.log:
            try:
                with open(self.log, "rb") as f:
                    f.seek(max(0, os.fstat(f.fileno()).st_size - 4096))
                    found = _BAR.findall(f.read())
            except OSError:
                found = None
            if found:
                n, m, percent = found[-1]
                return bar(int(percent), 100) if percent else bar(int(n), int(m))
        if self.expected:
            return bar(min(int(now), int(self.expected)), int(self.expected)) + " s expected"
        return ""

    def _show(self):
        tty = self.stream.isatty()
        shown = 0
        while not self._stop.wait(0.2 if tty else 1):
            now = time.monotonic() - self.start
            if tty:
                with _lock:
                    self.stream.write(f"\r\033[K  ... {self.what}, {now:.0f} s{self._bar(now)}")
                    self.stream.flush()
            elif now - shown >= 30:
                shown = now
                say(f"    {self.what}: {now:.0f} s so far{self._bar(now)}", self.stream)

    def __enter__(self):
        self.start = time.monotonic()
        if not self.stream.isatty():
            say(f"==> {self.what}", self.stream)
        self._thread = threading.Thread(target=self._show, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind, value, trace):
        self._stop.set()
        self._thread.join()
        took = time.monotonic() - self.start
        if kind is None:
            say(f"    {self.what}: done in {took:.1f} s", self.stream)
        else:
            say(f"    {self.what}: FAILED after {took:.1f} s", self.stream)
        return False


def run(what, command, log=None, expected=None, check=True, **kwargs):
    """Runs a command as a step; its output goes to a log, whose end is shown if it fails. Returns its exit code."""
    keep = log is not None
    if not keep:
        fd, log = tempfile.mkstemp(prefix="step.", suffix=".log")
        os.close(fd)
    try:
        with Step(what, expected) as s, open(log, "wb") as f:
            s.log = str(log)
            rc = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=f, stderr=subprocess.STDOUT,
                                check=False, **kwargs).returncode
            if rc and check:
                raise Failed(what)
        return rc
    except Failed:
        with open(log, errors="replace") as f:
            tail = f.readlines()[-30:]
        say("".join(f"      | {line}" for line in tail).rstrip("\n"))
        raise
    finally:
        if not keep:
            os.unlink(log)
