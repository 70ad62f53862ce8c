# SPDX-License-Identifier: LGPL-2.1-or-later
"""Fake VMMs: processes of their own (the simulated jump kills them, as a kexec would), told what to do by the test.

A Vmm is the test's end. What it calls runs in the child, which besides answers the daemon's events as its policy
says and, while its "vCPUs" run, writes its RAM all the time.
"""

import hashlib
import json
import mmap
import multiprocessing.connection
import os
import random
import select
import signal
import socket
import time
import traceback

import varlink

MACHINE = "org.luvfio.Machine."
PAGE = 4096

# What a VMM does with an event.
ANSWER = "answer"  # as it should
SILENT = "silent"  # nothing, for ever
DIE = "die"  # killed at once
DIE_AFTER = "die-after"  # killed after the right answer
HANG_UP = "hang-up"  # closes both connections and lives on
HANG_UP_AFTER = "hang-up-after"  # answers, then closes both
FROZEN = "frozen"  # does not even read its sockets any more


def memfd(name, size=0, content=None, flags=os.MFD_CLOEXEC):
    fd = os.memfd_create(name, flags)
    if size:
        os.ftruncate(fd, size)
    if content is not None:
        os.pwrite(fd, content, 0)
    return fd


def iommufd(preserved=False):
    return memfd("luvfio-sim:iommufd" + ("+preserved" if preserved else ""))


def vfio(address):
    return memfd(f"luvfio-sim:vfio:{address}")


def digest(fd):
    h = hashlib.sha256()
    offset = 0
    while chunk := os.pread(fd, 1 << 20, offset):
        h.update(chunk)
        offset += len(chunk)
    return h.hexdigest()


def boottime_usec():
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000


class _Child:
    """The VMM itself."""

    def __init__(self, socket_path, name, options):
        self.path = socket_path
        self.name = name
        self.policy = {}
        self.ram_sizes = [options.get("ram_size", 64 * 1024)] * options.get("n_ram", 1)
        self.devices = list(options.get("devices", ()))
        self.late_devices = options.get("late_devices", False)
        self.iommufd_preserved = options.get("iommufd_preserved", any(a.endswith("+preserved") for a in self.devices))
        self.vmm = options.get("vmm", "fake-vmm 1")
        self.secret = options.get("secret")
        self.use_secret = options.get("use_secret", False)
        self.rng = random.Random(name)
        self.fds = {}  # name -> (kind, fd)
        self.maps = {}
        self.connection = None
        self.watch = None
        self.running = False
        self.counter = 0
        self.events = []
        self.errors = []
        self.digests = {}
        self.state = None
        self.registered = None
        self.incoming = {}
        self.frozen = False

    # Connections.

    def connect(self):
        if self.connection is None:
            self.connection = varlink.Connection(self.path)

    def _secret(self):
        return {"secret": self.secret} if self.secret and self.use_secret else {}

    def call(self, method, parameters=None, fds=()):
        self.connect()
        return self.connection.call(MACHINE + method, parameters, fds)

    def register(self):
        reply = self.call("Register", {"name": self.name, "vmm": self.vmm, **self._secret()})
        self.secret = reply["secret"]
        self.state = reply["state"]
        self.registered = reply.parameters
        return reply.parameters

    def start_watch(self):
        if self.watch:
            self.watch.close()
        self.watch = varlink.Connection(self.path)
        self.watch.send(MACHINE + "Watch", {"name": self.name, **self._secret()}, more=True)
        reply = self.watch.receive()
        self.events.append(reply.parameters)
        self.state = reply["state"]
        return reply.parameters

    def hang_up(self):
        for c in (self.connection, self.watch):
            if c:
                c.close()
        self.connection = self.watch = None

    # File descriptors.

    def make(self):
        """RAM with a pattern, an iommufd and devices, as far as they are not there."""
        for i, size in enumerate(self.ram_sizes):
            name = f"ram{i}"
            if name in self.fds:
                continue
            fd = memfd(f"{self.name}-{name}", size)
            block = self.rng.randbytes(PAGE)
            for offset in range(0, size, PAGE * 16):
                os.pwrite(fd, block, offset)
            self.fds[name] = ("memfd", fd)
        if self.devices and "iommufd" not in self.fds:
            self.fds["iommufd"] = ("iommufd", iommufd(self.iommufd_preserved))
        for address in self.devices:
            if f"device-{address}" not in self.fds:
                self.fds[f"device-{address}"] = ("vfio", vfio(address))

    def preserve(self, name, kind=None, fd=None):
        if fd is None:
            kind, fd = self.fds[name]
        return self.call(
            "Preserve", {"machine": self.name, "name": name, "kind": kind, "fileDescriptor": 0}, [fd]
        ).parameters["fileDescriptor"]

    def preserve_all(self, kinds=("memfd", "iommufd", "vfio")):
        return [self.preserve(name) for name, (kind, _) in self.fds.items() if kind in kinds]

    def start(self):
        """A fresh machine: registered, its fds handed over, watched, running."""
        self.connect()
        self.register()
        self.make()
        self.preserve_all(("memfd", "iommufd") if self.late_devices else ("memfd", "iommufd", "vfio"))
        self.start_watch()
        self._run()

    # vCPUs.

    def _run(self):
        for name, (kind, fd) in self.fds.items():
            if kind == "memfd" and name not in self.maps:
                self.maps[name] = mmap.mmap(fd, os.fstat(fd).st_size)
        self.running = True

    def _stop(self):
        self.running = False
        # What the test handed over behind its back it does not have.
        self.digests = {name: digest(fd) for name, (_, fd) in self.fds.items() if name.startswith("ram")}

    def _tick(self):
        self.counter += 1
        for m in self.maps.values():
            at = self.rng.randrange(0, len(m) - 8)
            m[at : at + 8] = self.counter.to_bytes(8, "little")

    # Events.

    def prepared(self):
        self.call("Prepared", {"machine": self.name})
        self.state = "prepared"

    def quiesced(self):
        stopped = boottime_usec()
        self._stop()
        self.fds.pop("state", None)
        document = json.dumps({"counter": self.counter, "digests": self.digests}).encode()
        self.fds["state"] = ("state", memfd(f"{self.name}-state", len(document), document))
        self.preserve("state")
        if self.late_devices:
            self.preserve_all(("vfio",))
        self.call("Quiesced", {"machine": self.name, "vcpusStoppedUSec": stopped})
        self.state = "quiesced"

    def committed(self):
        self.call("Committed", {"machine": self.name})
        self.state = "committed"

    def resumed(self):
        self._run()
        self.call("Resumed", {"machine": self.name, "vcpusRunningUSec": boottime_usec()})
        self.state = "running"

    def take_back(self):
        """Retrieves everything by name and holds it against the state that was saved."""
        wanted = {}
        for d in self.registered["fileDescriptors"]:
            if d["outcome"] == "rebuilt":
                continue
            reply = self.call("Retrieve", {"machine": self.name, "name": d["name"]})
            if len(reply.fds) != 1:
                raise AssertionError(f"Retrieve of {d['name']} gave {len(reply.fds)} fds")
            if reply["description"]["name"] != d["name"]:
                raise AssertionError(f"Retrieve of {d['name']} gave {reply['description']}")
            wanted[d["name"]] = (d["kind"], reply.take_fd(reply["fileDescriptor"]))
        state = json.loads(os.pread(wanted["state"][1], 1 << 20, 0))
        self.counter = state["counter"]
        missing = set(state["digests"]) - set(wanted)
        if missing:
            raise AssertionError(f"{self.name}: {missing} did not come back")
        self.digests = {name: digest(wanted[name][1]) for name in state["digests"]}
        if self.digests != state["digests"]:
            raise AssertionError(f"{self.name}: RAM is not what it was at quiesce")
        self.fds = wanted
        self.devices = [n.removeprefix("device-") for n, (k, _) in wanted.items() if k == "vfio"]
        return self.digests

    def resume(self):
        """After the jump, in a new process: all the way to running. Waits for the resume event if it has to."""
        self.connect()
        self.register()
        self.start_watch()
        if self.state == "restoring":
            self._wait_here("resume")
            self.register()
        self.take_back()
        self.resumed()
        # What this kernel cannot preserve is made anew.
        self.fds.pop("state", None)
        if self.devices and "iommufd" not in self.fds:
            self.fds["iommufd"] = ("iommufd", iommufd())
            self.preserve("iommufd")

    def _wait_here(self, event, timeout=varlink.TIMEOUT):
        deadline = time.monotonic() + timeout
        while not any(e["event"] == event for e in self.events):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.name}: no {event} event")
            if self.watch.pending() or select.select([self.watch], [], [], 0.1)[0]:
                self._on_watch()

    def _on_watch(self):
        try:
            reply = self.watch.receive()
        except varlink.Disconnected:
            self.events.append({"event": "disconnected", "state": self.state})
            self.watch.close()
            self.watch = None
            return
        self.events.append(reply.parameters)
        self.state = reply["state"]
        self._act(reply["event"])

    def _act(self, event):
        what = self.policy.get(event, ANSWER)
        if what == SILENT:
            return
        if what == FROZEN:
            self.frozen = True
            return
        if what == DIE:
            os.kill(os.getpid(), signal.SIGKILL)
        if what == HANG_UP:
            self.hang_up()
            return
        answer = {
            "prepare": self.prepared,
            "quiesce": self.quiesced,
            "commit": self.committed,
            "abort": self.resumed,
        }.get(event)
        if answer:
            try:
                answer()
            except (varlink.Error, OSError, varlink.Disconnected, TimeoutError) as e:
                self.errors.append(f"{event}: {e}")
        if what == DIE_AFTER:
            os.kill(os.getpid(), signal.SIGKILL)
        if what == HANG_UP_AFTER:
            self.hang_up()

    # The test's side asks.

    def set_policy(self, **policy):
        self.policy.update(policy)

    def get(self, what):
        return getattr(self, what)

    def loop(self, pipe):
        while True:
            waiting = [pipe]
            if self.watch and not self.frozen:
                waiting.append(self.watch)
            # What came with something else is in our buffer, where select() does not see it.
            pending = self.watch is not None and not self.frozen and self.watch.pending()
            ready = select.select(waiting, [], [], 0 if pending else 0.005 if self.running else None)[0]
            if pending or (self.watch and self.watch in ready):
                try:
                    self._on_watch()
                except Exception as e:  # pylint: disable=broad-except
                    self.errors.append("".join(traceback.format_exception(e)))
            if pipe in ready:
                try:
                    name, args, parameters = pipe.recv()
                except EOFError:
                    return
                try:
                    pipe.send((True, getattr(self, name)(*args, **parameters)))
                except BaseException as e:  # pylint: disable=broad-except
                    if isinstance(e, varlink.Error):
                        pipe.send((False, (e.error, e.parameters)))
                    else:
                        pipe.send((None, "".join(traceback.format_exception(e))))
            if self.running:
                self._tick()


class Died(Exception):
    """The VMM's process is gone."""


class Vmm:
    """The test's end of a VMM. Every public method of the child can be called here."""

    def __init__(self, socket_path, name, uid=None, before=None, **options):
        self.name = name
        ours, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                # Nothing of the test's may stay open here: a connection that the test closes has to be closed.
                keep = theirs.fileno()
                os.dup2(keep, 3)
                os.closerange(4, 65536)
                if before:
                    before()
                if uid is not None:
                    os.setgroups([])
                    os.setresgid(uid, uid, uid)
                    os.setresuid(uid, uid, uid)
                _Child(str(socket_path), name, options).loop(multiprocessing.connection.Connection(3))
                status = 0
            except BaseException:  # pylint: disable=broad-except
                traceback.print_exc()
            finally:
                os._exit(status)
        theirs.close()
        self.pipe = multiprocessing.connection.Connection(ours.detach())
        self.status = None

    def __getattr__(self, method):
        def remote(*args, **parameters):
            try:
                self.pipe.send((method, args, parameters))
                if not self.pipe.poll(varlink.TIMEOUT * 2):
                    raise TimeoutError(f"{self.name}: {method} hangs")
                good, result = self.pipe.recv()
            except (EOFError, BrokenPipeError, ConnectionResetError):
                raise Died(f"{self.name} died in {method}") from None
            if good:
                return result
            if good is None:
                raise AssertionError(f"{self.name}: {method}:\n{result}")
            raise varlink.Error(*result)

        return remote

    def event_names(self):
        return [e["event"] for e in self.get("events")]

    def wait_event(self, event, count=1, timeout=varlink.TIMEOUT):
        """The COUNT-th event of that name."""
        deadline = time.monotonic() + timeout
        while True:
            found = [e for e in self.get("events") if e["event"] == event]
            if len(found) >= count:
                return found[count - 1]
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.name}: no {event} event no. {count}, only {self.event_names()}")
            time.sleep(0.01)

    def alive(self):
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = status
        return self.status is None

    def wait_dead(self, timeout=varlink.TIMEOUT):
        """The signal that ended it, or 0."""
        deadline = time.monotonic() + timeout
        while self.alive():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.name} lives on")
            time.sleep(0.01)
        return os.WTERMSIG(self.status) if os.WIFSIGNALED(self.status) else 0

    def kill(self, number=signal.SIGKILL):
        if self.alive():
            os.kill(self.pid, number)
            os.waitpid(self.pid, 0)
            self.status = number

    def close(self):
        self.kill()
        self.pipe.close()
