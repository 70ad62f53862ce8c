#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Machines that do not come back after the jump: stranded, reported, nothing of them lost, the others go on."""

import signal

import tap
import vmm
from luvfiod import HOST, MACHINE, Daemon
from tap import equal, raises, test, true

DEADLINE = "--resume-deadline=1"


def jump_with(d, names=("good", "late"), **options):
    old = {n: d.vmm(n, devices=[f"0000:00:{i + 4:02x}.0"], **options) for i, n in enumerate(names)}
    secrets = {n: v.get("secret") for n, v in old.items()}
    d.jump()
    for v in old.values():
        equal(v.wait_dead(), signal.SIGKILL, "what ended the VMM")
    return secrets


def back(d, name):
    v = d.vmm(name, start=False)
    v.resume()
    return v


@test
def never_comes_back():
    """one never comes back: stranded and reported; Discard frees it"""
    with Daemon(DEADLINE) as d:
        jump_with(d)
        good = back(d, "good")
        d.wait_state("idle")
        m = d.machines()
        equal(m["good"]["state"], "running", "good")
        equal(m["late"]["state"], "stranded", "late")
        true(m["late"].get("reason"), "no reason why it is stranded")
        equal(d.host("Describe")["stranded"], 1, "number of the stranded")
        report = d.last()
        equal(report["result"], "stranded", "result")
        reasons = {x["machine"]: x.get("strandedReason") for x in report["machines"]}
        true(reasons["late"] and not reasons["good"], f"reasons in the report: {reasons}")
        before = len(d.settled_fds())
        d.host("Discard", {"machine": "late"})
        true("late" not in d.machines(), "late is there after Discard")
        true(len(d.settled_fds()) < before, "Discard freed no fd")
        raises(HOST + "NoSuchMachine", lambda: d.host("Discard", {"machine": "late"}))
        # The name is free, and the next update works.
        late = d.vmm("late", devices=["0000:00:05.0"])
        d.update([good, late])


@test
def discard_fails():
    """UpdateFailed: Discard of a machine whose session cannot be finished; it stays stranded, and can be tried again"""
    with Daemon("--simulate-fail=finish:1", DEADLINE) as d:
        jump_with(d, ("late",))
        d.wait_state("idle")
        e = raises(HOST + "UpdateFailed", lambda: d.host("Discard", {"machine": "late"}), state="idle")
        tap.contains(e.parameters["reason"], "luvfio-late-", "reason")
        equal(d.machines()["late"]["state"], "stranded", "late")
        d.host("Discard", {"machine": "late"})
        equal(d.machines(), {}, "machines")
        d.update([d.vmm("late", devices=["0000:00:04.0"])])


@test
def comes_back_late():
    """one comes back after the deadline: it is taken up, with all its RAM"""
    with Daemon(DEADLINE) as d:
        secrets = jump_with(d, n_ram=3)
        good = back(d, "good")
        d.wait_state("idle")
        equal(d.machines()["late"]["state"], "stranded", "late")
        late = back(d, "late")
        equal(late.get("secret"), secrets["late"], "secret")
        late.wait_event("finished")
        d.wait_machines("running")
        equal(d.host("Describe")["stranded"], 0, "number of the stranded")
        d.update([good, late])
        equal(d.last()["result"], "done", "the next update")


@test
def comes_back_late_and_dies():
    """one comes back late and dies: stranded again; the next one finds everything, or it can be discarded"""
    with Daemon(DEADLINE) as d:
        jump_with(d, ("again", "never"))
        d.wait_state("idle")
        for name in ("again", "never"):
            v = d.vmm(name, start=False)
            v.register()
            v.start_watch()
            v.register()
            v.take_back()
            equal(d.machines()[name]["state"], "resuming", name)
            v.kill()
            d.wait_for(lambda n=name: d.machines()[n]["state"] == "stranded", f"{name} is stranded")
            tap.contains(d.machines()[name]["reason"], "came back late", "reason")
        v = back(d, "again")
        v.wait_event("finished")
        d.host("Discard", {"machine": "never"})
        equal(list(d.machines()), ["again"], "machines")
        d.update([v])


@test
def nobody_comes_back():
    """none comes back; then all do"""
    with Daemon(DEADLINE) as d:
        jump_with(d, ("a", "b", "c"))
        d.wait_state("idle")
        equal({m["state"] for m in d.machines().values()}, {"stranded"}, "states")
        equal(d.last()["result"], "stranded", "result")
        vmms = [back(d, n) for n in ("c", "a", "b")]
        d.wait_machines("running")
        d.update(vmms)


@test
def update_with_stranded():
    """a stranded machine does not let the next update run over it"""
    with Daemon(DEADLINE) as d:
        jump_with(d)
        good = back(d, "good")
        d.wait_state("idle")
        check = d.check()
        equal(check["ready"], False, "ready with a stranded machine")
        true(any(f.get("machine") == "late" for f in check["findings"]), "no finding names the stranded machine")
        raises(HOST + "Blocked", d.jump)
        d.wait_state("idle")
        late = back(d, "late")
        late.wait_event("finished")
        d.update([good, late])


@test
def dies_between_retrieve_and_resumed():
    """a VMM dies between Retrieve and Resumed: the next one finds everything"""
    with Daemon("--resume-deadline=20") as d:
        jump_with(d, ("vm1",), n_ram=2)
        for _ in range(3):
            v = d.vmm("vm1", start=False)
            v.connect()
            v.register()
            v.start_watch()
            if v.get("state") == "restoring":
                v.wait_event("resume")
            v.register()
            v.take_back()
            v.kill()
        v = back(d, "vm1")
        v.wait_event("finished")
        d.wait_state("idle")
        equal(d.last()["result"], "done", "result")
        d.update([v])


@test
def dies_before_retrieve():
    """a VMM dies right after Register, after Watch, hangs up after Retrieve: the next one finds everything"""
    with Daemon("--resume-deadline=20") as d:
        jump_with(d, ("vm1",))
        v = d.vmm("vm1", start=False)
        v.register()
        v.kill()
        v = d.vmm("vm1", start=False)
        v.register()
        v.start_watch()
        v.kill()
        v = d.vmm("vm1", start=False)
        v.register()
        v.start_watch()
        d.wait_for(lambda: d.machines()["vm1"]["state"] == "resuming", "resuming")
        v.register()
        v.take_back()
        v.hang_up()
        v.resume()
        d.wait_state("idle")
        d.update([v])


@test
def stranded_error():
    """Stranded: with the reason, where a session could not be had"""
    # The first two are the host's: at the start, and after the jump. It is tried again for a while.
    with Daemon("--simulate-fail=retrieve_session:3,retrieve_session:5+", DEADLINE) as d:
        jump_with(d, ("a", "b"))
        d.wait_state("idle")
        stranded = [n for n, m in d.machines().items() if m["state"] == "stranded"]
        true(stranded, "nobody is stranded")
        for name, m in d.machines().items():
            # Whose it is stands in its session.
            equal("uid" in m, "cannot be retrieved" not in m["reason"], f"an owner of {name} is known")
        found = 0
        for name in stranded:
            v = d.vmm(name, start=False)
            v.connect()
            reply = None
            try:
                reply = v.register()
            except vmm.varlink.Error as e:
                equal(e.error, MACHINE + "Stranded", "error")
                equal(e.parameters["machine"], name, "machine")
                true(e.parameters["reason"], "no reason")
                found += 1
            if reply and reply["state"] == "stranded":
                found += 1
        true(found == 1, f"{found} of the stranded ones are told so, 1 expected")


@test
def retrieve_failed():
    """RetrieveFailed: with name and reason, sticky as LUO's"""
    # The first call of retrieve after the restoring of records that fails is found by trying.
    for n in range(1, 8):
        with Daemon(f"--simulate-fail=retrieve:{n}", "--resume-deadline=3") as d:
            jump_with(d, ("vm1",), n_ram=2)
            d.wait_for(lambda: d.state() in ("resuming", "idle"), "through restoring")
            v = d.vmm("vm1", start=False)
            v.connect()
            try:
                v.register()
                v.start_watch()
                if v.get("state") == "restoring":
                    v.wait_event("resume", timeout=3)
                v.register()
            except (vmm.varlink.Error, TimeoutError):
                continue
            failed = []
            for f in v.get("registered")["fileDescriptors"]:
                if f["outcome"] == "rebuilt":
                    continue
                reply = varlink_retrieve(d, f["name"])
                if reply.error:
                    equal(reply.error, MACHINE + "RetrieveFailed", "error")
                    equal(reply["name"], f["name"], "name")
                    true(reply["reason"], "no reason")
                    failed.append(f["name"])
                reply.close()
            if not failed:
                continue
            equal(len(failed), 1, "fds that failed")
            equal(varlink_retrieve(d, failed[0]).error, MACHINE + "RetrieveFailed", "a second try: it is sticky")
            d.wait_machines("stranded")
            reason = d.machines()["vm1"]["reason"]
            true(f'its file "{failed[0]}": the kernel does not give it back' in reason, f"the machine's reason: {reason}")
            return
    raise AssertionError("no Retrieve failed")


@test
def given_up_while_waited_for():
    """a machine is given up while its VMM waits for a file: the VMM is told, nothing is touched twice"""
    # The first and the second are the records; the kernel is not ready to give the third for some seconds.
    busy = ",".join(f"retrieve:{n}:EAGAIN" for n in range(3, 400))
    with Daemon(DEADLINE, f"--simulate-fail={busy}") as d:
        old = d.vmm()
        d.jump()
        old.wait_dead()
        with d.connect_machine() as c:
            c.call(MACHINE + "Register", {"name": "vm1"})
            c.send(MACHINE + "Retrieve", {"machine": "vm1", "name": "ram0"})
            d.wait_machines("stranded")
            d.host("Discard", {"machine": "vm1"})
            raises(MACHINE + "RetrieveFailed", c.receive, name="ram0")
        equal(d.machines(), {}, "machines after Discard")


def varlink_retrieve(d, name):
    with d.connect_machine() as c:
        return c.call(MACHINE + "Retrieve", {"machine": "vm1", "name": name}, check=False)


if __name__ == "__main__":
    tap.main()
