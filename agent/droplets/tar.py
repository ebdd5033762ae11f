"""A streaming tar reader: ustar, GNU long names, pax; gzip (one or several members) or plain.

The reader yields a `Member` for each entry; `TarReader.read` returns the contents of the current file. It refuses every kind of
entry that it does not know, and devices, FIFOs and sparse files. It ignores owners and extended attributes.

Invariant: each number in a header is checked before memory or time is spent on it. Extension headers (long names, pax records) have
limits of their own, since they precede the member that the other limits count.

Why not an existing reader: GNU tar, bsdtar and Python's tarfile each accept some hostile archives (docs/droplets.md, "Unpacking"),
the tarfile of Debian 12 has no filters, and this reader is twice as fast as GNU tar.

The two blocks of zeros at the end may be missing, as some writers omit them. A truncated archive is still found, by the checksums of
gzip and of the droplet.

Format: POSIX pax(1), "ustar Interchange Format" and "pax Interchange Format"; GNU tar manual, "Basic Tar Format".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from zlib_ng import zlib_ng

from agent.droplets.archive import (
    ArchiveError,
    Bounds,
    Kind,
    Member,
    clean_name,
    clean_target,
    shown,
)
from wsh.units import MIB

BLOCK = 512
CHUNK = 256 << 10
#: The limit of one extension header: a long name or a list of pax records.
META_BYTES = MIB
_ZEROS = bytes(BLOCK)
_KINDS = {
    b"0": Kind.FILE,
    b"\0": Kind.FILE,
    b"7": Kind.FILE,
    b"1": Kind.HARD_LINK,
    b"2": Kind.SYMLINK,
    b"5": Kind.DIRECTORY,
}
_REFUSED = {
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a FIFO",
    b"S": "a sparse file",
    b"M": "part of a file of several volumes",
    b"D": "an incremental dump",
}

Read = Callable[[int], bytes]


class ByteStream:
    """The decompressed bytes of a source, counted against the bounds. The checksum and end of each gzip member are verified.

    ``read(limit)`` returns up to ``limit`` bytes of the source, and none only at its end. All methods raise ArchiveError.
    """

    def __init__(self, read: Read, bounds: Bounds) -> None:
        self._read, self._bounds = read, bounds
        self._buffer, self._at = b"", 0
        self.bytes_in = self.bytes_out = 0
        self._pending = read(CHUNK)
        self.bytes_in += len(self._pending)
        while 0 < len(self._pending) < 2 and (more := read(CHUNK)):
            self._pending += more
            self.bytes_in += len(more)
        self._gzip = self._pending[:2] == b"\x1f\x8b"
        self._inflate = zlib_ng.decompressobj(31) if self._gzip else None

    def _source(self) -> bytes:
        if self._pending:
            chunk, self._pending = self._pending, b""
            return chunk
        chunk = self._read(CHUNK)
        self.bytes_in += len(chunk)
        return chunk

    def _inflated(self) -> bytes:
        """The next decompressed bytes; empty at the end."""
        while True:
            if self._inflate is None:
                rest = self._source()
                while rest and not (rest := rest.lstrip(b"\0")):
                    rest = self._source()  # zeros after a gzip member are padding
                if not rest:
                    return b""
                if not rest.startswith(b"\x1f"):
                    raise ArchiveError("gzip: something else follows the compressed data")
                self._pending, self._inflate = rest, zlib_ng.decompressobj(31)
            data = self._inflate.unconsumed_tail or self._source()
            if not data:
                raise ArchiveError("gzip: truncated")
            try:
                out: bytes = self._inflate.decompress(data, CHUNK)
            except zlib_ng.error as e:  # type: ignore[misc]  # an untyped library
                raise ArchiveError(f"gzip: {e}") from e
            if self._inflate.eof:
                self._pending = self._inflate.unused_data + self._pending
                self._inflate = None
            if out:
                return out

    def _fill(self) -> bool:
        self._buffer, self._at = (self._inflated() if self._gzip else self._source()), 0
        self.bytes_out += len(self._buffer)
        bounds = self._bounds
        if self.bytes_out > bounds.stream_bytes:
            raise ArchiveError(f"more than {bounds.total_bytes} bytes")
        if self.bytes_out > bounds.ratio_from_bytes and self.bytes_out > bounds.ratio * self.bytes_in:
            raise ArchiveError(f"compressed more than {bounds.ratio} to 1")
        return bool(self._buffer)

    def some(self, limit: int) -> bytes:
        """1 to ``limit`` bytes; empty only at the end."""
        if self._at == len(self._buffer) and not self._fill():
            return b""
        out = self._buffer[self._at : self._at + limit]
        self._at += len(out)
        return out

    def exactly(self, count: int) -> bytes:
        return self.exactly_or_end(count) or (self._truncated() if count else b"")

    @staticmethod
    def _truncated() -> bytes:
        raise ArchiveError("tar: truncated, or not a tar")

    def exactly_or_end(self, count: int) -> bytes:
        """``count`` bytes, or none if the stream ends before the first of them."""
        out = self.some(count)
        while out and len(out) < count:
            out += self.some(count - len(out)) or self._truncated()
        return out

    def drain(self) -> None:
        """Reads to the end, so that the last checksum is verified too."""
        while self.some(CHUNK):
            pass


def _number(field: bytes, what: str) -> int:
    if field[0] & 0x80:  # base 256, GNU
        value = int.from_bytes(field, "big", signed=False) & ~(0x80 << (8 * (len(field) - 1)))
        return value if field[0] == 0x80 else -1
    text = field.strip(b" \0")
    if text.translate(None, b"01234567"):  # int() would take signs, blanks and underscores too
        raise ArchiveError(f"tar: {what} is not a number: {shown(field)}")
    return int(text, 8) if text else 0


def _checked(header: bytes) -> bytes:
    blank = header[:148] + b" " * 8 + header[156:]
    said = _number(header[148:156], "a checksum")
    signed = sum(blank) - 256 * sum(1 for byte in blank if byte > 127)
    if said not in (sum(blank), signed):
        raise ArchiveError("tar: a header with a wrong checksum, or not a tar")
    return header


def _text(field: bytes) -> bytes:
    return field.split(b"\0", 1)[0]


def parse_pax(data: bytes) -> dict[bytes, bytes]:
    """The records ``LENGTH KEY=VALUE\\n`` of a pax header. The caller limits their size. Raises ArchiveError, also for a sparse map."""
    records: dict[bytes, bytes] = {}
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 8)
        digits = data[at:space] if space > 0 else b""
        if not digits.isdigit():
            raise ArchiveError("tar: a pax record without a length")
        end = at + int(digits)
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if end <= space + 1 or end > len(data) or data[end - 1 : end] != b"\n" or not equals or not key:
            raise ArchiveError("tar: a broken pax record")
        if key.startswith(b"GNU.sparse"):
            raise ArchiveError("tar: a sparse file")
        records[key] = value
        at = end
    return records


def _pax_number(records: dict[bytes, bytes], key: bytes, default: int) -> int:
    text = records.get(key)
    if not text:
        return default
    whole = text.split(b".", 1)[0]
    if not whole.removeprefix(b"-").isdigit() or len(whole) > 20:
        raise ArchiveError(f"tar: pax {key.decode('ascii')} is not a number: {shown(text)}")
    return int(whole)


class TarReader:
    """Iterate to get the members. Before the next one, ``read`` returns the contents of the current one. Raises ArchiveError."""

    def __init__(self, read: Read, bounds: Bounds) -> None:
        self._bounds = bounds
        self.stream = ByteStream(read, bounds)
        self._left = self._padding = 0
        self._declared = 0

    def read(self, limit: int) -> bytes:
        """The next bytes of the current file; empty at its end."""
        if not self._left:
            return b""
        out = self.stream.some(min(limit, self._left))
        if not out:
            raise ArchiveError("tar: truncated")
        self._left -= len(out)
        return out

    def _skip(self) -> None:
        while self._left:
            self.read(CHUNK)
        if self._padding:
            self.stream.exactly(self._padding)
            self._padding = 0

    def _expect(self, size: int) -> None:
        self._left, self._padding = size, -size % BLOCK

    def _meta(self, size: int, what: str) -> bytes:
        if not 0 <= size <= META_BYTES:
            raise ArchiveError(f"tar: expected {what} of 0 to {META_BYTES} bytes, got {size}")
        data = self.stream.exactly(size)
        self._expect(0)
        self.stream.exactly(-size % BLOCK) if size % BLOCK else None
        return data

    def __iter__(self) -> Iterator[Member]:
        members = 0
        while True:
            self._skip()
            header, long_name, long_target, pax = self._header(may_end=members > 0)
            if header is None:
                self.stream.drain()
                return
            members += 1
            if members > self._bounds.members:
                raise ArchiveError(f"more than {self._bounds.members} members")
            yield self._member(header, long_name, long_target, pax)

    def _header(
        self, *, may_end: bool
    ) -> tuple[bytes | None, bytes | None, bytes | None, dict[bytes, bytes]]:
        """The next member's header, and the long name, long target and pax records that precede it; header None: end of archive.

        ``may_end``: the archive may end here without blocks of zeros (see the head of this module).
        """
        said: dict[bytes, bytes] = {}
        pax: dict[bytes, bytes] | None = None
        for _ in range(8):
            header = self.stream.exactly_or_end(BLOCK)
            if not header and not (may_end or said or pax is not None):
                raise ArchiveError("tar: truncated, or not a tar")
            if not header or header == _ZEROS:
                if said or pax is not None:
                    raise ArchiveError("tar: ends after an extension header, before its member")
                return None, None, None, {}
            flag = _checked(header)[156:157]
            size = _number(header[124:136], "a size") if flag in b"xgXLK" else 0
            if flag == b"g":
                if {b"path", b"linkpath", b"size"} & parse_pax(
                    self._meta(size, "a global pax header")
                ).keys():
                    raise ArchiveError("tar: a global pax header that names or sizes every member")
            elif flag in (b"x", b"X"):
                if pax is not None:
                    raise ArchiveError("tar: two pax headers for one member")
                pax = parse_pax(self._meta(size, "a pax header"))
            elif flag in (b"L", b"K"):
                if flag in said:
                    raise ArchiveError("tar: two long names for one member")
                said[flag] = self._meta(size, "a long name").removesuffix(b"\0")
            else:
                return header, said.get(b"L"), said.get(b"K"), pax or {}
        raise ArchiveError("tar: too many headers for one member")

    def _member(
        self, header: bytes, long_name: bytes | None, long_target: bytes | None, pax: dict[bytes, bytes]
    ) -> Member:
        name = _text(header[:100])
        if header[257:263] == b"ustar\0" and header[345]:
            name = _text(header[345:500]) + b"/" + name
        name = pax.get(b"path") or long_name or name
        target = pax.get(b"linkpath") or long_target or _text(header[157:257])
        flag = header[156:157]
        if flag in _REFUSED:
            raise ArchiveError(f"{shown(name)}: {_REFUSED[flag]}")
        kind = _KINDS.get(flag)
        if kind is None:
            raise ArchiveError(f"{shown(name)}: a member of unknown kind {shown(flag)}")
        if kind is Kind.FILE and name.endswith(b"/"):
            kind = Kind.DIRECTORY  # before ustar, a directory was a file whose name ends in a slash
        size = _pax_number(pax, b"size", _number(header[124:136], "a size"))
        self._declared += max(size, 0)
        if size < 0 or self._declared > self._bounds.total_bytes:
            raise ArchiveError(
                f"{shown(name)}: more than {self._bounds.total_bytes} bytes together with this member's {size}"
            )
        if size and kind is not Kind.FILE:
            raise ArchiveError(f"{shown(name)}: a {kind.value} with contents")
        self._expect(size)
        return make_member(
            kind,
            name,
            mode=_number(header[100:108], "a mode"),
            mtime_s=_pax_number(pax, b"mtime", _number(header[136:148], "a time")),
            size_bytes=size,
            target=target,
        )


def make_member(
    kind: Kind, name: bytes, *, mode: int, mtime_s: int, size_bytes: int, target: bytes
) -> Member:
    """A member with checked names. Special mode bits (set-uid, set-gid, sticky) are dropped, and the time is clamped to 32 bits.

    Raises ArchiveError.
    """
    parts = clean_name(name)
    if not parts and kind is not Kind.DIRECTORY:
        raise ArchiveError(f"{shown(name)}: a {kind.value} in place of the root")
    mode, mtime_s = mode & 0o777, min(max(mtime_s, 0), (1 << 32) - 1)
    if kind is Kind.HARD_LINK:
        target_parts = clean_name(target)
        if not target_parts:
            raise ArchiveError(f"{shown(name)}: a hard link to nothing")
        return Member(kind, parts, target_parts=target_parts)
    if kind is Kind.SYMLINK:
        return Member(kind, parts, mtime_s=mtime_s, target=clean_target(name, target))
    return Member(kind, parts, mode, mtime_s, size_bytes)
