"""Archives to unpack in tests, most of them hostile: those to be refused, and those to be accepted with the tree they make.

`tarfile` refuses to write most of these, so headers are built here byte by byte (POSIX pax(1), "ustar Interchange Format").
Unit tests unpack them in the test process, kernel tests in the jail.
"""

from __future__ import annotations

import gzip
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.droplets.archive import Bounds

END = bytes(1024)
MTIME = 1_500_000_000
#: Small bounds, so that archives that exceed them are small too.
BOUNDS = Bounds(total_bytes=1 << 20, members=300, ratio=100, ratio_from_bytes=256 << 10)

FILE, HARD, LINK, CHAR, BLOCK_DEVICE, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"


def octal(value: int, width: int) -> bytes:
    return b"%0*o\0" % (width - 1, value)


def base256(value: int, width: int = 12) -> bytes:
    """A number in GNU tar's binary format, for values that do not fit into octal digits, and for negative ones."""
    raw = bytearray(value.to_bytes(width, "big", signed=True))
    if value >= 0:
        raw[0] |= 0x80
    return bytes(raw)


def header(
    name: bytes,
    kind: bytes = FILE,
    *,
    size: int | bytes = 0,
    mode: int = 0o644,
    mtime: int | bytes = MTIME,
    target: bytes = b"",
    uid: int = 0,
    prefix: bytes = b"",
    device: tuple[int, int] = (0, 0),
    magic: bytes = b"ustar\x0000",
) -> bytes:
    """One header block with a valid checksum."""
    fields = (
        name.ljust(100, b"\0")[:100]
        + octal(mode, 8)
        + octal(uid, 8)
        + octal(uid, 8)
        + (octal(size, 12) if isinstance(size, int) else size)
        + (octal(mtime, 12) if isinstance(mtime, int) else mtime)
        + b" " * 8
        + kind
        + target.ljust(100, b"\0")[:100]
        + magic
        + bytes(64)
        + octal(device[0], 8)
        + octal(device[1], 8)
        + prefix.ljust(155, b"\0")
        + bytes(12)
    )
    return with_checksum(fields)


def with_checksum(block: bytes) -> bytes:
    blank = block[:148] + b" " * 8 + block[156:512]
    return blank[:148] + b"%06o\0 " % sum(blank) + blank[156:]


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def file(name: bytes, data: bytes = b"", **fields: object) -> bytes:
    return header(name, **{"size": len(data), **fields}) + padded(data)  # type: ignore[arg-type]


def directory(name: bytes, mode: int = 0o755, **fields: object) -> bytes:
    return header(name, DIRECTORY, mode=mode, **fields)  # type: ignore[arg-type]


def link(name: bytes, target: bytes, kind: bytes = LINK) -> bytes:
    return header(name, kind, mode=0o777, target=target)


def about(kind: bytes, data: bytes) -> bytes:
    """An extended header, which describes the member after it. ``kind``: L, K, x or g."""
    return header(b"././@about", kind, size=len(data)) + padded(data)


def record(key: bytes, value: bytes) -> bytes:
    body = b" " + key + b"=" + value + b"\n"
    length = len(body) + 1
    while len(str(length)) + len(body) != length:
        length += 1
    return str(length).encode() + body


def pax(records: Mapping[bytes, bytes], kind: bytes = b"x") -> bytes:
    return about(kind, b"".join(record(key, value) for key, value in records.items()))


def packed(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


@dataclass(frozen=True)
class Refused:
    """An archive to be refused. ``why``: a part of the error's text. ``own_bounds``: it exceeds only `BOUNDS`, so the agent's
    larger bounds accept it."""

    data: bytes
    why: str
    own_bounds: bool = False


@dataclass(frozen=True)
class Fine:
    """An archive to be accepted. ``tree``: what it unpacks to, in the format of `tree_of`."""

    data: bytes
    tree: Mapping[str, str]


A = file(b"a", b"aaa")
THROUGH = file(b"d/planted", b"planted")
_WHOLE = packed(A + END)

REFUSED: dict[str, Refused] = {
    # names
    "dot-dot": Refused(file(b"../planted"), "'..' in a name"),
    "dot-dot in the middle": Refused(file(b"a/../../planted"), "'..' in a name"),
    "dot-dot by pax": Refused(pax({b"path": b"../planted"}) + A, "'..' in a name"),
    "dot-dot by a long name": Refused(about(b"L", b"../planted\0") + A, "'..' in a name"),
    "dot-dot by prefix": Refused(file(b"planted", prefix=b".."), "'..' in a name"),
    "absolute": Refused(file(b"/planted"), "an absolute name"),
    "NUL by pax": Refused(pax({b"path": b"a\0b"}) + A, "a NUL byte"),
    "NUL by a long name": Refused(about(b"L", b"a\0b\0") + A, "a NUL byte"),
    "NUL in a link": Refused(pax({b"linkpath": b"a\0b"}) + link(b"l", b"x"), "expected a link target"),
    "long name": Refused(
        pax({b"path": b"a/" * 2048 + b"a"}) + A, "expected a name of at most 4095 bytes, got 4097"
    ),
    "long component": Refused(pax({b"path": b"a" * 256}) + A, "longer than 255"),
    "deep": Refused(pax({b"path": b"a/" * 128 + b"a"}) + A, "deeper than 128"),
    "long link": Refused(pax({b"linkpath": b"a" * 4096}) + link(b"l", b"x"), "expected a link target"),
    "empty link": Refused(link(b"l", b""), "expected a link target"),
    "file for the root": Refused(file(b"."), "in place of the root"),
    "link for the root": Refused(link(b".", b"/"), "in place of the root"),
    # writes through links
    "through a relative link": Refused(link(b"d", b"..") + THROUGH, "Not a directory"),
    "through an absolute link": Refused(link(b"d", b"/tmp") + THROUGH, "Not a directory"),
    "through a link to the root": Refused(link(b"d", b".") + THROUGH, "Not a directory"),
    "through chained links": Refused(link(b"e", b"..") + link(b"d", b"e") + THROUGH, "Not a directory"),
    "directory through a link": Refused(link(b"d", b"..") + directory(b"d/planted"), "Not a directory"),
    "directory over a link": Refused(link(b"d", b"..") + directory(b"d") + THROUGH, "Not a directory"),
    "link through a link": Refused(link(b"d", b"..") + link(b"d/planted", b"x"), "Not a directory"),
    "hard link to a link": Refused(link(b"e", b"..") + link(b"d", b"e", HARD) + THROUGH, "Not a directory"),
    "hard link through a link": Refused(link(b"d", b"..") + link(b"l", b"d/guard", HARD), "Not a directory"),
    "hard link through an absolute link": Refused(
        link(b"d", b"/etc") + link(b"l", b"d/passwd", HARD), "Not a directory"
    ),
    # hard links
    "hard link out": Refused(link(b"l", b"../guard", HARD), "'..' in a name"),
    "hard link to an absolute name": Refused(link(b"l", b"/etc/passwd", HARD), "an absolute name"),
    "hard link to what is missing": Refused(link(b"l", b"missing", HARD), "No such file"),
    "hard link below what is missing": Refused(link(b"l", b"missing/x", HARD), "No such file"),
    "hard link to itself": Refused(A + link(b"a", b"./a", HARD), "a hard link to itself"),
    "hard link to a directory": Refused(directory(b"d") + link(b"l", b"d", HARD), "not permitted"),
    "hard link to nothing": Refused(link(b"l", b"", HARD), "a hard link to nothing"),
    # kinds of members
    "character device": Refused(header(b"null", CHAR, device=(1, 3)), "a character device"),
    "whiteout": Refused(header(b"gone", CHAR, device=(0, 0)), "a character device"),
    "block device": Refused(header(b"sda", BLOCK_DEVICE, device=(8, 0)), "a block device"),
    "FIFO": Refused(header(b"pipe", FIFO), "a FIFO"),
    "sparse, GNU": Refused(header(b"s", b"S", size=512) + bytes(512), "a sparse file"),
    "sparse, pax 0.1": Refused(pax({b"GNU.sparse.map": b"0,1"}) + A, "a sparse file"),
    "sparse, pax 1.0": Refused(pax({b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0"}) + A, "sparse"),
    "sparse of 8 TiB": Refused(pax({b"GNU.sparse.realsize": str(8 << 40).encode()}) + A, "a sparse file"),
    "several volumes": Refused(header(b"m", b"M"), "several volumes"),
    "incremental dump": Refused(header(b"d", b"D"), "an incremental dump"),
    "unknown kind": Refused(header(b"z", b"Z"), "unknown kind Z"),
    "directory with contents": Refused(header(b"d", DIRECTORY, size=3) + padded(b"aaa"), "with contents"),
    "link with contents": Refused(header(b"l", LINK, size=3, target=b"x") + padded(b"aaa"), "with contents"),
    # members that replace others
    "file over a directory": Refused(directory(b"d") + file(b"d"), "Is a directory"),
    "file over a full directory": Refused(THROUGH + file(b"d"), "Is a directory"),
    "link over a directory": Refused(directory(b"d") + link(b"d", b".."), "Is a directory"),
    "directory over a file": Refused(A + directory(b"a"), "Not a directory"),
    "file below a file": Refused(A + file(b"a/b"), "Not a directory"),
    # broken archives
    "nothing": Refused(b"", "truncated"),
    "text": Refused(b"<html>no such droplet</html>\n", "not a tar"),
    "long text": Refused(b"<html>no such droplet</html>\n" * 99, "a checksum is not a number"),
    "zip": Refused(b"PK\3\4" + bytes(1000), "not a tar"),
    "no tar, gzip": Refused(packed(b"text" * 400), "a checksum is not a number"),
    "wrong checksum": Refused(b"A" + A[1:] + END, "wrong checksum"),
    "truncated in a header": Refused(A + A[:100], "truncated"),
    "truncated in contents": Refused(A[:514], "truncated"),
    "truncated in padding": Refused(A[:600], "truncated"),
    "no end after a header about a member": Refused(A + pax({b"path": b"b"}), "before its member"),
    "nothing, gzip": Refused(packed(b""), "truncated"),
    "gzip truncated": Refused(_WHOLE[:-20], "truncated"),
    "gzip truncated in its trailer": Refused(_WHOLE[:-4], "gzip: truncated"),
    "gzip with its first bytes only": Refused(_WHOLE[:2], "gzip: truncated"),
    "gzip with a wrong CRC": Refused(_WHOLE[:-8] + bytes([_WHOLE[-8] ^ 1]) + _WHOLE[-7:], "gzip: Error -3"),
    "gzip with a wrong length": Refused(_WHOLE[:-1] + b"\1", "gzip: Error -3"),
    "gzip, then garbage": Refused(_WHOLE + b"garbage", "something else follows"),
    "gzip, zeros, then garbage": Refused(_WHOLE + bytes(700) + b"garbage", "something else follows"),
    "gzip, then a broken gzip": Refused(_WHOLE + b"\x1f\x8b\x08" + b"x" * 40, "gzip: "),
    # numbers
    "size with a sign": Refused(header(b"a", size=b"-0000000001\0"), "a size is not a number"),
    "size with underscores": Refused(header(b"a", size=b"0000000_001\0"), "a size is not a number"),
    "size with a prefix": Refused(header(b"a", size=b"0o000000001\0"), "a size is not a number"),
    "size of 8 TiB": Refused(header(b"a", size=base256(8 << 40)), "more than"),
    "size of 2^88": Refused(header(b"a", size=base256(2**88 - 1)), "more than"),
    "negative size": Refused(header(b"a", size=base256(-512)), "more than"),
    "pax size": Refused(pax({b"size": b"9" * 19}) + A, "more than"),
    "pax size that is not a number": Refused(pax({b"size": b"0x10"}) + A, "pax size is not a number"),
    "pax size with two signs": Refused(pax({b"size": b"--5"}) + A, "pax size is not a number"),
    "pax size of many digits": Refused(pax({b"size": b"9" * 5000}) + A, "pax size is not a number"),
    "pax time that is not a number": Refused(pax({b"mtime": b"noon"}) + A, "pax mtime is not a number"),
    # extended headers
    "pax length too large": Refused(about(b"x", b"99 path=b\n") + A, "a broken pax record"),
    "pax length huge": Refused(about(b"x", b"99999999999999999999 path=b\n") + A, "without a length"),
    "pax length no number": Refused(about(b"x", b"ten path=b\n") + A, "without a length"),
    "pax length negative": Refused(about(b"x", b"-9 path=b\n") + A, "without a length"),
    "pax length zero": Refused(about(b"x", b"0 path=b\n") + A, "a broken pax record"),
    "pax length within itself": Refused(about(b"x", b"2 path=b\n") + A, "a broken pax record"),
    "pax without a newline": Refused(about(b"x", b"9 path=bb9 path=b\n") + A, "a broken pax record"),
    "pax without a value": Refused(about(b"x", b"7 path\n") + A, "a broken pax record"),
    "pax without a key": Refused(about(b"x", b"5 =b\n") + A, "a broken pax record"),
    "pax of 2 MiB": Refused(header(b"p", b"x", size=2 << 20), "of 0 to 1048576 bytes"),
    "pax of negative size": Refused(
        header(b"p", b"x", size=base256(-1)), "a pax header of 0 to 1048576 bytes, got -1"
    ),
    "long name of 8 TiB": Refused(header(b"l", b"L", size=base256(8 << 40)), "of 0 to 1048576 bytes"),
    "two pax headers": Refused(pax({b"path": b"b"}) * 2 + A, "two pax headers"),
    "two long names": Refused(about(b"L", b"b\0") * 2 + A, "two long names"),
    "headers without end": Refused(pax({b"comment": b"x"}, b"g") * 9 + A, "too many headers"),
    "a header about nothing": Refused(pax({b"path": b"b"}) + END, "before its member"),
    "global path": Refused(pax({b"path": b"b"}, b"g") + A, "a global pax header"),
    "global sparse": Refused(pax({b"GNU.sparse.size": b"1"}, b"g") + A, "a sparse file"),
    # beyond the bounds
    "bytes": Refused(packed(file(b"a", os.urandom(1 << 20)) + file(b"b", b"b") + END), "more than", True),
    "declared bytes": Refused(header(b"a", size=(1 << 20) + 1), "more than", True),
    "members": Refused(packed(b"".join(file(b"%d" % n) for n in range(301)) + END), "members", True),
    "the same member again and again": Refused(A * 301 + END, "members", True),
    "parents that nobody named": Refused(
        packed(b"".join(file(b"%d/a/b" % n) for n in range(101)) + END), "members", True
    ),
    "ratio": Refused(packed(file(b"a", bytes(1 << 20)) + END), "compressed more than 100 to 1", True),
    "ratio of what follows the end": Refused(packed(A + END + bytes(1 << 20)), "compressed more", True),
}
_AAA = {"a": "file 644 aaa"}
FINE: dict[str, Fine] = {
    "plain": Fine(A + END, _AAA),
    "gzip": Fine(packed(A + END), _AAA),
    "empty": Fine(END, {}),
    "one block of zeros": Fine(bytes(512), {}),
    "no end": Fine(A, _AAA),
    "no end, gzip": Fine(packed(A), _AAA),
    "half an end": Fine(A + END[:512], _AAA),
    "garbage behind the end": Fine(A + END + b"garbage" * 99, _AAA),
    "gzip in two members": Fine(packed(A[:700]) + packed(A[700:] + END), _AAA),
    "gzip, zeros between": Fine(packed(A[:700]) + bytes(900) + packed(A[700:] + END), _AAA),
    "gzip, zeros behind": Fine(packed(A + END) + bytes(100_000), _AAA),
    "names with dots and slashes": Fine(
        file(b"./d//./a", b"aaa") + END, {"d": "directory 755", "d/a": _AAA["a"]}
    ),
    "long name, GNU": Fine(about(b"L", b"n" * 200 + b"\0") + A + END, {"n" * 200: _AAA["a"]}),
    "long link, GNU": Fine(
        about(b"K", b"t" * 200 + b"\0") + link(b"l", b"") + END, {"l": "link " + "t" * 200}
    ),
    "prefix": Fine(file(b"a", b"aaa", prefix=b"p") + END, {"p": "directory 755", "p/a": _AAA["a"]}),
    "pax path and size": Fine(
        pax({b"path": b"b", b"size": b"3"}) + file(b"x", b"aaa", size=0) + END, {"b": _AAA["a"]}
    ),
    "pax link": Fine(pax({b"linkpath": b"t" * 200}) + link(b"l", b"x") + END, {"l": "link " + "t" * 200}),
    "a pax header of nothing": Fine(about(b"x", b"") + A + END, _AAA),
    "a long name of nothing": Fine(about(b"L", b"") + A + END, _AAA),
    "global comment": Fine(pax({b"comment": b"a commit"}, b"g") + A + END, _AAA),
    "before ustar": Fine(
        file(b"d/", mode=0o700, magic=bytes(8)) + file(b"d/a", b"aaa", magic=bytes(8)) + END,
        {"d": "directory 700", "d/a": _AAA["a"]},
    ),
    "kind of NUL": Fine(file(b"a", b"aaa", kind=b"\0") + END, _AAA),
    "set-uid, set-gid, sticky": Fine(
        file(b"s", b"s", mode=0o6755) + directory(b"t", 0o1777) + directory(b"g", 0o2755) + END,
        {"s": "file 755 s", "t": "directory 777", "g": "directory 755"},
    ),
    "open to all": Fine(file(b"a", b"aaa", mode=0o666) + END, {"a": "file 666 aaa"}),
    "attributes": Fine(
        pax(
            {
                b"SCHILY.xattr.trusted.overlay.opaque": b"y",
                b"SCHILY.xattr.user.overlay.redirect": b"/etc",
                b"SCHILY.xattr.security.capability": b"\1\0\0\2" + bytes(16),
                b"LIBARCHIVE.xattr.user.overlay.whiteout": b"eQ",
            }
        )
        + A
        + END,
        _AAA,
    ),
    "foreign owners": Fine(file(b"a", b"aaa", uid=12345) + END, _AAA),
    "twice the same": Fine(file(b"a", b"first") + A + END, _AAA),
    "file over a link": Fine(link(b"a", b"../guard") + A + END, _AAA),
    "link over a file": Fine(A + link(b"a", b"x") + END, {"a": "link x"}),
    "twice the same directory": Fine(
        directory(b"d", 0o700) + THROUGH + directory(b"d", 0o750) + END,
        {"d": "directory 750", "d/planted": "file 644 planted"},
    ),
    "mode 000": Fine(
        directory(b"d", 0) + directory(b"d/e", 0) + file(b"d/e/a", b"aaa", mode=0) + END,
        {"d": "directory 0", "d/e": "directory 0", "d/e/a": "file 0 aaa"},
    ),
    "bad UTF-8": Fine(file(b"\xff\xfe\n", b"aaa") + END, {"\udcff\udcfe\n": _AAA["a"]}),
    "whiteout by name": Fine(
        file(b".wh.a") + file(b".wh..wh..opq") + END, {".wh.a": "file 644 ", ".wh..wh..opq": "file 644 "}
    ),
    "links of a virtual environment": Fine(
        link(b"python3", b"/usr/bin/python3") + link(b"out", b"../../..") + link(b"loop", b"loop") + END,
        {"python3": "link /usr/bin/python3", "out": "link ../../..", "loop": "link loop"},
    ),
    "hard links": Fine(
        A + link(b"l", b"x") + link(b"b", b"a", HARD) + link(b"m", b"./l", HARD) + END,
        {"a": "file 644 aaa", "b": "file 644 aaa", "l": "link x", "m": "link x"},
    ),
    "hard link over a file": Fine(
        A + file(b"b", b"b") + link(b"b", b"a", HARD) + END, {**_AAA, "b": _AAA["a"]}
    ),
    "file over a hard link": Fine(
        A + link(b"b", b"a", HARD) + file(b"b", b"new") + END, {**_AAA, "b": "file 644 new"}
    ),
    "the root's mode": Fine(directory(b"./", 0o4000) + A + END, _AAA),
    "depth 128": Fine(
        pax({b"path": b"d/" * 127 + b"a"}) + A + END,
        {**{"/".join(["d"] * n): "directory 755" for n in range(1, 128)}, "d/" * 127 + "a": _AAA["a"]},
    ),
}


def tree_of(root: Path) -> dict[str, str]:
    """Each name below ``root`` with its kind, all twelve permission bits, and its content, as one text."""
    found: dict[str, str] = {}
    for at, directories, files in os.walk(root):
        for name in directories + files:
            path = Path(at, name)
            found[str(path.relative_to(root))] = _describe(path)
    return found


def _describe(path: Path) -> str:
    status = path.lstat()
    mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISLNK(status.st_mode):
        return f"link {os.readlink(path)}"
    if stat.S_ISDIR(status.st_mode):
        return f"directory {mode:o}"
    if stat.S_ISREG(status.st_mode):
        return f"file {mode:o} {path.read_bytes()[:100].decode('latin-1')}"
    return f"something else: {status.st_mode:o}"
