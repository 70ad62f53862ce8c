# SPDX-License-Identifier: LGPL-2.1-or-later
"""For scenarios with a Linux guest in QEMU in the virt image: what to put in, how to start it, and what its console's log
says afterwards. The guest itself: tests/lib/guest/README.md."""

import re
import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "lib"))
from luvtest import scenario, testguest  # noqa: E402 pylint: disable=wrong-import-position

# In the host: kernel and initramfs of the guest, and what its consoles say.
# Not below /usr: what libvirt confines by AppArmor gets nothing from there.
FOLDER = "/var/lib/luvguest"
LOGS = "/var/log/luvguest"
RUN = "/run/luvguest"

# Kernel messages that are no complaint: vCPUs have stood still, for longer than a deadline scheduler likes.
HARMLESS = ["sched: DL replenish lagged too much"]
# For the guest's command line: no more of fio than an emulated CPU does, and a slow heart (ms), for each character on a serial console is
# an exit. Guests that want more than there is wait for each other, and how long an I/O takes says nothing of the device.
BEAT = 500
CALM = f"luv.hb={BEAT} luv.jobs=1 luv.depth=4 luv.iops=20 luv.probe=200"
# What must not happen to a device, whatever else is said.
RESET = re.compile(r"reset|time(d )?out|I/O error|Abort|hung|NETDEV WATCHDOG|nobody cared|link is (up|down)", re.IGNORECASE)


def host(kernel="b"):
    """Arguments of the test host that put the guest into it. Variant b has drivers for all devices built in."""
    # One CPU: what the emulator gets wrong with more of them is in tests/host/README.md.
    return ["--smp", "1", "--file", f"{scenario.kernel(kernel)}/bzImage:{FOLDER}/vmlinuz", "--file", f"{testguest.initramfs()}:{FOLDER}/initrd",
            "--file", f"{Path(__file__).with_name('qemu.sh')}:{FOLDER}/qemu.sh"]


def kernel_command_line(**use):
    """The guest's, for a shell in the host."""
    # QEMU's HPET would go on ticking, though nobody needs it.
    return "console=ttyS0 quiet panic=-1 no_timer_check hpet=disable tsc=reliable $(tr ' ' '\\n' </proc/cmdline | grep tsc_early_khz=)" + "".join(
        f" luv.{key}={value}" for key, value in use.items() if value)


def words(name, *extra, devices=(), smp=1, memory=256, disk="", net="", append="", machine="q35", serial=True, qmp=True):
    """The words of a QEMU command line. DEVICES are PCI addresses, or texts in $() that give them; EXTRA are more arguments; DISK
    and NET are what the guest is to use (nvme0n1, eth0). Logs and the QMP socket are named for the guest."""
    w = ["qemu-system-x86_64", "-name", name, "-nodefaults", "-no-user-config", "-display", "none", "-accel", "kvm",
             "-cpu", "host", "-smp", str(smp), "-m", f"{memory}M", "-machine", f"{machine},memory-backend=ram,aux-ram-share=on",
             "-object", f"memory-backend-memfd,id=ram,size={memory}M,share=on",
             # Whether a reset was a triple fault: tests/host/README.md.
             "-d", "cpu_reset", "-D", f"{LOGS}/{name}.%d.reset"]
    if qmp:
        w += ["-qmp", f"unix:{RUN}/{name}.qmp,server=on,wait=off"]
    if serial:
        # What another QEMU said before stays.
        w += ["-chardev", f"file,id=serial,path={LOGS}/{name}.log,append=on", "-serial", "chardev:serial"]
    if devices:
        w += ["-object", "iommufd,id=iommufd0"]
    for n, device in enumerate(devices):
        w += ["-device", f"pcie-root-port,id=rp{n},chassis={n + 1},slot={n + 1}",
                  "-device", f"vfio-pci,host={device},iommufd=iommufd0,id=hostdev{n},bus=rp{n}"]
    kernel = kernel_command_line(disk=disk, net=net)
    w += [*extra, "-kernel", f"{FOLDER}/vmlinuz", "-initrd", f"{FOLDER}/initrd", "-append", f"{kernel} {append}".strip()]
    return w


def command(name, *extra, **parameters):
    """The same, for a shell in the host."""
    return " ".join('"' + w + '"' for w in words(name, *extra, **parameters))


def unit(name, *extra, append=CALM, **parameters):
    """Shell text that makes and starts luvfio-qemu@NAME.service, in this boot and in later ones."""
    program, *rest = words(name, *extra, qmp=False, append=append, **parameters)
    lines = [program] + [f"{a} {b}".strip() for a, b in pairs(rest)]
    return f"mkdir -p /etc/luvfio/qemu {LOGS}\ncat >/etc/luvfio/qemu/{name}.conf <<END\n" + "\n".join(lines) + \
        f"\nEND\nsystemctl enable --quiet --now luvfio-qemu@{name}\n"


DOMAIN = """<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
<name>{name}</name><memory unit='MiB'>{memory}</memory><vcpu>{smp}</vcpu>
<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>
<os><type arch='x86_64' machine='{machine}'>hvm</type><kernel>{folder}/vmlinuz</kernel><initrd>{folder}/initrd</initrd>
<cmdline>{append}</cmdline></os>
<features><acpi/><apic/></features><cpu mode='host-passthrough'/>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator><controller type='usb' model='none'/><memballoon model='none'/>
<serial type='pty'><log file='{logs}/{name}.log' append='on'/><target port='0'/></serial>
{hostdev}{more}</devices>
<qemu:commandline><qemu:arg value='-machine'/><qemu:arg value='aux-ram-share=on'/>
<qemu:arg value='-d'/><qemu:arg value='cpu_reset'/></qemu:commandline>
</domain>"""
HOSTDEV = """<hostdev mode='subsystem' type='pci' managed='no'><driver name='vfio' iommufd='yes'/>
<source><address domain='0x$(echo {d} | cut -d: -f1)' bus='0x$(echo {d} | cut -d: -f2)'
slot='0x$(echo {d} | cut -d: -f3 | cut -d. -f1)' function='0x$(echo {d} | cut -d. -f2)'/></source></hostdev>"""


def domain(name, device="", smp=1, memory=256, disk="", net="", machine="q35", more="", append=CALM):
    """Shell text that defines such a guest as a domain of libvirt."""
    xml = DOMAIN.format(name=name, memory=memory, smp=smp, machine=machine, folder=FOLDER, logs=LOGS, more=more,
                        append=f"{kernel_command_line(disk=disk, net=net)} {append}", hostdev=HOSTDEV.format(d=device) if device else "")
    return f"cat >/tmp/{name}.xml <<END\n{xml}\nEND\nmust 'domain {name}' virsh define /tmp/{name}.xml\n"


def pairs(options):
    """Options with their values, or with nothing."""
    result = []
    for w in options:
        if w.startswith("-") or result[-1][1]:
            result.append([w, ""])
        else:
            result[-1][1] = w
    return [(a, b) for a, b in result]


# Frames to a guest's NIC in each boot of the host.
FRAMES = 20


def nic(tap, driver):
    """For a domain: such a NIC, by DRIVER vhost or qemu."""
    return f"<interface type='ethernet'><target dev='{tap}'/><model type='virtio'/><driver name='{driver}'/></interface>"



# Shell text: what scenarios with guests have inside the host.
SHELL = r"""
logs=/var/log/luvguest
# heard NAME PATTERN: it said so.
heard() {
        grep -Eq "$2" $logs/$1.log
}
# begins NAME PATTERN: it says so, which on a busy machine takes it minutes.
begins() {
        wait_for 400 heard $1 "$2"
}
# beats NAME: its last heartbeat but one: the last line may not be whole.
beats() {
        grep '^HB ' $logs/$1.log | tail -n 2 | head -n 1 | cut -d' ' -f2
}
# settled NAME...: it has heard all that waited for it while it started; from here on nothing may be missing.
settled() {
        for vm; do
                beats $vm >/out/settled.$vm
        done
}
# goes_on NAME BEATS: it has gone on since.
goes_on() {
        [ "$(beats $1)" -gt "$2" ]
}
# forgotten DOMAIN...: libvirt does not know any more how they came, for which its daemon was started anew. (It answers.)
forgotten() {
        for vm; do
                virsh dumpxml $vm >/tmp/$vm.live && ! grep -e -incoming /tmp/$vm.live || return 1
        done
}
# frames INTERFACE: sends this boot's frames, as guests expect them, ten a second.
frames() {
        python3 - "$1" $(((LUV_BOOT - 1) * @FRAMES@)) @FRAMES@ <<'END'
import socket, sys, time
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind((sys.argv[1], 0))
for n in range(int(sys.argv[2]), int(sys.argv[2]) + int(sys.argv[3])):
    head = b"\xff" * 6 + b"\x02\0\0\0\0\1" + b"\x88\xb5" + b"%d\0" % n
    s.send(head + bytes((n + k) & 0xff for k in range(len(head), 64)))
    time.sleep(0.1)
END
}
""".replace("@FRAMES@", str(FRAMES))


class Log:
    """What a guest said. TEXT is the whole log, of all QEMUs that the guest was in."""

    def __init__(self, text, resets=()):
        self.resets = resets    # its vCPUs' registers at each
        self.starts = 0
        self.boot_ids = []
        self.uptimes = []
        self.beats = []         # (number, monotonic, boottime, gap in ms)
        self.disks = defaultdict(list)      # name: [(number of the heartbeat before, {what: value})]
        self.nets = defaultdict(list)
        self.errors = []
        self.messages = []
        self.garbled = []
        self.ended = False
        # What is after the last end of line was not said to its end.
        for line in text.split("\n")[:-1]:
            self._line(line.rstrip("\r"))

    def _line(self, line):
        word, _, rest = line.partition(" ")
        beat = self.beats[-1][0] if self.beats else 0
        if word == "HB":
            m = re.fullmatch(r"(\d+) (\d+\.\d+) (\d+\.\d+) (\d+) (\d+)", rest)
            if m:
                self.beats.append((int(m[1]), float(m[2]), float(m[3]), int(m[4])))
            else:
                self.garbled.append(line)
        elif word == "START":
            self.starts += 1
        elif word == "ID":
            values = dict(v.partition("=")[::2] for v in rest.split())
            self.boot_ids.append(values.get("boot"))
            self.uptimes.append(float(values.get("uptime", "nan")))
        elif word in ("DISK", "NET"):
            name, *values = rest.split()
            values = {k: int(v) for k, _, v in (w.partition("=") for w in values)}
            (self.disks if word == "DISK" else self.nets)[name].append((beat, values))
        elif word == "DMESG":
            self.messages.append(rest)
        elif word == "END":
            self.ended = True
        elif word in ("ERROR", "FIO-ERROR", "DISK-ERROR"):
            self.errors.append(line)
        elif self.starts and re.search(r"Kernel panic|Oops|BUG:|general protection|Call Trace", line):
            self.errors.append(line)

    @property
    def last(self):
        """The number of the last heartbeat."""
        return self.beats[-1][0] if self.beats else 0

    def at(self, seconds):
        """The number of the first heartbeat at or after so many seconds of the guest's time."""
        return next((n for n, mono, _, _ in self.beats if mono >= seconds), None)

    # Each of these returns what there is to complain about: nothing is good.

    def life(self, period=100, gap=2000, beats=10):
        """It was never restarted, it lost no heartbeat, and never stood still for longer than GAP ms of its own time."""
        bad = []
        if self.starts != 1:
            bad += [f"it started {self.starts} times", *self.resets]
        if len(set(self.boot_ids)) != 1:
            bad.append(f"boot ids: {self.boot_ids}")
        if any(b < a for a, b in zip(self.uptimes, self.uptimes[1:])):
            bad.append(f"uptime went back: {self.uptimes}")
        if len(self.beats) < beats:
            bad.append(f"{len(self.beats)} heartbeats, {beats} were expected")
        for a, b in zip([(0, None, None, None)] + self.beats, self.beats):
            if b[0] != a[0] + 1:
                bad.append(f"heartbeat {b[0]} follows {a[0]}")
            if a[1] is not None and (b[1] < a[1] or b[2] < a[2]):
                bad.append(f"time went back at heartbeat {b[0]}: {a[1]} {a[2]}, then {b[1]} {b[2]}")
            if a[1] is not None and (b[1] - a[1]) * 1000 > gap + period or b[3] > gap + period:
                bad.append(f"{b[3]} ms, by the clock {b[1] - a[1] if a[1] is not None else 0:.3f} s, before heartbeat {b[0]}")
        bad += [f"not to be read: {line}" for line in self.garbled]
        return bad

    def said(self):
        """No errors of the programs, no warnings of the kernel."""
        messages = [m for m in self.messages if not any(re.search(p, m) for p in HARMLESS)]
        return self.errors + [f"kernel{' (a reset?)' if RESET.search(m) else ''}: {m}" for m in messages]

    def disk(self, name, after=0, ios=100, latency=5000):
        """At least IOs since heartbeat AFTER, in its end too, and none that took longer than LATENCY ms."""
        seen = [(beat, v) for beat, v in self.disks.get(name, []) if beat >= after]
        bad = []
        if len(seen) < 3:
            return [f"{name}: {len(seen)} reports since heartbeat {after}"]
        for what, least in (("ios", ios), ("probes", 2)):
            done = seen[-1][1][what] - seen[0][1][what]
            if done < least:
                bad.append(f"{name}: {what} went on by {done} since heartbeat {after}, not by {least}")
            if seen[-1][1][what] == seen[-3][1][what]:
                bad.append(f"{name}: {what} stands still at {seen[-1][1][what]}")
        for beat, v in seen:
            late = max(v["maxlat"], v["age"])
            if late > latency:
                bad.append(f"{name}: an I/O took {late} ms or more at heartbeat {beat}")
        return bad

    def net(self, name, after=0, frames=10, missing=0, tail=True):
        """Since heartbeat AFTER at least FRAMES came, in the end too if TAIL, and at most MISSING did not; none came twice, none
        was damaged. (What waited outside before the guest listened comes first, and there are many missing after it.)"""
        seen = [(beat, v) for beat, v in self.nets.get(name, []) if beat >= after]
        bad = []
        if len(seen) < 3:
            return [f"{name}: {len(seen)} reports since heartbeat {after}"]
        first, end = seen[0][1], seen[-1][1]
        if end["received"] - first["received"] < frames:
            bad.append(f"{name}: {end['received'] - first['received']} frames since heartbeat {after}, not {frames}")
        if tail and end["received"] == seen[-3][1]["received"]:
            bad.append(f"{name}: no frame in the end, {end['received']} in all")
        for what in ("missing", "duplicate", "corrupted", "old", "nic", "socket"):
            if end[what] - first[what] > (missing if what == "missing" else 0):
                bad.append(f"{name}: {what}: {end[what] - first[what]} since heartbeat {after}, up to frame {end['highest']}")
        return bad

    def iops(self, name, after=0):
        """I/Os a second that the disk did."""
        seen = [(beat, v) for beat, v in self.disks.get(name, []) if beat >= after]
        return (seen[-1][1]["ios"] - seen[0][1]["ios"]) / max(1, len(seen) - 1) if seen else 0

    def summary(self):
        gaps = [b[3] for b in self.beats]
        return f"{self.last} heartbeats, longest gap {max(gaps, default=0)} ms" + "".join(
            f", {name} {self.iops(name):.0f} IO/s, longest {max(v['maxlat'] for _, v in seen)} ms"
            for name, seen in self.disks.items()) + "".join(
            f", {name} {seen[-1][1]['received']} frames, {seen[-1][1]['missing']} missing" for name, seen in self.nets.items())


def judge(result, gap, boots):
    """The two guests that a scenario had: disk with an NVMe and a NIC by vhost, net with an igb; time may stand still for GAP ms of
    their own."""
    for name in ("disk", "net"):
        log = read(result, name)
        path = result.out / f"files/settled.{name}"
        settled = int(path.read_text()) if path.exists() else 0
        print(f"# {name}: {log.summary()}")
        use = log.disk("nvme0n1", after=settled, latency=gap) if name == "disk" else log.net("eth0", after=settled, frames=50)
        report(f"guest {name}", log, gap, use)
        if name == "disk":
            vhost(f"guest {name}", log, boots)


def report(who, log, gap, use, period=BEAT):
    """USE: what is wrong with the use of its device. PERIOD of its heart: ms."""
    for what, bad in (("lives", log.life(beats=50, gap=gap, period=period)), ("has nothing to complain about", log.said()),
                      ("has had the use of its device all the time", use)):
        scenario.ok(not bad, f"{who} {what}", "\n".join(bad[:20]))


def vhost(who, log, boots):
    """Each boot's frames have reached its NIC."""
    seen = log.nets["eth0"][-1][1] if log.nets["eth0"] else {}
    scenario.ok(seen.get("received") == boots * FRAMES and not seen["missing"] + seen["corrupted"],
                f"{who}: its other NIC works in each kernel", f"of {boots * FRAMES} frames: {seen}")


def read(result, name):
    """The log that the host left in /out."""
    files = result.out / "files"
    path = files / f"{name}.log"
    resets = [f"{f.name}: {line}" for f in sorted(files.glob(f"{name}.*.reset")) for line in f.read_text().splitlines()
              if re.match(r"CPU Reset|[ER](IP|SP)=|CR0=", line)]
    return Log(path.read_text(errors="replace") if path.exists() else "", resets)
