#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The service manager's fd store: every session is in it while there is one, and none when the update is over."""

import array
import contextlib
import os
import pathlib
import re
import socket
import struct
import tempfile
import threading

import tap
import vmm
from luvfiod import HOST, Daemon
from tap import equal, raises, test, true


class Manager:
    """What a service manager does with luvfiod's notifications."""

    def __init__(self, path):
        self.lock = threading.Lock()
        self.stored = {}
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self):
        while True:
            text, control, _, _ = self.socket.recvmsg(4096, socket.CMSG_SPACE(64 * struct.calcsize("i")))
            if text == b"end":
                return
            fds = array.array("i")
            for _, kind, data in control:
                if kind == socket.SCM_RIGHTS:
                    fds.frombytes(data)
            self._take(dict(line.split("=", 1) for line in text.decode().splitlines()), list(fds))

    def _take(self, fields, fds):
        name = fields.get("FDNAME", "")
        with self.lock:
            if fields.get("FDSTORE") == "1":
                self.stored.setdefault(name, []).extend(fds)
                fds = []
            elif fields.get("FDSTOREREMOVE") == "1":
                fds += self.stored.pop(name, [])
        # That of a barrier, too: it is what the sender waits for.
        for fd in fds:
            os.close(fd)

    def names(self):
        with self.lock:
            return sorted(self.stored)

    def close(self):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
            s.sendto(b"end", self.socket.getsockname())
        self.thread.join()
        self.socket.close()
        for fds in self.stored.values():
            for fd in fds:
                os.close(fd)


@contextlib.contextmanager
def daemon(*arguments, size=64):
    with tempfile.TemporaryDirectory(prefix="luvfiod-store-") as folder:
        path = pathlib.Path(folder) / "notify"
        manager = Manager(path)
        try:
            with Daemon(*arguments, environment={"NOTIFY_SOCKET": path, "FDSTORE": size}) as d:
                yield d, manager
        finally:
            manager.close()


def is_empty(d, manager, when):
    d.wait_for(lambda: not manager.names(), f"an empty store {when}: {manager.names()}", timeout=10)


def given_up_at(event):
    """Again and again: what one try leaves behind would fill the store of the fourth."""
    with daemon(size=5) as (d, manager):
        machines = [d.vmm("quick"), d.vmm("slow")]
        machines[1].set_policy(**{event: vmm.SILENT})
        for n in range(4):
            with d.begin(deadlineUSec=20000000) as update:
                machines[1].wait_event(event, count=n + 1)
                d.wait_for(lambda: len(manager.names()) == 3, "the sessions of host and machines are stored")
                d.host("Abort")
                raises(HOST + "UpdateFailed", lambda: d.drain(update))
            d.wait_state("idle")
            is_empty(d, manager, f"after {event} was not answered")
            d.wait_machines("running")
        machines[1].set_policy(**{event: vmm.ANSWER})
        d.update(machines)
        is_empty(d, manager, "after an update")


for _event in ("quiesce", "commit"):
    tap.add(f"no session stays stored after an update that was given up while {_event} was not answered",
            lambda e=_event: given_up_at(e))


@test
def staged():
    """sessions are stored while an update is staged, and not after Abort or a dry run"""
    with daemon(size=5) as (d, manager):
        machines = [d.vmm("a"), d.vmm("b", devices=["0000:00:04.0"])]
        for _ in range(4):
            d.stage()
            names = [n.rstrip("0123456789") for n in manager.names()]
            equal(names, ["luvfio-a-", "luvfio-b-", "luvfio-host"], "names in the store")
            d.host("Abort")
            d.wait_state("idle")
            is_empty(d, manager, "after Abort")
            d.wait_machines("running")
            d.jump(dryRun=True)
            d.wait_state("idle")
            is_empty(d, manager, "after a dry run")
            d.wait_machines("running")
        d.update(machines)
        is_empty(d, manager, "after an update")


@test
def refused_jump():
    """no session stays stored when the kernel refuses the jump, or a session cannot be had"""
    for fail in ("freeze:1:EBUSY", "preserve:3", "create:2"):
        with daemon(f"--simulate-fail={fail}", size=5) as (d, manager):
            machines = [d.vmm("a"), d.vmm("b")]
            raises(HOST + "UpdateFailed", d.jump)
            d.wait_state("idle")
            is_empty(d, manager, f"after {fail}")
            d.wait_machines("running")
            d.update(machines)
            is_empty(d, manager, "after an update")


@test
def machine_lost():
    """the session of a machine whose VMM dies while it is staged is not kept"""
    with daemon() as (d, manager):
        good, bad = d.vmm("good"), d.vmm("bad")
        d.stage()
        equal(len(manager.names()), 3, "sessions stored")
        bad.kill()
        d.wait_state("idle")
        is_empty(d, manager, "after a VMM died")
        d.wait_machines("running")
        d.update([good])


@test
def too_small():
    """a store that is full gives the update up, machines run on, and what was in it of the update is taken out"""
    with daemon(size=2) as (d, manager):
        machines = [d.vmm("a"), d.vmm("b")]
        e = raises(HOST + "UpdateFailed", d.jump, state="staging")
        true(re.search("fd store|No space left", e.parameters["reason"]), f"reason {e.parameters['reason']!r}")
        d.wait_state("idle")
        is_empty(d, manager, "after an update for which it was too small")
        d.wait_machines("running")
        machines[1].call("Withdraw", {"machine": "b"})
        machines[1].close()
        d.update(machines[:1])
        is_empty(d, manager, "after an update")


if __name__ == "__main__":
    tap.main()
