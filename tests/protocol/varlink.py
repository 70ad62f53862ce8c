# SPDX-License-Identifier: LGPL-2.1-or-later
"""A varlink client with nothing between it and the socket.

Everything that a well-behaved library hides can be done here on purpose: messages in pieces, without their end,
with file descriptors on any byte, with none or too many of them, or a peer that never reads.
"""

import array
import json
import os
import select
import socket
import struct
import time

TIMEOUT = 30.0

# SO_PEERCRED and friends need no more; 253 is the kernel's limit of fds in a message.
SCM_MAX_FD = 253


class Error(Exception):
    """An error reply."""

    def __init__(self, error, parameters):
        super().__init__(f"{error} {json.dumps(parameters, sort_keys=True)}")
        self.error = error
        self.parameters = parameters


class Disconnected(Exception):
    """The other side closed."""


class Reply:
    def __init__(self, message, fds):
        self.parameters = message.get("parameters") or {}
        self.error = message.get("error")
        self.continues = bool(message.get("continues"))
        self.fds = fds

    def __getitem__(self, key):
        return self.parameters[key]

    def get(self, key, default=None):
        return self.parameters.get(key, default)

    def take_fd(self, index=0):
        """The fd, now the caller's; the others are closed."""
        fd = self.fds[index]
        for i, other in enumerate(self.fds):
            if i != index:
                os.close(other)
        self.fds = []
        return fd

    def close(self):
        for fd in self.fds:
            os.close(fd)
        self.fds = []


def encode(method, parameters=None, more=False, oneway=False, **extra):
    message = {"method": method}
    if parameters is not None:
        message["parameters"] = parameters
    if more:
        message["more"] = True
    if oneway:
        message["oneway"] = True
    message.update(extra)
    return json.dumps(message).encode() + b"\0"


class Connection:
    def __init__(self, path, timeout=TIMEOUT):
        self.timeout = timeout
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self.socket.settimeout(timeout)
        self.socket.connect(str(path))
        self.buffer = b""
        self.fds = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def fileno(self):
        return self.socket.fileno()

    def close(self):
        for fd in self.fds:
            os.close(fd)
        self.fds = []
        self.socket.close()

    # Sending.

    def send_raw(self, data, fds=()):
        """Sends bytes as they are; the fds ride on the first one."""
        view = memoryview(data)
        if fds:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
            sent = self.socket.sendmsg([view], ancillary)
            view = view[sent:]
        while view:
            view = view[self.socket.send(view) :]

    def send(self, method, parameters=None, fds=(), more=False, oneway=False):
        self.send_raw(encode(method, parameters, more, oneway), fds)

    def send_split(self, data, fds=(), size=1, pause=0.0):
        """Sends bytes in pieces of SIZE; the fds ride on the first one."""
        for offset in range(0, len(data), size):
            self.send_raw(data[offset : offset + size], fds if offset == 0 else ())
            if pause:
                time.sleep(pause)

    # Receiving.

    def _fill(self, deadline):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([self.socket], [], [], left)[0]:
            raise TimeoutError("no answer")
        try:
            data, ancillary, flags, _ = self.socket.recvmsg(
                65536, socket.CMSG_SPACE(SCM_MAX_FD * 4), socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError:
            raise Disconnected("connection reset") from None
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                self.fds += struct.unpack(f"{len(payload) // 4}i", payload)
        if not data:
            raise Disconnected("connection closed")
        self.buffer += data

    def pending(self):
        """Whether a whole message is here already, which select() does not see."""
        return b"\0" in self.buffer

    def receive(self, timeout=None, check=True):
        """The next reply. Raises Error for error replies, unless CHECK is off."""
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        while b"\0" not in self.buffer:
            self._fill(deadline)
        message, self.buffer = self.buffer.split(b"\0", 1)
        # Daemon's replies carry fds one call at a time, so whatever came belongs to this message.
        fds, self.fds = self.fds, []
        reply = Reply(json.loads(message), fds)
        if check and reply.error:
            reply.close()
            raise Error(reply.error, reply.parameters)
        return reply

    def call(self, method, parameters=None, fds=(), timeout=None, check=True):
        self.send(method, parameters or {}, fds)
        return self.receive(timeout, check)

    def closed_by_peer(self, timeout=5.0):
        """Whether the other side closes within TIMEOUT; replies before that are dropped."""
        deadline = time.monotonic() + timeout
        try:
            while True:
                self._fill(deadline)
        except TimeoutError:
            return False
        except Disconnected:
            return True


def call(path, method, parameters=None, fds=(), timeout=TIMEOUT, check=True):
    """One call on a connection of its own."""
    with Connection(path, timeout) as connection:
        return connection.call(method, parameters, fds, check=check)


def follow(path, method, parameters=None, fds=(), timeout=TIMEOUT):
    """A call with `more` on a connection of its own: yields replies until the last one or the peer is gone."""
    with Connection(path, timeout) as connection:
        connection.send(method, parameters or {}, fds, more=True)
        while True:
            try:
                reply = connection.receive()
            except Disconnected:
                return
            yield reply
            if not reply.continues:
                return
