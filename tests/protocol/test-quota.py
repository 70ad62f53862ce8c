#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Too much of anything is refused with what there is too much of, and how much there may be; others are not hurt."""

import os
import resource

import tap
import varlink
import vmm
from luvfiod import HOST, MACHINE, Daemon
from tap import equal, raises, test, true

OTHER_UID = 4711
MACHINES = 4096
BYTES = 64 << 40


@test
def machines():
    """QuotaExceeded: machines of a user; another user's still are taken"""
    with Daemon("--quota=machines:20") as d:
        with d.no_leak():
            with d.connect_machine() as c:
                for i in range(20):
                    c.call(MACHINE + "Register", {"name": f"vm{i}"})
                raises(
                    MACHINE + "QuotaExceeded",
                    lambda: c.call(MACHINE + "Register", {"name": "one-more"}),
                    what="machines",
                    limit=20,
                )
                # One that is there is no new one.
                c.call(MACHINE + "Register", {"name": "vm7"})
                if os.getuid() == 0:
                    os.chmod(d.folder, 0o711)
                    os.chmod(d.runtime, 0o711)
                    v = d.vmm("other", start=False, before=lambda: os.setresuid(OTHER_UID, OTHER_UID, OTHER_UID))
                    v.register()
                    equal(d.machines()["other"]["uid"], OTHER_UID, "owner")
                    v.call("Withdraw", {"machine": "other"})
                    v.close()
                c.call(MACHINE + "Withdraw", {"machine": "vm7"})
                c.call(MACHINE + "Register", {"name": "one-more"})
                for name in ["one-more", *(f"vm{i}" for i in range(20) if i != 7)]:
                    c.call(MACHINE + "Withdraw", {"machine": name})
        equal(d.machines(), {}, "machines")


@test
def default_quota():
    """without a word from the operator there is a quota too"""
    with Daemon() as d, d.no_leak(), d.connect_machine() as c:
        for i in range(MACHINES):
            c.call(MACHINE + "Register", {"name": f"vm{i}"})
        raises(
            MACHINE + "QuotaExceeded", lambda: c.call(MACHINE + "Register", {"name": "x"}), what="machines", limit=MACHINES
        )
        for i in range(MACHINES):
            c.call(MACHINE + "Withdraw", {"machine": f"vm{i}"})


@test
def files():
    """QuotaExceeded: fds of a user, over all machines; free again when they are gone; updates do not count twice"""
    with Daemon("--quota=fds:12") as d:
        v = d.vmm("a", n_ram=5)

        def preserve(machine, name):
            fd = vmm.memfd(f"{machine}-{name}", 4096)
            try:
                return d.machine(
                    "Preserve", {"machine": machine, "name": name, "kind": "memfd", "fileDescriptor": 0}, [fd]
                )
            finally:
                os.close(fd)

        for _ in range(3):
            (v,) = d.update([v])
        other = d.vmm("b", n_ram=6)
        preserve("a", "last")
        with d.no_leak():
            for machine in ("a", "b"):
                raises(MACHINE + "QuotaExceeded", lambda m=machine: preserve(m, "more"), what="fds", limit=12)
            # To replace one is no more.
            preserve("a", "last")
        for _ in range(5):
            other.call("Withdraw", {"machine": "b"})
            other.close()
            other = d.vmm("b", n_ram=6)
        raises(MACHINE + "QuotaExceeded", lambda: preserve("a", "more"), what="fds", limit=12)
        # The state of a machine that stands has to have its place: without, the update is given up and all run on.
        raises(HOST + "UpdateFailed", lambda: d.jump(deadlineUSec=1000000),
               reason=lambda said: said.endswith("did not answer quiesce in time"))
        d.wait_state("idle")
        d.wait_machines("running")
        for machine in (v, other):
            tap.contains(machine.get("errors")[0], MACHINE + "QuotaExceeded", f"what {machine.name} was told of its state")


@test
def size():
    """QuotaExceeded: bytes of a user's memfds, over all machines, and free again when they are gone"""
    with Daemon() as d, d.no_leak():
        with d.connect_machine() as c:

            def preserve(machine, name, bytes_):
                fd = vmm.memfd(f"{machine}-{name}")
                try:
                    os.ftruncate(fd, bytes_)
                    return c.call(
                        MACHINE + "Preserve",
                        {"machine": machine, "name": name, "kind": "memfd", "fileDescriptor": 0},
                        [fd],
                    )
                finally:
                    os.close(fd)

            for machine in ("a", "b"):
                c.call(MACHINE + "Register", {"name": machine})
            raises(MACHINE + "QuotaExceeded", lambda: preserve("a", "x", BYTES + 4096), what="bytes", limit=BYTES)
            raises(MACHINE + "QuotaExceeded", lambda: preserve("a", "x", (1 << 63) - 4096), what="bytes", limit=BYTES)
            equal(d.machines()["a"]["fileDescriptors"], 0, "fds after a refusal")
            preserve("a", "x", BYTES // 2)
            preserve("b", "x", BYTES // 2)
            raises(MACHINE + "QuotaExceeded", lambda: preserve("b", "y", 4096), what="bytes", limit=BYTES)
            # To replace one by another of the same size is no more.
            preserve("a", "x", BYTES // 2)
            equal(d.machines()["a"]["memoryBytes"], BYTES // 2, "bytes")
            preserve("a", "x", 4096)
            preserve("b", "y", 4096)
            # A machine that is gone counts no more.
            c.call(MACHINE + "Withdraw", {"machine": "b"})
            preserve("a", "z", BYTES // 2)
            c.call(MACHINE + "Withdraw", {"machine": "a"})


@test
def grows_afterwards():
    """a memfd that grows after it was handed over does not escape the check"""
    with Daemon() as d:
        d.vmm("vm1")
        fd = vmm.memfd("grows", 4096)
        d.machine("Preserve", {"machine": "vm1", "name": "grows", "kind": "memfd", "fileDescriptor": 0}, [fd])
        # Its holes would have to be filled at staging: more than any host has.
        os.ftruncate(fd, 1 << 50)
        findings = d.findings()
        blockers = [f for f in findings if f["severity"] == "blocker"]
        true(blockers, f"nothing blocks an update that would need {1 << 50} bytes: {findings}")
        os.ftruncate(fd, 4096)
        d.wait_for(lambda: d.check()["ready"], "ready again")
        os.close(fd)


@test
def sparse():
    """a sparse memfd larger than the host's memory is a blocker that names its machine"""
    with Daemon() as d:
        d.vmm("fits")
        d.vmm("sparse", ram_size=4096)
        fd = vmm.memfd("holes", 32 << 40)
        d.machine("Preserve", {"machine": "sparse", "name": "holes", "kind": "memfd", "fileDescriptor": 0}, [fd])
        blockers = [f for f in d.findings() if f["severity"] == "blocker"]
        true(any("memory" in f["id"] and "machine sparse" in f["message"] for f in blockers),
             f"no blocker for memory: {blockers}")
        os.close(fd)


@test
def file_descriptors():
    """more fds than luvfiod itself may have open: refused, and it goes on"""

    def few():
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

    with Daemon(before=few) as d:
        held = 0
        error = None
        d.machine("Register", {"name": "vm1"})
        for i in range(100):
            fd = vmm.memfd(f"m{i}", 4096)
            try:
                d.machine(
                    "Preserve", {"machine": "vm1", "name": f"m{i}", "kind": "memfd", "fileDescriptor": 0}, [fd], timeout=5
                )
                held += 1
            except (varlink.Error, varlink.Disconnected, TimeoutError, ConnectionError) as e:
                error = e
                break
            finally:
                os.close(fd)
        true(error is not None, "100 fds were taken though only 64 may be open")
        equal(getattr(error, "error", error), MACHINE + "QuotaExceeded", "error")
        # What luvfiod needs for itself was left.
        d.machine("Withdraw", {"machine": "vm1"}, timeout=5)
        d.wait_for(lambda: d.state() == "idle", "it answers")
        tap.note(f"{held} fds, then {error!r}")


if __name__ == "__main__":
    tap.main()
