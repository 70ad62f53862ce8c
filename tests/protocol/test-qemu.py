#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""luvfio-qemu and a real QEMU, in updates that go wrong at each point: the guest goes on, or it is said why it cannot."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time

import qemu
import tap
import vmm
from luvfiod import HOST, Daemon
from qemu import AGAIN, FAILED, GOOD, KILLED, TIMEOUT, Machine
from tap import equal, raises, test, true

# The states of the machine before the jump, and that of the update.
STATES = {
    "preparing": "staging",
    "prepared": "staging",
    "staged": "staged",
    "quiescing": "quiescing",
    "quiesced": "quiescing",
    "committed": "handing_over",
}
CAPTURED = ("quiesced", "committed")


@contextlib.contextmanager
def host(*arguments, **parameters):
    with Daemon(*arguments, **parameters) as d, qemu.machines(d):
        yield d


@contextlib.contextmanager
def held(d, m, other, state):
    """An update that waits while machine M is in STATE. (The other machine does not answer; or luvfio-qemu stands still.)"""
    other.set_policy(prepare=vmm.ANSWER, quiesce=vmm.ANSWER, commit=vmm.ANSWER)
    if state == "staged":
        d.stage()
        m.wait_state("prepared")
        yield None
        return
    if state == "preparing":
        m.freeze()
    elif state == "quiesced":
        other.set_policy(quiesce=vmm.SILENT)
    elif state == "committed":
        other.set_policy(commit=vmm.SILENT)
    else:
        other.set_policy(prepare=vmm.SILENT)
    with d.begin(deadlineUSec=20000000) as update:
        if state == "quiescing":
            m.wait_state("prepared")
            m.freeze()
            other.wait_event("prepare", other.event_names().count("prepare") or 1)
            other.prepared()
        m.wait_state(state)
        equal(d.state(), STATES[state], "state of the update")
        yield update


def abort(d, m, update):
    """The operator gives the update up. Abort returns when machines run again."""
    with d.connect_host() as c:
        c.send(HOST + "Abort", {})
        time.sleep(0.1)
        m.thaw()
        c.receive()
    if update:
        raises(HOST + "UpdateFailed", lambda: d.drain(update))


def given_up(d, m, fakes):
    d.wait_state("idle", TIMEOUT)
    m.wait_running()
    d.wait_machines("running")
    equal(d.last()["result"], "aborted", "result")
    d.wait_for(lambda: m.store.names() == [], f"the service manager to keep nothing: {m.store.names()}", timeout=10)
    equal(m.agent.zombies(), [], "children that were not waited for")
    for v in fakes:
        true(v.alive() and v.get("running"), f"{v.name} does not run")
    m.verify()


def and_again(m, *fakes):
    for v in fakes:
        v.set_policy(prepare=vmm.ANSWER, quiesce=vmm.ANSWER, commit=vmm.ANSWER)
    return m.update(fakes)


# What an operator does.


@test
def aborts():
    """Abort in each state, again and again, with one luvfio-qemu; then an update"""
    with host() as d:
        m, other = Machine(d), d.vmm("other")
        pid = m.process.pid
        for state in [*STATES, *STATES]:
            before = m.qemu().pid
            with held(d, m, other, state) as update:
                if state in CAPTURED:
                    true(m.stands(), f"the guest runs while {state}")
                else:
                    m.wait_count()
                abort(d, m, update)
            given_up(d, m, [other])
            equal(m.process.pid, pid, "pid of luvfio-qemu")
            # Asked to stop while luvfio-qemu stood, it may have done that first.
            if state != "quiescing":
                equal(m.qemu().pid != before, state in CAPTURED, f"after {state}: another QEMU")
        and_again(m, other)


def no_more_than_ever(d, m, counts):
    """In the end as few fds are open as after any update. A moment after one some may not be closed yet."""
    least = min(counts, key=len)
    d.wait_for(lambda: len(m.agent.fds()) <= len(least), f"no more fds than {least}: {m.agent.fds()}")


@test
def fd_leaks():
    """twenty updates, ten of which are given up: no file descriptor is left open, no process unwaited for"""
    with host() as d:
        m, other = Machine(d), d.vmm("other")
        with d.no_leak():
            counts = []
            for _ in range(10):
                with held(d, m, other, "quiesced") as update:
                    abort(d, m, update)
                given_up(d, m, [other])
                counts.append(m.agent.fds())
            no_more_than_ever(d, m, counts[1:])
        other.kill()
        d.wait_for(lambda: "other" not in d.machines(), "other is forgotten")
        counts, files = [], []
        for _ in range(10):
            m.update()
            d.wait_for(lambda: m.store.names() == [], "an empty store")
            counts.append(m.agent.fds())
            files.append(d.machines()["count"]["fileDescriptors"])
        no_more_than_ever(d, m, counts)
        equal(set(files), {files[0]}, f"files that luvfiod holds: {files}")


@test
def paused():
    """a guest that its user has paused is paused afterwards, over an abort and a jump"""
    with host() as d:
        m, other = Machine(d), d.vmm("other")
        m.qmp("stop")
        true(m.stands(), "it runs")
        with held(d, m, other, "quiesced") as update:
            abort(d, m, update)
        d.wait_state("idle", TIMEOUT)
        m.wait_state("running")
        equal(m.qmp("query-status")["status"], "paused", "status after an abort")
        true(m.stands(), "it runs after an abort")
        other.set_policy(quiesce=vmm.ANSWER)
        d.jump()
        m.jumped()
        m.start()
        other = d.resume([other])[0]
        m.wait_state("running")
        d.wait_state("idle", TIMEOUT)
        equal(m.qmp("query-status")["status"], "paused", "status after the jump")
        true(m.stands(), "it runs after the jump")
        m.qmp("cont")
        m.wait_count()
        m.verify()
        and_again(m, other)


@test
def stop():
    """SIGTERM: the guest may power itself off, and is ended when it does not; nothing is left"""
    with host() as d:
        m = Machine(d)
        pid = m.qemu()
        m.process.terminate()
        m.wait_end(GOOD)
        equal(pid.alive(), False, "QEMU is alive")
        d.wait_for(lambda: not d.machines(), "no machine")
        m.verify()


@test
def stop_in_update():
    """SIGTERM in the middle of an update: after it, when it is given up as after a jump"""
    with host() as d:
        m, other = Machine(d), d.vmm("other")
        for state in ("prepared", "quiesced"):
            with held(d, m, other, state) as update:
                m.process.terminate()
                time.sleep(0.3)
                equal(m.process.poll(), None, f"it ended while {state}")
                abort(d, m, update)
            m.wait_end(GOOD)
            equal([q.pid for q in m.leftovers()], [], "QEMUs that are left")
            d.wait_for(lambda: "count" not in d.machines(), "no machine")
            m.verify()
            m.serial.unlink()
            m.start()
            m.wait_running()


# luvfio-qemu.


def agent_killed(state):
    with host() as d:
        m, other = Machine(d), d.vmm("other")
        with held(d, m, other, state) as update:
            before = m.qemu()
            m.kill()
            m.start()
            if update:
                e = raises(HOST + "UpdateFailed", lambda: d.drain(update), machine="count")
                equal(e.parameters["state"], STATES[state], "state in which it failed")
        given_up(d, m, [other])
        equal(m.qemu().pid == before.pid, state not in CAPTURED, "the same QEMU")
        equal(len(m.leftovers()), 1, "QEMUs that live")
        and_again(m, other)


for _state in STATES:
    tap.add(f"luvfio-qemu is killed while {_state}", lambda s=_state: agent_killed(s))


@test
def agent_killed_running():
    """luvfio-qemu is killed while no update is under way: the guest does not notice, its machine is registered anew"""
    with host() as d:
        m = Machine(d)
        for n in range(3):
            before = m.qemu()
            m.kill()
            m.wait_count()
            if n > 0:
                d.wait_for(lambda: not d.machines(), "the machine is forgotten")
            m.start()
            m.wait_running()
            equal(m.qemu().pid, before.pid, "pid of QEMU")
            equal(m.blockers(), [], "blockers")
        with d.no_leak():
            m.verify()
        and_again(m)


@test
def agent_gone_for_long():
    """luvfio-qemu is killed while the guest is captured, and comes back long after the update is over"""
    with host() as d:
        m, other = Machine(d), d.vmm("other")
        with held(d, m, other, "quiesced") as update:
            m.kill()
            raises(HOST + "UpdateFailed", lambda: d.drain(update), machine="count")
        d.wait_state("idle")
        d.wait_for(lambda: "count" not in d.machines(), "its machine is forgotten")
        true(m.stands(), "the guest runs")
        true(len(m.store.names()) > 2, f"what the service manager keeps: {m.store.names()}")
        # And not at the first try.
        m.program.unlink()
        m.start()
        m.wait_end(AGAIN)
        m.program.symlink_to(qemu.shutil.which(qemu.QEMU))
        m.start()
        given_up(d, m, [other])
        and_again(m, other)


@test
def agent_killed_at_once():
    """luvfio-qemu is killed when QEMU has handed itself over and nothing of it is stored: it goes on where it is"""
    with host() as d:
        m, other = Machine(d), d.vmm("other")
        with held(d, m, other, "quiesced") as update:
            before = m.qemu()
            m.kill()
            m.store.clear()
            raises(HOST + "UpdateFailed", lambda: d.drain(update), machine="count")
            m.start()
        given_up(d, m, [other])
        equal(m.qemu().pid, before.pid, "pid of QEMU")
        and_again(m, other)


@test
def agent_killed_in_resume():
    """after the jump luvfio-qemu is killed before it has said that the guest runs, more than once"""
    with host() as d:
        m, other = Machine(d), d.vmm("other")
        d.jump()
        m.jumped()
        for n in range(12):
            m.start()
            time.sleep(0.05 * n)
            m.kill()
        m.start()
        m.come_back([other])
        equal(len(m.leftovers()), 1, "QEMUs that live")


# QEMU.


def qemu_killed(state):
    with host() as d:
        m, other = Machine(d), d.vmm("other")
        with held(d, m, other, state) as update:
            m.qemu().kill()
            if state in CAPTURED:
                abort(d, m, update)
            else:
                m.thaw()
                m.wait_end(FAILED)
                if update:
                    raises(HOST + "UpdateFailed", lambda: d.drain(update), machine="count")
        if state in CAPTURED:
            given_up(d, m, [other])
        else:
            d.wait_state("idle", TIMEOUT)
            d.wait_for(lambda: "count" not in d.machines(), "its machine is forgotten")
            d.wait_machines("running")
            true(other.get("running"), "the other machine stands")
            m.verify()
            # Its user starts it again.
            m.serial.unlink()
            m.start()
            m.wait_running()
        and_again(m, other)


for _state in STATES:
    tap.add(f"QEMU is killed while {_state}", lambda s=_state: qemu_killed(s))


@test
def qemu_ends():
    """QEMU ends by itself: with an error, in which luvfio-qemu ends too, or well"""
    with host() as d:
        m = Machine(d)
        m.qemu().kill()
        m.wait_end(FAILED)
        d.wait_for(lambda: not d.machines(), "no machine")
        m.serial.unlink()
        m.start()
        m.wait_running()
        m.qmp("quit")
        m.wait_end(GOOD)
        d.wait_for(lambda: not d.machines(), "no machine")


@test
def qemu_cannot_start():
    """QEMU is missing, or ends at once: it is said, and luvfio-qemu ends as for a machine that has failed"""
    with host() as d:
        m = Machine(d, start=False)
        m.program.unlink()
        m.start()
        m.wait_end(FAILED)
        tap.contains(m.log(), "cannot be started", "what is said")
        m.program.write_text("#!/bin/sh\nexit 7\n")
        m.program.chmod(0o755)
        m.start()
        m.wait_end(FAILED)
        d.wait_for(lambda: not d.machines(), "no machine")


def qemu_hangs(state):
    with host() as d:
        m, other = Machine(d), d.vmm("other")
        with held(d, m, other, state) as update:
            q = m.qemu()
            q.kill(signal.SIGSTOP)
            m.thaw()
            begin = time.monotonic()
            raises(HOST + "UpdateFailed", lambda: d.drain(update), machine="count")
            true(time.monotonic() - begin < 45, "the update was not given up in time")
            d.wait_state("idle", TIMEOUT)
            true(other.get("running"), "the other machine stands")
            q.kill(signal.SIGCONT)
        if m.process.poll() is not None:
            m.wait_end(AGAIN)
            m.start()
        given_up(d, m, [other])
        equal(m.qemu().pid, q.pid, "pid of QEMU")
        d.wait_for(lambda: not m.blockers(), f"no blocker, when QEMU answers again: {m.blockers()}", TIMEOUT)
        and_again(m, other)


for _state in ("preparing", "quiescing"):
    tap.add(f"QEMU hangs while {_state}", lambda s=_state: qemu_hangs(s))


# After the jump.


def new_qemu_fails(how):
    with host() as d:
        m, other = Machine(d), d.vmm("other")
        d.jump()
        m.jumped()
        real = qemu.shutil.which(qemu.QEMU)
        m.program.unlink()
        if how != "is missing":
            m.program.write_text({
                "ends at once": "#!/bin/sh\nexit 1\n",
                # A board that does not have what comes in.
                "refuses what it is given": "#!/bin/sh\nfor a; do\n        shift\n"
                '        [ "$a" = virtio-blk-pci,drive=disk ] && a=virtio-rng-pci\n        set -- "$@" "$a"\n'
                f'done\nexec {real} "$@"\n',
            }[how])
            m.program.chmod(0o755)
        for _ in range(2):
            m.start()
            m.wait_end(AGAIN)
            equal(m.state(), "resuming", "state of the machine")
            equal([q.pid for q in m.leftovers()], [], "QEMUs that are left")
        m.program.unlink(missing_ok=True)
        m.program.symlink_to(real)
        m.start()
        m.come_back([other])


for _how in ("is missing", "ends at once", "refuses what it is given"):
    tap.add(f"after the jump the new QEMU {_how}, more than once", lambda h=_how: new_qemu_fails(h))


@test
def old_qemu_there():
    """a QEMU that is still there when its machine has gone on elsewhere is ended, not taken up"""
    with host() as d:
        m = Machine(d)
        old = m.qemu()
        d.jump()
        m.jumped(kexec=False)
        m.store.clear()
        true(old.alive(), "QEMU has ended")
        m.start()
        m.come_back()
        equal(old.alive(), False, "the old QEMU is alive")


@test
def wrapper():
    """a program that becomes QEMU is started for each QEMU, by a luvfio-qemu that took one up as well"""
    with host() as d:
        m = Machine(d, start=False)
        real = qemu.shutil.which(qemu.QEMU)
        m.program.unlink()
        m.program.write_text(f'#!/bin/sh\necho start >>{m.folder}/starts\nexec {real} "$@"\n')
        m.program.chmod(0o755)
        m.start()
        m.wait_running()
        for n in (2, 3):
            m.kill()
            m.start()
            m.wait_running()
            m.update(kexec=False)
            equal(len((m.folder / "starts").read_text().split()), n, "starts")


def too_late(dies):
    with host("--resume-deadline=3") as d:
        m, other = Machine(d), d.vmm("other")
        d.jump()
        m.jumped()
        real = qemu.shutil.which(qemu.QEMU)
        m.program.unlink()
        m.program.write_text(f'#!/bin/sh\nsleep 6\nexec {real} "$@"\n')
        m.program.chmod(0o755)
        m.start()
        d.resume([other])
        m.wait_state("stranded")
        m.wait_end(AGAIN)
        q = m.qemu()
        true(q.alive(), "QEMU has ended")
        if not dies:
            m.start()
            m.wait_running()
            equal(m.qemu().pid, q.pid, "pid of QEMU")
            d.wait_state("idle", TIMEOUT)
            m.verify()
            return
        q.kill()
        for _ in range(2):
            m.start()
            m.wait_end(FAILED)
            tap.contains(m.log(), "has run since it was captured", "what is said")
            equal([x.pid for x in m.leftovers()], [], "QEMUs that are left")
        d.wait_for(lambda: m.state() == "stranded", "the machine is stranded again", TIMEOUT)
        d.host("Discard", {"machine": "count"})


tap.add("luvfiod gives a machine up while its guest is put together: it comes late, as it runs by then", lambda: too_late(False))
tap.add("the same, and its QEMU dies: what was captured does not go with its memory any more, and is not used", lambda: too_late(True))


# luvfiod.


@test
def luvfiod_restarted():
    """luvfiod is restarted while the machine runs: it is handed the same files again"""
    with host() as d:
        m = Machine(d)
        files = d.machines()["count"]["fileDescriptors"]
        for how in (signal.SIGTERM, signal.SIGKILL):
            d.process.send_signal(how)
            d.process.wait(20)
            m.wait_count()
            d.start()
            m.wait_running()
            d.wait_for(lambda: d.machines()["count"]["fileDescriptors"] == files, f"{files} files")
            equal(m.blockers(), [], "blockers")
        and_again(m)


def luvfiod_killed(state):
    with host() as d:
        m, other = Machine(d), d.vmm("other")
        with held(d, m, other, state):
            d.process.kill()
            d.process.wait()
            m.thaw()
            time.sleep(0.3)
            d.start()
        other.wait_event("disconnected")
        other.hang_up()
        other.connect()
        other.register()
        other.start_watch()
        d.wait_state("idle", TIMEOUT)
        m.wait_running()
        m.verify()
        if not other.get("running"):
            other.resumed()
        other.preserve_all(("memfd",))
        d.wait_machines("running")
        and_again(m, other)


for _state in STATES:
    tap.add(f"luvfiod is killed while {_state}", lambda s=_state: luvfiod_killed(s))


# A QEMU that its user has started.


@test
def monitor():
    """--monitor: a QEMU that was started by hand goes through an abort and two updates"""
    with host() as d:
        m, other = Machine(d, monitor=True, start=False), d.vmm("other")
        m.start_by_hand()
        m.start()
        m.wait_running()
        equal(m.qemu().pid, m.by_hand.pid, "pid of QEMU")
        # It is taken up again where it is.
        m.kill()
        m.start()
        m.wait_running()
        with held(d, m, other, "quiesced") as update:
            abort(d, m, update)
        given_up(d, m, [other])
        # Both are killed.
        with held(d, m, other, "quiesced") as update:
            m.kill()
            m.qemu().kill()
            m.start()
            raises(HOST + "UpdateFailed", lambda: d.drain(update), machine="count")
        given_up(d, m, [other])
        (other,) = and_again(m, other)
        (other,) = m.update([other])
        m.kill()
        m.start()
        m.wait_running()
        equal(m.qmp("query-status")["status"], "running", "status at the monitor that its user had given it")
        m.verify()


@test
def monitor_missing():
    """--monitor where no QEMU is: it is said"""
    with host() as d:
        m = Machine(d, monitor=True, start=False)
        m.start()
        m.wait_end(AGAIN)
        tap.contains(m.log(), "no QEMU listens", "what is said")
        d.wait_for(lambda: not d.machines(), "no machine")


# What speaks against an update.


def blocked(m, *patterns, only=True):
    """check finds what has these words, each with a remedy, and no update begins."""

    def found():
        messages = [f["message"] for f in m.blockers()]
        return all(any(p in text for text in messages) for p in patterns)

    try:
        m.d.wait_for(found, f"blockers {patterns}", TIMEOUT)
    except AssertionError as e:
        e.add_note(f"there are {m.blockers()}")
        raise
    for f in m.blockers():
        equal(f["id"], "machine-blocked", "id")
        true(f.get("remedy"), f"no remedy for {f['message']}")
        true(not only or any(p in f["message"] for p in patterns), f"what nobody expected: {f['message']}")
    raises(HOST + "Blocked", m.d.jump)


def is_blocked(*patterns, only=True, **parameters):
    with host() as d:
        m = Machine(d, start=False, **parameters)
        m.start()
        m.d.wait_for(lambda: "count" in d.machines() and m.said(), f"the guest to run\n{m.log()}", TIMEOUT)
        blocked(m, *patterns, only=only)
        m.wait_count()
        m.verify()


MEMFD = ["-object", "memory-backend-memfd,id=ram,size=64M,share=on"]
QEMUS_WORD = "QEMU itself refuses"

for _what, _patterns, _parameters in (
    ("memory of the default kind", ("guest memory pc.ram is not shared", QEMUS_WORD), {"memory": []}),
    ("memory-backend-ram that is not shared", ("guest memory ram is not shared", QEMUS_WORD),
     {"memory": ["-object", "memory-backend-ram,id=ram,size=64M"]}),
    ("memory-backend-memfd that is not shared", ("guest memory ram is not shared", QEMUS_WORD),
     {"memory": ["-object", "memory-backend-memfd,id=ram,size=64M,share=off"]}),
    ("no aux-ram-share", ("memory of QEMU's own", QEMUS_WORD), {"machine": ""}),
):
    tap.add(f"check: {_what}", lambda p=_patterns, k=_parameters: is_blocked(*p, **k))


@test
def check_file():
    """check: memory-backend-file"""
    with tempfile.NamedTemporaryFile(prefix="luvfio-qemu-", dir="/dev/shm") as f:
        is_blocked("guest memory ram is of a memory-backend-file", "memory of QEMU cannot be preserved",
                   memory=["-object", f"memory-backend-file,id=ram,size=64M,share=on,mem-path={f.name}"])
    is_blocked("guest memory ram is of a memory-backend-file",
               memory=["-object", "memory-backend-file,id=ram,size=64M,share=on,mem-path=/tmp"])


@test
def check_hugetlb():
    """check: hugetlbfs"""
    free = int(open("/proc/sys/vm/nr_hugepages", encoding="ascii").read())
    if free < 32:
        raise tap.Skip("needs 32 huge pages of 2 MiB")
    is_blocked("in pages of hugetlbfs", only=False,
               memory=["-object", "memory-backend-memfd,id=ram,size=64M,share=on,hugetlb=on"])


@test
def check_open_files():
    """check: files that were opened by who started QEMU"""
    with host() as d:
        m = Machine(d, start=False, monitor=True)
        fd = os.open(m.folder / "opened", os.O_WRONLY | os.O_CREAT)
        m.command += ["-add-fd", f"fd={fd},set=1", "-chardev", "file,id=opened,path=/dev/fdset/1"]
        m.start_by_hand(pass_fds=[fd])
        os.close(fd)
        m.start()
        blocked(m, f"fd={fd},set=1", "/dev/fdset/1")


@test
def check_daemonize():
    """check: -daemonize"""
    with host() as d:
        m = Machine(d, start=False, monitor=True, extra=["-daemonize"])
        m.start_by_hand()
        m.start()
        blocked(m, "-daemonize")


OLD_QEMU = """
import json, socket, sys

def serve(f):
    def say(**m):
        f.write(json.dumps(m) + "\\n")
        f.flush()
    say(QMP={"version": {"qemu": {"major": 9, "minor": 2, "micro": 0}, "package": ""}, "capabilities": []})
    for line in f:
        m = json.loads(line)
        if m["execute"] in ("qmp_capabilities", "query-status"):
            say(**{"return": {"status": "running", "running": True}, "id": m.get("id")})
        elif m["execute"] == "query-memdev":
            say(**{"return": [], "id": m["id"]})
        else:
            say(error={"class": "GenericError", "desc": "Parameter 'mode' does not accept value 'cpr-transfer'"}, id=m["id"])

s = socket.socket(socket.AF_UNIX)
s.bind(sys.argv[1])
s.listen(1)
while True:
    c, _ = s.accept()
    try:
        serve(c.makefile("rw"))
    except OSError:
        pass
"""


@test
def check_version():
    """check: a QEMU that is too old"""
    with host() as d:
        m = Machine(d, start=False, monitor=True)
        with subprocess.Popen([sys.executable, "-c", OLD_QEMU, m.qmp_path]) as old:
            try:
                d.wait_for(m.qmp_path.exists, "the old QEMU", TIMEOUT)
                time.sleep(0.2)
                m.start()
                blocked(m, "QEMU 9.2.0 cannot hand its devices", "does not accept value", "guest memory is not", "memory of QEMU's own")
            finally:
                old.kill()


@test
def check_state():
    """check: a QEMU that does not run yet, until it does"""
    with host() as d:
        m = Machine(d, start=False, extra=["-S"])
        m.start()
        d.wait_for(lambda: "count" in d.machines(), "the machine", TIMEOUT)
        blocked(m, "neither running nor paused: prelaunch")
        m.qmp("cont")
        d.wait_for(lambda: not m.blockers(), f"no blocker when it runs: {m.blockers()}", TIMEOUT)
        m.wait_running()
        and_again(m)


@test
def check_added():
    """check: a device that was added while the machine ran, and taken out again"""
    with host() as d:
        ports = ["-device", '{"driver": "pcie-root-port", "id": "rp0", "chassis": 1}', "-device", "pcie-root-port,id=rp1,chassis=2"]
        m, other = Machine(d, extra=ports), d.vmm("other")
        equal(m.blockers(), [], "blockers")
        m.qmp("device_add", driver="virtio-rng-pci", bus="rp0", id="rng")
        # Nothing tells of it: it is found when an update begins.
        raises(HOST + "UpdateFailed", d.jump, machine="count", reason=lambda r: 'device "rng" was added' in r)
        d.wait_state("idle", TIMEOUT)
        blocked(m, 'device "rng" was added')
        m.qmp("device_del", id="rng")
        # The guest has no driver that would let it go. (It may be in the middle of a number.)
        m.qmp("system_reset")
        d.wait_for(lambda: not m.blockers(), f"no blocker: {m.blockers()}", TIMEOUT)
        m.wait_count()
        equal(other.get("errors"), [], "errors of other")


@test
def check_good():
    """check: nothing speaks against a machine that is as it should be, in memory of either kind"""
    with host() as d:
        for n, memory in enumerate((MEMFD, ["-object", "memory-backend-ram,id=ram,size=64M,share=on"])):
            m = Machine(d, name=f"good{n}", memory=memory)
            equal(m.blockers(), [], "blockers")
            m.wait_count()
        equal(d.check()["ready"], True, "ready")


if __name__ == "__main__":
    if reason := qemu.why_not():
        print(f"1..0 # SKIP {reason}")
        sys.exit(0)
    tap.main()
