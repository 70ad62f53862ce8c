#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""VMMs that die, hang up or fall silent, in every state; disks that are full; a daemon that is killed."""

import contextlib
import os
import pathlib
import resource
import signal
import subprocess
import tempfile

import tap
import vmm
from luvfiod import HOST, MACHINE, Daemon
from tap import equal, raises, test, true

EVENTS = {"prepare": "staging", "quiesce": "quiescing", "commit": "handing_over"}


def own_errors(v):
    """But for answers that crossed with an abort, which are refused."""
    return [e for e in v.get("errors") if "WrongState" not in e]


def lost(event, how):
    """One of two VMMs is lost at EVENT: the update is given up with its name, the other one runs on."""
    dead = how in (vmm.DIE, vmm.DIE_AFTER)
    with Daemon() as d:
        good, bad = d.vmm("good"), d.vmm("bad")
        bad.set_policy(**{event: how})
        begin = vmm.boottime_usec()
        e = raises(HOST + "UpdateFailed", lambda: d.jump(deadlineUSec=20000000), machine="bad")
        true(vmm.boottime_usec() - begin < 10000000, "a lost VMM was waited for until the deadline")
        # One that is lost after its answer is noticed there or in the state that follows.
        if how in (vmm.DIE, vmm.HANG_UP):
            equal(e.parameters["state"], EVENTS[event], "state")
        tap.contains(e.parameters["reason"], "bad", "reason")
        d.wait_state("idle")
        d.wait_for(lambda: d.machines()["good"]["state"] == "running", "good runs")
        true(good.get("running"), "the vCPUs of good stand")
        equal(own_errors(good), [], "errors of good")
        if dead:
            equal(bad.wait_dead(), signal.SIGKILL, "what ended bad")
            # Its memory is gone: there is no machine any more.
            d.wait_for(lambda: "bad" not in d.machines(), "bad is forgotten")
            bad = d.vmm("bad")
        else:
            true(bad.alive(), "bad died though it only hung up")
            equal(d.machines()["bad"]["attached"], False, "bad is attached")
            # It comes again and takes the machine up where it is.
            bad.hang_up()
            bad.register()
            # What it was told and did not hear, it is told again.
            bad.start_watch()
            bad.set_policy(**{event: vmm.ANSWER})
        d.wait_machines("running")
        d.update([good, bad])


for _event in EVENTS:
    for _how, _what in (
        (vmm.DIE, "dies instead of answering"),
        (vmm.DIE_AFTER, "dies after answering"),
        (vmm.HANG_UP, "hangs up instead of answering"),
        (vmm.HANG_UP_AFTER, "hangs up after answering"),
    ):
        # After Committed the machine waits for the jump whatever becomes of its connections, and the jump kills it.
        if (_event, _how) in (("commit", vmm.HANG_UP_AFTER), ("commit", vmm.DIE_AFTER)):
            continue
        # While vCPUs run it may come back and answer then.
        if (_event, _how) == ("prepare", vmm.HANG_UP):
            continue
        tap.add(f"a VMM {_what} {_event}", lambda e=_event, h=_how: lost(e, h))


@test
def hang_up_at_prepare():
    """a VMM that hangs up at prepare and comes back is asked again, and the update goes on"""
    with Daemon() as d:
        good, late = d.vmm("good"), d.vmm("late")
        late.set_policy(prepare=vmm.HANG_UP)
        with d.begin() as update:
            late.wait_event("prepare")
            d.wait_for(lambda: not d.machines()["late"]["attached"], "late is not attached")
            late.set_policy(prepare=vmm.ANSWER)
            late.register()
            late.start_watch()
            d.drain(update)
        d.resume([good, late])
        d.wait_state("idle")
        equal(d.last()["result"], "done", "result")


@test
def hang_up_after_committed():
    """a VMM that hangs up after Committed comes over the jump"""
    with Daemon() as d:
        machines = [d.vmm("a"), d.vmm("b")]
        machines[0].set_policy(commit=vmm.HANG_UP_AFTER)
        d.update(machines)
        equal(d.last()["result"], "done", "result")


@test
def lost_while_running():
    """a VMM dies or hangs up while no update is under way: a disconnect is no withdrawal"""
    with Daemon() as d:
        v = d.vmm("vm1", devices=["0000:00:04.0"])
        v.hang_up()
        d.wait_for(lambda: not d.machines()["vm1"]["attached"], "vm1 is not attached")
        equal(d.machines()["vm1"]["fileDescriptors"], 3, "fds are kept")
        tap.true(not d.check()["ready"], "check finds nothing wrong with a machine that nobody watches")
        true(any(f.get("machine") == "vm1" for f in d.findings()), f"findings do not name vm1: {d.findings()}")
        raises(HOST + "Blocked", d.jump)
        v.register()
        v.start_watch()
        d.wait_for(lambda: d.check()["ready"], "ready again")
        v.kill()
        d.wait_for(lambda: not d.machines(), "vm1 is forgotten: its memory is gone")
        v = d.vmm("vm1", devices=["0000:00:04.0"])
        d.update([v])


@test
def lost_while_staged():
    """a VMM dies while staged: all is given up with its name, its machine is gone, the others run on"""
    with Daemon() as d:
        good, bad = d.vmm("good"), d.vmm("bad", n_ram=4)
        d.stage()
        bad.kill()
        good.wait_event("abort")
        d.wait_state("idle")
        d.wait_machines("running")
        equal(list(d.machines()), ["good"], "machines")
        equal(d.last()["result"], "aborted", "result")
        tap.contains(d.last()["reason"], "bad", "the report names the machine")
        bad = d.vmm("bad")
        d.update([good, bad])


@test
def sacrifice():
    """a machine that holds the update up is lost if the operator said so, the others go on"""
    with Daemon() as d:
        good, bad = d.vmm("good"), d.vmm("bad")
        bad.set_policy(quiesce=vmm.SILENT)
        d.jump(deadlineUSec=500000, sacrifice=["bad"])
        d.resume([good])
        d.wait_state("idle")
        true("good" in d.machines(), "good is gone")
        true(d.machines().get("bad", {}).get("state") in (None, "stranded"), f"bad is {d.machines().get('bad')}")
        equal(d.machines()["good"]["generation"], 1, "generation of good")


@test
def withdraw():
    """Withdraw: the machine's fds are dropped, its name is free"""
    with Daemon() as d:
        d.vmm("stays")
        with d.no_leak():
            v = d.vmm("goes", n_ram=5, devices=["0000:00:04.0"])
            v.call("Withdraw", {"machine": "goes"})
            equal(list(d.machines()), ["stays"], "machines")
            v.close()
        v = d.vmm("goes", devices=["0000:00:04.0"])
        equal(d.machines()["goes"]["generation"], 0, "generation")


@test
def withdraw_after_update():
    """Withdraw after an update frees everything"""
    with Daemon() as d:
        with d.no_leak():
            v = d.vmm("vm1", n_ram=5, devices=["0000:00:04.0"])
            (v,) = d.update([v])
            v.call("Withdraw", {"machine": "vm1"})
            v.close()
        equal(d.machines(), {}, "machines")


def small_disk():
    """A file system of 64 KiB, or Skip."""
    folder = tempfile.mkdtemp(prefix="luvfiod-small-")
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k,mode=0700", "small", folder], stderr=subprocess.DEVNULL, check=False
    ).returncode:
        os.rmdir(folder)
        raise tap.Skip("needs to mount a small tmpfs")
    return folder


@test
def disk_full():
    """the disk of the history is full: an update is no worse for it, and it is said"""
    folder = small_disk()
    try:
        with Daemon(state_dir=folder) as d:
            v = d.vmm("vm1")
            with open(f"{folder}/fill", "wb") as f, contextlib.suppress(OSError):
                f.write(bytes(1 << 20))
            (v,) = d.update([v])
            equal(d.machines()["vm1"]["generation"], 1, "generation")
            said = f"The report of update {d.last()['updateId']} cannot be kept in {folder}/history: No space left on device"
            equal(d.log().count(said), 1, "how often it is said")
            os.truncate(f"{folder}/fill", 0)
            (v,) = d.update([v])
            equal([u["result"] for u in d.host("History")["updates"]][0], "done", "the next one is in the history")
            for name in os.listdir(f"{folder}/history") if os.path.isdir(f"{folder}/history") else []:
                true(not name.endswith(".tmp") and ".#" not in name, f"half a file is left: {name}")
    finally:
        subprocess.run(["umount", folder], check=True)
        os.rmdir(folder)


@test
def host_record_lost():
    """the host's record cannot be had: nobody starts afresh without a word, each is stranded until it is given up"""
    with Daemon("--simulate-fail=retrieve:1,retrieve:2:ENOMEM") as d:
        old = [d.vmm("a"), d.vmm("b")]
        d.jump()
        for v in old:
            v.wait_dead()
        d.wait_state("idle")
        equal(d.machines(), {}, "machines that are known of")
        equal(d.last()["result"], "stranded", "result")
        true("record of the update" in d.last()["reason"], f"reason {d.last()['reason']}")
        equal(d.host("History")["updates"][0]["reason"], d.last()["reason"], "in the history")
        true(any(f["id"] == "host-record-lost" for f in d.findings()), "check says nothing")
        for n, name in enumerate(("a", "b", "never-seen")):
            v = d.vmm(name, start=False)
            for _ in range(2):
                e = raises(MACHINE + "Stranded", v.register, machine=name)
                true("luvfioctl discard" in e.parameters["reason"], f"reason {e.parameters['reason']}")
            equal(d.machines()[name]["state"], "stranded", f"state of {name}")
            equal(d.host("Describe")["stranded"], n + 1, "number of the stranded")
            # It stays so when its VMM ends, for another one too.
            v.kill()
            raises(MACHINE + "Stranded", d.vmm(name, start=False).register, machine=name)
        equal(d.check()["ready"], False, "ready")
        for name in ("a", "b", "never-seen"):
            d.host("Discard", {"machine": name})
        equal(d.machines(), {}, "machines, when all are given up")
        new = [d.vmm("a"), d.vmm("b")]
        d.update(new)
        equal(d.last()["result"], "done", "the next update")


@test
def file_size_limit():
    """no file can be written at all: the update is refused or goes on, no machine is lost"""

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    # The log is a file too.
    with Daemon() as d:
        log = d.log_path
        d.stop()
        d.log_path = d.folder / "none"
        d.log_path.touch()
        d.before = limit
        try:
            d.start()
        except AssertionError as e:
            # It may refuse to start if it says why.
            raise tap.Skip(f"luvfiod does not start without any file: {e}") from None
        v = d.vmm("vm1")
        try:
            d.jump()
        except Exception:  # pylint: disable=broad-except
            pass
        if v.alive():
            d.wait_state("idle")
            d.wait_machines("running")
        else:
            d.resume([v])
            d.wait_state("idle")
        d.log_path = log


@test
def stop_and_start():
    """luvfiod is stopped and started while machines run: they are taken up again by their VMMs"""
    with Daemon() as d:
        v = d.vmm("vm1")
        secret = v.get("secret")
        true(secret, "no secret")
        equal(d.stop(), 0, "exit code on SIGTERM")
        d.start()
        v.hang_up()
        v.connect()
        v.register()
        v.preserve_all()
        v.start_watch()
        d.update([v])


def killed_daemon(state):
    """What keeps an update in STATE: a plugin that hangs, the operator, or a VMM that does not answer."""
    event = {s: e for e, s in EVENTS.items()}.get(state)
    with tempfile.TemporaryDirectory(prefix="luvfiod-null-") as folder:
        plugin = pathlib.Path(folder) / "null.json"
        plugin.write_text('{"faults": [{"op": "preflight", "fault": "hang"}]}' if state == "checking" else "{}")
        with Daemon(environment={"LUVFIO_NULL_CONFIG": plugin}) as d:
            v = d.vmm("vm1", devices=["0000:00:04.0"])
            if event:
                v.set_policy(**{event: vmm.SILENT})
            with d.begin(**({"method": "Stage"} if state == "staged" else {"deadlineUSec": 20000000})):
                d.wait_state(state)
                if event:
                    v.wait_event(event)
                equal(d.state(), state, "state")
                d.process.kill()
                d.process.wait()
                v.wait_event("disconnected")
            plugin.write_text("{}")
            d.start()
            equal(d.state(), "idle", "state after the crash")
            v.hang_up()
            v.connect()
            v.register()
            v.start_watch()
            d.wait_machines("running")
            v.preserve_all()
            if event:
                v.set_policy(**{event: vmm.ANSWER})
            d.update([v])


# In a simulation draining takes no time: there is nothing that could be stopped.
for _state in ("checking", "staging", "staged", "quiescing", "handing_over"):
    tap.add(
        f"luvfiod is killed while {_state}: VMMs hear it, and all is well with the next one",
        lambda s=_state: killed_daemon(s),
    )


if __name__ == "__main__":
    tap.main()
