# SPDX-License-Identifier: LGPL-2.1-or-later
"""tests/bench: the blackout by phase against the floor of a bare kexec, for machines and for guests in QEMU, and the daemon's own costs."""

import argparse
import importlib.util
import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

# pylint: disable=wrong-import-position
from luvtest import progress, project, vmm  # noqa: E402
from luvtest.paths import CACHE, CHECKOUT, TESTS  # noqa: E402

sys.path.insert(0, str(TESTS / "scenarios/lib"))
import guest  # noqa: E402

LIB = TESTS / "lib"
AIM_BLACKOUT = 1.3
AIM_SHARE = 0.05
AIM_MEMORY = 10 << 20
AIM_IOMMUFD = 0.05
# Machines for which the cost of an iommufd is measured: MiB, areas.
IOMMUFD = [(1024, 1), (2048, 1), (4096, 1), (1024, 16), (1024, 256)]


def host(out, arguments, scripts):
    rc = subprocess.run([TESTS / "host/host", "--trace", "pci_cfg_write", "--out", out,
                         "--jump-deadline", "300", "--quiet", *arguments, *scripts], check=False).returncode
    if rc:
        raise progress.Failed(f"the test host ended with exit code {rc}; see {out}")


def marks(out):
    """The marks in QEMU's trace: (time outside in microseconds, number)."""
    found = []
    with open(out / "trace.log", errors="replace") as f:
        for line in f:
            m = re.match(r"(\S+)Z pci_cfg_write pci-testdev \S+ @0xc <- 0x([0-9a-f]+)$", line.rstrip())
            if m:
                found.append((datetime.fromisoformat(m[1] + "+00:00").timestamp() * 1e6, int(m[2], 16)))
    return found


def hardware(machines):
    """The same for the floor and for the updates."""
    # Sixteen do not fit: each needs I/O space of the firmware's for its bridge. Further machines own no device.
    devices = ["--device", "igb"] * min(machines, 8)
    return ["--image", "full", *devices, "-m", str(2048 + machines * 160)]


def guests_hardware(guests):
    return ["--image", "virt", *["--device", "igb"] * guests, "-m", str(2048 + guests * 320), "--script-deadline", "3600", *guest.host()]


def clock(out, boot):
    """That boot's: (what a mark was stamped with inside, PID 1's beginning, fork for the unit), in microseconds."""
    return [int(float(line)) for line in (out / "files" / f"clock-{boot}").read_text().split()]


def floor(out, kernel, rounds, machine):
    """From reboot(2) to the exec of a unit that stands where the VMM's stands, in microseconds, each round."""
    host(out, ["--kernel", kernel, "--next", kernel, "--overlay", project.WORK / "tree", *machine,
               "--file", f"{LIB}/bench/luvhost-floor.service:/usr/lib/systemd/system/luvhost-floor.service"],
         [LIB / "bench/floor"] * (rounds + 1))
    whole, phases, begin, end = [], {}, None, None
    for at, number in marks(out):
        if number == 50:
            begin, end = at, None
        elif number == 51 and begin:
            end = at
        elif number > 100 and begin and end:
            stamp, userspace, fork = clock(out, number - 100)
            whole.append(end - begin)
            phases.setdefault("kernel", []).append(at - stamp + userspace - begin)
            phases.setdefault("PID 1", []).append(fork - userspace)
            phases.setdefault("exec", []).append(end - (at - stamp + fork))
    if len(whole) < rounds:
        raise progress.Failed(f"only {len(whole)} of {rounds} floors were measured; see {out}")
    return {"floorUSec": statistics.median(whole), "floorsUSec": whole,
            "floorPhasesUSec": {k: statistics.median(v) for k, v in phases.items()}}


# Of these a VMM, the kernel or PID 1 would need as long without luvfiod; the others are luvfiod's own.
OTHERS = {"VMM stops", "kernel", "PID 1", "VMM waits", "VMM resumes"}


def phases_of(report, machine, stopped, resumed, userspace, fork):
    """What one machine's blackout consists of, but for the kernel: that is the rest. Microseconds."""
    own = {p["name"]: p["durationUSec"] for p in report["phases"] if p.get("machine") == machine}
    whole = {p["name"]: p["durationUSec"] for p in report["phases"] if "machine" not in p}
    stops = stopped["bootTimeUSec"] - stopped["vcpusStoppedUSec"]
    # luvfiod's first look at the new kernel's clock; all after it is on that clock.
    arrived = resumed["vcpusRunningUSec"] - own["resume"] - own["wait"]
    restored = arrived + whole["restoring"] + whole["rebinding"]
    return {
        "VMM stops": stops,
        "hand over": own["stop"] - stops,
        "PID 1": fork - userspace,
        "start": arrived - fork,
        "restore": restored - arrived,
        "VMM waits": max(resumed["resumeUSec"] - restored, 0),
        # The VMM waits for luvfiod, its worker, and the kernel that gives memory back.
        "retrieve": resumed["ramRetrievedUSec"] - max(resumed["resumeUSec"], restored),
        "VMM resumes": resumed["vcpusRunningUSec"] - resumed["ramRetrievedUSec"],
    }


def updates(out, kernel, rounds, machines):
    """The blackout of every machine in every round, and what it consists of."""
    out.mkdir(parents=True, exist_ok=True)
    # Its checksum over RAM is a proof for tests; no VMM needs one to resume.
    (out / "machines").write_text(f"{machines} --no-checksum\n")
    host(out, ["--kernel", kernel, "--next", kernel, "--overlay", project.WORK / "tree", *hardware(machines),
               "--file", f"{LIB}/vmm.sh:/usr/lib/luvhost/vmm.sh",
               "--file", f"{out}/machines:/usr/lib/luvhost/machines"],
         [LIB / "bench/updates"] * (rounds + 1))
    files = out / "files"
    outside = {number - 100: at for at, number in marks(out) if number > 100}
    clocks = {n: clock(out, n) for n in range(1, rounds + 2)}

    def at(boot, usec):
        """A time of a boot's own clock on the clock outside."""
        return outside[boot] + usec - clocks[boot][0]

    blackouts, phases, shares = [], {}, []
    for machine in (f"vm{i}" for i in range(1, machines + 1)):
        stopped, resumed = (vmm.reports(files / f"{machine}.report", e) for e in ("quiesced", "resumed"))
        if len(resumed) < rounds or not all(map(vmm.ran_on, resumed)):
            raise progress.Failed(f"the device of {machine} did not run on each time; see {out}")
        for n in range(rounds):
            blackout = at(n + 2, resumed[n]["vcpusRunningUSec"]) - at(n + 1, stopped[n]["vcpusStoppedUSec"])
            report = json.loads((files / f"analyze-{n + 2}.json").read_text())
            own = phases_of(report.get("report", report), machine, stopped[n], resumed[n], *clocks[n + 2][1:])
            own["kernel"] = blackout - sum(own.values())
            for name, usec in own.items():
                phases.setdefault(name, []).append(usec)
            blackouts.append(blackout)
            shares.append(sum(v for k, v in own.items() if k not in OTHERS) / blackout)
    memory = max(int(re.search(r"VmRSS:\s+(\d+)", f.read_text())[1]) for f in files.glob("memory-*"))
    return {"machines": machines, "blackoutUSec": statistics.median(blackouts), "blackoutsUSec": blackouts,
            "phasesUSec": {k: statistics.median(v) for k, v in phases.items()},
            "ownShare": statistics.median(shares), "daemonRssKiB": memory}


GUESTS = guest.SHELL + """
guests=@GUESTS@
mkdir -p $logs
if [ "$LUV_BOOT" -eq 1 ]; then
        resume_deadline 300
        luvfiod_enable
@START@
else
        wait_for 600 update_number $((LUV_BOOT - 1))
        luvfioctl analyze --json=short >"/out/analyze-$LUV_BOOT.json"
fi
for i in $(seq $guests); do
        wait_for 60 machine_is "guest$i" running && wait_for 60 goes_on "guest$i" "$(beats "guest$i")" || { luvfioctl machines; exit 1; }
        cp "$logs/guest$i.log" /out/
done
[ "$LUV_BOOT" -eq "$LUV_SCRIPTS" ] && exit 0
sleep 5
exec luvfioctl update --deadline=120s --cmdline="$(next_cmdline)" /boot/vmlinuz-b
"""


def guests(out, kernel, rounds, count):
    """The blackout of guests in unmodified QEMU, each with an igb, and what it consists of. Microseconds."""
    start = "\n".join(f"vfio-bind $(bdf igb {i})\n" + guest.unit(
        f"guest{i}", devices=[f"$(bdf igb {i})"], memory=192, net="eth0", append="luv.hb=1000") + f"begins guest{i} '^HB 5 ' || exit 1"
        for i in range(1, count + 1))
    host(out, ["--kernel", kernel, "--next", kernel, "--overlay", project.WORK / "tree", *guests_hardware(count),
               "--file", f"{LIB}/vmm.sh:/usr/lib/luvhost/vmm.sh"],
         ["sh:. /usr/lib/luvhost/vmm.sh\n" + GUESTS.replace("@GUESTS@", str(count)).replace("@START@", start)] * (rounds + 1))
    files = out / "files"
    blackouts, phases = [], {}
    for name in (f"guest{i}" for i in range(1, count + 1)):
        log = guest.Log((files / f"{name}.log").read_text(errors="replace"))
        if log.starts != 1 or log.said():
            raise progress.Failed(f"{name} did not run on each time: {log.starts} starts, {log.said()[:3]}; see {out}")
        for n in range(rounds):
            report = json.loads((files / f"analyze-{n + 2}.json").read_text())
            report = report.get("report", report)
            blackout = next(m["blackoutUSec"] for m in report["machines"] if m["machine"] == name)
            own = {p["name"]: p["durationUSec"] for p in report["phases"] if p.get("machine") == name}
            blackouts.append(blackout)
            for phase in ("stop", "wait", "resume"):
                phases.setdefault(phase, []).append(own[phase])
            phases.setdefault("kernel to luvfiod", []).append(blackout - sum(own[p] for p in ("stop", "wait", "resume")))
    return {"guests": count, "blackoutUSec": statistics.median(blackouts), "blackoutsUSec": blackouts,
            "phasesUSec": {k: statistics.median(v) for k, v in phases.items()}}


def protocol(build):
    """The protocol tests' own luvfiod and VMMs."""
    os.environ.update({"LUVFIOD": str(build / "daemon/luvfiod"),
                       "LUVFIO_PLUGIN_HOST": str(build / "daemon/plugin-host/luvfio-plugin-host")})
    sys.path.insert(0, str(TESTS / "protocol"))
    spec = importlib.util.spec_from_file_location("test_scale", TESTS / "protocol/test-scale.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def simulated(build, counts):
    """Memory with 100 machines; the time to stage so many machines of 8 fds."""
    scale = protocol(build)
    result = {"staging": []}

    def measure(machines):
        with scale.Daemon() as d:
            pid = scale.start_herd(d, machines)
            try:
                begin = time.monotonic()
                d.stage()
                took = time.monotonic() - begin
                memory = {"pss": d.memory("Pss"), "rss": d.memory("Rss")}
                d.host("Abort")
                d.wait_state("idle")
            finally:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        return took, memory

    with progress.Step("simulated: memory with 100 machines"):
        result["memory100"] = measure(100)[1]
    for n, machines in enumerate(counts):
        with progress.Step(f"simulated: staging {machines} machines of 8 fds") as step:
            step.at(n, len(counts))
            took = statistics.median(measure(machines)[0] for _ in range(3))
        result["staging"].append({"machines": machines, "fds": machines * 8, "seconds": took})
    return result


def linear(staging):
    """The steepest growth between neighbours: 1 is linear in fds, 2 quadratic."""

    pairs = zip(staging, staging[1:])
    return max(math.log(b["seconds"] / a["seconds"]) / math.log(b["fds"] / a["fds"]) for a, b in pairs)


def iommufd(out, kernel):
    """What an iommufd costs: while its machine runs (preserve), and in the blackout (freeze, retrieve). Microseconds."""
    program = out / "iommufd-cost"
    out.mkdir(parents=True, exist_ok=True)
    subprocess.run(["gcc", "-std=gnu17", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-I", CHECKOUT / "daemon",
                    "-o", program, LIB / "bench/iommufd-cost.c"], check=True)
    result = []
    for n, (mib, areas) in enumerate(IOMMUFD):
        with progress.Step(f"an iommufd with {mib} MiB in {areas} areas") as step:
            step.at(n, len(IOMMUFD))
            run = out / f"{mib}-{areas}"
            subprocess.run([TESTS / "host/host", "--kernel", kernel, "--next", kernel, "--quiet", "--out", run, "-m", str(mib + 2048),
                            "--trace", "pci_cfg_write", "--device", "igb", "--file", f"{program}:/usr/bin/iommufd-cost",
                            "--jump-deadline", "300",
                            f"sh:vfio-bind $(bdf igb); exec iommufd-cost before $(bdf igb) {mib} {areas} /boot/vmlinuz-b",
                            "sh:vfio-bind $(bdf igb); exec iommufd-cost after"],
                           check=True, stdout=subprocess.DEVNULL)
            said = (run / "before.out").read_text() + (run / "after.out").read_text()
            usec = {f"{what} {name}": int(n) for what, name, n in re.findall(r"^(\w+) (\w+) (\d+)$", said, re.MULTILINE)}
            at = {number: t for t, number in marks(run)}
        result.append({"MiB": mib, "areas": areas, "blackoutUSec": at[2] - at[1], "usec": usec,
                       "share": (usec["freeze all"] + usec["retrieve iommufd"]) / (at[2] - at[1])})
    return result


def numbers(text):
    return [int(n) for n in text.split(",") if n]


PHASES = ["VMM stops", "hand over", "kernel", "PID 1", "start", "restore", "VMM waits", "retrieve", "VMM resumes"]


def show(result):
    print("\nBlackout against the floor: a bare kexec on the same hardware, from reboot(2) to exec of a unit in the VMM's "
          "place.\n")
    print(f"{'machines':>9} {'floor':>9} {'blackout':>9} {'x floor':>8} {'own share':>10}   "
          + " ".join(f"{n:>11}" for n in PHASES))
    for r in result["updates"]:
        base = r["floorUSec"]
        f = r["floorPhasesUSec"]
        print(f"{'':>9} {base / 1e6:>7.2f} s {'':>29}   " + " ".join(
            f"{f[n] / base:>11.3f}" if n in f else f"{'':>11}" for n in PHASES) + f"   exec {f['exec'] / base:.3f}")
        print(f"{r['machines']:>9} {'':>9} {r['blackoutUSec'] / 1e6:>7.2f} s {r['blackoutUSec'] / base:>8.2f} "
              f"{100 * r['ownShare']:>8.1f} %   " + " ".join(f"{r['phasesUSec'][n] / base:>11.3f}" for n in PHASES))
    print("\n(phases as parts of the floor)")
    for r in result["guests"]:
        base = r["floorUSec"]
        print(f"{r['guests']:>3} guests in QEMU: floor {base / 1e6:.2f} s, blackout {r['blackoutUSec'] / 1e6:.2f} s, {r['blackoutUSec'] / base:.2f} x floor; "
              + ", ".join(f"{name} {usec / base:.3f}" for name, usec in r["phasesUSec"].items()))
    print(f"\nluvfiod with 100 machines of 8 fds, staged: {result['simulated']['memory100']['pss'] / 1048576:.1f} MiB (PSS)")
    for s in result["simulated"]["staging"]:
        print(f"staging {s['machines']:>5} machines, {s['fds']:>5} fds: {s['seconds']:>7.2f} s, "
              f"{1e6 * s['seconds'] / s['fds']:.0f} us/fd")
    print(f"growth with fds: exponent {result['simulated']['exponent']:.2f}\n")
    print("An iommufd, as parts of the blackout of its machine alone: preserving it while the machine runs, freezing memory and iommufd,\n"
          "retrieving memory, iommufd and device\n")
    columns = ["preserve memfd", "preserve iommufd", "freeze all", "retrieve memfd", "retrieve iommufd", "retrieve device", "finish all"]
    print(f"{'MiB':>6} {'areas':>6} " + " ".join(f"{c:>17}" for c in columns))
    for r in result["iommufd"]:
        print(f"{r['MiB']:>6} {r['areas']:>6} " + " ".join(f"{r['usec'][c] / r['blackoutUSec']:>17.4f}" for c in columns))
    print()
    for aim, met in result["aims"].items():
        print(f"  {'met    ' if met else 'NOT MET'}  {aim}")


def main():
    p = argparse.ArgumentParser(
        prog="tests/bench", description="Measures, in one run on the test host, the blackout by phase for 1, 4 and 16 "
        "machines and 1, 4 and 8 guests in QEMU against the floor of a bare kexec of the same kernel, and luvfiod's memory and staging time in "
        "the simulation. Prints a table and writes JSON. Everything is timed by the clock outside of the machine.",
        epilog="At the end stands which aims are met. The exit code says whether all of it could be measured: it is 0 "
        "also when an aim is not met.")
    p.add_argument("--rounds", type=int, default=5, help="updates for each median (default: %(default)s)")
    p.add_argument("--machines", default="1,4,16", help="default: %(default)s")
    p.add_argument("--guests", default="1,4,8", help="guests in QEMU (default: %(default)s)")
    p.add_argument("--scale", default="125,250,500,1000", help="machines staged in the simulation (default: %(default)s)")
    p.add_argument("--out", default=str(CACHE / "bench"), help="default: %(default)s")
    args = p.parse_args()
    out = Path(args.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    try:
        kernel = project.kernel("a")
        build, _ = project.build("gcc")
        project.install_tree(build)
        result = {"simulated": simulated(build, numbers(args.scale))}
        result["simulated"]["exponent"] = linear(result["simulated"]["staging"])
        result["iommufd"] = iommufd(out / "iommufd", kernel)
        result |= {"updates": [], "guests": []}
        for machines in numbers(args.machines):
            progress.say(f"==> the floor, on a host for {machines} machines")
            measured = floor(out / f"floor-{machines}", kernel, args.rounds, hardware(machines))
            progress.say(f"==> {args.rounds} updates with {machines} machines")
            measured |= updates(out / f"updates-{machines}", kernel, args.rounds, machines)
            result["updates"].append(measured)
            (out / "bench.json").write_text(json.dumps(result, indent=1) + "\n")
        for count in numbers(args.guests):
            progress.say(f"==> the floor, on a host for {count} guests")
            measured = floor(out / f"guests-floor-{count}", kernel, args.rounds, guests_hardware(count))
            progress.say(f"==> {args.rounds} updates with {count} guests in QEMU")
            result["guests"].append(measured | guests(out / f"guests-{count}", kernel, args.rounds, count))
            (out / "bench.json").write_text(json.dumps(result, indent=1) + "\n")
    except (progress.Failed, AssertionError, subprocess.CalledProcessError, KeyError) as e:
        print(f"FAILED: {e}")
        return 1
    one = next((r for r in result["updates"] if r["machines"] == 1), None)
    result["aims"] = {
        **({f"blackout of one machine within {AIM_BLACKOUT} times the floor":
            one["blackoutUSec"] <= AIM_BLACKOUT * one["floorUSec"],
            f"luvfiod's own share under {100 * AIM_SHARE:.0f} % of it": one["ownShare"] < AIM_SHARE} if one else {}),
        "luvfiod with 100 machines under 10 MiB": result["simulated"]["memory100"]["pss"] < AIM_MEMORY,
        "staging linear in fds": result["simulated"]["exponent"] < 1.3,
        f"freeze and retrieve of an iommufd with 1 GiB at most {100 * AIM_IOMMUFD:.0f} % of the blackout":
            max(r["share"] for r in result["iommufd"] if r["MiB"] == 1024) <= AIM_IOMMUFD,
    }
    (out / "bench.json").write_text(json.dumps(result, indent=1) + "\n")
    show(result)
    print(f"\nJSON: {out}/bench.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
