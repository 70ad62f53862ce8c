#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whole live updates through the simulated jump, and what is told of them."""

import os
import re
import signal

import image
import tap
import varlink
import vmm
from luvfiod import Daemon
from tap import equal, test, true

ORDER = [
    "idle", "checking", "staging", "staged", "draining", "quiescing", "handing_over",
    "restoring", "rebinding", "resuming", "finishing",
]  # fmt: skip


def whole_update(n, **options):
    """An update with N machines; RAM, secrets, owners, generations and fds are held against what they were."""
    with Daemon() as d:
        old = [d.vmm(f"vm{i}", devices=[f"0000:00:{i + 1:02x}.0"], **options) for i in range(n)]
        d.wait_machines("running")
        secrets = {v.name: v.get("secret") for v in old}
        before = d.machines()
        fds_before = d.settled_fds()
        pid = d.process.pid

        d.jump()
        digests = {}
        for v in old:
            equal(v.wait_dead(), signal.SIGKILL, f"what ended the old VMM of {v.name}")
        new = d.resume(old)
        for v in new:
            digests[v.name] = v.get("digests")
            event = v.wait_event("finished")
            equal(event["state"], "running", f"{v.name}: state in the finished event")
        d.wait_state("idle")

        after = d.machines()
        equal(sorted(after), sorted(before), "machines after the update")
        for v in new:
            a, b = after[v.name], before[v.name]
            equal(v.get("secret"), secrets[v.name], f"{v.name}: secret")
            equal(a["state"], "running", f"{v.name}: state")
            equal(a["generation"], b["generation"] + 1, f"{v.name}: generation")
            equal(a["pid"], v.pid, f"{v.name}: pid")
            true(a["attached"], f"{v.name}: is not attached")
            for key in ("uid", "vmm", "memoryBytes", "devices", "unit", "fileDescriptors"):
                equal(a.get(key), b.get(key), f"{v.name}: {key}")
            true(len(digests[v.name]) == options.get("n_ram", 1), f"{v.name}: not all RAM came back")
        equal(d.process.pid, pid, "pid of the daemon")
        report = d.last()
        equal(report["result"], "done", "result")
        equal(sorted(m["machine"] for m in report["machines"]), sorted(before), "machines in the report")
        for m in report["machines"]:
            true(m.get("blackoutUSec", 0) > 0, f"no blackout of {m['machine']} in the report")
        # A second one of the same kind shows whether something stays behind.
        fds_between = len(d.settled_fds())
        third = d.update(new)
        equal(len(d.settled_fds()), fds_between, f"fds of the daemon after another update (before the first: {len(fds_before)})")
        for v in third:
            equal(d.machines()[v.name]["generation"], before[v.name]["generation"] + 2, f"{v.name}: generation")


@test
def one_machine():
    """one machine: RAM, secret, owner, generation, fds over two updates"""
    whole_update(1, n_ram=3, ram_size=1 << 20)


@test
def two_machines():
    """two machines: RAM, secret, owner, generation, fds over two updates"""
    whole_update(2)


@test
def sixteen_machines():
    """16 machines: RAM, secret, owner, generation, fds over two updates"""
    whole_update(16)


@test
def no_machine():
    """an update without any machine"""
    with Daemon() as d:
        for _ in range(2):
            d.jump()
            d.wait_state("idle")
            equal(d.last()["result"], "done", "result")
            equal(d.last()["machines"], [], "machines in the report")


@test
def three_updates():
    """three updates in a row, the third with a machine that came in between"""
    with Daemon() as d:
        machines = [d.vmm("first")]
        machines = d.update(machines)
        machines = d.update(machines)
        machines.append(d.vmm("second"))
        d.update(machines)
        equal({n: m["generation"] for n, m in d.machines().items()}, {"first": 3, "second": 1}, "generations")
        equal(len(d.host("History")["updates"]), 3, "updates in the history")


@test
def late_devices():
    """devices that are handed over only while quiescing"""
    with Daemon() as d:
        v = d.vmm("vm1", devices=["0000:00:04.0", "0000:00:05.0"], late_devices=True)
        equal(d.machines()["vm1"]["devices"], [], "devices before")
        d.update([v])
        equal(d.machines()["vm1"]["devices"], ["0000:00:04.0", "0000:00:05.0"], "devices after")


@test
def progress():
    """Update and Monitor tell every state, in order"""
    with Daemon() as d:
        v = d.vmm()
        with d.connect_host() as monitor:
            monitor.send("org.luvfio.Host.Monitor", {}, more=True)
            first = monitor.receive()
            equal(first["state"], "idle", "Monitor begins with the present state")
            replies = d.jump()
            states = [r["state"] for r in replies]
            true(states, "Update said nothing")
            ids = {r.get("updateId") for r in replies}
            equal(len(ids), 1, f"ids of one update {ids}")
            true(re.fullmatch("[0-9a-f]{32}", ids.pop() or ""), "the update's id is not 128 bits in hex")
            for seen, who in ((states, "Update"), ([r["state"] for r in d.drain(monitor)], "Monitor")):
                positions = [ORDER.index(s) for s in seen]
                equal(positions, sorted(positions), f"{who}: order of states {seen}")
                for s in ("checking", "staging", "quiescing", "handing_over"):
                    true(s in seen, f"{who} did not tell {s}: {seen}")
        # The new daemon tells the rest.
        with d.connect_host() as monitor:
            monitor.send("org.luvfio.Host.Monitor", {}, more=True)
            monitor.receive()
            d.resume([v])
            while True:
                reply = monitor.receive()
                if reply.get("report"):
                    break
            equal(reply["report"]["result"], "done", "result in the last message")


@test
def dry_run():
    """a dry run goes through all gates and back, machines run all the time"""
    with Daemon() as d:
        v = d.vmm(devices=["0000:00:04.0"])
        pid = v.pid
        with d.no_leak():
            replies = d.jump(dryRun=True)
            true(replies and not replies[-1].continues, "Update with dryRun does not end")
            states = [r["state"] for r in replies]
            for s in ("checking", "staging", "staged"):
                true(s in states, f"the dry run left out {s}: {states}")
            d.wait_state("idle")
            d.wait_machines("running")
            names = v.event_names()
            true("prepare" in names and "quiesce" not in names, f"machines run all the time, but there was {names}")
        equal(v.pid, pid, "the VMM")
        true(v.alive(), "the VMM did not survive the dry run")
        equal(d.machines()["vm1"]["generation"], 0, "generation after a dry run")
        d.update([v])


@test
def stage_first():
    """Stage, then Update, which uses what is staged"""
    with Daemon() as d:
        v = d.vmm()
        d.stage()
        equal(d.state(), "staged", "state")
        equal(d.machines()["vm1"]["state"], "prepared", "state of the machine")
        true(d.machines()["vm1"].get("session"), "the machine has no session though it is staged")
        with d.connect_host() as c:
            c.send("org.luvfio.Host.Update", {}, more=True)
            d.drain(c)
        d.resume([v])
        d.wait_state("idle")
        equal(d.last()["result"], "done", "result")


@test
def retrieve():
    """Retrieve by name, in any order, any number of times"""
    with Daemon() as d:
        v = d.vmm(n_ram=4)
        d.jump()
        v.wait_dead()
        new = d.vmm("vm1", start=False)
        new.connect()
        new.register()
        new.start_watch()
        if new.get("state") == "restoring":
            new.wait_event("resume")
        new.register()
        names = [f["name"] for f in new.get("registered")["fileDescriptors"]]
        equal(sorted(names), ["ram0", "ram1", "ram2", "ram3", "state"], "names")
        with d.connect_machine() as c:
            # What was retrieved once is held, so that the next update need not be given it anew.
            for name in reversed(names):
                c.call("org.luvfio.Machine.Retrieve", {"machine": "vm1", "name": name}).close()
            with d.no_leak():
                for name in list(reversed(names)) + names:
                    for _ in range(3):
                        reply = c.call("org.luvfio.Machine.Retrieve", {"machine": "vm1", "name": name})
                        equal(len(reply.fds), 1, "number of fds")
                        equal(reply["description"]["name"], name, "name")
                        # The content is that of the name.
                        fd = reply.take_fd()
                        try:
                            link = os.readlink(f"/proc/self/fd/{fd}")
                            tap.contains(link, f"vm1-{name}", "file behind the fd")
                        finally:
                            os.close(fd)
        new.take_back()
        new.resumed()
        new.wait_event("finished")
        d.wait_state("idle")


@test
def history():
    """History and Analyze: every update, done or aborted, with its phases"""
    with Daemon() as d:
        v = d.vmm(devices=["0000:00:04.0"])
        (v,) = d.update([v])
        v.set_policy(quiesce=vmm.SILENT)
        tap.raises("org.luvfio.Host.UpdateFailed", lambda: d.jump(deadlineUSec=300000))
        v.wait_event("abort")
        d.wait_state("idle")
        updates = d.host("History")["updates"]
        equal([u["result"] for u in updates], ["aborted", "done"], "results, newest first")
        equal(len(d.host("History", {"limit": 1})["updates"]), 1, "History with a limit")
        for u in updates:
            report = d.host("Analyze", {"updateId": u["updateId"]})["report"]
            equal(report["updateId"], u["updateId"], "id")
            phases = [p for p in report["phases"] if not p.get("machine")]
            names = [p["name"] for p in phases]
            for s in ("checking", "staging", "quiescing"):
                true(s in names, f"{u['result']}: no phase {s}: {names}")
            for p in report["phases"]:
                true(p["startUSec"] >= 0 and p["durationUSec"] >= 0, f"negative time in {p}")
            starts = [p["startUSec"] for p in report["phases"]]
            equal(starts, sorted(starts), "phases are in order of begin")
        done = d.host("Analyze", {"updateId": updates[1]["updateId"]})["report"]
        names = [p["name"] for p in done["phases"] if not p.get("machine")]
        for s in ("handing_over", "kernel", "restoring", "resuming", "finishing"):
            true(s in names, f"no phase {s}: {names}")
        equal(d.host("Analyze")["report"]["updateId"], updates[0]["updateId"], "Analyze without an id: the last one")
        # It survives the daemon.
        d.stop()
        d.start()
        equal([u["result"] for u in d.host("History")["updates"]], ["aborted", "done"], "results after a restart")


@test
def describe():
    """Describe says what is preserved"""
    with Daemon() as d:
        r = d.host("Describe")
        equal(r["backend"], "simulated", "backend")
        equal(r["state"], "idle", "state")
        equal(r["kernel"], os.uname().release, "kernel")
        promises = {p["kind"]: p["outcome"] for p in r["promises"]}
        equal(promises, {"memfd": "preserved", "state": "preserved", "iommufd": "rebuilt", "vfio": "reset"}, "promises")
        v = d.vmm(devices=["0000:00:04.0"])
        for f in v.register()["fileDescriptors"]:
            equal(f["outcome"], promises[f["kind"]], f"outcome of {f['name']} as Describe has it")
        devices = d.host("ListDevices")["devices"]
        equal([(x["address"], x.get("machine")) for x in devices], [("0000:00:04.0", "vm1")], "devices")
        equal(d.host("Describe")["machines"], 1, "number of machines")


@test
def running_device():
    """a device that the kernel keeps running: said before the jump, and to the VMM after it"""
    with Daemon() as d:
        runs = d.vmm("runs", devices=["0000:00:04.0+running"])
        promises = {p["kind"]: p["outcome"] for p in d.host("Describe")["promises"]}
        equal(promises["vfio"], "running", "promise when all devices run on")
        reset = d.vmm("reset", devices=["0000:00:05.0"])
        promises = {p["kind"]: p["outcome"] for p in d.host("Describe")["promises"]}
        equal(promises["vfio"], "reset", "promise when one does not")
        findings = {(f["id"], f.get("device")): f["message"] for f in d.check()["findings"]}
        true(("device-reset", "0000:00:05.0") in findings, f"the other one's reset is not found: {findings}")
        true(("device-reset", "0000:00:04.0") not in findings, f"a reset is found: {findings}")
        tap.contains(findings["device-preserved", "0000:00:04.0"], "preserves: owner, state, dma; not: iommu, interrupts, sriov",
                     "what is preserved")
        true(("device-preserved", "0000:00:05.0") not in findings, "what is not known is said")
        devices = {x["address"]: x for x in d.host("ListDevices")["devices"]}
        equal(devices["0000:00:04.0"]["promise"], "running", "promise")
        equal(devices["0000:00:04.0"]["preserved"], ["owner", "state", "dma"], "preserved")
        equal(devices["0000:00:04.0"]["notPreserved"], ["iommu", "interrupts", "sriov"], "not preserved")
        equal(devices["0000:00:05.0"]["promise"], "reset", "promise of the other one")
        true("preserved" not in devices["0000:00:05.0"], "preserved of the other one")
        for v in d.update([runs, reset]):
            outcomes = {f["kind"]: f["outcome"] for f in v.register()["fileDescriptors"]}
            equal(outcomes["vfio"], v.name.replace("runs", "running"), f"outcome of the device of {v.name}")


@test
def preserved_iommufd():
    """an iommufd that the kernel preserves: it comes back with its device as it was, by two updates"""
    with Daemon() as d:
        v = d.vmm("vm1", devices=["0000:00:04.0+preserved"])
        promises = {p["kind"]: p["outcome"] for p in d.host("Describe")["promises"]}
        equal(promises, {"memfd": "preserved", "state": "preserved", "iommufd": "preserved", "vfio": "preserved"}, "promises")
        device = d.host("ListDevices")["devices"][0]
        equal(device["preserved"], ["owner", "state", "dma", "iommu"], "preserved")
        ids = {f["id"] for f in d.check()["findings"]}
        true("device-reset" not in ids and "iommufd-blocked" not in ids, f"findings: {ids}")
        for _ in range(2):
            (v,) = d.update([v])
            outcomes = {f["kind"]: f["outcome"] for f in v.register()["fileDescriptors"]}
            equal(outcomes, {"memfd": "preserved", "iommufd": "preserved", "vfio": "preserved"}, "outcomes")


@test
def device_without_its_iommufd():
    """a device that could be preserved, but whose iommufd is not: said to be reset, before the jump and after it"""
    with Daemon() as d:
        v = d.vmm("vm1", devices=["0000:00:04.0+preserved"], iommufd_preserved=False)
        device = d.host("ListDevices")["devices"][0]
        equal(device["preserved"], ["owner"], "preserved")
        ids = {f["id"] for f in d.check()["findings"]}
        true("device-reset" in ids, f"findings: {ids}")
        (v,) = d.update([v])
        outcomes = {f["kind"]: f["outcome"] for f in v.register()["fileDescriptors"]}
        equal(outcomes["vfio"], "reset", "outcome")


@test
def introspection():
    """org.varlink.service describes both interfaces on both sockets"""
    with Daemon() as d:
        for path in (d.host_path, d.machine_path):
            info = varlink.call(path, "org.varlink.service.GetInfo", {})
            own = [i for i in info["interfaces"] if i.startswith("org.luvfio.")]
            equal(own, [path.name], f"interfaces at {path.name}")
            text = varlink.call(path, "org.varlink.service.GetInterfaceDescription", {"interface": path.name})["description"]
            for method in re.findall(r"^method (\w+)", text, re.M):
                true(re.search(rf"^#.*\nmethod {method}\b", text, re.M), f"{path.name}.{method} has no comment")
            tap.contains(text, "error ", "errors in the description")


@test
def initrd():
    """an initrd goes with the kernel"""
    with Daemon() as d:
        v = d.vmm()
        fd = vmm.memfd("initrd", content=b"070701" + bytes(512))
        try:
            replies = d.jump(initrd=fd)
        finally:
            os.close(fd)
        true(not replies or not replies[-1].get("report"), "no jump")
        d.resume([v])
        d.wait_state("idle")
        equal(d.last()["toKernel"], image.RELEASE, "release of the new kernel in the report")


if __name__ == "__main__":
    tap.main()
