"""One container while it is made, stands, and is removed: what the rungs of create.py work on."""

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
    """One container and how far it stands. Of ``spec`` and ``found`` one is set: it is made, or it was found."""

    shared: Shared
    handle: str
    link_id: str
    spec: ContainerSpec | None = None
    found: Snapshot | None = None
    record: bytes | None = None
    standing: int = 0
    """How many rungs, counted from the first, have something to undo."""
    broken: str = ""
    """The rung that could not be made."""
    abandoned: bool = False
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
        """From the first rung on."""
        assert self._parts is not None
        return self._parts

    @property
    def body(self) -> Body:
        """Once the last rung stands."""
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
