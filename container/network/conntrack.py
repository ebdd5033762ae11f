"""Forgets connections, so that the next owner of an address or a port does not inherit them.

Raw ctnetlink. To delete by a filter is one message, which kernels before 6.8 refuse. There, and where each entry has to be looked
at, the entries are listed through the filter (CTA_FILTER, kernel 5.8) and deleted one by one, by their own tuple. A list takes
12 ms, whatever it finds. Only our own connections go: those of the container's address, and those to a port of the host's
own addresses. These calls block, so they belong in a thread; they come after the rules were changed.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Iterator

from container.network.netlink import (
    ACK,
    DUMP,
    ERROR,
    NESTED,
    NETFILTER,
    REQUEST,
    asking,
    attribute,
    attributes,
    dumped,
    error_number,
    message,
    messages,
    refusal,
)
from container.network.permitted import Flow

_GET, _DELETE = ((1 << 8) | number for number in (1, 2))  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_*
_TUPLE_ORIG, _TUPLE_REPLY, _FILTER = 1, 2, 25
_FILTER_IP_SRC, _FILTER_PROTO, _FILTER_DST_PORT = 1 << 0, 1 << 3, 1 << 5
_IP, _PROTO = 1, 2  # parts of a tuple
_IP_SRC, _IP_DST = 1, 2
_PROTO_NUM, _PROTO_DST_PORT = 1, 3
_FAMILY = struct.pack("=BBH", socket.AF_INET, 0, 0)  # nfgenmsg


def _filtered(which: int, part: int, value: bytes, flags: int) -> bytes:
    """A tuple of one part, and the filter with the fields of it that count."""
    wanted = attribute(which | NESTED, attribute(part | NESTED, value))
    by_side = (flags, 0) if which == _TUPLE_ORIG else (0, flags)
    sides = b"".join(attribute(side, struct.pack("=I", number)) for side, number in enumerate(by_side, 1))
    return _FAMILY + wanted + attribute(_FILTER | NESTED, sides)


def forget_address(address: str) -> None:
    """Deletes the connections that a container began, and those that were led to it. OSError: the kernel refused."""
    source = attribute(_IP_SRC, socket.inet_aton(address))
    with asking(NETFILTER) as asker:
        for which in (_TUPLE_ORIG, _TUPLE_REPLY):
            wanted = _filtered(which, _IP, source, _FILTER_IP_SRC)
            if not _deleted_at_once(asker, wanted):
                for original in _matching(asker, wanted):
                    _delete(asker, original)


def forget_refused(address: str, is_permitted: Callable[[Flow], bool]) -> None:
    """Deletes those connections that a container began and that its rules permit no more. OSError: the kernel refused."""
    source = attribute(_IP_SRC, socket.inet_aton(address))
    with asking(NETFILTER) as asker:
        for original in _matching(asker, _filtered(_TUPLE_ORIG, _IP, source, _FILTER_IP_SRC)):
            if not is_permitted(_flow(original)):
                _delete(asker, original)


def _flow(original: bytes) -> Flow:
    parts = attributes(original)
    protocol = attributes(parts[_PROTO])
    port = protocol.get(_PROTO_DST_PORT, b"\0\0")
    to = socket.inet_ntoa(attributes(parts[_IP])[_IP_DST])
    return Flow(to, protocol[_PROTO_NUM][0], int.from_bytes(port, "big"))


def forget_host_port(protocol_number: int, port: int) -> None:
    """Deletes connections to this port of the host's own addresses. OSError: the kernel refused.

    A client that used a UDP port before it was published would otherwise go on talking to the host. Connections that pass
    through to another machine's port stay.
    """
    protocol = attribute(_PROTO_NUM, bytes([protocol_number]))
    wanted = _filtered(
        _TUPLE_ORIG,
        _PROTO,
        protocol + attribute(_PROTO_DST_PORT, struct.pack("!H", port)),
        _FILTER_PROTO | _FILTER_DST_PORT,
    )
    with asking(NETFILTER) as asker:
        for original in _matching(asker, wanted):
            if is_own(socket.inet_ntoa(attributes(attributes(original)[_IP])[_IP_DST])):
                _delete(asker, original)


def _deleted_at_once(asker: socket.socket, wanted: bytes) -> bool:
    """False: this kernel does not delete by a filter. It takes the tuple for a whole one: EINVAL, or there is none like it."""
    asker.send(message(_DELETE, REQUEST | ACK, wanted))
    return all(kind != ERROR or error_number(payload) == 0 for kind, payload in messages(asker.recv(65536)))


def _delete(asker: socket.socket, original: bytes) -> None:
    """One entry, by its original tuple; it may have ended meanwhile."""
    asker.send(message(_DELETE, REQUEST | ACK, _FAMILY + attribute(_TUPLE_ORIG | NESTED, original)))
    for kind, payload in messages(asker.recv(65536)):
        if kind == ERROR and error_number(payload) not in (0, errno.ENOENT):
            raise refusal(payload, "conntrack")


def _matching(asker: socket.socket, wanted: bytes) -> list[bytes]:
    """The original tuples of all entries that a filter lets through. The whole list is read before anything else is asked."""
    asker.send(message(_GET, REQUEST | DUMP, wanted))
    return list(_originals(asker))


def _originals(asker: socket.socket) -> Iterator[bytes]:
    try:
        for payload in dumped(asker, "conntrack"):
            yield attributes(payload[len(_FAMILY) :])[_TUPLE_ORIG]
    except FileNotFoundError:  # ENOENT: there was none
        return


def is_own(address: str) -> bool:
    """Whether the host has this address. Only such an address can be bound."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
        return True
