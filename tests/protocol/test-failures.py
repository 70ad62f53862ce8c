#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every LUO operation fails once, in turn: before the jump all machines run on, after it one is stranded."""

import pathlib
import tempfile

import tap
import vmm
from luvfiod import HOST, Daemon
from tap import equal, raises, true
from varlink import Error

# Two machines of three files each that LUO gets, and the host's session; more than that many calls there are not.
BEFORE = {"probe": 8, "create": 8, "preserve": 16, "freeze": 16}
AFTER = {"retrieve_session": 8, "retrieve": 16, "finish": 8}


def machines(d):
    return [d.vmm("a", devices=["0000:00:04.0"]), d.vmm("b", devices=["0000:00:05.0"])]


def before_jump(operation):
    """Fails the first, second, ... call until an update needs no more of them."""
    failed = 0
    for n in range(1, BEFORE[operation] + 2):
        with Daemon(f"--simulate-fail={operation}:{n}") as d:
            vmms = machines(d)
            try:
                d.jump(deadlineUSec=5000000)
            except Error as e:
                if operation == "probe":
                    equal(e.error, HOST + "Blocked", f"{operation} {n}: error")
                else:
                    equal(e.error, HOST + "UpdateFailed", f"{operation} {n}: error")
                    true(len(e.parameters["reason"]) > 10, f"{operation} {n}: reason {e.parameters['reason']!r}")
                failed += 1
                d.wait_state("idle")
                d.wait_machines("running")
                for v in vmms:
                    true(v.alive(), f"{operation} {n}: {v.name} is dead")
                    true(v.get("running"), f"{operation} {n}: vCPUs of {v.name} stand")
                    equal(v.get("errors"), [], f"{operation} {n}: errors of {v.name}")
                for m in d.machines().values():
                    equal(m.get("session"), None, f"{operation} {n}: session of {m['name']} after the abort")
                # The failure was the only one.
                d.update(vmms)
                equal(d.last()["result"], "done", f"{operation} {n}: the next update")
                continue
            # Not that many calls in one update.
            d.resume(vmms)
            d.wait_state("idle")
            break
    else:
        raise AssertionError(f"{operation}: more calls than there can be in one update")
    true(failed >= (2 if operation == "create" else 1), f"only {failed} calls of {operation} failed")


def after_jump(operation):
    """As above; at most one machine is stranded, and it can be given up or comes back."""
    failed = 0
    for n in range(1, AFTER[operation] + 2):
        with tempfile.TemporaryDirectory() as folder, Daemon(
            f"--simulate-fail={operation}:{n}",
            "--resume-deadline=3",
            environment={"LUVFIO_SIMULATED_LOG": f"{folder}/log"},
        ) as d:
            sim_log = pathlib.Path(folder) / "log"
            vmms = machines(d)
            d.jump()
            for v in vmms:
                v.wait_dead()
            d.wait_for(lambda: d.state() in ("resuming", "finishing", "idle"), "the daemon is through restoring")
            new = {}
            troubled = set()
            for v in vmms:
                new[v.name] = d.vmm(v.name, start=False)
                try:
                    new[v.name].resume()
                except (Error, AssertionError) as e:
                    troubled.add(v.name)
                    text = str(e)
                    true(
                        any(w in text for w in ("Stranded", "RetrieveFailed", "stranded")),
                        f"{operation} {n}: {v.name} failed with {text}",
                    )
            true(len(troubled) <= 1, f"{operation} {n}: more than one machine failed: {troubled}")
            d.wait_state("idle", timeout=15)
            stranded = {m["name"]: m for m in d.machines().values() if m["state"] == "stranded"}
            true(set(stranded) <= troubled or len(stranded) <= 1, f"{operation} {n}: stranded {list(stranded)}")
            for m in stranded.values():
                true(m.get("reason"), f"{operation} {n}: no reason why {m['name']} is stranded")
            report = d.last()
            equal(report["result"], "stranded" if stranded else "done", f"{operation} {n}: result")
            for name, v in new.items():
                if name not in stranded:
                    equal(d.machines()[name]["state"], "running", f"{operation} {n}: {name}")
            if stranded:
                failed += 1
                for name in stranded:
                    d.host("Discard", {"machine": name})
                    true(name not in d.machines(), f"{operation} {n}: {name} is there after Discard")
            elif f"fault {operation}" in sim_log.read_text():
                # Tried again, or there is a copy of the host's record: nobody is stranded for it.
                failed += 1
            elif not troubled:
                # Not that many calls in one update.
                break
            # The others can be updated again.
            d.update([v for name, v in new.items() if name not in stranded])
            equal(d.last()["result"], "done", f"{operation} {n}: the next update")
    true(failed, f"no call of {operation} failed")


for _operation in BEFORE:
    tap.add(f"{_operation} fails before the jump, each call in turn", lambda o=_operation: before_jump(o))
for _operation in AFTER:
    tap.add(f"{_operation} fails after the jump, each call in turn", lambda o=_operation: after_jump(o))


@tap.test
def with_errno():
    """the errno is in the reason"""
    for number, word in (
        ("ENOMEM", "memory"),
        ("EBUSY", "busy"),
        ("EINVAL", "not there any more"),
        ("ENOEXEC", "kexec_load(2)"),
    ):
        with Daemon(f"--simulate-fail=freeze:1:{number}") as d:
            v = d.vmm("vm1")
            e = raises(HOST + "UpdateFailed", lambda: d.jump(), state="handing_over")
            tap.contains(e.parameters["reason"].lower(), word, "reason")
            d.wait_machines("running")
            v.set_policy(quiesce=vmm.ANSWER)
            d.update([v])


if __name__ == "__main__":
    tap.main()
