#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""What tests/check counts as passed, skipped and failed, and how it says so."""

import contextlib
import io
import subprocess
import sys
import tempfile
from pathlib import Path

LIB = Path(__file__).resolve().parent
sys.path[:0] = [str(LIB), str(LIB.parent / "protocol")]

# pylint: disable=wrong-import-position
import check  # noqa: E402
import tap  # noqa: E402
from tap import equal, test, true  # noqa: E402


def verdict(*results):
    """What is said in the end: its lines, and the exit code."""
    counted = check.Results([])
    counted.tests = [(f"test {i}", result, "") for i, result in enumerate(results)]
    said = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(said):
        check.WORK = Path(folder)
        code = check.end(counted)
    return said.getvalue().splitlines(), code


@test
def last_line():
    """the last line is how many passed and failed, and nothing else"""
    for results, last, code in ((["passed"] * 3, "3 passed, 0 failed", 0),
                                (["passed", "failed", "failed"], "1 passed, 2 failed", 1),
                                (["passed", "skipped"], "1 passed, 0 failed", 0),
                                ([], "0 passed, 0 failed", 1)):
        lines, rc = verdict(*results)
        equal((lines[-1], rc), (last, code), str(results))
        true(f"{results.count('skipped')} skipped" in lines[:-1], f"{results}: skipped, before the last line")


@test
def single_tests():
    """TAP: what is not ok has failed, whatever it says; a test that did not run, too"""
    equal(check.tap("1..4\nok 1 - a\nnot ok 2 - b\nok 3 - c # SKIP no d\nnot ok 4 - e # TODO later\n"),
          [("a", "passed", ""), ("b", "failed", ""), ("c", "skipped", "no d"), ("e", "failed", "")], "results")
    equal([t[1] for t in check.tap("1..2\nok 1 - a\n")], ["passed", "failed"], "one of two")


@test
def alone():
    """a second one in the same checkout says so, and does nothing"""
    with tempfile.TemporaryDirectory() as folder:
        check.WORK = Path(folder)
        with check.only_one():
            try:
                check.only_one()
            except SystemExit as e:
                true("already" in str(e), str(e))
            else:
                raise AssertionError("two at once")
        check.only_one().close()


@test
def no_tests():
    """a build without tests has failed"""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "meson.build").write_text("project('nothing')\n")
        subprocess.run(["meson", "setup", folder / "build", folder], check=True, stdout=subprocess.DEVNULL)
        check.WORK = folder
        results = check.Results([])
        with contextlib.redirect_stdout(sys.stderr):
            check.meson_tests(results, "gcc", folder / "build", False)
        equal([t[:2] for t in results.tests], [("gcc/meson-test", "failed")], "results")


if __name__ == "__main__":
    tap.main()
