# SPDX-License-Identifier: LGPL-2.1-or-later
"""Kernel images that were never compiled: what luvfiod reads of a bzImage, and nothing else."""

import struct

from vmm import memfd

RELEASE = "7.3.4-test-b"
COMMAND_LINE = "console=ttyS0 kho=on liveupdate=on intel_iommu=on"
# What the simulated backend writes must be read.
ABI = "luo luo-v5 rw\nsimulated luvfio-v1 rw\nfile memfd-v2 r\n"
SETUP_SECTORS = 4


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def abi_table(text):
    """As the kernel's build puts it into the image: magic, length, checksum, text."""
    data = text.encode()
    return b"LUVFIO-LUO-ABI\0\0" + struct.pack("<II", len(data), crc32c(data)) + data


def bzimage(release=RELEASE, abi=ABI, payload=64 * 1024):
    """The image's bytes. RELEASE or ABI None leaves them out."""
    setup = bytearray((SETUP_SECTORS + 1) * 512)
    setup[0x1F1] = SETUP_SECTORS
    struct.pack_into("<I", setup, 0x1F4, payload // 16)
    struct.pack_into("<H", setup, 0x1FE, 0xAA55)
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, 0x020F)
    setup[0x211] = 1
    struct.pack_into("<H", setup, 0x236, 0x0F)
    if release is not None:
        at = 0x400
        text = f"{release} (builder@host) #1 SMP".encode() + b"\0"
        setup[at : at + len(text)] = text
        struct.pack_into("<H", setup, 0x20E, at - 0x200)
    body = bytearray(payload)
    if abi is not None:
        table = abi_table(abi)
        body[12345 : 12345 + len(table)] = table
    return bytes(setup) + bytes(body)


def kernel(**parameters):
    """An image in a memfd."""
    return memfd("kernel", content=bzimage(**parameters))
