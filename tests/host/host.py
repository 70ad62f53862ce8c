# SPDX-License-Identifier: LGPL-2.1-or-later
"""Boots the test host and runs scripts in it, one before and one after a live update. See README.md."""

import argparse
import ctypes
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "lib")]

# pylint: disable=wrong-import-position
import full  # noqa: E402
import image  # noqa: E402
import machine  # noqa: E402
import virt  # noqa: E402
from luvtest import progress  # noqa: E402
from luvtest.paths import CACHE, CHECKOUT  # noqa: E402

EXIT_SCRIPT = 1     # a script failed
EXIT_USAGE = 2
EXIT_STALL = 3      # a deadline passed
EXIT_DIED = 4       # the machine was reset, panicked or went away
EXIT_OUTSIDE = 5    # the outside script failed
EXIT_SETUP = 6      # image or kernel could not be made


def parse_arguments(argv):
    p = argparse.ArgumentParser(
        prog="tests/host/host", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Boots the test host, a QEMU machine with an emulated IOMMU and devices, and runs SCRIPTs in it: "
        "the first one in the first boot, the next one after the live update that the first one makes, and so on.",
        epilog="A SCRIPT is any executable file, or sh:TEXT. Exit code: 0 all scripts ran and succeeded, 1 one "
        "failed, 2 usage, 3 a deadline passed, 4 the machine died, 5 the outside script failed, 6 image or kernel "
        "could not be made. See tests/host/README.md.")
    p.add_argument("scripts", nargs="+", metavar="SCRIPT")
    p.add_argument("--image", choices=["tiny", "full", "virt"], default="tiny")
    p.add_argument("--suite", choices=["forky", "trixie", "sid"], default="forky", help="of the full and the virt image")
    p.add_argument("--kernel", default="a", metavar="KERNEL",
                   help="booted first, /boot/vmlinuz-a: a variant of kernel/kernel, a folder with bzImage, or a file")
    p.add_argument("--next", default="b", metavar="KERNEL", help="/boot/vmlinuz-b")
    p.add_argument("--device", action="append", default=[], metavar="KIND[,PROPERTY=VALUE...][@PLACE]",
                   help="igb, nvme, virtio-rng, edu or any of QEMU's; PLACE is root-port, switch, pxb or root")
    p.add_argument("--iommu", action="append", default=[], metavar="PROPERTY=VALUE",
                   help="of the IOMMU, instead of intremap=on and caching-mode=on")
    p.add_argument("--no-iommu", action="store_true")
    p.add_argument("--cpu", default=None, help="(default: max; virt: max,+svm, for KVM inside)")
    p.add_argument("--smp", type=int, default=2)
    p.add_argument("-m", "--memory", default=None, help="MiB (default: 1024 tiny, 2048 full, 3072 virt)")
    p.add_argument("--accel", default="tcg")
    p.add_argument("--append", action="append", default=[], metavar="TEXT", help="more kernel command line")
    p.add_argument("--file", action="append", default=[], metavar="SRC:DST",
                   help="put a file or folder in; in the tiny image a dynamic program's libraries come along")
    p.add_argument("--overlay", action="append", default=[], metavar="DIR", help="put a DESTDIR tree in")
    p.add_argument("--trace", action="append", default=[], metavar="EVENT",
                   help="QEMU trace event (patterns allowed; default: see README.md; 'none' for none)")
    p.add_argument("--outside", metavar="SCRIPT", help="run on QEMU's side while the machine runs")
    p.add_argument("--qemu", action="append", default=[], metavar="ARG", help="one more argument for QEMU")
    p.add_argument("--reboot-ok", action="store_true", help="a cold reboot is not a failure")
    p.add_argument("-o", "--out", metavar="DIR", help="output folder (default: a new one in the cache folder)")
    p.add_argument("--boot-deadline", type=float, default=300, metavar="S", help="from start to the first script")
    p.add_argument("--jump-deadline", type=float, default=300, metavar="S",
                   help="from a script's end to the next boot's script")
    p.add_argument("--script-deadline", type=float, default=300, metavar="S", help="for each script")
    p.add_argument("--keep", action="store_true", help="keep the disks")
    p.add_argument("-q", "--quiet", action="store_true", help="do not show what the scripts print")
    args = p.parse_args(argv)
    args.memory = args.memory or {"tiny": "1024", "full": "2048", "virt": "3072"}[args.image]
    args.cpu = args.cpu or (virt.CPU if args.image == "virt" else "max")
    return args


def resolve_kernel(what):
    """The bzImage of a variant, folder or file."""
    path = Path(what)
    if re.fullmatch(r"[a-z][a-z0-9-]*", what) and not path.exists():
        script = CHECKOUT / "kernel/kernel"
        if not script.exists():
            raise machine.Usage(f"there is no {script} to build kernel {what} with")
        built = subprocess.run([script, "build", what], check=False, stdout=subprocess.PIPE, text=True)
        if built.returncode:
            raise progress.Failed(f"kernel/kernel build {what} failed")
        path = Path(built.stdout.strip().splitlines()[-1])
    if path.is_dir():
        path = path / "bzImage"
    if not path.is_file():
        raise machine.Usage(f"no kernel {path}")
    return path.resolve()


def read_script(text):
    if text.startswith("sh:"):
        return b"#!/bin/sh\n" + text[3:].encode() + b"\n"
    path = Path(text)
    if not path.is_file():
        raise machine.Usage(f"no script {text}")
    return path.read_bytes()


def parse_file(text):
    source, sep, to = text.partition(":")
    if not sep or not to.startswith("/"):
        raise machine.Usage(f"--file {text}: SRC:DST with an absolute DST is needed")
    if not Path(source).exists():
        raise machine.Usage(f"--file {text}: there is no {source}")
    return Path(source), to


class Qmp:
    """The control connection: what happens to the machine, and its end."""

    def __init__(self, path, deadline):
        self.buffer = b""
        while True:
            self.socket = socket.socket(socket.AF_UNIX)
            try:
                self.socket.connect(path)
                break
            except OSError:
                self.socket.close()
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        self.send("qmp_capabilities")
        self.socket.setblocking(False)

    def send(self, command):
        self.socket.sendall(json.dumps({"execute": command}).encode() + b"\n")

    def events(self):
        try:
            while data := self.socket.recv(65536):
                self.buffer += data
        except (BlockingIOError, ConnectionError):
            pass
        *lines, self.buffer = self.buffer.split(b"\n")
        return [m for m in (json.loads(line) for line in lines if line.strip()) if "event" in m]


class End(Exception):
    """The run is over."""

    def __init__(self, verdict, code, reason=""):
        super().__init__(reason)
        self.verdict, self.code, self.reason = verdict, code, reason


class Run:
    def __init__(self, args, out):
        self.args = args
        self.out = out
        self.scripts = []
        self.boots = []
        self.events = []
        self.buffer = b""
        self.line_start = True
        self.current = None         # the script whose output comes now
        self.output = None
        self.process = None
        self.outside = None
        self.qmp = None
        self.cold = False
        self.died = None
        self.start = time.monotonic()

    # -- set up -------------------------------------------------------------------------------------------

    def prepare(self):
        args, out = self.args, self.out
        kernels = {"a": resolve_kernel(args.kernel), "b": resolve_kernel(args.next)}
        scripts = [read_script(s) for s in args.scripts]
        files = [parse_file(f) for f in args.file]
        for overlay in args.overlay:
            if not Path(overlay).is_dir():
                raise machine.Usage(f"--overlay {overlay}: not a folder")

        for name in ("serial.log", "talk.log", "trace.log", "result.json"):
            (out / name).unlink(missing_ok=True)
        for old in [*out.glob("*.sock"), *out.glob("*.out")]:
            old.unlink()
        shutil.rmtree(out / "files", ignore_errors=True)

        initrd = image.tiny() if args.image == "tiny" else None
        disks = []
        if args.image != "tiny":
            base = {"full": full.full, "virt": virt.virt}[args.image](args.suite)
            overlay = out / "root.qcow2"
            overlay.unlink(missing_ok=True)
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base), "-F", "raw", str(overlay)],
                           check=True)
            disks.append(("luvroot", overlay, "qcow2"))
        image.run_disk(out / "run.raw", out, kernels, initrd, scripts, files, [Path(o) for o in args.overlay],
                       args.image == "tiny")
        with open(out / "out.raw", "wb") as f:
            f.truncate((1 << 20) + (64 << 20) * (len(scripts) + 1))
        disks += [("luvrun", out / "run.raw", "raw"), ("luvout", out / "out.raw", "raw")]

        # Without no_timer_check a slow emulator makes the kernel believe that the timer is broken, and panic.
        cmdline = ["console=ttyS0", "kho=on", "liveupdate=on", "panic=-1", "no_timer_check", "tsc=reliable",
                   f"tsc_early_khz={machine.tsc_khz()}"]
        if not args.no_iommu:
            cmdline.append("intel_iommu=on")
        if args.image != "tiny":
            # Without the console's sizes PID 1 asks a terminal that does not answer.
            cmdline += ["root=/dev/vda", "rw", "init=/usr/lib/luvhost/first-boot", "systemd.tty.term.console=vt220",
                        "systemd.tty.rows.console=25", "systemd.tty.columns.console=80", "systemd.show_status=no"]
        environment = {
            "LUV_OUT": str(out), "LUV_QMP": str(out / "qmp.sock"), "LUV_HMP": str(out / "hmp.sock"),
            "LUV_QTEST": str(out / "qtest.sock"), "LUV_SERIAL": str(out / "serial.log"),
            "LUV_TALK": str(out / "talk.log"), "LUV_TRACE": str(out / "trace.log"),
        }
        command = machine.command(args, out, kernels["a"], initrd, disks, " ".join(cmdline + args.append),
                                  environment)
        (out / "qemu.sh").write_text("#!/bin/sh\nexec " + shlex.join(command) + "\n")
        self.scripts = [{"boot": n, "stage": self.stage(n), "script": s, "output": self.stage(n) + ".out",
                         "exit": None, "jumped": False} for n, s in enumerate(args.scripts, 1)]
        return command, environment

    @staticmethod
    def stage(boot):
        return {1: "before", 2: "after"}.get(boot, f"boot{boot}")

    # -- talk ---------------------------------------------------------------------------------------------

    def say(self, text):
        progress.say(f"[{time.monotonic() - self.start:6.1f} s] {text}")

    def handle(self, words):
        now = time.monotonic() - self.start
        what, *rest = words
        if what == "boot":
            boot, uptime, boot_id, release = rest
            boot = int(boot)
            how = "first" if not self.boots else "cold" if self.cold else "live"
            self.cold = False
            if self.current:
                self.current["jumped"] = True
                self.close_output(now)
            self.boots.append({"boot": boot, "how": how, "release": release, "boot_id": boot_id,
                               "at": round(now, 3), "uptime": float(uptime)})
            self.say({"first": f"booted {release}", "live": f"live update to {release} done",
                      "cold": f"cold reboot into {release}"}[how] + f", {uptime} s after its start")
        elif what == "begin":
            self.current = self.scripts[int(rest[0]) - 1]
            self.current["begin"] = round(now, 3)
            self.output = open(self.out / self.current["output"], "wb")  # pylint: disable=consider-using-with
            self.say(f"{self.current['stage']} runs")
        elif what == "end":
            script = self.scripts[int(rest[0]) - 1]
            script["exit"] = int(rest[1])
            self.close_output(now)
            self.say(f"{script['stage']} ended with exit code {script['exit']}")

    def close_output(self, now):
        if self.output:
            self.output.close()
            self.output = None
        if self.current:
            self.current["end"] = round(now, 3)
        self.current = None

    def print_output(self, data):
        if self.output:
            self.output.write(data)
            self.output.flush()
        if self.args.quiet or not self.current:
            return
        for line in data.decode(errors="replace").splitlines():
            if line:
                progress.say(f"  {self.current['stage']}| {line}", sys.stdout)

    def read_talk(self):
        data = self.talk.read()
        if not data:
            return
        self.buffer += data
        *lines, self.buffer = self.buffer.split(b"\n")
        for n, line in enumerate(lines):
            match = re.fullmatch(rb"@luvhost (.*?)\r?", line)
            if match:
                self.handle(match[1].decode(errors="replace").split())
            # The guest puts an empty line before what it tells.
            elif line or not (n + 1 < len(lines) and lines[n + 1].startswith(b"@luvhost ")):
                self.print_output(line + b"\n")

    # -- run ----------------------------------------------------------------------------------------------

    def serial_tail(self, count=30):
        try:
            text = (self.out / "serial.log").read_bytes().decode(errors="replace")
        except OSError:
            return []
        return [re.sub(r"[^\t -~]", "", line) for line in text.splitlines()][-count:]

    def spawn(self, command, log, **kwargs):
        """A child that does not outlive us."""
        def die_with_parent():
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        with open(log, "wb") as f:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=f, stderr=subprocess.STDOUT,
                                    preexec_fn=die_with_parent, **kwargs)

    def poll_events(self):
        for event in self.qmp.events():
            name, data = event["event"], event.get("data", {})
            self.events.append({"at": round(time.monotonic() - self.start, 3), "event": name, "data": data})
            if name == "RESET" and data.get("guest"):
                self.cold = True
            if name == "SHUTDOWN":
                self.died = data.get("reason", "shutdown")

    def check_alive(self):
        if self.process.poll() is None and not self.died:
            return
        # What it said last is still to be read.
        self.read_talk()
        self.check_done()
        serial = "\n".join(self.serial_tail(80))
        if "Kernel panic" in serial:
            raise End("panic", EXIT_DIED, "the kernel panicked")
        if self.died == "guest-reset":
            raise End("reset", EXIT_DIED, "the machine was reset where a live update was expected")
        if self.died:
            raise End("shutdown", EXIT_DIED, f"the machine shut down ({self.died})")
        tail = (self.out / "qemu.log").read_text(errors="replace").strip().splitlines()[-5:]
        raise End("qemu", EXIT_DIED, f"QEMU ended with exit code {self.process.returncode}: " + " / ".join(tail))

    def check_done(self):
        for script in self.scripts:
            if script["exit"]:
                raise End("script failed", EXIT_SCRIPT, f"{script['stage']} ended with exit code {script['exit']}")
        if self.scripts[-1]["exit"] == 0:
            raise End("ok", 0)

    def check_deadline(self):
        """Whatever is waited for has its own deadline."""
        now = time.monotonic() - self.start
        args = self.args
        if self.current:
            if now > self.current["begin"] + args.script_deadline:
                raise End("stall", EXIT_STALL, f"{self.current['stage']} runs longer than {args.script_deadline:g} s")
        elif not self.boots:
            if now > self.launched + args.boot_deadline:
                raise End("stall", EXIT_STALL, f"no script ran within {args.boot_deadline:g} s of the start")
        else:
            since = max([b["at"] for b in self.boots] + [s["end"] for s in self.scripts if "end" in s])
            if now > since + args.jump_deadline:
                raise End("stall", EXIT_STALL,
                          f"boot {len(self.boots) + 1} was not reached within {args.jump_deadline:g} s")

    def execute(self):
        command, environment = self.prepare()
        self.launched = time.monotonic() - self.start
        self.say(f"starting the {self.args.image} image" + (f" ({self.args.suite})" if self.args.image != "tiny" else ""))
        (self.out / "talk.log").touch()
        self.talk = open(self.out / "talk.log", "rb")  # pylint: disable=consider-using-with
        self.process = self.spawn(command, self.out / "qemu.log", cwd=self.out)
        try:
            self.qmp = Qmp(str((self.out / "control.sock").relative_to(Path.cwd())
                               if (self.out / "control.sock").is_relative_to(Path.cwd())
                               else self.out / "control.sock"), time.monotonic() + 20)
        except OSError:
            self.died = None
            time.sleep(0.2)
            tail = (self.out / "qemu.log").read_text(errors="replace").strip().splitlines()[-5:]
            raise End("qemu", EXIT_SETUP, "QEMU did not start: " + " / ".join(tail)) from None
        if self.args.outside:
            self.outside = self.spawn([str(Path(self.args.outside).resolve())], self.out / "outside.out",
                                      cwd=self.out, env={**os.environ, **environment})
        while True:
            self.read_talk()
            self.poll_events()
            if self.outside and self.outside.poll():
                raise End("outside failed", EXIT_OUTSIDE,
                          f"the outside script ended with exit code {self.outside.returncode}")
            self.check_done()
            self.check_alive()
            self.check_deadline()
            time.sleep(0.02)

    def stop(self):
        if self.outside and self.outside.poll() is None:
            # It may be about to finish by itself, with a verdict of its own.
            try:
                self.outside.wait(2)
            except subprocess.TimeoutExpired:
                self.outside.terminate()
                try:
                    self.outside.wait(5)
                except subprocess.TimeoutExpired:
                    self.outside.kill()
                    self.outside.wait()
                self.outside.returncode = None
        if self.process and self.process.poll() is None:
            try:
                self.qmp.send("quit")
                self.process.wait(10)
            except (OSError, AttributeError, subprocess.TimeoutExpired):
                self.process.kill()
                self.process.wait()


def run(args):
    if args.out:
        out = Path(args.out)
    else:
        out = CACHE / "runs" / time.strftime(f"%Y%m%d-%H%M%S-{os.getpid()}")
    out.mkdir(parents=True, exist_ok=True)
    out = out.resolve()
    r = Run(args, out)

    def terminated(number, _frame):
        raise End("interrupted", 128 + number, f"signal {number}")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, terminated)

    try:
        r.execute()
    except End as e:
        end = e
    except machine.Usage as e:
        progress.say(f"tests/host/host: {e}")
        return EXIT_USAGE
    except (progress.Failed, subprocess.CalledProcessError) as e:
        progress.say(f"tests/host/host: {e}")
        return EXIT_SETUP
    finally:
        r.stop()

    if end.code == 0 and r.outside and r.outside.returncode:
        end = End("outside failed", EXIT_OUTSIDE, f"the outside script ended with exit code {r.outside.returncode}")
    files = image.extract_out(out / "out.raw", out / "files", len(r.boots) + 1) if r.boots else []
    result = {
        "ok": end.code == 0, "verdict": end.verdict, "reason": end.reason, "exit": end.code, "image": args.image,
        "scripts": r.scripts, "boots": r.boots, "events": r.events, "files": files,
        "outside": {"script": args.outside, "exit": r.outside.returncode} if r.outside else None,
        "duration": round(time.monotonic() - r.start, 3),
    }
    (out / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    if not args.keep:
        for disk in [*out.glob("*.raw"), *out.glob("*.qcow2")]:
            disk.unlink()
    for left in out.glob("*.sock"):
        left.unlink()

    if end.code in (EXIT_STALL, EXIT_DIED, EXIT_SETUP):
        r.say("the end of the serial log:")
        for line in r.serial_tail(60 if end.verdict == "panic" else 30):
            progress.say(f"      | {line}")
    r.say(f"{'ok' if end.code == 0 else 'FAILED: ' + (end.reason or end.verdict)}; everything is in {out}")
    return end.code


def main():
    sys.exit(run(parse_arguments(sys.argv[1:])))


if __name__ == "__main__":
    main()
