# SPDX-License-Identifier: LGPL-2.1-or-later
"""For outside scripts: QEMU's control connections, what is in the IOMMU's tables, and the moment of the jump."""

import json
import os
import re
import socket
import time


def connect(name):
    s = socket.socket(socket.AF_UNIX)
    deadline = time.monotonic() + 60
    while True:
        try:
            s.connect(os.path.relpath(os.environ[name]))
            return s.makefile("rw", buffering=1)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


class Qmp:
    def __init__(self):
        self.file = connect("LUV_QMP")
        self.file.readline()
        self("qmp_capabilities")

    def __call__(self, command, **arguments):
        self.file.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        while True:
            reply = json.loads(self.file.readline())
            if "error" in reply:
                raise SystemExit(f"{command}: {reply['error']}")
            if "return" in reply:
                return reply["return"]

    def devices(self):
        """All PCI devices by their names: (bus, slot, function)."""
        found = {}

        def walk(devices):
            for d in devices:
                found[d["qdev_id"]] = (d["bus"], d["slot"], d["function"])
                walk(d.get("pci_bridge", {}).get("devices", []))

        for bus in self("query-pci"):
            walk(bus["devices"])
        return found


class Qtest:
    def __init__(self):
        self.file = connect("LUV_QTEST")

    def __call__(self, text):
        self.file.write(text + "\n")
        while True:
            words = self.file.readline().split()
            if words and words[0] == "OK":
                return words[1] if len(words) > 1 else None
            if words and words[0] in ("FAIL", "ERR"):
                raise SystemExit(f"qtest: {text}: {words}")

    def config(self, where, offset, access, value=""):
        """Between the two accesses that this takes the machine may be in the middle of its own: where that was stays."""
        bus, device, function = where
        own = self("inl 0xcf8")
        self(f"outl 0xcf8 {1 << 31 | bus << 16 | device << 11 | function << 8 | offset & 0xfc:#x}")
        result = self(f"{access} {0xCFC + (offset & 3):#x} {value}".strip())
        self(f"outl 0xcf8 {own}")
        return result

    def config_read(self, where, offset, size="w"):
        return int(self.config(where, offset, f"in{size}"), 0)

    def config_write(self, where, offset, value):
        self.config(where, offset, "outw", f"{value:#x}")

    def capability(self, where, wanted):
        at = self.config_read(where, 0x34, "b")
        while at:
            if self.config_read(where, at, "b") == wanted:
                return at
            at = self.config_read(where, at + 1, "b")
        raise SystemExit(f"{where} does not have capability {wanted:#x}")

    def memory_write(self, address, data):
        self(f"write {address:#x} {len(data):#x} 0x{data.hex()}")


# Register of the IOMMU: where its root table is, and whether it is one of scalable mode.
ROOT, SCALABLE = 0xFED90000 + 0x20, 0x400
PRESENT, ADDRESS = 1, (1 << 52) - (1 << 12)
PGTT, FIRST_STAGE = 7 << 6, 1 << 6


def translations(qtest):
    """What the IOMMU has for requests without PASID: domain id and page tables by (bus, slot, function). The machine has
    to stand."""
    def table(entry, width):
        data = bytes.fromhex(qtest(f"read {entry & ADDRESS:#x} 0x1000")[2:])
        return [int.from_bytes(data[n:n + width], "little") for n in range(0, len(data), width)]

    def first(entry, width):
        return table(entry, width)[0] if entry & PRESENT else 0

    root = int(qtest(f"readq {ROOT:#x}"), 0)
    scalable = bool(root & SCALABLE)
    found = {}
    for bus, entry in enumerate(table(root, 16)):
        for half in range(2 if scalable else 1):
            if not entry >> 64 * half & PRESENT:
                continue
            for n, context in enumerate(table(entry >> 64 * half, 32 if scalable else 16)):
                devfn = 0x80 * half + n
                if scalable:
                    # By way of its PASID directory and its PASID table.
                    context = first(first(context, 8), 64)
                    domain_id, tables = context >> 64, context >> 128 if context & PGTT == FIRST_STAGE else context
                else:
                    domain_id, tables = context >> 72, context
                if context & PRESENT:
                    found[bus, devfn >> 3, devfn & 7] = domain_id & 0xFFFF, tables & ADDRESS
    return found


def wait_for(variable, pattern, number=1):
    """Until so much is in a file that is known by its variable."""
    while True:
        try:
            with open(os.environ[variable], errors="replace") as f:
                if len(re.findall(pattern, f.read())) >= number:
                    return
        except FileNotFoundError:
            pass
        time.sleep(0.01)


def wait_for_jump(number=1):
    wait_for("LUV_SERIAL", r"Starting new kernel", number)


def wait_for_mark(number):
    wait_for("LUV_TRACE", rf"pci_cfg_write pci-testdev \S+ @0xc <- {number:#x}\n")


def say_translations(when, qtest):
    for (bus, slot, function), (domain_id, tables) in translations(qtest).items():
        print(f"{when}: {bus:02x}:{slot:02x}.{function} has domain id {domain_id}, page tables at {tables:#x}", flush=True)
