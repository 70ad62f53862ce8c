# SPDX-License-Identifier: LGPL-2.1-or-later
"""Test Anything Protocol: tests are functions, in the order of the file, each in its own fresh state."""

import faulthandler
import os
import sys
import time
import traceback

_tests = []


class Skip(Exception):
    """Raised by a test that cannot be run here; the text says why."""


def test(function=None, *, name=None):
    """Marks a test. Its docstring's first line is its name."""

    def register(f):
        title = name or (f.__doc__ or f.__name__).strip().splitlines()[0].rstrip(".")
        _tests.append((title, f))
        return f

    return register(function) if function else register


def add(title, function):
    """For tests that are made in a loop."""
    _tests.append((title, function))


def choose(*parts):
    """Leaves out all tests whose name has none of the PARTS."""
    _tests[:] = [t for t in _tests if any(p in t[0] for p in parts)]


def note(text):
    for line in text.rstrip("\n").splitlines():
        print("#", line)
    sys.stdout.flush()


def main():
    faulthandler.enable()
    faulthandler.dump_traceback_later(int(os.environ.get("LUVFIOD_TEST_TIMEOUT", "400")), exit=True)
    wanted = sys.argv[1:]
    share, shares = map(int, os.environ.get("LUVFIOD_TEST_SHARE", "1/1").split("/"))
    chosen = [t for t in _tests if not wanted or any(w in t[0] or w in t[1].__name__ for w in wanted)][share - 1::shares]
    failed = 0
    print(f"1..{len(chosen)}", flush=True)
    for number, (title, function) in enumerate(chosen, 1):
        title = title.replace("#", "no. ")
        begin = time.monotonic()
        try:
            function()
        except Skip as skip:
            print(f"ok {number} - {title} # SKIP {skip}", flush=True)
            continue
        except BaseException as e:  # pylint: disable=broad-except
            if isinstance(e, KeyboardInterrupt):
                raise
            failed += 1
            print(f"not ok {number} - {title}", flush=True)
            note(traceback.format_exc())
            continue
        print(f"ok {number} - {title}", flush=True)
        took = time.monotonic() - begin
        if took > 5:
            note(f"took {took:.1f} s")
    sys.exit(1 if failed else 0)


# What a test says. The message names what was expected, so that a failure can be read without the source.


def equal(got, expected, what=""):
    if got != expected:
        raise AssertionError(f"{what}: got {got!r}, expected {expected!r}")


def true(condition, what):
    if not condition:
        raise AssertionError(what)


def contains(text, part, what=""):
    if part not in (text or ""):
        raise AssertionError(f"{what}: {part!r} is not in {text!r}")


def raises(error, function, *args, **parameters):
    """FUNCTION must end in the varlink error; PARAMETERS must be in it as given (callables are predicates)."""
    from varlink import Error  # late, so that this module stands alone

    try:
        result = function(*args)
    except Error as e:
        if e.error != error:
            raise AssertionError(f"got error {e}, expected {error}") from None
        for key, value in parameters.items():
            got = e.parameters.get(key)
            if callable(value):
                if not value(got):
                    raise AssertionError(f"{error}: {key} is {got!r}") from None
            elif got != value:
                raise AssertionError(f"{error}: {key} is {got!r}, expected {value!r}") from None
        return e
    raise AssertionError(f"expected {error}, got the reply {getattr(result, 'parameters', result)!r}")
