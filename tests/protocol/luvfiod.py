# SPDX-License-Identifier: LGPL-2.1-or-later
"""luvfiod --simulate in a folder of its own, with whatever a test wants to see of it from outside."""

import contextlib
import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import time

import image
import varlink
from vmm import Vmm

HOST = "org.luvfio.Host."
MACHINE = "org.luvfio.Machine."
SERVICE = "org.varlink.service."

# Ends of updates.
DONE, STRANDED, ABORTED = "done", "stranded", "aborted"


def program(variable):
    path = os.environ.get(variable)
    if not path:
        raise SystemExit(f"${variable} is not set: run by `meson test`, or see tests/protocol/README.md")
    return path


class Daemon:
    def __init__(self, *arguments, plugins="null", environment=None, state_dir=None, before=None):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="luvfiod-test-"))
        self.runtime = self.folder / "run"
        self.runtime.mkdir()
        self.state_dir = pathlib.Path(state_dir) if state_dir else self.folder / "state"
        self.state_dir.mkdir(exist_ok=True)
        self.log_path = self.folder / "log"
        self.arguments = list(arguments)
        self.plugins = plugins
        self.environment = environment or {}
        self.before = before
        self.vmms = []
        self.process = None
        self.host_path = self.runtime / "org.luvfio.Host"
        self.machine_path = self.runtime / "org.luvfio.Machine"
        self.start()

    # Life.

    def start(self):
        environment = dict(os.environ)
        for name in ("NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"):
            environment.pop(name, None)
        environment.setdefault("ASAN_OPTIONS", "detect_leaks=1:abort_on_error=0:exitcode=99")
        environment.setdefault("UBSAN_OPTIONS", "print_stacktrace=1:halt_on_error=1:exitcode=99")
        environment.update({k: str(v) for k, v in self.environment.items()})
        command = [
            program("LUVFIOD"),
            "--simulate",
            f"--runtime-dir={self.runtime}",
            f"--state-dir={self.state_dir}",
            f"--plugin-host={program('LUVFIO_PLUGIN_HOST')}",
            f"--plugins={self.plugins}",
            *self.arguments,
        ]
        log = open(self.log_path, "ab")
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, preexec_fn=self.before
        )
        log.close()
        deadline = time.monotonic() + varlink.TIMEOUT
        while True:
            try:
                self.host("Describe", timeout=5)
                return
            except (FileNotFoundError, ConnectionRefusedError, varlink.Disconnected):
                if self.process.poll() is not None:
                    raise AssertionError(f"luvfiod ended with {self.process.returncode}:\n{self.log()}") from None
                if time.monotonic() > deadline:
                    raise AssertionError(f"luvfiod does not answer:\n{self.log()}") from None
                time.sleep(0.01)

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError("luvfiod did not end on SIGTERM") from None

    def __enter__(self):
        return self

    def __exit__(self, kind, exception, _):
        problems = []
        for v in self.vmms:
            v.close()
        if self.process.poll() is not None:
            problems.append(f"luvfiod ended by itself with {self.process.returncode}")
        else:
            if exception is None:
                try:
                    self.host("Describe")
                except (OSError, TimeoutError, varlink.Disconnected) as e:
                    problems.append(f"luvfiod does not answer any more: {e!r}")
            try:
                code = self.stop()
                if code != 0:
                    problems.append(f"luvfiod ended with {code} on SIGTERM")
            except AssertionError as e:
                problems.append(str(e))
        log = self.log()
        for line in log.splitlines():
            if re.search(r"(Address|Leak|UndefinedBehavior)Sanitizer|runtime error:|Assertion .* failed", line):
                problems.append(line)
        if exception is not None:
            exception.add_note(f"luvfiod's log:\n{log[-6000:]}")
            for p in problems:
                exception.add_note(p)
        shutil.rmtree(self.folder, ignore_errors=True)
        if problems and exception is None:
            e = AssertionError("; ".join(problems[:5]))
            e.add_note(f"luvfiod's log:\n{log[-6000:]}")
            raise e

    def log(self):
        return self.log_path.read_text(errors="replace")

    # What it holds.

    def fds(self):
        found = {}
        for fd in os.listdir(f"/proc/{self.process.pid}/fd"):
            with contextlib.suppress(OSError):
                found[int(fd)] = os.readlink(f"/proc/{self.process.pid}/fd/{fd}")
        return found

    def settled_fds(self, timeout=5.0):
        """The fds, once two looks in a row show the same and no client's connection is half closed."""
        deadline = time.monotonic() + timeout
        last = None
        while time.monotonic() < deadline:
            now = sorted(re.sub(r"\[\d+\]", "", x) for x in self.fds().values())
            if now == last:
                return now
            last = now
            time.sleep(0.05)
        return last

    @contextlib.contextmanager
    def no_leak(self):
        """What is done inside leaves the daemon with the fds it had."""
        before = self.settled_fds()
        yield
        deadline = time.monotonic() + 5
        while True:
            after = self.settled_fds()
            if len(after) == len(before):
                return
            if time.monotonic() > deadline:
                new = list(after)
                old = []
                for x in before:
                    if x in new:
                        new.remove(x)
                    else:
                        old.append(x)
                raise AssertionError(f"luvfiod leaks fds: {len(before)} before, {len(after)} after; more: {new}, less: {old}")

    def memory(self, field):
        """A field of smaps_rollup, in bytes."""
        for line in pathlib.Path(f"/proc/{self.process.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
        raise KeyError(field)

    # Calls.

    def host(self, method, parameters=None, fds=(), timeout=varlink.TIMEOUT):
        return varlink.call(self.host_path, HOST + method, parameters, fds, timeout)

    def machine(self, method, parameters=None, fds=(), timeout=varlink.TIMEOUT):
        return varlink.call(self.machine_path, MACHINE + method, parameters, fds, timeout)

    def connect_host(self):
        return varlink.Connection(self.host_path)

    def connect_machine(self):
        return varlink.Connection(self.machine_path)

    def state(self):
        return self.host("Describe")["state"]

    def machines(self):
        return {m["name"]: m for m in self.host("ListMachines")["machines"]}

    def wait_for(self, condition, what, timeout=varlink.TIMEOUT):
        deadline = time.monotonic() + timeout
        while True:
            with contextlib.suppress(varlink.Disconnected, ConnectionError):
                if result := condition():
                    return result
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {timeout} s in vain for: {what}")
            time.sleep(0.02)

    def wait_state(self, state, timeout=varlink.TIMEOUT):
        self.wait_for(lambda: self.state() == state, f"state {state}", timeout)

    def wait_machines(self, state, timeout=varlink.TIMEOUT):
        self.wait_for(lambda: all(m["state"] == state for m in self.machines().values()), f"all machines {state}", timeout)

    def last(self):
        return self.host("Describe").get("lastUpdate")

    # Updates.

    def begin(self, method="Update", kernel=None, initrd=None, fds=(), **parameters):
        """Begins Update, Stage or Check with an image that will do (or KERNEL); the connection to listen on."""
        connection = self.connect_host()
        own = []
        try:
            if kernel is None:
                kernel = image.kernel()
                own.append(kernel)
            passed = [kernel]
            parameters = {"kernelFileDescriptor": 0, "commandLine": image.COMMAND_LINE, **parameters}
            if initrd is not None:
                passed.append(initrd)
                parameters["initrdFileDescriptor"] = 1
            parameters = {k: v for k, v in parameters.items() if v is not None}
            connection.send(HOST + method, parameters, [*passed, *fds], more=method != "Check")
        finally:
            for fd in own:
                os.close(fd)
        return connection

    def check(self, **parameters):
        with self.begin("Check", **parameters) as connection:
            return connection.receive()

    def findings(self, **parameters):
        return self.check(**parameters)["findings"]

    def stage(self, **parameters):
        with self.begin("Stage", **parameters) as connection:
            return self.drain(connection)

    @staticmethod
    def drain(connection):
        """All replies up to the last one or to the jump. An error is raised."""
        replies = []
        while True:
            try:
                reply = connection.receive()
            except varlink.Disconnected:
                return replies
            replies.append(reply)
            if not reply.continues:
                return replies

    def jump(self, **parameters):
        """Up to the jump: the replies seen. The daemon answers again when this returns."""
        with self.begin(**parameters) as connection:
            replies = self.drain(connection)
        return replies

    # Machines.

    def vmm(self, name="vm1", start=True, **options):
        v = Vmm(self.machine_path, name, **options)
        self.vmms.append(v)
        if start:
            v.start()
        return v

    def resume(self, old, **options):
        """A new VMM for each old one, all the way to running; the old ones must have been killed."""
        new = []
        for v in old:
            if v.wait_dead() != signal.SIGKILL:
                raise AssertionError(f"{v.name} was not killed at the jump")
            new.append(self.vmm(v.name, start=False, **options))
        for v in new:
            v.resume()
        return new

    def update(self, vmms, **parameters):
        """A whole update that goes well: the new VMMs."""
        replies = self.jump(**parameters)
        if replies and replies[-1].get("report"):
            raise AssertionError(f"the update ended before the jump: {replies[-1].parameters}")
        new = self.resume(vmms)
        for v in new:
            v.wait_event("finished")
        self.wait_state("idle")
        return new
