#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""An update that is given up, in every state before the jump: machines run on, and the next update works."""

import contextlib

import tap
import varlink
import vmm
from luvfiod import HOST, Daemon
from tap import equal, raises, test, true


def given_up(d, machines, asked=None):
    """All is as before an update; those who were asked anything heard of the end, nobody else."""
    d.wait_state("idle")
    d.wait_machines("running")
    for v in machines:
        equal(v.get("errors"), [], f"{v.name}: errors")
        names = v.event_names()
        if asked is None or v in asked:
            equal(names.count("abort"), 1, f"{v.name}: abort events in {names}")
        else:
            equal(names.count("abort"), 0, f"{v.name}: abort events in {names}")
        true(v.alive(), f"{v.name} is dead")
        true(v.get("running"), f"{v.name}: vCPUs stand")
    for m in d.machines().values():
        equal(m.get("session"), None, f"{m['name']}: session after the abort")
        equal(m["generation"], 0, f"{m['name']}: generation")


def and_again(d, machines):
    for v in machines:
        v.set_policy(prepare=vmm.ANSWER, quiesce=vmm.ANSWER, commit=vmm.ANSWER)
    d.update(machines)
    equal(d.last()["result"], "done", "result of the next update")


def abort_at(event, machine_state, update_state):
    """One of two VMMs does not answer EVENT; then the operator gives up."""
    with Daemon() as d:
        machines = [d.vmm("quick"), d.vmm("slow")]
        with d.no_leak():
            machines[1].set_policy(**{event: vmm.SILENT})
            with d.begin(deadlineUSec=20000000) as update:
                machines[1].wait_event(event)
                d.wait_for(lambda: d.machines()["slow"]["state"] == machine_state, f"slow is {machine_state}")
                equal(d.state(), update_state, "state")
                d.host("Abort")
                # Abort returns when machines run; Update's caller hears why.
                raises(HOST + "UpdateFailed", lambda: d.drain(update), state=update_state)
            given_up(d, machines)
            equal(d.last()["result"], "aborted", "result")
            true(d.last().get("reason"), "the report has no reason")
        and_again(d, machines)


def blockers(*messages):
    return {"machine": "slow", "blockers": [{"message": m, "remedy": "mend it"} for m in messages]}


@test
def vmm_blocks():
    """what a VMM says against an update: check finds it, no update begins, and when it is taken back one does"""
    with Daemon() as d:
        machines = [d.vmm("quick"), d.vmm("slow")]
        with d.no_leak():
            d.machine("SetBlockers", blockers("its memory is in\nfiles", "it is too old"))
            found = [f for f in d.findings() if f["severity"] == "blocker"]
            equal([f["id"] for f in found], ["machine-blocked"] * 2, "what check finds")
            true(all(f["machine"] == "slow" and f["remedy"] == "mend it" for f in found), f"{found}")
            true("too old" in found[1]["message"] and found[0]["message"].isprintable(), f"{found}")
            with d.begin() as update:
                raises(HOST + "Blocked", lambda: d.drain(update))
            given_up(d, machines, asked=[])
            d.machine("SetBlockers", blockers())
        and_again(d, machines)


def vmm_blocks_at(event, update_state):
    with Daemon() as d:
        machines = [d.vmm("quick"), d.vmm("slow")]
        with d.no_leak():
            machines[1].set_policy(**{event: vmm.SILENT})
            with d.begin(deadlineUSec=20000000) as update:
                machines[1].wait_event(event)
                d.machine("SetBlockers", blockers("it did not stop"))
                raises(HOST + "UpdateFailed", lambda: d.drain(update), state=update_state, machine="slow",
                       reason="machine slow cannot take part: it did not stop")
            given_up(d, machines)
            d.machine("SetBlockers", blockers())
        and_again(d, machines)


for _event, _update in (("prepare", "staging"), ("quiesce", "quiescing")):
    tap.add(f"a VMM blocks the update when it is asked to {_event}", lambda a=_event, b=_update: vmm_blocks_at(a, b))


for _event, _machine, _update in (
    ("prepare", "preparing", "staging"),
    ("quiesce", "quiescing", "quiescing"),
    ("commit", "quiesced", "handing_over"),
):
    tap.add(
        f"Abort while {_update}, a VMM has not answered {_event}",
        lambda e=_event, m=_machine, u=_update: abort_at(e, m, u),
    )


@test
def staged():
    """Abort while staged"""
    with Daemon() as d:
        machines = [d.vmm("a", devices=["0000:00:04.0"]), d.vmm("b")]
        for _ in range(3):
            with d.no_leak():
                d.stage()
                equal(d.state(), "staged", "state")
                d.host("Abort")
                d.wait_state("idle")
                d.wait_machines("running")
        for v in machines:
            equal(v.event_names().count("abort"), 3, f"{v.name}: abort events")
        and_again(d, machines)


def silent_until_deadline(event, update_state):
    """Nobody gives up, but one VMM does not answer: the deadline does, and the report names the machine."""
    with Daemon() as d:
        machines = [d.vmm("quick"), d.vmm("mute")]
        with d.no_leak():
            machines[1].set_policy(**{event: vmm.SILENT})
            with d.begin(deadlineUSec=500000) as update:
                e = raises(
                    HOST + "UpdateFailed", lambda: d.drain(update), state=update_state, machine="mute"
                )
            tap.contains(e.parameters["reason"], "mute", "the reason names the machine")
            given_up(d, machines)
            tap.contains(d.last()["reason"], "mute", "reason in the report")
        and_again(d, machines)


for _event, _update in (("quiesce", "quiescing"), ("commit", "handing_over")):
    tap.add(
        f"a VMM says nothing to {_event} until the deadline",
        lambda e=_event, u=_update: silent_until_deadline(e, u),
    )


@test
def caller_goes_away():
    """the caller of Update disconnects: the update goes on, Abort still works"""
    with Daemon() as d:
        v = d.vmm()
        v.set_policy(quiesce=vmm.SILENT)
        update = d.begin(deadlineUSec=20000000)
        v.wait_event("quiesce")
        update.close()
        equal(d.state(), "quiescing", "state after the caller is gone")
        d.host("Abort")
        given_up(d, [v])
        and_again(d, [v])


@test
def quick_aborts():
    """Abort at once after Update, again and again"""
    with Daemon() as d:
        machines = [d.vmm(f"vm{i}") for i in range(4)]
        for v in machines:
            v.set_policy(commit=vmm.SILENT)
        with d.no_leak():
            for i in range(30):
                with d.begin(deadlineUSec=20000000) as update:
                    # As many replies as the round has: the abort comes at ever later points.
                    with contextlib.suppress(TimeoutError):
                        for _ in range(i % 8):
                            update.receive(timeout=0.3)
                    with contextlib.suppress(varlink.Error):
                        d.host("Abort")
                    with contextlib.suppress(varlink.Error):
                        d.drain(update)
                d.wait_state("idle")
                d.wait_machines("running")
        for v in machines:
            # An answer that crossed with the abort is refused.
            errors = [e for e in v.get("errors") if "WrongState" not in e]
            equal(errors, [], f"{v.name}: errors")
        and_again(d, machines)


@test
def abort_answer_missing():
    """a VMM that does not say that it runs again does not hold the others up"""
    with Daemon() as d:
        good, mute = d.vmm("good"), d.vmm("mute")
        mute.set_policy(abort=vmm.SILENT, quiesce=vmm.SILENT)
        raises(HOST + "UpdateFailed", lambda: d.jump(deadlineUSec=300000), machine="mute")
        good.wait_event("abort")
        mute.wait_event("abort")
        d.wait_state("idle")
        d.wait_for(lambda: d.machines()["good"]["state"] == "running", "good runs")
        # It says so late; then all is well.
        if d.machines()["mute"]["state"] == "aborting":
            mute.resumed()
        d.wait_machines("running")
        mute.set_policy(abort=vmm.ANSWER)
        and_again(d, [good, mute])


if __name__ == "__main__":
    tap.main()
