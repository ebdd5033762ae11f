"""A client of Warden's protocol, written from the description of the wire alone (docs/warden.md, "Frames" and "Messages").

It shares no code with the server: fields are numbers here, and the encoding is done by hand. A message is a mapping of a
field's number to its value (an int, bytes, a mapping, or a list of these).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ERROR, CREATE, STOP, DESTROY, INFO = 1, 11, 12, 13, 14
SPAWN, LINK, RUN, STREAM = 21, 22, 23, 24
NET_IN, NET_OUT, COPY_IN, COPY_OUT = 31, 32, 41, 42
LIMIT_MEMORY, LIMIT_DISK, LIMIT_BANDWIDTH, LIMIT_CPU = 51, 52, 53, 54
PING, LIST, ECHO = 91, 92, 93

Fields = Mapping[int, Any]


class ServerError(Exception):
    """The response was an error; the text is the server's."""


def varint(number: int) -> bytes:
    number &= (1 << 64) - 1
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def pack(fields: Fields) -> bytes:
    """The bytes of a message, in the order of the mapping."""
    out = b""
    for number, value in fields.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, int):
                out += varint(number << 3) + varint(one)
            else:
                data = one if isinstance(one, bytes) else pack(one)
                out += varint(number << 3 | 2) + varint(len(data)) + data
    return out


def unpack(data: bytes) -> dict[int, list[Any]]:
    """The fields of a message: numbers, and bytes that may be messages again."""
    fields: dict[int, list[Any]] = {}
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = number()
        if key & 7 == 0:
            fields.setdefault(key >> 3, []).append(number())
        else:
            assert key & 7 == 2, f"wire type {key & 7}"
            size = number()
            fields.setdefault(key >> 3, []).append(data[at : at + size])
            at += size
    assert at == len(data)
    return fields


def frame(kind: int, fields: Fields | bytes) -> bytes:
    payload = fields if isinstance(fields, bytes) else pack(fields)
    message = pack({1: kind, 2: payload})
    return b"%d\r\n%b\r\n" % (len(message), message)


@dataclass
class Response:
    kind: int
    fields: dict[int, list[Any]] = field(default_factory=dict)

    def __getitem__(self, number: int) -> Any:
        """The only value of a field."""
        (value,) = self.fields[number]
        return value

    def get(self, number: int) -> Any:
        return self[number] if number in self.fields else None


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, path: Path) -> Client:
        return cls(*await asyncio.open_unix_connection(str(path), limit=1 << 26))

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()

    def send(self, kind: int, fields: Fields | bytes = b"") -> None:
        self.writer.write(frame(kind, fields))

    async def receive(self, timeout_s: float = 60) -> Response:
        """The next response. ServerError: it is an error; EOFError: the server has closed the connection."""
        async with asyncio.timeout(timeout_s):
            length = int((await self.reader.readuntil(b"\r\n")).decode())
            message = unpack(await self.reader.readexactly(length))
            assert await self.reader.readexactly(2) == b"\r\n"
        (kind,), (payload,) = message[1], message[2]
        fields = unpack(payload)
        if kind == ERROR:
            raise ServerError(fields[2][0].decode("utf-8", "surrogateescape"))
        return Response(kind, fields)

    async def call(self, kind: int, fields: Fields | bytes = b"", timeout_s: float = 60) -> Response:
        self.send(kind, fields)
        response = await self.receive(timeout_s)
        assert response.kind == kind
        return response

    async def create(self, **fields: Any) -> bytes:
        """``binds``: (source, target, mode) each."""
        numbers = {"grace_time": 2, "handle": 3, "network": 4, "rootfs": 5}
        message: dict[int, Any] = {numbers[name]: value for name, value in fields.items() if name != "binds"}
        if binds := fields.get("binds"):
            message[1] = [{1: source, 2: target, 3: mode} for source, target, mode in binds]
        handle: bytes = (await self.call(CREATE, message))[1]
        return handle

    async def run(self, handle: bytes, script: str, **fields: Any) -> tuple[int, bytes, bytes]:
        """Status, stdout, stderr."""
        numbers = {"privileged": 3, "rlimits": 4, "discard_output": 5, "log_tag": 6}
        more = {numbers[name]: value for name, value in fields.items()}
        done = await self.call(RUN, {1: handle, 2: script.encode(), **more})
        return done[1], done[2], done[3]
