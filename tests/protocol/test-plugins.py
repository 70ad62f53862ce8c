#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A device's plugin refuses, crashes, hangs, lies or talks rubbish: its device is named, luvfiod and the others go on.

With $LUVFIOD_TEST_HANG only those that hang where luvfiod waits for long are run: they take their time, and no work.
"""

import contextlib
import json
import os
import pathlib
import signal
import tempfile

import tap
from luvfiod import HOST, Daemon
from tap import contains, equal, raises, test, true

BAD = "0000:00:05.0"
HANG = os.environ.get("LUVFIOD_TEST_HANG") == "1"
DEADLINE = 2000000  # what a plugin that hangs may cost


class Plugins:
    """The null plugin's configuration, which it reads anew for each operation."""

    def __init__(self, d, path):
        self.d = d
        self.path = path

    def set(self, **configuration):
        self.path.write_text(json.dumps(configuration))

    def fault(self, op, fault, device=BAD, **more):
        self.set(faults=[{"op": op, "fault": fault, "device": device, **more}])


@contextlib.contextmanager
def daemon(*arguments):
    with tempfile.TemporaryDirectory(prefix="luvfiod-null-") as folder:
        path = pathlib.Path(folder) / "null.json"
        path.write_text("{}")
        with Daemon(*arguments, environment={"LUVFIO_NULL_CONFIG": path}) as d:
            yield d, Plugins(d, path)


def two(d):
    return [d.vmm("good", devices=["0000:00:04.0"]), d.vmm("bad", devices=[BAD])]


def named(texts):
    """One of the texts names the device."""
    true(any(BAD in t for t in texts), f"no text names {BAD}: {texts}")


@test
def preflight():
    """preflight: each fault is a blocker that names device and machine"""
    with daemon() as (d, plugins):
        vmms = two(d)
        for fault in ("hang",) if HANG else ("refuse", "crash", "garble"):
            plugins.fault("preflight", fault)
            with d.no_leak():
                r = d.check()
            if fault == "garble":
                # Text of any kind is made printable.
                true(all(f["message"].isprintable() for f in r["findings"]), f"{fault}: {r['findings']}")
            blockers = [f for f in r["findings"] if f["severity"] == "blocker"]
            true(blockers and not r["ready"], f"{fault}: no blocker in {r['findings']}")
            equal({f.get("device") for f in blockers}, {BAD}, f"{fault}: devices of the blockers")
            equal({f.get("machine") for f in blockers}, {"bad"}, f"{fault}: machines of the blockers")
            if fault != "hang":
                raises(HOST + "Blocked", d.jump)
                d.wait_state("idle")
        plugins.set()
        true(d.check()["ready"], "ready without a fault")
        for v in vmms:
            equal(v.event_names(), ["attached"], f"{v.name}: events")
        d.update(vmms)


@test
def preflight_reason():
    """preflight: the plugin's own words are shown, warnings do not block"""
    with daemon() as (d, plugins):
        d.vmm("vm1", devices=[BAD])
        plugins.fault("preflight", "refuse", reason="the flux capacitor is empty")
        contains(" ".join(f["message"] for f in d.findings()), "the flux capacitor is empty", "findings")


@test
def bad_configuration():
    """a configuration that is not one fails its plugin with the reason"""
    with daemon() as (d, plugins):
        vmms = two(d)
        for text, reason in (
            ("{", "is not JSON"), ("[]", "no JSON object"), ('{"devices": "x"}', '"devices"'), ('{"score": -5}', '"score"'),
            ('{"score": "1"}', '"score"'), ('{"score": 4294967297}', '"score"'), ('{"promise": 7}', '"promise"'),
            ('{"promise": "all"}', '"promise"'), ('{"faults": {}}', '"faults"'), ('{"faults": [null]}', '"fault"'),
            ('{"faults": [{"op": "quiesce", "fault": "hang"}]}', '"op"'), ('{"faults": [{"fault": "explode"}]}', '"fault"'),
        ):  # fmt: skip
            plugins.path.write_text(text)
            blockers = [f for f in d.findings() if f["severity"] == "blocker"]
            named([f["message"] for f in blockers])
            true(all(reason in f["message"] for f in blockers), f"{text}: {blockers}")
        plugins.set()
        d.update(vmms)


@test
def no_plugin():
    """no plugin answers for a device: a blocker with its name"""
    with daemon() as (d, plugins):
        plugins.set(devices=["0000:00:04.0"])
        vmms = two(d)
        blockers = [f for f in d.findings() if f["severity"] == "blocker"]
        equal({f.get("device") for f in blockers}, {BAD}, "devices of the blockers")
        plugins.set()
        d.wait_for(lambda: d.check()["ready"], "ready")
        d.update(vmms)


def given_up(d, vmms, e, fault, op):
    named([e.parameters["reason"]])
    equal(e.parameters.get("machine"), "bad", f"{op} {fault}: machine")
    d.wait_state("idle")
    d.wait_machines("running")
    for v in vmms:
        true(v.alive() and v.get("running"), f"{op} {fault}: {v.name} does not run")
        equal(v.get("errors"), [], f"{op} {fault}: errors of {v.name}")
    for device in d.host("ListDevices")["devices"]:
        if device["address"] == BAD:
            true(device.get("reason"), f"{op} {fault}: ListDevices gives no reason")


def before_jump(op, faults):
    with daemon() as (d, plugins):
        vmms = two(d)
        for fault in faults:
            plugins.fault(op, fault)
            with d.no_leak():
                e = raises(HOST + "UpdateFailed", lambda: d.jump(deadlineUSec=DEADLINE), state="quiescing")
                given_up(d, vmms, e, fault, op)
            plugins.set()
        d.update(vmms)
        equal(d.last()["result"], "done", "the next update")


for _op, _faults in (("quiesced", ("refuse", "crash", "garble", "hang")), ("plan", ("refuse", "crash", "garble", "hang"))):
    tap.add(f"{_op}: each fault gives the update up and names the device", lambda o=_op, f=_faults: before_jump(o, f))


@test
def interrupts_on():
    """quiesced: a refusal names machine, device and interrupt type; either order of machines"""
    with daemon() as (d, plugins):
        vmms = two(d)
        for address, machine in ((BAD, "bad"), ("0000:00:04.0", "good")):
            for kind in ("INTx", "MSI", "MSI-X"):
                plugins.fault("quiesced", "refuse", device=address, reason=f"{kind} is on")
                e = raises(HOST + "UpdateFailed", lambda: d.jump(deadlineUSec=DEADLINE), machine=machine, state="quiescing")
                for word in (machine, address, kind):
                    contains(e.parameters["reason"], word, "reason")
                d.wait_state("idle")
                d.wait_machines("running")
        plugins.set()
        d.update(vmms)


def after_jump(op, fault):
    """Only the device's machine is stranded, nothing of it is lost; when the plugin is well again it can come back or go."""
    with daemon("--resume-deadline=2") as (d, plugins):
        vmms = two(d)
        plugins.fault(op, fault)
        d.jump(deadlineUSec=DEADLINE * 2)
        for v in vmms:
            equal(v.wait_dead(), signal.SIGKILL, "what ended the VMM")
        good = d.vmm("good", start=False)
        good.resume()
        d.wait_state("idle", timeout=60)
        m = d.machines()
        equal(m["good"]["state"], "running", f"{op} {fault}: good")
        equal(m["bad"]["state"], "stranded", f"{op} {fault}: bad")
        named([m["bad"].get("reason", "")])
        equal(d.last()["result"], "stranded", "result")
        named([x.get("strandedReason", "") for x in d.last()["machines"]])
        plugins.set()
        d.host("Discard", {"machine": "bad"})
        equal(list(d.machines()), ["good"], "machines after Discard")
        d.update([good])


# Both wait for the same deadline: one that hangs is enough.
for _op, _faults in (("rebind", ("refuse", "crash", "garble", "hang")), ("verify", ("refuse", "crash", "garble"))):
    for _fault in _faults:
        if HANG != (_fault == "hang"):
            continue
        tap.add(f"{_op}: {_fault} strands the device's machine only", lambda o=_op, f=_fault: after_jump(o, f))


@test
def lying_plan():
    """plan: a plan for another device is refused by rebind, and strands the machine"""
    after_jump("plan", "lie")


@test
def broken_promise():
    """match: a promise that this kernel cannot keep, or that is none, is a blocker that names it"""
    with daemon() as (d, plugins):
        v = d.vmm("bad", devices=[BAD])
        for fault, finding, promise in (("lie", "device-promise", '"latched"'), ("garble", "device-no-plugin", "77")):
            plugins.fault("match", fault)
            blockers = [f for f in d.findings() if f["severity"] == "blocker"]
            equal([(f["id"], f["machine"], f["device"]) for f in blockers], [(finding, "bad", BAD)], f"{fault}: blockers")
            for word in (BAD, "null", promise):
                contains(blockers[0]["message"], word, f"{fault}: message")
            raises(HOST + "Blocked", d.jump)
            d.wait_state("idle")
        plugins.set()
        promises = {f["id"] for f in d.findings()} & {"device-promise", "device-no-plugin"}
        equal(promises, set(), "findings when the plugin is well again")
        d.update([v])


@test
def broken_promise_late():
    """a device that is handed over after the checks: a promise that the kernel does not keep ends the update before the jump"""
    with daemon() as (d, plugins):
        plugins.set(promise="running")
        v = d.vmm("bad", devices=[BAD], late_devices=True)
        error = raises(HOST + "UpdateFailed", d.jump, state="quiescing")
        for word in (BAD, "bad", "reset", '"running"'):
            contains(error.parameters["reason"], word, "reason")
        d.wait_state("idle")
        d.wait_machines("running")
        plugins.set()
        d.update([v])


@test
def many_faults():
    """all devices' plugins crash at once"""
    with daemon() as (d, plugins):
        vmms = [d.vmm(f"vm{i}", devices=[f"0000:01:{i:02x}.{k}" for k in range(4)]) for i in range(4)]
        plugins.set(faults=[{"op": "quiesced", "fault": "crash"}])
        with d.no_leak():
            raises(HOST + "UpdateFailed", lambda: d.jump(deadlineUSec=DEADLINE), state="quiescing")
            d.wait_state("idle")
            d.wait_machines("running")
        plugins.set()
        d.update(vmms)


@test
def recover():
    """recover: Discard of a machine whose plugin cannot make the device safe frees it, and the log names device and reason"""
    with daemon("--resume-deadline=1") as (d, plugins):
        for fault, reason in (("refuse", "the fuse is blown"), ("crash", "SIGSEGV"), ("garble", "4711")):
            v = d.vmm("bad", devices=[BAD])
            d.jump()
            v.wait_dead()
            d.wait_state("idle")
            equal(d.machines()["bad"]["state"], "stranded", "state")
            plugins.fault("recover", fault, reason="the fuse is blown")
            before = len(d.log())
            d.host("Discard", {"machine": "bad"})
            equal(d.machines(), {}, "machines")
            said = [x for x in d.log()[before:].splitlines() if f"Device {BAD} of machine bad could not be made safe" in x]
            equal(len(said), 1, f"{fault}: lines of the log that name device and machine")
            contains(said[0], reason, f"{fault}: the log")
            plugins.set()
        d.update([d.vmm("bad", devices=[BAD])])


if __name__ == "__main__":
    if HANG:
        tap.choose("preflight: each", "rebind: hang")
    tap.main()
