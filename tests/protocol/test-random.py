#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Random sequences of everything that VMMs and operators can do, held against a model of what must be there.

$LUVFIOD_TEST_SEED repeats a run, $LUVFIOD_TEST_SECONDS makes it longer.
"""

import contextlib
import os
import random
import time

import tap
import varlink
import vmm
from luvfiod import HOST, MACHINE, Daemon
from tap import equal, true

SECONDS = float(os.environ.get("LUVFIOD_TEST_SECONDS", "12"))
SEED = int(os.environ.get("LUVFIOD_TEST_SEED", "4"))

LEGAL = {
    "idle", "checking", "staging", "staged", "draining", "quiescing", "handing_over", "restoring", "rebinding",
    "resuming", "finishing",
}  # fmt: skip
BAD_DAY = (vmm.SILENT, vmm.DIE, vmm.DIE_AFTER, vmm.HANG_UP, vmm.HANG_UP_AFTER)


class World:
    """The model: machines with names of fds, generations and secrets, and the VMMs that are their processes."""

    def __init__(self, d, rng):
        self.d = d
        self.rng = rng
        self.vmms = {}
        self.model = {}
        self.serial = 0
        self.trail = []

    def say(self, what):
        self.trail.append(what)

    # Helpers.

    def pick(self):
        return self.rng.choice(sorted(self.model)) if self.model else None

    def attach(self, name):
        """Its VMM comes again, over new connections, and finds the machine as it was."""
        v = self.vmms[name]
        v.hang_up()
        reply = v.register()
        equal(reply["secret"], self.model[name]["secret"], f"{name}: secret")
        # Where an abort is not answered yet, it is told again.
        v.start_watch()

    def bury(self, name):
        """With its VMM's process the machine's memory is gone, and so is the machine."""
        self.d.wait_for(lambda: name not in self.d.machines(), f"{name} is forgotten")
        v = self.vmms.pop(name)
        v.close()
        self.d.vmms.remove(v)
        del self.model[name]

    def settle(self):
        """Idle, with every machine running whose VMM lives."""
        if self.d.state() == "staged":
            with contextlib.suppress(varlink.Error):
                self.d.host("Abort")
        self.d.wait_state("idle")
        for name in list(self.model):
            if not self.vmms[name].alive():
                self.bury(name)
                continue
            m = self.d.machines()[name]
            if m["state"] != "running" or not m["attached"]:
                self.d.wait_for(
                    lambda n=name: self.d.machines()[n]["state"] in ("running", "aborting"), f"{name} settles"
                )
                if not self.d.machines()[name]["attached"]:
                    self.attach(name)
            self.vmms[name].set_policy(prepare=vmm.ANSWER, quiesce=vmm.ANSWER, commit=vmm.ANSWER)
        self.d.wait_machines("running")

    def check(self):
        """The daemon's view is the model's."""
        seen = self.d.machines()
        equal(sorted(seen), sorted(self.model), "machines")
        for name, m in self.model.items():
            equal(seen[name]["generation"], m["generation"], f"{name}: generation")
            equal(seen[name]["fileDescriptors"], len(m["fds"]), f"{name}: fds, expected {sorted(m['fds'])}")
            equal(seen[name]["state"], "running", f"{name}: state")
            equal(seen[name].get("session"), None, f"{name}: session while idle")

    # Operations.

    def op_add(self):
        if len(self.model) >= 6:
            return
        self.serial += 1
        name = f"vm{self.serial}"
        devices = [f"0000:01:{self.serial % 32:02x}.{self.serial // 32 % 8}"] if self.rng.random() < 0.5 else []
        self.say(f"add {name} {devices}")
        v = self.vmms[name] = self.d.vmm(name, n_ram=self.rng.randrange(1, 4), devices=devices)
        self.model[name] = {"generation": 0, "secret": v.get("secret"), "fds": set(v.get("fds"))}

    def op_withdraw(self):
        if (name := self.pick()) is None or self.rng.random() < 0.5:
            return
        self.say(f"withdraw {name}")
        self.vmms[name].call("Withdraw", {"machine": name})
        v = self.vmms.pop(name)
        v.close()
        self.d.vmms.remove(v)
        del self.model[name]

    def op_preserve(self):
        if (name := self.pick()) is None:
            return
        fd_name = f"extra{self.rng.randrange(3)}"
        self.say(f"preserve {name} {fd_name}")
        fd = vmm.memfd(f"{name}-{fd_name}", 4096)
        self.d.machine("Preserve", {"machine": name, "name": fd_name, "kind": "memfd", "fileDescriptor": 0}, [fd])
        os.close(fd)
        self.model[name]["fds"].add(fd_name)

    def op_refused(self):
        """Calls that must be refused, and change nothing."""
        if (name := self.pick()) is None:
            return
        self.say(f"refused {name}")
        r, w = os.pipe()
        for method, parameters, fds in (
            ("Preserve", {"machine": name, "name": "pipe", "kind": "memfd", "fileDescriptor": 0}, [r]),
            ("Preserve", {"machine": name, "name": "none", "kind": "memfd", "fileDescriptor": 0}, []),
            ("Quiesced", {"machine": name}, []),
            ("Committed", {"machine": name}, []),
            ("Retrieve", {"machine": name, "name": "ram0"}, []),
            ("Resumed", {"machine": name}, []),
            ("Withdraw", {"machine": "nobody"}, []),
        ):
            try:
                self.d.machine(method, parameters, fds)
            except varlink.Error:
                continue
            raise AssertionError(f"{method} was not refused")
        os.close(r)
        os.close(w)

    def op_lose(self):
        """A VMM dies, or hangs up and comes again."""
        if (name := self.pick()) is None:
            return
        if self.rng.random() < 0.3:
            self.say(f"kill {name}")
            self.vmms[name].kill()
            self.bury(name)
        else:
            self.say(f"hang up {name}")
            self.attach(name)

    def _bad_days(self):
        for name, v in self.vmms.items():
            if self.rng.random() < 0.4:
                event = self.rng.choice(["prepare", "quiesce", "commit"])
                how = self.rng.choice(BAD_DAY)
                # After Committed there is nothing that holds it up any more; in prepare vCPUs run, and it has time.
                if event == "commit" and how in (vmm.DIE_AFTER, vmm.HANG_UP_AFTER):
                    how = vmm.SILENT
                if event == "prepare" and how in (vmm.SILENT, vmm.HANG_UP):
                    how = vmm.DIE
                self.say(f"{name} will {how} at {event}")
                v.set_policy(**{event: how})
                return True
        return False

    def op_failing_update(self):
        if not self.model or not self._bad_days():
            return
        self.say("an update that fails")
        try:
            replies = self.d.jump(deadlineUSec=300000)
        except varlink.Error as e:
            true(e.error in (HOST + "UpdateFailed", HOST + "Blocked"), f"{e}")
        else:
            raise AssertionError(f"the update went on: {[r.parameters for r in replies[-2:]]}")

    def op_stage_abort(self):
        self.say("stage and abort")
        self.d.stage()
        equal(self.d.state(), "staged", "state")
        if self.model and self.rng.random() < 0.3:
            name = self.pick()
            self.say(f"... {name} dies while staged")
            self.vmms[name].kill()
        with contextlib.suppress(varlink.Error):
            self.d.host("Abort")

    def op_abort_somewhere(self):
        self.say("abort somewhere")
        for v in self.vmms.values():
            v.set_policy(commit=vmm.SILENT)
        with self.d.begin(deadlineUSec=5000000) as c:
            n = self.rng.randrange(8) if self.model else 0
            with contextlib.suppress(varlink.Error, TimeoutError):
                for _ in range(n):
                    c.receive(timeout=0.2)
            if not self.model:
                with contextlib.suppress(varlink.Error):
                    self.d.drain(c)
                return
            with contextlib.suppress(varlink.Error):
                self.d.host("Abort")
            with contextlib.suppress(varlink.Error):
                self.d.drain(c)

    def op_dry_run(self):
        self.say("dry run")
        self.d.jump(dryRun=True)

    def op_update(self):
        self.say("update")
        self.d.jump()
        for name, old in list(self.vmms.items()):
            old.wait_dead()
            old.close()
            self.d.vmms.remove(old)
            v = self.vmms[name] = self.d.vmm(name, start=False)
            if self.rng.random() < 0.3:
                # The first new VMM dies half way.
                v.register()
                if self.rng.random() < 0.5:
                    v.start_watch()
                v.kill()
                self.d.vmms.remove(v)
                v.close()
                v = self.vmms[name] = self.d.vmm(name, start=False)
            v.resume()
            m = self.model[name]
            m["generation"] += 1
            equal(v.get("secret"), m["secret"], f"{name}: secret after the jump")
        self.d.wait_state("idle")
        equal(self.d.last()["result"], "done", "result")


@tap.test
def random_sequence():
    """random operations of machines and operators, held against a model"""
    tap.note(f"seed {SEED}")
    rng = random.Random(SEED)
    operations = {
        "add": 6, "withdraw": 2, "preserve": 5, "refused": 2, "lose": 3, "failing_update": 4, "stage_abort": 3,
        "abort_somewhere": 3, "dry_run": 1, "update": 3,
    }  # fmt: skip
    with Daemon("--resume-deadline=20") as d:
        world = World(d, rng)
        try:
            begin = d.settled_fds()
            stop = time.monotonic() + SECONDS
            rounds = 0
            while time.monotonic() < stop:
                rounds += 1
                getattr(world, "op_" + rng.choices(list(operations), operations.values())[0])()
                true(d.state() in LEGAL, f"state {d.state()}")
                world.settle()
                # The state memfd of an update is dropped with it; a rebuilt iommufd is handed over again.
                world.check()
            for name in list(world.model):
                world.vmms[name].call("Withdraw", {"machine": name})
                world.vmms.pop(name).close()
            equal(len(d.settled_fds()), len(begin), "fds of the daemon when all machines are withdrawn")
            tap.note(f"{rounds} operations")
        except BaseException as e:
            e.add_note(f"seed {SEED}; last operations: {world.trail[-12:]}")
            raise


if __name__ == "__main__":
    tap.main()
