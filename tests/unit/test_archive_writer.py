"""The writer keeps its own bounds: it believes no reader about sizes, and no member about how much follows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agent.droplets.archive import ArchiveError, Bounds, Kind, Member
from agent.droplets.writer import TreeWriter, write_tree

pytestmark = pytest.mark.unit
BOUNDS = Bounds(total_bytes=1000, members=3)


@dataclass
class Liar:
    """A reader whose members promise ``promised`` bytes each and give ``given``."""

    members: int
    given: int
    promised: int = 0
    handed_out: int = 0
    _left: int = field(default=0, repr=False)

    def __iter__(self) -> Iterator[Member]:
        for number in range(self.members):
            self._left = self.given
            yield Member(Kind.FILE, (b"f%d" % number,), size_bytes=self.promised)

    def read(self, limit: int) -> bytes:
        data = b"x" * min(limit, 100, self._left)
        self._left -= len(data)
        self.handed_out += len(data)
        return data


def write(liar: Liar, root: Path) -> TreeWriter:
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return write_tree(liar, fd, BOUNDS)
    finally:
        os.close(fd)


def test_bytes_are_counted_where_they_are_written(tmp_path: Path) -> None:
    """A reader that gives more than it promised is stopped at the bound, not after its own end."""
    liar = Liar(members=1, given=1 << 16, promised=10)
    with pytest.raises(ArchiveError, match="more than 1000 bytes"):
        write(liar, tmp_path)
    assert liar.handed_out == 1100
    assert sum(path.stat().st_size for path in tmp_path.rglob("*")) == 1000


def test_the_bound_is_on_the_sum_of_all_members(tmp_path: Path) -> None:
    """Three files of 334 bytes are two bytes too many; of 333 they fit."""
    with pytest.raises(ArchiveError, match="more than 1000 bytes"):
        write(Liar(members=3, given=334), tmp_path)
    (fits := tmp_path / "fits").mkdir()
    assert write(Liar(members=3, given=333), fits).size_bytes == 999


def test_members_are_counted_where_they_are_made(tmp_path: Path) -> None:
    """A fourth file is one more than the bound, whatever the reader says of itself."""
    with pytest.raises(ArchiveError, match="more than 3 members"):
        write(Liar(members=4, given=0), tmp_path)
