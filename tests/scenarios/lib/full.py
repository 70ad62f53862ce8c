# SPDX-License-Identifier: LGPL-2.1-or-later
"""For scenarios in the full image with VMMs that misbehave: what is compiled for them, and the witness's trace."""

import functools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "lib"))
from luvtest import scenario  # noqa: E402 pylint: disable=wrong-import-position

UNIT = """\
# SPDX-License-Identifier: LGPL-2.1-or-later
[Unit]
Description=VMM %i that misbehaves
DefaultDependencies=no
Wants=luvfiod-machine.socket
After=luvfiod-machine.socket
SurviveFinalKillSignal=yes

[Service]
EnvironmentFile=/etc/rogue/%i.env
ExecStart=/usr/lib/rogue/rogue-vmm %i $ARGS
StandardOutput=append:/var/log/rogue-%i.log
StandardError=inherit
LimitMEMLOCK=infinity

[Install]
WantedBy=luvfiod-drain.target sysinit.target
"""


@functools.cache
def overlay():
    """A tree with the VMM and its unit, beside what meson installs."""
    tree = Path(os.environ["LUV_RUN"]) / "rogue-tree"
    shutil.rmtree(tree, ignore_errors=True)
    (tree / "usr/lib/rogue").mkdir(parents=True)
    (tree / "usr/lib/luvhost").mkdir(parents=True)
    (tree / "usr/lib/systemd/system").mkdir(parents=True)
    compile_c("rogue-vmm.c", tree / "usr/lib/rogue/rogue-vmm", HERE / "rogue-igb.c", *libluvfio(), "-lsystemd", "-pthread")
    compile_c("map-anonymous.c", tree / "usr/lib/rogue/map-anonymous", *libluvfio())
    compile_c("legacy-kexec.c", tree / "usr/lib/rogue/legacy-kexec", "-static")
    for fault in ("eio", "busy", "dies"):
        compile_c(f"{fault}.c", tree / f"usr/lib/rogue/{fault}.so", "-shared", "-fPIC", "-Wl,--as-needed", *libluvfio())
    shutil.copy(HERE / "guest.sh", tree / "usr/lib/rogue/guest.sh")
    shutil.copy(HERE.parents[1] / "lib/vmm.sh", tree / "usr/lib/luvhost/vmm.sh")
    (tree / "usr/lib/systemd/system/rogue@.service").write_text(UNIT)
    return tree


def libluvfio():
    """What a VMM is compiled with, as the installed library's pkg-config file has it."""
    installed = Path(scenario.TREE)
    found = next(installed.glob("usr/lib/**/libluvfio.pc")).parent
    return subprocess.run(["pkg-config", "--cflags", "--libs", "libluvfio"], check=True, stdout=subprocess.PIPE, text=True, env={
        **os.environ, "PKG_CONFIG_PATH": str(found), "PKG_CONFIG_SYSROOT_DIR": str(installed)}).stdout.split()


def compile_c(source, to, *options):
    subprocess.run(["gcc", "-std=gnu17", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Wno-unused-parameter",
                    "-Werror", "-o", to, HERE / source, *options], check=True)


def run(name, *arguments, scripts, **parameters):
    """A run of the test host's full image with the project and the rogue VMM; each script is shell text."""
    texts = ["sh:. /usr/lib/rogue/guest.sh\n" + s + "\nexit 0" for s in scripts]
    return scenario.host(name, "--quiet", "--image", "full", "--overlay", scenario.TREE, "--overlay", overlay(),
                         *arguments, *texts, **parameters)


def report(result, stages, prefix="", allowed="(?!)"):
    """Every check inside, the run itself, and that the kernels complained of nothing but what is ALLOWED (a pattern)."""
    for number, stage in enumerate(stages):
        found = scenario.subtests(f"{prefix}{stage}", result.output(stage))
        scenario.ok(found > 0, f"{prefix}{stage} ran",
                    result.why() if number == 0 or result.output(stages[number - 1]) else "")
    scenario.ok(result.ok, f"{prefix}the run", result.why())
    splats = [line for line in result.splats() if not re.search(allowed, line)]
    scenario.ok(not splats, f"{prefix}the kernels complain of nothing", "\n".join(splats[:20]))
    if not result.ok or "not ok" in "".join(result.output(s) for s in stages):
        for stage in stages:
            for line in result.output(stage).splitlines():
                print(f"#   {stage}| {line}")


def between(trace, first, second):
    """The trace from mark FIRST to mark SECOND."""
    text = "\n".join(trace)
    mark = r"^[^\n]*pci-testdev \S+ @0xc <- 0x{:x}$"
    m = re.search(mark.format(first) + "(.*?)" + mark.format(second), text, re.M | re.S)
    return m[1].splitlines() if m else None


# Offset of the PCI Express device control register in QEMU's devices.
DEVICE_CONTROL = {"igb": 0xA8, "nvme": 0x88}
FUNCTION_LEVEL_RESET = 1 << 15


def resets(lines):
    """The lines that reset an igb or an NVMe: by function level reset, by its bus, or by its own register."""
    found = []
    for line in lines:
        m = re.search(r"pci_cfg_write (igb|nvme)\S* \S+ @0x([0-9a-f]+) <- 0x([0-9a-f]+)", line)
        if m:
            if int(m[2], 16) == DEVICE_CONTROL[m[1]] and int(m[3], 16) & FUNCTION_LEVEL_RESET:
                found.append(line)
        elif re.search(r"resettable_\S+ .*\((igb|nvme)\)|pci_nvme_pci_reset|igb_core_vf_reset", line):
            found.append(line)
    return found
