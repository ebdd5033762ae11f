"""Netlink by hand: messages and attributes as bytes, and sockets that listen to the kernel.

docs/network.md, "Netlink by hand", has the figures for the library that could do this.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import Final

NETFILTER: Final = 12  # NETLINK_NETFILTER; the module socket of 3.11 does not name it
NESTED: Final = 0x8000
REQUEST, ACK, DUMP = 0x1, 0x4, 0x300
ERROR, DONE = 2, 3
_TYPE_MASK: Final = 0x3FFF
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_READ_BYTES: Final = 1 << 18


class MessagesLost(Exception):
    """The kernel had more messages than the socket's buffer holds, and dropped some."""


def attribute(kind: int, value: bytes) -> bytes:
    """Padded to four bytes."""
    return struct.pack("=HH", len(value) + 4, kind) + value + b"\0" * (-len(value) % 4)


def message(kind: int, flags: int, body: bytes) -> bytes:
    """With the header of one request."""
    return struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body


def messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, payload) of each message in a datagram; a broken one ends it."""
    at = 0
    while at + 16 <= len(data):
        length, kind = struct.unpack_from("=IH", data, at)
        if length < 16 or at + length > len(data):
            return
        yield kind, data[at + 16 : at + length]
        at += (length + 3) & ~3


def attributes(data: bytes) -> dict[int, bytes]:
    """By type; the last of a kind wins, a broken one ends it."""
    found, at = {}, 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        if length < 4 or at + length > len(data):
            break
        found[kind & _TYPE_MASK] = data[at + 4 : at + length]
        at += (length + 3) & ~3
    return found


def asking(protocol: int) -> socket.socket:
    """A blocking socket for requests. OSError."""
    asking = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    asking.bind((0, 0))
    return asking


def listening(
    protocol: int, *, groups: int = 0, member_of: int | None = None, buffer_bytes: int
) -> socket.socket:
    """A socket that never blocks and gets what the kernel reports from now on. OSError.

    ``groups``: a mask of the first 32 groups; ``member_of``: the number of one group.
    """
    listener = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    listener.setblocking(False)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
    listener.bind((0, groups))
    if member_of is not None:
        listener.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, member_of)
    return listener


def queued(listener: socket.socket) -> Iterator[tuple[int, bytes]]:
    """(type, payload) of all messages that wait in a listening socket. MessagesLost; OSError."""
    while True:
        try:
            data = listener.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError as e:
            if e.errno == errno.ENOBUFS:
                raise MessagesLost from e
            raise
        yield from messages(data)


def answered(asker: socket.socket, kind: int, flags: int, body: bytes, what: str) -> bytes:
    """Sends one request, waits until it is acknowledged, and returns the payload of its answer; empty: it had none.

    OSError: the kernel refused; it names ``what``.
    """
    asker.send(message(kind, flags | REQUEST | ACK, body))
    found = b""
    while True:
        for answer, payload in messages(asker.recv(_READ_BYTES)):
            if answer != ERROR:
                found = payload
            elif error_number(payload):
                raise refusal(payload, what)
            else:
                return found


def dumped(asker: socket.socket, what: str) -> Iterator[bytes]:
    """The payloads of a dump that was asked for, to its end. OSError: the kernel refused; it names ``what``."""
    while True:
        for kind, payload in messages(asker.recv(_READ_BYTES)):
            if kind == DONE:
                return
            if kind == ERROR:
                if error_number(payload):
                    raise refusal(payload, what)
                return
            yield payload


def error_number(payload: bytes) -> int:
    """The errno of an ERROR message; 0: it acknowledges."""
    return -int(struct.unpack_from("=i", payload)[0])


def refusal(payload: bytes, what: str) -> OSError:
    """An ERROR message as an exception."""
    number = error_number(payload)
    return OSError(number, f"{what}: {os.strerror(number)}")
