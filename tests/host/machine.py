# SPDX-License-Identifier: LGPL-2.1-or-later
"""QEMU's command line: the machine that a test asks for."""

import socket
import subprocess

import image

# kind: (QEMU's device, properties, where it is put by default)
KINDS = {
    "igb": ("igb", {}, "root-port"),
    "e1000e": ("e1000e", {}, "root-port"),
    "nvme": ("nvme", {}, "root-port"),
    "ahci": ("ich9-ahci", {}, "root"),
    "virtio-rng": ("virtio-rng-pci", {"iommu_platform": "on", "disable-legacy": "on"}, "root-port"),
    "edu": ("edu", {}, "root"),
}
# On a UDP socket outside.
NICS = ("igb", "e1000e")
DISKS = ("nvme", "ahci")
PLACES = ("root-port", "switch", "pxb", "root")

# What tells whether a device was touched: writes to configuration space, resets, the IOMMU's switches, and a
# driver's start of a device.
TRACE = [
    "pci_cfg_write", "resettable_reset", "resettable_phase_hold_exec", "vtd_dmar_enable", "vtd_ir_enable",
    "vtd_reg_dmar_root", "vtd_dmar_fault", "virtio_set_status", "e1000e_core_ctrl_sw_reset",
    "igb_core_vf_reset", "pci_nvme_pci_reset", "pci_nvme_mmio_cfg",
]


class Usage(Exception):
    pass


def free_udp_ports():
    """Two that are not the same."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as a, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as b:
        a.bind(("127.0.0.1", 0))
        b.bind(("127.0.0.1", 0))
        return a.getsockname()[1], b.getsockname()[1]


class Bus:
    """Hands out places on the PCI topology, always the same ones for the same command line."""

    def __init__(self):
        self.arguments = []
        self.ports = 0
        self.on_root = 0
        self.igbs_on_root = 0
        self.on_switch = 0
        self.on_pxb = 0

    def device(self, text):
        self.arguments += ["-device", text]

    def root_port(self, bus="pcie.0", addr=None):
        n = self.ports
        self.ports += 1
        self.device(f"pcie-root-port,id=rp{n},bus={bus},chassis={n + 1},slot={n + 1}" +
                    (f",addr={addr:#x}" if addr is not None else ""))
        return f"rp{n}"

    def place(self, where, driver):
        """Returns the bus= and addr= of one more device."""
        if where == "root" and driver == "igb":
            # Its virtual functions are 16 slots above it on the same bus.
            self.igbs_on_root += 1
            if self.igbs_on_root > 3:
                raise Usage("at most 3 igb fit @root")
            return f"bus=pcie.0,addr={0x05 + self.igbs_on_root - 1:#x}"
        if where == "root":
            self.on_root += 1
            if self.on_root > 8:
                raise Usage("at most 8 devices fit @root")
            return f"bus=pcie.0,addr={0x10 + self.on_root - 1:#x}"
        if where == "root-port":
            if self.ports >= 8:
                raise Usage("at most 8 devices fit @root-port")
            return f"bus={self.root_port(addr=0x08 + self.ports)},addr=0x0"
        if where == "switch":
            if not self.on_switch:
                self.device(f"x3130-upstream,id=up,bus={self.root_port(addr=0x18)}")
            n = self.on_switch
            self.on_switch += 1
            self.device(f"xio3130-downstream,id=down{n},bus=up,chassis={64 + n},slot={n},addr={n:#x}")
            return f"bus=down{n},addr=0x0"
        if where == "pxb":
            if not self.on_pxb:
                self.device("pxb-pcie,id=pxb,bus=pcie.0,addr=0x19,bus_nr=64")
            self.on_pxb += 1
            return f"bus={self.root_port(bus='pxb', addr=self.on_pxb - 1)},addr=0x0"
        raise Usage(f"no place @{where}; there are {', '.join('@' + p for p in PLACES)}")


def parse_device(text):
    spec, _, where = text.partition("@")
    kind, _, properties = spec.partition(",")
    given = dict(p.partition("=")[::2] for p in properties.split(",") if p)
    driver, defaults, place = KINDS.get(kind, (kind, {}, "root"))
    return kind, driver, {**defaults, **given}, where or place


def command(args, out, kernel, initrd, disks, cmdline, environment):
    """The whole command line; what an outside script needs to know goes into the environment."""
    bus = Bus()
    backends = []
    count = {}
    nics = 0

    for n, (disk_id, path, form) in enumerate(disks):
        backends += ["-drive", f"if=none,id={disk_id},file={path},format={form},cache=unsafe,discard=unmap"]
        bus.device(f"virtio-blk-pci,drive={disk_id},serial={disk_id},bus=pcie.0,addr={2 + n:#x}")

    for text in args.device:
        kind, driver, properties, where = parse_device(text)
        n = count[kind] = count.get(kind, -1) + 1
        name = f"{kind}{n}"
        if kind in NICS and "netdev" not in properties:
            port, peer = free_udp_ports()
            backends += ["-netdev", f"dgram,id=net-{name},local.type=inet,local.host=127.0.0.1,local.port={port},"
                         f"remote.type=inet,remote.host=127.0.0.1,remote.port={peer}"]
            properties["netdev"] = f"net-{name}"
            properties.setdefault("mac", f"52:54:00:6c:75:{nics:02x}")
            environment[f"LUV_NET{nics}_PORT"] = str(port)
            environment[f"LUV_NET{nics}_PEER"] = str(peer)
            nics += 1
        if kind in DISKS and "drive" not in properties:
            path = out / f"{name}.raw"
            with open(path, "wb") as f:
                f.truncate(64 << 20)
            backends += ["-drive", f"if=none,id=drive-{name},file={path},format=raw,cache=unsafe"]
        if kind == "nvme":
            properties.setdefault("drive", f"drive-{name}")
            properties.setdefault("serial", f"luv{n}")
        options = "".join(f",{k}={v}" if v else f",{k}" for k, v in properties.items())
        bus.device(f"{driver},id={name},{bus.place(where, driver)}{options}")
        if kind == "ahci":
            bus.device(f"ide-hd,drive=drive-{name},bus={name}.0")

    # Its config space carries the marks that scripts set in the trace.
    bus.device("pci-testdev,id=marker,bus=pcie.0,addr=0x1e")

    # Without the chipset's own AHCI, whose ports a kernel would look at in each boot.
    machine = "q35,sata=off"
    iommu = []
    if not args.no_iommu:
        machine += ",kernel-irqchip=split"
        iommu = ["-device", ",".join(["intel-iommu", *(args.iommu or ["intremap=on", "caching-mode=on"])])]

    events = out / "trace-events"
    events.write_text("".join(f"{e}\n" for e in (args.trace or TRACE) if e != "none"))

    result = [
        "qemu-system-x86_64", "-name", "luvhost", "-nodefaults", "-no-user-config", "-display", "none",
        "-machine", machine, "-accel", args.accel, "-cpu", args.cpu, "-smp", str(args.smp), "-m", str(args.memory),
        *iommu, "-kernel", str(kernel), "-append", cmdline,
        *(["-initrd", str(initrd)] if initrd else []),
        "-chardev", "file,id=console,path=serial.log", "-device", "isa-serial,chardev=console,index=0",
        "-chardev", "file,id=talk,path=talk.log", "-device", "isa-serial,chardev=talk,index=1",
        "-qmp", "unix:control.sock,server=on,wait=off", "-qmp", "unix:qmp.sock,server=on,wait=off",
        "-chardev", "socket,id=hmp,path=hmp.sock,server=on,wait=off", "-mon", "chardev=hmp,mode=readline",
        "-qtest", "unix:qtest.sock,server=on,wait=off", "-qtest-log", "none",
        "-trace", f"events={events}", "-d", "cpu_reset", "-D", "trace.log", "-msg", "timestamp=on",
        *backends, *bus.arguments,
    ]
    if not args.reboot_ok:
        result.append("-no-reboot")
    return result + args.qemu


def tsc_khz():
    return subprocess.run([image.tool("tsc-khz.c")], check=True, capture_output=True, text=True).stdout.strip()
