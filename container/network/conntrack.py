"""Forget connections, so that the new owner of an address or a port does not inherit them.

Raw ctnetlink. Deleting by a filter is one message, which kernels before 6.8 refuse; there, and where each entry has to be
looked at, a dump through the filter (CTA_FILTER, 5.8) and then each by its own tuple: 12 ms a dump, whatever it finds. Only what
is ours goes: connections of the container's address, and those to a port of the host's own. Blocking: runs in a thread, after
the rules were changed.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

from container.network.netlink import (
    ACK,
    DONE,
    DUMP,
    ERROR,
    NESTED,
    REQUEST,
    attribute,
    attributes,
    message,
    messages,
)

_NETLINK_NETFILTER = 12
_GET, _DELETE = ((1 << 8) | number for number in (1, 2))  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_*
_TUPLE_ORIG, _TUPLE_REPLY, _FILTER = 1, 2, 25
_FILTER_IP_SRC, _FILTER_PROTO, _FILTER_DST_PORT = 1 << 0, 1 << 3, 1 << 5
_IP, _PROTO = 1, 2  # parts of a tuple
_IP_SRC, _IP_DST = 1, 2
_PROTO_NUM, _PROTO_DST_PORT = 1, 3
_FAMILY = struct.pack("=BBH", socket.AF_INET, 0, 0)  # nfgenmsg
_ABSENT = -2  # ENOENT: there was none


def _filtered(which: int, part: int, value: bytes, flags: int) -> bytes:
    """A tuple of one part, and the filter that says how much of it counts."""
    wanted = attribute(which | NESTED, attribute(part | NESTED, value))
    by_side = (flags, 0) if which == _TUPLE_ORIG else (0, flags)
    said = b"".join(attribute(side, struct.pack("=I", number)) for side, number in enumerate(by_side, 1))
    return _FAMILY + wanted + attribute(_FILTER | NESTED, said)


def forget_address(address: str) -> None:
    """Connections that it began, and those that were led to it. OSError: the kernel refused."""
    source = attribute(_IP_SRC, socket.inet_aton(address))
    with _open() as channel:
        for which in (_TUPLE_ORIG, _TUPLE_REPLY):
            wanted = _filtered(which, _IP, source, _FILTER_IP_SRC)
            if not _deleted_at_once(channel, wanted):
                for original in _matching(channel, wanted):
                    _delete(channel, original)


def forget_host_port(protocol_number: int, port: int) -> None:
    """Connections to this port of the host's own addresses, never those that pass through to another machine's.

    Whoever spoke to a UDP port before it was published would else go on speaking to the host. OSError: the kernel refused.
    """
    said = attribute(_PROTO_NUM, bytes([protocol_number])) + attribute(
        _PROTO_DST_PORT, struct.pack("!H", port)
    )
    wanted = _filtered(_TUPLE_ORIG, _PROTO, said, _FILTER_PROTO | _FILTER_DST_PORT)
    with _open() as channel:
        for original in _matching(channel, wanted):
            if _is_own(socket.inet_ntoa(attributes(attributes(original)[_IP])[_IP_DST])):
                _delete(channel, original)


def _open() -> socket.socket:
    channel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
    channel.bind((0, 0))
    return channel


def _deleted_at_once(channel: socket.socket, wanted: bytes) -> bool:
    """False: this kernel does not delete by a filter. It then takes the tuple for a whole one: EINVAL, or none like it."""
    channel.send(message(_DELETE, REQUEST | ACK, wanted))
    return all(_error_of(kind, payload) == 0 for kind, payload in messages(channel.recv(65536)))


def _delete(channel: socket.socket, original: bytes) -> None:
    """One entry, by its original tuple; it may have ended meanwhile."""
    channel.send(message(_DELETE, REQUEST | ACK, _FAMILY + attribute(_TUPLE_ORIG | NESTED, original)))
    for kind, payload in messages(channel.recv(65536)):
        _raise_for(kind, payload)


def _matching(channel: socket.socket, wanted: bytes) -> list[bytes]:
    """The original tuples of all entries that a filter lets through: the whole dump, before anything else is asked."""
    channel.send(message(_GET, REQUEST | DUMP, wanted))
    return list(_originals(channel))


def _originals(channel: socket.socket) -> Iterator[bytes]:
    while True:
        for kind, payload in messages(channel.recv(1 << 18)):
            _raise_for(kind, payload)
            if kind in (DONE, ERROR):
                return
            yield attributes(payload[len(_FAMILY) :])[_TUPLE_ORIG]


def _error_of(kind: int, payload: bytes) -> int:
    """A negative errno, or 0."""
    return int(struct.unpack_from("=i", payload)[0]) if kind == ERROR else 0


def _raise_for(kind: int, payload: bytes) -> None:
    error = _error_of(kind, payload)
    if error not in (0, _ABSENT):
        raise OSError(-error, f"conntrack: {os.strerror(-error)}")


def _is_own(address: str) -> bool:
    """Only an address of the host's own can be bound."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
        return True
