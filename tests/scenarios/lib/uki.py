# SPDX-License-Identifier: LGPL-2.1-or-later
"""A unified kernel image as ukify lays it out, without the stub that firmware would start: kexec does not."""

import struct

SECTOR = 512


def make(path, sections):
    """A PE file at PATH with SECTIONS, name: content."""
    header = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x40)
    header += b"PE\0\0" + struct.pack("<HHIIIHH", 0x8664, len(sections), 0, 0, 0, 0, 0)
    offset = -(-(len(header) + 40 * len(sections)) // SECTOR) * SECTOR
    body = b""
    for name, content in sections.items():
        # In the file each is padded, which a kernel's own end must not be.
        padded = content.ljust(-(-len(content) // SECTOR) * SECTOR, b"\0")
        header += struct.pack("<8sIIIIIIHHI", name.encode(), len(content), 0x1000 + offset + len(body), len(padded),
                              offset + len(body), 0, 0, 0, 0, 0x40000040)
        body += padded
    path.write_bytes(header.ljust(offset, b"\0") + body)
