#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""io.systemd.service, which systemd's services have beside their own interface: on both sockets, and what it is for root."""

import os

import tap
import varlink
from luvfiod import Daemon, SERVICE
from tap import equal, raises, test, true

SYSTEMD = "io.systemd.service."
OTHER_UID = 4711


def sockets(d):
    return d.host_path, d.machine_path


def as_other(path, method, parameters=None):
    """The name of the error that another user gets, who is in the socket's group; None: none."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setresuid(OTHER_UID, OTHER_UID, OTHER_UID)
            os.write(writing, str(varlink.call(path, method, parameters, check=False).error).encode())
        except OSError as e:
            os.write(writing, str(e).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, encoding="utf-8") as f:
        error = f.read()
    os.waitpid(pid, 0)
    return None if error == "None" else error


@test
def ping():
    """Ping is answered, and introspected"""
    with Daemon() as d, d.no_leak():
        for path in sockets(d):
            equal(varlink.call(path, SYSTEMD + "Ping").parameters, {}, "reply")
            raises(SERVICE + "InvalidParameter", lambda p=path: varlink.call(p, SYSTEMD + "Ping", {"x": 1}), parameter="x")
            true("io.systemd.service" in varlink.call(path, SERVICE + "GetInfo")["interfaces"], "is in GetInfo")
            text = varlink.call(path, SERVICE + "GetInterfaceDescription", {"interface": "io.systemd.service"})["description"]
            for method in ("Ping", "SetLogLevel", "GetEnvironment"):
                tap.contains(text, f"method {method}(", "description")


@test
def log_level():
    """SetLogLevel: what is logged from then on"""
    with Daemon() as d:

        def says_something():
            before = len(d.log())
            d.vmm(f"vm{before}").call("Withdraw", {"machine": f"vm{before}"})
            return len(d.log()) > before

        true(says_something(), "nothing is logged of a machine that comes and goes, so this test sees nothing")
        for path in sockets(d):
            varlink.call(path, SYSTEMD + "SetLogLevel", {"level": 3})
            true(not says_something(), "less than errors is logged at level 3")
            varlink.call(path, SYSTEMD + "SetLogLevel", {"level": 7})
            true(says_something(), "nothing is logged at level 7")


@test
def log_level_invalid():
    """SetLogLevel: a level that is none is refused"""
    with Daemon() as d, d.no_leak():
        for level in (-1, 8, 1 << 32, 1.5, "high", None, [7]):
            raises(
                SERVICE + "InvalidParameter",
                lambda n=level: varlink.call(d.host_path, SYSTEMD + "SetLogLevel", {"level": n}),
                parameter="level",
            )
        raises(
            SERVICE + "InvalidParameter", lambda: varlink.call(d.host_path, SYSTEMD + "SetLogLevel", {}), parameter="level"
        )


@test
def environment():
    """GetEnvironment: what luvfiod was started with; one that is no text has an error of its own"""
    with Daemon(environment={"LUVFIO_TEST_WORD": "äöü = 7"}) as d:
        for path in sockets(d):
            true("LUVFIO_TEST_WORD=äöü = 7" in varlink.call(path, SYSTEMD + "GetEnvironment")["environment"], "environment")
    with Daemon(environment={"LUVFIO_TEST_WORD": "\udcff"}) as d:
        raises(SYSTEMD + "InconsistentEnvironment", lambda: varlink.call(d.host_path, SYSTEMD + "GetEnvironment"))


@test
def for_root():
    """Another user may ping, and neither set the level nor see the environment"""
    if os.getuid() != 0:
        raise tap.Skip("needs root to be somebody else")
    with Daemon() as d, d.no_leak():
        os.chmod(d.folder, 0o711)
        os.chmod(d.runtime, 0o711)
        for path in sockets(d):
            equal(as_other(path, SYSTEMD + "Ping"), None, "Ping")
            equal(as_other(path, SYSTEMD + "SetLogLevel", {"level": 0}), SERVICE + "PermissionDenied", "SetLogLevel")
            equal(as_other(path, SYSTEMD + "GetEnvironment"), SERVICE + "PermissionDenied", "GetEnvironment")


if __name__ == "__main__":
    tap.main()
