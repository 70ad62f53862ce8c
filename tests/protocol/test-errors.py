#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every error of both interfaces, with its parameters; nothing is half done after any of them."""

import os
import re
import signal

import image
import tap
import varlink
import vmm
from luvfiod import HOST, MACHINE, Daemon
from tap import equal, raises, test, true

OTHER_UID = 4711


def as_other(d, name, function, **options):
    """FUNCTION(vmm) in a VMM of another user, who is in the socket's group."""
    if os.getuid() != 0:
        raise tap.Skip("needs root to be somebody else")
    os.chmod(d.folder, 0o711)
    os.chmod(d.runtime, 0o711)
    v = d.vmm(name, start=False, before=lambda: os.setresuid(OTHER_UID, OTHER_UID, OTHER_UID), **options)
    return function(v)


# org.luvfio.Machine


@test
def invalid_name():
    """InvalidName: machine names"""
    bad = ["", "-a", ".a", "_a", "a b", "a/b", "ä", "a\u0001", "a\n", "x" * 49, "a:b", "../a", "a\u202e"]
    with Daemon() as d, d.no_leak():
        with d.connect_machine() as c:
            for name in bad:
                raises(
                    MACHINE + "InvalidName",
                    lambda n=name: c.call(MACHINE + "Register", {"name": n}),
                    name=lambda got: got is not None and got.isprintable(),
                )
        equal(d.machines(), {}, "machines")
        for good in ("a", "0", "A-b_c.d", "x" * 48):
            d.machine("Register", {"name": good})
            d.machine("Withdraw", {"machine": good})


@test
def invalid_fd_name():
    """InvalidName: names of file descriptors"""
    with Daemon() as d:
        v = d.vmm()
        fd = vmm.memfd("x", 4096)
        with d.no_leak(), d.connect_machine() as c:
            for name in ("", "x" * 65, "a\n", "ä", "a\u007f", "a\u0001"):
                raises(
                    MACHINE + "InvalidName",
                    lambda n=name: c.call(
                        MACHINE + "Preserve",
                        {"machine": "vm1", "name": n, "kind": "memfd", "fileDescriptor": 0},
                        [fd],
                    ),
                    name=lambda got: got is not None and got.isprintable(),
                )
        equal(d.machines()["vm1"]["fileDescriptors"], 1, "fds")
        # The longest and the strangest that are allowed.
        with d.connect_machine() as c:
            for name in ("x" * 64, "a b", "!~"):
                other = vmm.memfd("z", 4096)
                reply = c.call(
                    MACHINE + "Preserve",
                    {"machine": "vm1", "name": name, "kind": "memfd", "fileDescriptor": 0},
                    [other],
                )
                equal(reply["fileDescriptor"]["name"], name, "name")
                os.close(other)
        os.close(fd)


@test
def no_such_machine():
    """NoSuchMachine, from every method that names a machine"""
    with Daemon() as d, d.no_leak():
        fd = vmm.memfd("x", 4096)
        calls = {
            "Watch": {"name": "nobody"},
            "Preserve": {"machine": "nobody", "name": "x", "kind": "memfd", "fileDescriptor": 0},
            "Retrieve": {"machine": "nobody", "name": "x"},
        }
        for method in ("Prepared", "Quiesced", "Committed", "Resumed", "Withdraw"):
            calls[method] = {"machine": "nobody"}
        calls["SetBlockers"] = {"machine": "nobody", "blockers": []}
        for method, parameters in calls.items():
            with d.connect_machine() as c:
                c.send(MACHINE + method, parameters, [fd] if method == "Preserve" else (), more=method == "Watch")
                raises(MACHINE + "NoSuchMachine", c.receive, machine="nobody")
        os.close(fd)


@test
def machine_exists():
    """MachineExists: a second Register under one name, by another user"""
    with Daemon() as d:
        d.vmm("taken")
        with d.no_leak():
            v = as_other(d, "taken", lambda v: v)
            raises(MACHINE + "MachineExists", v.register, machine="taken")
            v.close()
        equal(d.machines()["taken"]["uid"], 0, "owner")
        true(d.machines()["taken"]["attached"], "the true owner lost its connection")


@test
def not_owner():
    """NotOwner: another user's machine, with no secret or a wrong one; the secret opens it"""
    with Daemon() as d:
        owner = d.vmm("mine")
        secret = owner.get("secret")
        true(re.fullmatch("[0-9a-f]{32}", secret), "the secret is not 128 bits in hex")
        with d.no_leak():
            v = as_other(d, "mine", lambda v: v)
            v.connect()
            for method in ("Prepared", "Quiesced", "Committed", "Resumed", "Withdraw"):
                raises(MACHINE + "NotOwner", lambda m=method: v.call(m, {"machine": "mine"}), machine="mine")
            raises(MACHINE + "NotOwner", lambda: v.call("Retrieve", {"machine": "mine", "name": "ram0"}), machine="mine")
            raises(MACHINE + "NotOwner", lambda: v.call("SetBlockers", {"machine": "mine", "blockers": []}), machine="mine")
            raises(MACHINE + "NotOwner", v.start_watch, machine="mine")
            v.make()
            raises(MACHINE + "NotOwner", lambda: v.preserve("ram0"), machine="mine")
            for wrong in ("0" * 32, secret[:-1] + ("0" if secret[-1] != "0" else "1"), secret[:31], ""):
                raises(
                    MACHINE + ("NotOwner"),
                    lambda w=wrong: v.call("Register", {"name": "mine", "secret": w}),
                    machine="mine",
                )
            v.close()
        true(d.machines()["mine"]["attached"], "the true owner lost its connection")
        # With the secret it is another process of the same owner.
        v = as_other(d, "mine", lambda v: v, secret=secret, use_secret=True)
        equal(v.register()["secret"], secret, "secret")
        v.close()


@test
def wrong_state():
    """WrongState: calls at the wrong time"""
    with Daemon() as d:
        v = d.vmm("vm1")
        with d.no_leak(), d.connect_machine() as c:
            for method in ("Prepared", "Quiesced", "Committed", "Resumed"):
                raises(
                    MACHINE + "WrongState",
                    lambda m=method: c.call(MACHINE + m, {"machine": "vm1"}),
                    machine="vm1",
                    state="running",
                )
            raises(
                MACHINE + "WrongState",
                lambda: c.call(MACHINE + "Retrieve", {"machine": "vm1", "name": "ram0"}),
                machine="vm1",
                state="running",
            )
        v.set_policy(quiesce=vmm.SILENT)
        with d.begin(deadlineUSec=20000000) as update:
            v.wait_event("quiesce")
            fd = vmm.memfd("late", 4096)
            for method, parameters, fds in (
                ("Withdraw", {"machine": "vm1"}, ()),
                ("Committed", {"machine": "vm1"}, ()),
                ("Preserve", {"machine": "vm1", "name": "late", "kind": "memfd", "fileDescriptor": 0}, [fd]),
            ):
                raises(
                    MACHINE + "WrongState",
                    lambda m=method, p=parameters, f=fds: d.machine(m, p, f),
                    machine="vm1",
                    state="quiescing",
                )
            os.close(fd)
            # Machines stand, and one that comes now would not be among them.
            raises(
                MACHINE + "WrongState",
                lambda: d.machine("Register", {"name": "newcomer"}),
                machine="newcomer",
                state="quiescing",
            )
            equal(list(d.machines()), ["vm1"], "machines")
            d.host("Abort")
            raises(HOST + "UpdateFailed", lambda: d.drain(update))
        d.wait_machines("running")
        # A state memfd belongs into quiescing.
        fd = vmm.memfd("early", 4096)
        raises(
            MACHINE + "WrongState",
            lambda: d.machine("Preserve", {"machine": "vm1", "name": "s", "kind": "state", "fileDescriptor": 0}, [fd]),
            machine="vm1",
            state="running",
        )
        os.close(fd)
        v.set_policy(quiesce=vmm.ANSWER)
        d.update([v])


@test
def unsupported_fd():
    """UnsupportedFileDescriptor: what cannot be preserved, or is not what it is said to be"""
    with Daemon() as d:
        d.vmm("vm1")
        plain = os.open(d.folder / "plain", os.O_RDWR | os.O_CREAT)
        r, w = os.pipe()
        left, right = vmm.socket.socketpair()
        event = os.eventfd(0)
        null = os.open("/dev/null", os.O_RDWR)
        folder = os.open("/", os.O_RDONLY)
        path = os.open("/", os.O_PATH)
        pidfd = os.pidfd_open(os.getpid())
        good, iommu, device = vmm.memfd("good", 4096), vmm.iommufd(), vmm.vfio("0000:00:04.0")
        cases = [
            (kind, what, fd)
            for kind in ("memfd", "iommufd", "vfio")
            for what, fd in (
                ("regular file", plain), ("pipe", r), ("pipe", w), ("socket", left.fileno()), ("eventfd", event),
                ("/dev/null", null), ("folder", folder), ("O_PATH", path), ("pidfd", pidfd),
            )
        ]  # fmt: skip
        cases += [("iommufd", "memfd", good), ("vfio", "memfd", good), ("vfio", "iommufd", iommu)]
        cases += [("memfd", "iommufd", iommu), ("memfd", "vfio", device), ("iommufd", "vfio", device)]
        try:
            huge = os.memfd_create("huge", os.MFD_CLOEXEC | os.MFD_HUGETLB)
            os.ftruncate(huge, 2 << 20)
            cases.append(("memfd", "hugetlb memfd", huge))
        except OSError:
            huge = -1
        with d.no_leak(), d.connect_machine() as c:
            for kind, what, fd in cases:
                try:
                    raises(
                        MACHINE + "UnsupportedFileDescriptor",
                        lambda k=kind, f=fd: c.call(
                            MACHINE + "Preserve",
                            {"machine": "vm1", "name": "bad", "kind": k, "fileDescriptor": 0},
                            [f],
                        ),
                        name="bad",
                        reason=lambda got: bool(got),
                    )
                except AssertionError as e:
                    raise AssertionError(f"{what} as {kind}: {e}") from None
        equal(d.machines()["vm1"]["fileDescriptors"], 1, "fds held")
        for fd in (plain, r, w, event, null, folder, path, pidfd, good, iommu, device, huge):
            if fd >= 0:
                os.close(fd)
        left.close()
        right.close()


@test
def missing_fd():
    """MissingFileDescriptor: none, two, 200, or another index"""
    with Daemon() as d:
        d.vmm("vm1")
        fds = [vmm.memfd(f"m{i}", 4096) for i in range(200)]
        with d.no_leak():
            for index, passed in ((0, []), (0, fds[:2]), (0, fds), (1, fds[:1]), (-1, fds[:1]), (1, fds[:2])):
                with d.connect_machine() as c:
                    c.send(
                        MACHINE + "Preserve",
                        {"machine": "vm1", "name": "x", "kind": "memfd", "fileDescriptor": index},
                        passed,
                    )
                    try:
                        raises(MACHINE + "MissingFileDescriptor", c.receive, name="x")
                    except AssertionError as e:
                        raise AssertionError(f"index {index}, {len(passed)} fds: {e}") from None
        equal(d.machines()["vm1"]["fileDescriptors"], 1, "fds held")
        for fd in fds:
            os.close(fd)


@test
def duplicate_fd():
    """DuplicateFileDescriptor: one file twice in a machine, or in two machines"""
    with Daemon() as d:
        a = d.vmm("a", devices=["0000:00:04.0"])
        d.vmm("b")
        a_ram = a.get("fds")["ram0"][1]
        # The child's own fd, taken from it: the same file by another descriptor.
        with d.no_leak():
            fd = os.open(f"/proc/{a.pid}/fd/{a_ram}", os.O_RDWR)
            for machine, name in (("a", "again"), ("b", "stolen")):
                raises(
                    MACHINE + "DuplicateFileDescriptor",
                    lambda m=machine, n=name: d.machine(
                        "Preserve", {"machine": m, "name": n, "kind": "memfd", "fileDescriptor": 0}, [fd]
                    ),
                    name=name,
                    other=lambda got: "ram0" in (got or ""),
                )
            # Under its own name it replaces itself.
            d.machine("Preserve", {"machine": "a", "name": "ram0", "kind": "memfd", "fileDescriptor": 0}, [fd])
            os.close(fd)
            # The same device by another file.
            other = vmm.vfio("0000:00:04.0")
            raises(
                MACHINE + "DuplicateFileDescriptor",
                lambda: d.machine("Preserve", {"machine": "b", "name": "dev", "kind": "vfio", "fileDescriptor": 0}, [other]),
                name="dev",
                other=lambda got: "0000:00:04.0" in (got or ""),
            )
            os.close(other)
        equal(d.machines()["a"]["fileDescriptors"], 3, "fds of a")
        equal(d.machines()["b"]["fileDescriptors"], 1, "fds of b")


@test
def replaced_fd():
    """a known name replaces that fd"""
    with Daemon() as d:
        v = d.vmm("vm1")
        with d.no_leak():
            for i in range(20):
                fd = vmm.memfd(f"m{i}", 4096 * (i + 1))
                reply = d.machine("Preserve", {"machine": "vm1", "name": "ram0", "kind": "memfd", "fileDescriptor": 0}, [fd])
                equal(reply["fileDescriptor"]["size"], 4096 * (i + 1), "size")
                os.close(fd)
        m = d.machines()["vm1"]
        equal((m["fileDescriptors"], m["memoryBytes"]), (1, 4096 * 20), "fds and bytes")
        # What was replaced may be somebody else's now.
        fd = os.open(f"/proc/{v.pid}/fd/{v.get('fds')['ram0'][1]}", os.O_RDWR)
        d.machine("Preserve", {"machine": "vm1", "name": "other", "kind": "memfd", "fileDescriptor": 0}, [fd])
        os.close(fd)


@test
def no_such_fd():
    """NoSuchFileDescriptor: Retrieve of a name that is not there, or was rebuilt"""
    with Daemon() as d:
        v = d.vmm("vm1", devices=["0000:00:04.0"])
        d.jump()
        equal(v.wait_dead(), signal.SIGKILL, "what ended the VMM")
        new = d.vmm("vm1", start=False)
        new.connect()
        new.register()
        new.start_watch()
        if new.get("state") == "restoring":
            new.wait_event("resume")
        with d.no_leak():
            for name in ("nothing", "RAM0", "iommufd", ""):
                raises(
                    MACHINE + ("NoSuchFileDescriptor" if name else "InvalidName"),
                    lambda n=name: new.call("Retrieve", {"machine": "vm1", "name": n}),
                    name=name,
                )
        new.resume()
        d.wait_state("idle")


@test
def wrong_secret_shape():
    """a secret of any shape is compared, not believed"""
    with Daemon() as d, d.no_leak():
        for secret in ("x" * 100000, "\u0000", "zz" * 16):
            with d.connect_machine() as c:
                try:
                    reply = c.call(MACHINE + "Register", {"name": "vm1", "secret": secret}, check=False)
                except varlink.Disconnected:
                    # A 0 byte is no text for the daemon's JSON.
                    equal(secret, "\u0000", "the connection was closed for a secret")
                    continue
                # A machine that is not known may be refused or made; its secret is never the caller's.
                if not reply.error:
                    true(reply["secret"] != secret, "the caller chose the secret")
                    d.machine("Withdraw", {"machine": "vm1"})


# org.luvfio.Host


@test
def blocked():
    """Blocked: with all findings"""
    with Daemon() as d:
        v = d.vmm()
        with d.connect_host() as c, d.connect_host() as c2:
            for connection, who in ((c, "backup"), (c2, "admin")):
                connection.send(HOST + "Inhibit", {"who": who, "why": f"{who} is at work"}, more=True)
                true(connection.receive().continues, "Inhibit holds while the connection lasts")
            with d.no_leak():
                e = raises(HOST + "Blocked", d.jump)
                messages = [f["message"] for f in e.parameters["findings"] if f["severity"] == "blocker"]
                for who in ("backup", "admin"):
                    true(any(who in m and f"{who} is at work" in m for m in messages), f"no blocker names {who}: {messages}")
                equal(d.check()["ready"], False, "ready")
            d.wait_state("idle")
            equal(v.event_names(), ["attached"], "events of a machine that no update touched")
        d.wait_for(lambda: d.check()["ready"], "inhibitors gone with their connections")
        d.update([v])


@test
def update_in_progress():
    """UpdateInProgress: two updates at once"""
    with Daemon() as d:
        v = d.vmm()
        v.set_policy(quiesce=vmm.SILENT)
        with d.begin(deadlineUSec=20000000) as update:
            first = update.receive()
            v.wait_event("quiesce")
            for method in ("Update", "Stage"):
                with d.begin(method) as second:
                    raises(
                        HOST + "UpdateInProgress", lambda: d.drain(second), state="quiescing", updateId=first["updateId"]
                    )
            equal(d.state(), "quiescing", "state after the second one")
            d.host("Abort")
            raises(HOST + "UpdateFailed", lambda: d.drain(update))
        v.set_policy(quiesce=vmm.ANSWER)
        d.wait_machines("running")
        d.update([v])


@test
def not_possible():
    """NotPossible: Abort with nothing to abort, and after the jump"""
    with Daemon() as d:
        raises(HOST + "NotPossible", lambda: d.host("Abort"), state="idle")
        v = d.vmm()
        d.jump()
        v.wait_dead()
        d.wait_for(lambda: d.state() == "resuming", "resuming")
        raises(HOST + "NotPossible", lambda: d.host("Abort"), state="resuming")
        d.resume([v])
        d.wait_state("idle")


@test
def no_such_update():
    """NoSuchUpdate: Analyze"""
    with Daemon() as d, d.no_leak():
        raises(HOST + "NoSuchUpdate", lambda: d.host("Analyze"), updateId="")
        for bad in ("0" * 32, "x", "../../etc/passwd", "a" * 10000, ""):
            raises(HOST + "NoSuchUpdate", lambda b=bad: d.host("Analyze", {"updateId": b}), updateId=bad)


@test
def discard_errors():
    """NoSuchMachine and NotStranded: Discard"""
    with Daemon() as d:
        d.vmm("vm1")
        raises(HOST + "NoSuchMachine", lambda: d.host("Discard", {"machine": "nobody"}), machine="nobody")
        raises(HOST + "NotStranded", lambda: d.host("Discard", {"machine": "vm1"}), machine="vm1")
        equal(list(d.machines()), ["vm1"], "machines")


@test
def sacrifice_of_nobody():
    """NoSuchMachine: --sacrifice of a machine that is not there"""
    with Daemon() as d:
        v = d.vmm("vm1")
        with d.no_leak():
            for method in ("Check", "Stage", "Update"):
                for names, bad in ((["nobody"], "nobody"), (["vm1", "vm2"], "vm2"), (["../\u202e"], "../\\xe2\\x80\\xae")):
                    with d.begin(method, sacrifice=names) as c:
                        raises(HOST + "NoSuchMachine", lambda c=c: d.drain(c), machine=bad)
        equal(d.state(), "idle", "state")
        equal(v.event_names(), ["attached"], "events of a machine that no update touched")


@test
def long_command_line():
    """BadKernel: a command line that is longer than a kernel takes, from Check too"""
    with Daemon() as d, d.no_leak():
        for method in ("Check", "Stage", "Update"):
            with d.begin(method, commandLine=image.COMMAND_LINE + " " + "x" * 2048) as c:
                raises(HOST + "BadKernel", lambda c=c: d.drain(c), reason=lambda got: "2047" in got)
        equal(d.state(), "idle", "state")


@test
def bad_kernel():
    """BadKernel: what is no kernel, has no live update, or no command line for it"""
    with Daemon() as d:
        v = d.vmm()
        good = image.bzimage()
        r, w = os.pipe()
        os.write(w, good[:4096])
        folder = os.open("/", os.O_RDONLY)
        cases = {
            "empty": vmm.memfd("k"),
            "text": vmm.memfd("k", content=b"#!/bin/sh\n" * 4096),
            "cut in the header": vmm.memfd("k", content=good[:0x210]),
            "cut in the setup": vmm.memfd("k", content=good[:1024]),
            "ELF": vmm.memfd("k", content=b"\x7fELF" + bytes(8192)),
            "zeros": vmm.memfd("k", content=bytes(1 << 20)),
            "no HdrS": vmm.memfd("k", content=good.replace(b"HdrS", b"SrdH")),
            "no ABI table": image.kernel(abi=None),
            "an ABI table with a wrong sum": vmm.memfd("k", content=good.replace(b"memfd-v2", b"memfd-v3")),
            "an ABI that is only written": image.kernel(abi=image.ABI.replace("luvfio-v1 rw", "luvfio-v1 w")),
            "no version": image.kernel(release=None),
            "cut off": vmm.memfd("k", content=good[:-16]),
            "an ABI that is too old": image.kernel(abi=image.ABI.replace("luvfio-v1", "luvfio-v0")),
            "pipe": r,
            "folder": folder,
        }
        with d.no_leak():
            for what, fd in cases.items():
                try:
                    raises(
                        HOST + "BadKernel", lambda f=fd: d.jump(kernel=f), reason=lambda got: got and len(got) > 10
                    )
                except AssertionError as e:
                    raise AssertionError(f"{what}: {e}") from None
            for line in ("", "quiet", "kho=on", "liveupdate=on", "kho=off liveupdate=on", "kho=on liveupdate=on intel_iommu=off"):
                try:
                    e = raises(HOST + "BadKernel", lambda c=line: d.jump(commandLine=c), reason=lambda got: bool(got))
                except AssertionError as e:
                    raise AssertionError(f"command line {line!r}: {e}") from None
                true(
                    re.search("kho|liveupdate|iommu", e.parameters["reason"]), f"{line!r}: reason {e.parameters['reason']}"
                )
        equal(v.event_names(), ["attached"], "events of a machine that no update touched")
        for fd in [*cases.values(), w]:
            os.close(fd)
        d.update([v])


@test
def fallback():
    """fallback=cold: a reboot where a live update cannot be had, by a blocker or in its course; none for a mistake"""
    said = "rebooted cold"
    with Daemon() as d:
        v = d.vmm()
        fd = vmm.memfd("no kernel", 1 << 20)
        raises(HOST + "BadKernel", lambda: d.jump(kernel=fd, fallback="cold"))
        raises(HOST + "BadKernel", lambda: d.jump(commandLine="quiet", fallback="cold"))
        os.close(fd)
        v.set_policy(quiesce=vmm.SILENT)
        raises(HOST + "UpdateFailed", lambda: d.jump(deadlineUSec=300000, fallback="none"))
        d.wait_machines("running")
        true(said not in d.log(), "a cold reboot for a mistake")
        raises(HOST + "UpdateFailed", lambda: d.jump(deadlineUSec=300000, fallback="cold"))
        d.wait_for(lambda: d.log().count(said) == 1, "a cold reboot when the update is given up")
        with d.connect_host() as inhibitor:
            inhibitor.send(HOST + "Inhibit", {"who": "a", "why": "b"}, more=True)
            inhibitor.receive()
            raises(HOST + "Blocked", lambda: d.jump(fallback="none"))
            equal(d.log().count(said), 1, "cold reboots")
            raises(HOST + "Blocked", lambda: d.jump(fallback="cold"))
        d.wait_for(lambda: d.log().count(said) == 2, "a cold reboot when the update is blocked")


@test
def no_kernel():
    """NoKernel: none given, none staged"""
    with Daemon() as d:
        v = d.vmm()
        for method in ("Update", "Stage"):
            with d.connect_host() as c:
                c.send(HOST + method, {}, more=True)
                raises(HOST + "NoKernel", lambda: d.drain(c))
        equal(v.event_names(), ["attached"], "events")
        equal(d.state(), "idle", "state")


@test
def update_failed():
    """UpdateFailed: state, reason and machine"""
    with Daemon() as d:
        v = d.vmm("culprit")
        v.set_policy(quiesce=vmm.SILENT)
        e = raises(HOST + "UpdateFailed", lambda: d.jump(deadlineUSec=200000), state="quiescing", machine="culprit")
        tap.contains(e.parameters["reason"], "culprit", "reason")
        d.wait_state("idle")


@test
def standard_errors():
    """org.varlink.service errors: unknown interface, method, parameter"""
    service = "org.varlink.service."
    with Daemon() as d, d.no_leak():
        for path in (d.host_path, d.machine_path):
            own = path.name
            raises(service + "MethodNotFound", lambda: varlink.call(path, own + ".Nonsense"), method=own + ".Nonsense")
            for method in ("org.nobody.X", "io.systemd.Nothing.Y"):
                reply = varlink.call(path, method, check=False)
                true(
                    reply.error in (service + "InterfaceNotFound", service + "MethodNotFound"),
                    f"{method}: {reply.error} {reply.parameters}",
                )
        raises(service + "InvalidParameter", lambda: d.machine("Register", {}), parameter="name")
        raises(service + "InvalidParameter", lambda: d.machine("Register", {"name": 7}), parameter="name")
        d.machine("Register", {"name": "blocked"})
        for bad in (None, "x", ["x"], [{}], [{"message": ""}], [{"message": "x" * 1025}], [{"message": 1}],
                    [{"message": "x", "remedy": "x" * 1025}], [{"message": "x", "colour": 1}], [{"message": "x"}] * 65):
            raises(service + "InvalidParameter",
                   lambda b=bad: d.machine("SetBlockers", {"machine": "blocked", "blockers": b}), parameter="blockers")
        d.machine("SetBlockers", {"machine": "blocked", "blockers": [{"message": "x"}] * 64})
        d.machine("Withdraw", {"machine": "blocked"})
        raises(service + "InvalidParameter", lambda: d.machine("Register", {"name": "a", "vmm": []}), parameter="vmm")
        raises(service + "InvalidParameter", lambda: d.machine("Register", {"name": "a", "shoe": 43}), parameter="shoe")
        raises(service + "ExpectedMore", lambda: d.machine("Watch", {"name": "a"}))
        raises(service + "ExpectedMore", lambda: d.host("Monitor"))
        raises(service + "ExpectedMore", lambda: d.host("Inhibit", {"who": "a", "why": "b"}))
        equal(d.machines(), {}, "machines")


if __name__ == "__main__":
    tap.main()
