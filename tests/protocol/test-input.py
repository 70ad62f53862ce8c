#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""What comes over the sockets and is no proper call: bytes, JSON, fds, peers that do not read or go away."""

import contextlib
import os
import random
import re
import signal
import socket
import threading
import time

import tap
import varlink
import vmm
from luvfiod import HOST, MACHINE, Daemon
from tap import equal, test, true
from varlink import encode

SEED = int(os.environ.get("LUVFIOD_TEST_SEED", "20261"))
SANITIZED = os.environ.get("LUVFIOD_SANITIZED") == "1"


def both(d):
    return (d.host_path, d.machine_path)


def refused(path, data, fds=()):
    """The daemon drops the connection, or answers with an error; it never hangs."""
    with varlink.Connection(path) as c:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            c.send_raw(data, fds)
        try:
            reply = c.receive(timeout=10, check=False)
        except varlink.Disconnected:
            return None
        reply.close()
        true(reply.error, f"{data[:60]!r} was answered with {reply.parameters}")
        return reply.error


@test
def not_json():
    """bytes that are no JSON"""
    with Daemon() as d, d.no_leak():
        for path in both(d):
            for data in (
                b"\0", b"\0\0\0", b"hello\0", b"{\0", b"}\0", b"[]\0", b"null\0", b"7\0", b'"x"\0', b"{}\0",
                b'{"method":7}\0', b'{"method":null}\0', b'{"method":""}\0', b'{"method":"x"}\0',
                b'{"method":"."}\0', b'{"method":"a.b","method":"c.d"}\0', b'{"parameters":{}}\0',
                b'{"error":"x.y"}\0', b'{"parameters":{},"continues":true}\0',
                b'{"method":"org.luvfio.Host.Describe","parameters":[]}\0',
                b'{"method":"org.luvfio.Host.Describe","parameters":7}\0',
                b'{"method":"org.luvfio.Host.Describe","more":"yes"}\0',
                b'{"method":"org.luvfio.Host.Describe",}\0', b"{'method':'x'}\0",
                b'{"method":"org.luvfio.Host.Describe"} x\0', b"\xff\xfe{\0", b"\x01\x02\x03\0",
                b"\x80\0", bytes(range(1, 256)) + b"\0",
            ):  # fmt: skip
                refused(path, data)
        equal(d.state(), "idle", "state")


@test
def bad_utf8():
    """bad UTF-8 in every place of a string"""
    with Daemon() as d, d.no_leak():
        for bad in (b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc3", b"\xe2\x82"):
            for data in (
                b'{"method":"org.luvfio.Machine.Register","parameters":{"name":"vm%s"}}\0',
                b'{"method":"org.luvfio.Machine.Register","parameters":{"name":"vm","vmm":"%s"}}\0',
                b'{"method":"org.luvfio.Machine.Register","parameters":{"%s":"vm"}}\0',
                b'{"method":"org.luvfio.Machine.%s","parameters":{}}\0',
            ):
                refused(d.machine_path, data % bad)
        # Escaped halves of a surrogate pair are as bad.
        refused(d.machine_path, b'{"method":"org.luvfio.Machine.Register","parameters":{"name":"\\ud800"}}\0')
        equal(d.machines(), {}, "machines")
        # What is well-formed but odd goes through and comes back as it was, where text is for people.
        d.machine("Register", {"name": "vm", "vmm": "Größe \U0001f600 \u0001"})
        equal(d.machines()["vm"]["vmm"], "Größe \U0001f600 \u0001", "vmm")
        d.machine("Withdraw", {"machine": "vm"})


@test
def deep_json():
    """deep JSON"""
    with Daemon() as d, d.no_leak():
        for path in both(d):
            # With sanitizers each level costs so much that a million take minutes.
            for depth in (100, 10000) if SANITIZED else (100, 10000, 1000000):
                for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
                    data = (
                        b'{"method":"org.varlink.service.GetInfo","parameters":'
                        + opening * depth + b"1" + closing * depth + b"}\0"
                    )  # fmt: skip
                    refused(path, data)
                    refused(path, opening * depth + b"\0")


@test
def huge_json():
    """16 MiB of JSON and more"""
    with Daemon() as d, d.no_leak():
        for path in both(d):
            for size in (1 << 20, (16 << 20) - 200, (16 << 20) + 1000):
                data = b'{"method":"org.luvfio.Machine.Register","parameters":{"name":"' + b"x" * size + b'"}}\0'
                refused(path, data)
            # Without an end: the daemon must not keep more than the limit.
            with varlink.Connection(path) as c, contextlib.suppress(BrokenPipeError, ConnectionResetError):
                for _ in range(20):
                    c.send_raw(b"x" * (1 << 20))
        true(d.memory("Rss") < 512 << 20, f"the daemon kept {d.memory('Rss') >> 20} MiB")
        # A text that is only for people may be long, but not without a limit.
        reply = varlink.call(d.machine_path, MACHINE + "Register", {"name": "vm1", "vmm": "v" * 1000000}, check=False)
        if not reply.error:
            true(len(d.machines()["vm1"].get("vmm", "")) < 100000, "a million characters were kept")
            d.machine("Withdraw", {"machine": "vm1"})


def is_like(value, good):
    """Whether a value is of the type of one that is accepted. What is null may be left out, or is refused: both are right."""
    if value is None:
        return True
    if isinstance(good, list) and isinstance(value, list):
        return all(is_like(v, good[0]) for v in value)
    return type(value) is type(good)


@test
def wrong_types():
    """every parameter of every method with a value of every wrong type"""
    values = [None, True, -1, 1 << 62, 1.5, 1e308, "", "x", "\u0000", "x" * 5000, [], [1], ["x"], {}, {"a": {"b": []}}]
    kernel = {"kernelFileDescriptor": 0, "initrdFileDescriptor": 1, "commandLine": "x", "sacrifice": ["w1"]}
    interactive = {"allowInteractiveAuthentication": False}
    methods = {
        "machine": {
            "Register": {"name": "w1", "secret": "x", "vmm": "x"},
            "Watch": {"name": "w1", "secret": "x"},
            "Preserve": {"machine": "w1", "name": "x", "kind": "memfd", "fileDescriptor": 0},
            "Prepared": {"machine": "w1"},
            "SetBlockers": {"machine": "w1", "blockers": [{"message": "x", "remedy": "x"}]},
            "Quiesced": {"machine": "w1", "vcpusStoppedUSec": 1},
            "Committed": {"machine": "w1"},
            "Retrieve": {"machine": "w1", "name": "x"},
            "Resumed": {"machine": "w1", "vcpusRunningUSec": 1},
            "Withdraw": {"machine": "w1"},
        },
        "host": {
            "Check": kernel,
            "Stage": {**kernel, **interactive},
            "Update": {**kernel, **interactive, "dryRun": True, "deadlineUSec": 1, "fallback": "none"},
            "Abort": interactive,
            "History": {"limit": 1},
            "Analyze": {"updateId": "x"},
            "Discard": {"machine": "x", **interactive},
            "Inhibit": {"who": "x", "why": "x", **interactive},
            "Describe": {}, "ListMachines": {}, "ListDevices": {}, "Monitor": {},
        },
    }  # fmt: skip
    with Daemon() as d, d.no_leak():
        d.machine("Register", {"name": "w1"})
        fd = vmm.memfd("x", 4096)
        for interface, table in methods.items():
            path = d.machine_path if interface == "machine" else d.host_path
            prefix = MACHINE if interface == "machine" else HOST
            text = varlink.call(path, "org.varlink.service.GetInterfaceDescription", {"interface": prefix[:-1]})["description"]
            equal(sorted(table), sorted(re.findall(r"^method (\w+)", text, re.MULTILINE)), f"methods of {prefix}")
            for method, good in table.items():
                for key in [*good, "unknownField"]:
                    for value in values:
                        with varlink.Connection(path) as c:
                            more = method in ("Watch", "Stage", "Update", "Monitor", "Inhibit")
                            c.send(prefix + method, {**good, key: value}, [fd] * str(good).count("ileDescriptor"), more=more)
                            try:
                                reply = c.receive(timeout=10, check=False)
                            except varlink.Disconnected:
                                # A 0 byte is no text for the daemon's JSON.
                                equal(value, "\u0000", f"{method}: the connection was closed for a {key}")
                                continue
                            reply.close()
                            if key == "unknownField" or not is_like(value, good[key]):
                                equal((reply.error, reply.get("parameter")), ("org.varlink.service.InvalidParameter", key),
                                      f"{method} with {key} {value!r}")
        os.close(fd)
        d.wait_state("idle")
        for name in d.machines():
            d.machine("Withdraw", {"machine": name})


@test
def fds_where_none_belong():
    """fds with calls that take none, and with no call at all"""
    with Daemon() as d:
        d.vmm("vm1")
        fds = [vmm.memfd(f"m{i}") for i in range(100)]
        with d.no_leak():
            for path, method, parameters in (
                (d.machine_path, MACHINE + "Register", {"name": "vm1"}),
                (d.machine_path, MACHINE + "Prepared", {"machine": "vm1"}),
                (d.host_path, HOST + "Describe", {}),
                (d.host_path, HOST + "Check", {}),
                (d.host_path, HOST + "Nonsense", {}),
                (d.host_path, "org.varlink.service.GetInfo", {}),
            ):
                for n in (1, 2, 100):
                    for _ in range(5):
                        with varlink.Connection(path) as c:
                            c.send(method, parameters, fds[:n])
                            with contextlib.suppress(varlink.Disconnected):
                                c.receive(timeout=10, check=False).close()
                # Half a call, with fds, then nothing.
                with varlink.Connection(path) as c:
                    c.send_raw(encode(method, parameters)[:-3], fds)
                # Fds in the middle of a call instead of with its first byte.
                data = encode(method, parameters)
                with varlink.Connection(path) as c, contextlib.suppress(OSError, varlink.Disconnected, TimeoutError):
                    c.send_raw(data[:10])
                    time.sleep(0.01)
                    c.send_raw(data[10:], fds[:3])
                    c.receive(timeout=0.3, check=False).close()
        for fd in fds:
            os.close(fd)
        equal(d.machines()["vm1"]["fileDescriptors"], 1, "fds held")


@test
def split_writes():
    """calls that come byte by byte, several at once, and with fds"""
    with Daemon() as d:
        with d.connect_machine() as c:
            c.send_split(encode(MACHINE + "Register", {"name": "vm1", "vmm": "v" * 500}))
            equal(c.receive()["state"], "running", "state")
            # fds on the first byte of many pieces.
            fd = vmm.memfd("x", 4096)
            call = encode(MACHINE + "Preserve", {"machine": "vm1", "name": "x", "kind": "memfd", "fileDescriptor": 0})
            for size in (1, 7, 143):
                c.send_split(call, [fd], size)
                equal(c.receive()["fileDescriptor"]["name"], "x", "name")
            # Several calls in one write are answered in order.
            c.send_raw(
                encode(MACHINE + "Prepared", {"machine": "vm1"})
                + encode(MACHINE + "Register", {"name": "vm1"})
                + encode(MACHINE + "Nonsense")
            )
            equal(
                [c.receive(check=False).error for _ in range(3)],
                [MACHINE + "WrongState", None, "org.varlink.service.MethodNotFound"],
                "answers",
            )
            # One and a half.
            data = encode(MACHINE + "Register", {"name": "vm1"})
            c.send_raw(data + data[:20])
            c.receive()
            c.send_raw(data[20:])
            c.receive()
            os.close(fd)
        d.machine("Withdraw", {"machine": "vm1"})


@test
def half_and_away():
    """half a message, then the end of the connection"""
    with Daemon() as d:
        d.vmm("vm1")
        fd = vmm.memfd("x", 4096)
        with d.no_leak():
            call = encode(MACHINE + "Preserve", {"machine": "vm1", "name": "half", "kind": "memfd", "fileDescriptor": 0})
            for cut in list(range(1, len(call), 5)) + [len(call) - 1]:
                with d.connect_machine() as c:
                    c.send_raw(call[:cut], [fd])
            # Whole, and away before the answer: either way is right, but nothing in between.
            for _ in range(20):
                with d.connect_machine() as c:
                    c.send_raw(encode(MACHINE + "Register", {"name": "vm1"}))
            for _ in range(5):
                with d.connect_host() as c:
                    c.send_raw(encode(HOST + "Check", {"kernelFileDescriptor": 0}), [fd])
            # Half closed: no more calls come, the answer still can be read.
            with d.connect_host() as c:
                c.send(HOST + "ListMachines", {})
                c.socket.shutdown(socket.SHUT_WR)
                c.receive()
        os.close(fd)
        true(d.machines()["vm1"]["attached"], "the machine lost its watcher")
        equal(d.machines()["vm1"]["fileDescriptors"], 1, "fds held")


@test
def never_reads():
    """clients that never read: calls, Monitor, Watch"""
    with Daemon() as d:
        v = d.vmm("vm1")
        mute = d.vmm("mute")
        mute.set_policy(quiesce=vmm.FROZEN)
        before = d.memory("Rss")
        stalled = []
        # Calls without end whose answers nobody takes.
        for path, data in (
            (d.host_path, encode(HOST + "Describe")),
            (d.host_path, encode(HOST + "ListMachines")),
            (d.host_path, encode("org.varlink.service.GetInterfaceDescription", {"interface": "org.luvfio.Host"})),
            (d.machine_path, encode(MACHINE + "Register", {"name": "vm1"})),
        ):
            c = varlink.Connection(path)
            c.socket.setblocking(False)
            stop = time.monotonic() + (0.1 if SANITIZED else 1.0)
            view = data * 50
            while time.monotonic() < stop:
                try:
                    c.socket.send(view)
                except BlockingIOError:
                    time.sleep(0.02)
                except (BrokenPipeError, ConnectionResetError):
                    break
            stalled.append(c)
        monitor = varlink.Connection(d.host_path)
        monitor.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        monitor.send(HOST + "Monitor", {}, more=True)
        stalled.append(monitor)
        # Everybody else is served, at some time: the machine that this runs on may be busy.
        begin = time.monotonic()
        d.host("Describe")
        true(time.monotonic() - begin < 60, "Describe took longer because of those who do not read")
        # An update with a VMM that does not read its events: that one is named, the others run on.
        e = tap.raises(HOST + "UpdateFailed", lambda: d.jump(deadlineUSec=500000), machine="mute")
        tap.contains(e.parameters["reason"], "mute", "reason")
        v.wait_event("abort")
        grown = d.memory("Rss") - before
        # A sanitizer keeps what was freed, to see whether it is used: what it grows by says nothing.
        true(SANITIZED or grown < 64 << 20, f"the daemon grew by {grown >> 20} MiB for clients that do not read")
        for c in stalled:
            c.close()
        mute.kill()
        d.wait_for(lambda: not d.machines().get("mute", {}).get("attached"), "mute is gone")
        d.machine("Register", {"name": "mute"})
        d.wait_for(lambda: d.machines()["mute"]["state"] in ("running", "aborting"), "mute's state")


@test
def never_reads_the_last_word():
    """a client that never reads does not hold up luvfiod when it is stopped, there or half gone"""
    for gone in (False, True):
        with Daemon() as d:
            c = varlink.Connection(d.host_path)
            c.send_raw(encode("org.varlink.service.GetInterfaceDescription", {"interface": "org.luvfio.Host"}) * 50)
            d.host("Describe")
            d.process.send_signal(signal.SIGTERM)
            if gone:
                c.close()
            begin = time.monotonic()
            equal(d.process.wait(20), 0, "exit code")
            true(time.monotonic() - begin < 10, "stopping took longer because of a client that does not read")
            c.close()
            d.start()


@test
def connections():
    """hundreds of connections that say nothing"""
    with Daemon() as d:
        with d.no_leak():
            idle = []
            for i in range(300):
                idle.append(varlink.Connection(both(d)[i % 2]))
            # Those may be refused for their number, but this works again when they are gone.
            for c in idle:
                c.close()
            d.wait_for(lambda: d.state() == "idle", "the daemon answers")


@test
def random_bytes():
    """random bytes and broken calls"""
    rng = random.Random(SEED)
    tap.note(f"seed {SEED}")
    calls = [
        (MACHINE + "Register", {"name": "vm1", "secret": "0" * 32, "vmm": "x"}),
        (MACHINE + "Preserve", {"machine": "vm1", "name": "x", "kind": "memfd", "fileDescriptor": 0}),
        (MACHINE + "Retrieve", {"machine": "vm1", "name": "x"}),
        (MACHINE + "Quiesced", {"machine": "vm1", "vcpusStoppedUSec": 5}),
        (HOST + "Check", {"kernelFileDescriptor": 0, "commandLine": "x", "sacrifice": ["a"]}),
        (HOST + "Stage", {"kernelFileDescriptor": 0, "commandLine": "x"}),
        (HOST + "Analyze", {"updateId": "x"}),
    ]
    with Daemon() as d:
        fd = vmm.memfd("x", 4096)
        with d.no_leak():
            stop = time.monotonic() + float(os.environ.get("LUVFIOD_TEST_SECONDS", "5"))
            while time.monotonic() < stop:
                path = rng.choice(both(d))
                data = bytearray(encode(*rng.choice(calls), more=rng.random() < 0.3))
                for _ in range(rng.randrange(0, 6)):
                    what = rng.random()
                    at = rng.randrange(len(data))
                    if what < 0.4:
                        data[at] = rng.randrange(256)
                    elif what < 0.6:
                        del data[at : at + rng.randrange(1, 8)]
                        data = data or bytearray(b"\0")
                    elif what < 0.8:
                        data[at:at] = rng.randbytes(rng.randrange(1, 8))
                    else:
                        data[at:at] = rng.choice([b"{", b"}", b"[", b"]", b'"', b"\0", b",", b"null", b"-1e999", b"\\u0000"])
                fds = [fd] * rng.randrange(0, 4)
                with varlink.Connection(path) as c, contextlib.suppress(OSError, varlink.Disconnected):
                    c.send_raw(bytes(data), fds)
                    if rng.random() < 0.5:
                        with contextlib.suppress(TimeoutError, ValueError):
                            c.receive(timeout=0.05, check=False).close()
            for name in d.machines():
                with contextlib.suppress(varlink.Error):
                    d.machine("Withdraw", {"machine": name})
        os.close(fd)
        d.wait_state("idle")


@test
def truncated_memfd():
    """a memfd that is truncated and grown while it is looked at"""
    with Daemon() as d:
        d.vmm("vm1")
        fd = vmm.memfd("jelly", 1 << 20)
        d.machine("Preserve", {"machine": "vm1", "name": "jelly", "kind": "memfd", "fileDescriptor": 0}, [fd])
        stop = threading.Event()

        def shake():
            while not stop.is_set():
                os.ftruncate(fd, 0)
                os.ftruncate(fd, 1 << 20)
                os.ftruncate(fd, 4096)

        thread = threading.Thread(target=shake)
        thread.start()
        try:
            with d.no_leak(), d.connect_machine() as c:
                for _ in range(300):
                    reply = c.call(
                        MACHINE + "Preserve",
                        {"machine": "vm1", "name": "jelly", "kind": "memfd", "fileDescriptor": 0},
                        [fd],
                        check=False,
                    )
                    true(
                        reply.error in (None, MACHINE + "UnsupportedFileDescriptor"),
                        f"{reply.error} {reply.parameters}",
                    )
                # A kernel image that changes while it is read.
                for _ in range(50):
                    with d.begin("Check", kernel=fd) as check, contextlib.suppress(varlink.Error):
                        check.receive()
        finally:
            stop.set()
            thread.join()
        os.close(fd)
        d.wait_state("idle")


if __name__ == "__main__":
    tap.main()
