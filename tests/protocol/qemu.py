# SPDX-License-Identifier: LGPL-2.1-or-later
"""luvfio-qemu with a real QEMU (emulation, no devices) as a machine of a simulated host, and what a service manager does for it.

The guest is a boot sector that counts: each number it says has to follow the one before, whatever happened in between.
"""

import array
import contextlib
import os
import pathlib
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

import tap
from luvfiod import program

QEMU = "qemu-system-x86_64"
GUEST = pathlib.Path(__file__).resolve().parents[1] / "agents" / "guest.S"
# How long things may take that take a second on a machine with nothing else to do.
TIMEOUT = 60.0
# Exit codes of luvfio-qemu.
GOOD, AGAIN, FAILED = 0, 1, 3
KILLED = -signal.SIGKILL

# Puts the file descriptors into the places in which a service manager hands them over; the last of them is the log.
LAUNCH = """
import fcntl, os, sys
n, names, log = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
fds = [fcntl.fcntl(int(a), fcntl.F_DUPFD, 512) for a in sys.argv[4:4 + n]] if n else []
os.dup2(log, 1)
os.dup2(log, 2)
os.closerange(3, 512)
for i, fd in enumerate(fds):
    os.dup2(fd, 3 + i)
os.closerange(512, 2048)
if n:
    os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(n), LISTEN_FDNAMES=names)
os.execv(sys.argv[4 + n], sys.argv[4 + n:])
"""


def why_not():
    """Why nothing of this can be run here; None if it can."""
    if not shutil.which(QEMU):
        return f"there is no {QEMU}"
    said = subprocess.run([QEMU, "--version"], capture_output=True, text=True, check=False).stdout
    version = re.search(r"version (\d+)\.(\d+)", said)
    if not version or (int(version[1]), int(version[2])) < (10, 1):
        return f"QEMU {version[0] if version else '?'} is too old; 10.1 is wanted"
    if not shutil.which(os.environ.get("CC", "cc").split()[0]) or not shutil.which("objcopy"):
        return "there is no C compiler"
    return None


def build_guest(folder):
    image = folder / "guest.img"
    cc = os.environ.get("CC", "cc").split()
    subprocess.run([*cc, "-c", "-o", folder / "guest.o", GUEST], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", folder / "guest.o", image], check=True)
    os.truncate(image, 1 << 20)
    return image


class Store:
    """The part of a service manager that keeps file descriptors for a service."""

    def __init__(self, path):
        self.path = path
        self.lock = threading.Lock()
        self.stored = []  # (name, fd)
        self.ready = 0
        self.flushed = threading.Event()
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self):
        while True:
            text, control, _, _ = self.socket.recvmsg(65536, socket.CMSG_SPACE(64 * struct.calcsize("i")))
            if text == b"end":
                return
            if text == b"flush":
                self.flushed.set()
                continue
            fds = array.array("i")
            for _, kind, data in control:
                if kind == socket.SCM_RIGHTS:
                    fds.frombytes(data)
            fields = dict(line.split("=", 1) for line in text.decode().splitlines())
            with self.lock:
                self._take(fields, list(fds))

    def _take(self, fields, fds):
        name = fields.get("FDNAME", "stored")
        self.ready += fields.get("READY") == "1"
        if fields.get("FDSTORE") == "1":
            for fd in fds:
                # The same file is not kept twice.
                if any(n == name and os.path.sameopenfile(f, fd) for n, f in self.stored):
                    os.close(fd)
                else:
                    self.stored.append((name, fd))
            return
        if fields.get("FDSTOREREMOVE") == "1":
            fds += [f for n, f in self.stored if n == name]
            self.stored = [(n, f) for n, f in self.stored if n != name]
        for fd in fds:
            os.close(fd)

    def items(self):
        # What was sent before is there.
        self.flushed.clear()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
            s.sendto(b"flush", str(self.path))
        self.flushed.wait(10)
        with self.lock:
            return list(self.stored)

    def names(self):
        return sorted(n for n, _ in self.items())

    def clear(self):
        """As another kernel has it."""
        with self.lock:
            for _, fd in self.stored:
                os.close(fd)
            self.stored = []

    def close(self):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
            s.sendto(b"end", str(self.path))
        self.thread.join()
        self.socket.close()
        self.clear()


class Process:
    """A process that is not our child."""

    def __init__(self, pid):
        self.pid = pid

    def state(self):
        try:
            return pathlib.Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return None

    def alive(self):
        return self.state() not in (None, "Z", "X")

    def kill(self, number=signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def fds(self):
        found = {}
        for n in os.listdir(f"/proc/{self.pid}/fd"):
            # Closed in this moment
            with contextlib.suppress(FileNotFoundError):
                found[int(n)] = os.readlink(f"/proc/{self.pid}/fd/{n}")
        return found

    def zombies(self):
        """Those of its children that nobody has waited for."""
        found = []
        for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                rest = stat.read_text().rpartition(")")[2].split()
                if rest[0] == "Z" and int(rest[1]) == self.pid:
                    found.append(stat.parent.name)
        return found


class Machine:
    """A luvfio-qemu, the service manager that runs it, its QEMU and its guest, at the simulated host D."""

    def __init__(self, d, name="count", start=True, options=(), monitor=False, memory=None, machine="aux-ram-share=on", extra=()):
        self.d = d
        self.name = name
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="luvfio-qemu-"))
        self.runtime = self.folder / "agent"
        self.serial = self.folder / "serial"
        self.log_path = self.folder / "log"
        self.config = self.folder / "qemu.conf"
        self.qmp_path = self.folder / "qmp"
        self.program = self.folder / "qemu"
        self.program.symlink_to(shutil.which(QEMU))
        self.options = list(options)
        self.monitor = monitor
        self.store = Store(self.folder / "notify")
        self.image = build_guest(self.folder)
        self.process = None
        self.by_hand = None
        if memory is None:
            memory = ["-object", "memory-backend-memfd,id=ram,size=64M,share=on"]
        if memory:
            machine = f"memory-backend=ram,{machine}" if machine else "memory-backend=ram"
        self.command = [
            str(self.program), "-name", name, "-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg", "-m", "64M",
            "-machine", f"q35,{machine}" if machine else "q35", *memory,
            "-chardev", f"file,id=serial,path={self.serial},append=on", "-serial", "chardev:serial",
            "-drive", f"file={self.image},format=raw,if=none,id=disk", "-device", "virtio-blk-pci,drive=disk",
            "-qmp", f"unix:{self.qmp_path},server=on,wait=off", *extra,
        ]
        self.write_config()
        d.machines_of_qemu = [*getattr(d, "machines_of_qemu", []), self]
        if start:
            self.start()
            self.wait_running()

    def write_config(self):
        lines, words = [self.command[0]], self.command[1:]
        while words:
            line = words.pop(0)
            if words and not words[0].startswith("-"):
                line += " " + words.pop(0)
            lines.append(line)
        self.config.write_text("# a machine\n\n" + "\n".join(lines) + "\n")

    # luvfio-qemu.

    def start(self):
        if self.process is not None and self.process.poll() is None:
            raise AssertionError("luvfio-qemu runs")
        what = ["--monitor", str(self.qmp_path)] if self.monitor else ["--config", str(self.config)]
        command = [program("LUVFIO_QEMU"), "--name", self.name, "--runtime-dir", str(self.runtime), "--stop-timeout", "1",
                   *self.options, *what]
        environment = {**os.environ, "LUVFIO_SOCKET": str(self.d.machine_path), "NOTIFY_SOCKET": str(self.store.path)}
        environment.setdefault("ASAN_OPTIONS", "detect_leaks=1:abort_on_error=0:exitcode=99")
        environment.setdefault("UBSAN_OPTIONS", "print_stacktrace=1:halt_on_error=1:exitcode=99")
        stored = self.store.items()
        with open(self.log_path, "ab") as log:
            fds = [fd for _, fd in stored]
            self.process = subprocess.Popen(
                [sys.executable, "-c", LAUNCH, str(len(fds)), ":".join(n for n, _ in stored), str(log.fileno()), *map(str, fds), *command],
                stdin=subprocess.DEVNULL, pass_fds=[log.fileno(), *fds], env=environment)

    @property
    def agent(self):
        return Process(self.process.pid)

    def kill(self):
        self.process.kill()
        self.process.wait(TIMEOUT)

    def freeze(self):
        """luvfio-qemu does nothing until it is told to thaw."""
        self.process.send_signal(signal.SIGSTOP)
        self.d.wait_for(lambda: self.agent.state() == "T", "luvfio-qemu stands")

    def thaw(self):
        self.process.send_signal(signal.SIGCONT)

    def wait_end(self, code, timeout=TIMEOUT):
        try:
            got = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"luvfio-qemu does not end:\n{self.log()}") from None
        if got != code:
            raise AssertionError(f"luvfio-qemu ended with {got}, not {code}:\n{self.log()}")

    def log(self):
        return self.log_path.read_text(errors="replace")[-4000:] if self.log_path.exists() else ""

    # luvfiod.

    def state(self):
        m = self.d.machines().get(self.name)
        return m["state"] if m else None

    def wait_state(self, state, timeout=TIMEOUT):
        self._wait(lambda: self.state() == state, f"machine {self.name} to be {state}", timeout)

    def wait_running(self, timeout=TIMEOUT):
        """luvfiod has it attached, with its files, and the guest counts."""

        def there():
            m = self.d.machines().get(self.name)
            return m and m["state"] == "running" and m["attached"] and m["fileDescriptors"] > 0

        self._wait(there, f"machine {self.name} to run", timeout)
        self.wait_count()

    def _wait(self, condition, what, timeout=TIMEOUT):
        deadline = time.monotonic() + timeout
        while not condition():
            if self.process.poll() is not None:
                raise AssertionError(f"luvfio-qemu ended with {self.process.returncode}, waited for {what}:\n{self.log()}")
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {timeout} s in vain for {what}, it is {self.d.machines().get(self.name)}:\n{self.log()}")
            time.sleep(0.02)

    def blockers(self):
        return [f for f in self.d.findings() if f["severity"] == "blocker" and f.get("machine") == self.name]

    # QEMU.

    def qemu(self):
        """The one that luvfio-qemu has noted."""
        return Process(int((self.runtime / "qemu").read_text().split()[0]))

    def start_by_hand(self, pass_fds=()):
        """QEMU, as its user would start it."""
        self.by_hand = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=pass_fds)
        self.d.wait_for(self._qmp_answers, "QEMU's monitor", TIMEOUT)

    def _qmp_answers(self):
        with socket.socket(socket.AF_UNIX) as s:
            try:
                s.connect(str(self.qmp_path))
                s.settimeout(5)
                return b"QMP" in s.recv(4096)
            except OSError:
                return False

    def qmp(self, command, **arguments):
        """A command at the monitor that is not luvfio-qemu's."""
        import json  # pylint: disable=import-outside-toplevel

        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(TIMEOUT)
            s.connect(str(self.qmp_path))
            f = s.makefile("rw")
            f.readline()
            for c, a in (("qmp_capabilities", {}), (command, arguments)):
                f.write(json.dumps({"execute": c, "arguments": a}) + "\n")
                f.flush()
                while "event" in (reply := json.loads(f.readline())):
                    pass
            if "error" in reply:
                raise AssertionError(f"QEMU: {reply}")
            return reply["return"]

    def leftovers(self):
        """QEMUs of this machine that live."""
        found = []
        for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if f"file={self.image},format=raw".encode() in path.read_bytes():
                    found.append(Process(int(path.parent.name)))
        return found

    # The guest.

    def said(self):
        text = self.serial.read_text() if self.serial.exists() else ""
        return text.split("\n")[:-1]

    def wait_count(self, more=3, timeout=TIMEOUT):
        """The guest goes on."""
        before = len(self.said())
        self.d.wait_for(lambda: len(self.said()) >= before + more, f"the guest to count on from {before}", timeout)

    def stands(self):
        """The guest does not go on."""
        before = len(self.said())
        time.sleep(0.5)
        return len(self.said()) == before

    def verify(self, starts=1):
        """It has missed nothing and repeated nothing, and begun STARTS times."""
        lines, expected, begun = self.said(), 1, 1
        for n, line in enumerate(lines):
            if line == "00000001" and n > 0:
                begun, expected = begun + 1, 1
            tap.equal(line, f"{expected:08X}", f"what the guest says in line {n + 1}, after {lines[max(0, n - 3):n]}")
            expected += 1
        tap.equal(begun, starts, f"how often the guest has begun, in {len(lines)} lines")

    # Updates.

    def update(self, fakes=(), kexec=True, **parameters):
        """A whole one that goes well: the new fake VMMs."""
        replies = self.d.jump(**parameters)
        if replies and replies[-1].get("report"):
            raise AssertionError(f"the update ended before the jump: {replies[-1].parameters}\n{self.log()}")
        self.jumped(kexec)
        self.start()
        return self.come_back(fakes)

    def jumped(self, kexec=True):
        """Of the old kernel nothing is left; unless KEXEC, processes are."""
        self.wait_end(KILLED)
        if kexec:
            for q in self.leftovers():
                q.kill()
            self.store.clear()

    def come_back(self, fakes=()):
        new = self.d.resume(fakes)
        self.wait_running()
        self.d.wait_state("idle", TIMEOUT)
        tap.equal(self.d.last()["result"], "done", "result of the update")
        tap.equal(self.blockers(), [], "what speaks against another")
        self.verify()
        return new

    def close(self):
        """Ends everything; what is wrong with it."""
        problems = []
        if self.process is not None and self.process.poll() is None:
            if zombies := self.agent.zombies():
                problems.append(f"luvfio-qemu has children that it did not wait for: {zombies}")
            self.thaw()
            self.kill()
        for q in self.leftovers():
            q.kill()
        if self.by_hand:
            self.by_hand.wait(TIMEOUT)
        self.store.close()
        log = self.log_path.read_text(errors="replace") if self.log_path.exists() else ""
        for line in log.splitlines():
            if re.search(r"(Address|Leak|UndefinedBehavior)Sanitizer|runtime error:|Assertion .* failed", line):
                problems.append(line)
        shutil.rmtree(self.folder, ignore_errors=True)
        return problems


@contextlib.contextmanager
def machines(d):
    """All machines of QEMU that are made inside are ended, and what is wrong with them is said."""
    try:
        yield
    except BaseException as e:
        for m in getattr(d, "machines_of_qemu", []):
            e.add_note(f"{m.name}:\n{m.log()}")
            m.close()
        raise
    problems = [p for m in getattr(d, "machines_of_qemu", []) for p in m.close()]
    if problems:
        raise AssertionError("; ".join(problems[:5]))
