"""A container as the rungs of create.py see it: what was requested or found, and which rungs are made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from container.body import Body
from container.overlay import Uppers
from container.parts import Parts
from container.shared import Shared
from container.snapshot import Snapshot
from container.spec import ContainerSpec
from container.wshd import Launch


@dataclass(slots=True)
class Build:
    """One container. ``spec`` is set if it is made now, ``found`` if a former manager made it; never both."""

    shared: Shared
    handle: str
    link_id: str
    spec: ContainerSpec | None = None
    found: Snapshot | None = None
    record: bytes | None = None
    standing: int = 0
    """How many rungs, counted from the first, must be undone."""
    broken: str = ""
    """The name of the rung that could not be made; empty: none failed."""
    abandoned: bool = False
    """True: the caller of create was cancelled, so the next rung stops."""
    has_directory: bool = False
    uppers: Uppers | None = None
    launch: Launch | None = None
    _parts: Parts | None = None
    _body: Body | None = None

    @property
    def directory(self) -> Path:
        return self.shared.depot_dir / self.handle

    @property
    def parts(self) -> Parts:
        """Set by the first rung."""
        assert self._parts is not None
        return self._parts

    @property
    def body(self) -> Body:
        """Set by the last rung."""
        assert self._body is not None
        return self._body

    @property
    def wanted(self) -> ContainerSpec:
        assert self.spec is not None
        return self.spec

    @property
    def former(self) -> Snapshot:
        assert self.found is not None
        return self.found
