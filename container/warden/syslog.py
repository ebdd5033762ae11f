"""The output of jobs with a log tag, sent to syslog: one datagram a line, stdout as info and stderr as error."""

from __future__ import annotations

import contextlib
import socket
import time
from pathlib import Path
from typing import Final

from container.jobs import Job

DEFAULT_SOCKET: Final = Path("/dev/log")
#: Priorities of the facility `user` (RFC 3164): info and error.
_PRIORITY: Final = {"stdout": 14, "stderr": 11}
#: A longer tag is cut.
TAG_BYTES: Final = 256
#: A longer line is sent in pieces.
_LINE_BYTES: Final = 8192
#: A tag is a word of the line: what would end it, or begin another line, becomes an underscore.
_UNSAFE: Final = bytes(range(0x21)) + b":[]\x7f"


def tag_of(log_tag: bytes) -> bytes:
    """The word before each line."""
    return b"warden." + log_tag[:TAG_BYTES].translate(bytes.maketrans(_UNSAFE, b"_" * len(_UNSAFE)))


def datagram(stream: str, tag: bytes, line: bytes, now_s: float) -> bytes:
    """One line as logger(1) sends it to a local socket. Pure."""
    at = time.strftime("%b %e %H:%M:%S", time.localtime(now_s)).encode()
    return b"<%d>%b %b: %b" % (_PRIORITY[stream], at, tag, line)


class Lines:
    """Cuts a stream into lines."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that are whole now."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        while len(self._rest) > _LINE_BYTES:
            lines.append(self._rest[:_LINE_BYTES])
            self._rest = self._rest[_LINE_BYTES:]
        return [line[at : at + _LINE_BYTES] for line in lines for at in range(0, len(line), _LINE_BYTES)]

    def end(self) -> list[bytes]:
        """A last line without an end."""
        rest, self._rest = self._rest, b""
        return [rest] if rest else []


async def forward(job: Job, stream: str, log_tag: bytes, path: Path, offset: int) -> None:
    """Sends one stream of a job from ``offset`` on until the job ends. What nobody takes is dropped: syslog must not stop a job."""
    tag, lines = tag_of(log_tag), Lines()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as out:

        def send(whole: list[bytes]) -> None:
            for line in whole:
                with contextlib.suppress(OSError):
                    out.sendto(datagram(stream, tag, line, time.time()), str(path))

        async for chunk in job.stream(stream, offset=offset):
            send(lines.feed(chunk.data))
        send(lines.end())
