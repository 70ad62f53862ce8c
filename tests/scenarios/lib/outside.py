# SPDX-License-Identifier: LGPL-2.1-or-later
"""For outside scripts: QEMU's control connections, and the moment of the jump."""

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

    def address(self, where, offset):
        bus, device, function = where
        self(f"outl 0xcf8 {1 << 31 | bus << 16 | device << 11 | function << 8 | offset & 0xfc:#x}")
        return 0xCFC + (offset & 3)

    def config_read(self, where, offset, size="w"):
        return int(self(f"in{size} {self.address(where, offset):#x}"), 0)

    def config_write(self, where, offset, value):
        self(f"outw {self.address(where, offset):#x} {value:#x}")

    def capability(self, where, wanted):
        at = self.config_read(where, 0x34, "b")
        while at:
            if self.config_read(where, at, "b") == wanted:
                return at
            at = self.config_read(where, at + 1, "b")
        raise SystemExit(f"{where} does not have capability {wanted:#x}")

    def memory_write(self, address, data):
        self(f"write {address:#x} {len(data):#x} 0x{data.hex()}")


def wait_for_jump(number=1):
    while True:
        try:
            with open(os.environ["LUV_SERIAL"], errors="replace") as f:
                if len(re.findall(r"Starting new kernel", f.read())) >= number:
                    return
        except FileNotFoundError:
            pass
        time.sleep(0.01)
