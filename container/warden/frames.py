"""The framing of Warden's protocol: a decimal length, CR LF, that many bytes, CR LF. Pure.

Bytes that cannot be a frame end the connection, because nothing after them can be found. The original server left such bytes
in its buffer and answered nothing more on that connection.
"""

from __future__ import annotations

from typing import Final

from container.errors import ContainerError
from wsh.units import MIB

_END: Final = b"\r\n"
#: The longest frame. A script and the whole output of a job are in one frame; the default output limit is 10 MiB.
MAX_FRAME_BYTES: Final = 64 * MIB
_LENGTH_DIGITS: Final = len(str(MAX_FRAME_BYTES))


class BadFrame(ContainerError, ValueError):
    """The bytes are no frame. The reader cannot go on."""


def pack_frame(data: bytes) -> bytes:
    """The frame of a message."""
    return b"%d\r\n%b\r\n" % (len(data), data)


class FrameReader:
    """Finds the frames in what a peer sends, in whatever pieces it arrives."""

    def __init__(self, max_bytes: int = MAX_FRAME_BYTES) -> None:
        self._max_bytes = max_bytes
        self._buffer = bytearray()
        self._length: int | None = None

    def feed(self, data: bytes) -> None:
        """Takes what the peer has sent."""
        self._buffer += data

    def next(self) -> bytes | None:
        """The next message; None: it has not arrived completely. BadFrame."""
        if self._length is None:
            self._length = self._read_length()
        if self._length is None or len(self._buffer) < self._length + len(_END):
            return None
        if self._buffer[self._length : self._length + len(_END)] != _END:
            raise BadFrame(f"expected CR LF after the {self._length} bytes of a message")
        message = bytes(self._buffer[: self._length])
        del self._buffer[: self._length + len(_END)]
        self._length = None
        return message

    def _read_length(self) -> int | None:
        end = self._buffer.find(_END, 0, _LENGTH_DIGITS + len(_END))
        text = bytes(self._buffer[: end if end >= 0 else _LENGTH_DIGITS + len(_END)])
        if end < 0 and len(text) < _LENGTH_DIGITS + len(_END):
            begun = text.removesuffix(b"\r")
            if not text or (begun.isdigit() and len(begun) <= _LENGTH_DIGITS):
                return None
        if end < 0 or not text.isdigit():
            raise BadFrame(f"expected a decimal length and CR LF, got {text!r}")
        if int(text) > self._max_bytes:
            raise BadFrame(f"expected a message of at most {self._max_bytes} bytes, got {int(text)}")
        del self._buffer[: end + len(_END)]
        return int(text)
