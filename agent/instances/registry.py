"""All instances of this host, and the filters that select them. No I/O: commands are applied here in wire order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from agent.bus.messages import Filter
from agent.instances.changes import InstanceChanges
from agent.instances.instance import Instance, State
from agent.instances.process import Process
from agent.resources import NOTHING, Claim, claim_of

REMARKS_KEPT: Final = 100


def matches(instance: Instance, wanted: Filter) -> bool:
    """True if every filter that is present and not empty matches (docs/protocol.md, "Filters")."""
    if wanted.version and instance.version != wanted.version:
        return False
    if wanted.ids and instance.id not in wanted.ids:
        return False
    if wanted.indices and instance.index not in wanted.indices:
        return False
    return not wanted.wanted_states or instance.state.value in wanted.wanted_states


class Registry:
    """``held``: the sum of what all instances hold; it is kept, since each start and each advert needs it. ``change_count``: the
    number of changes so far."""

    def __init__(self) -> None:
        self._by_id: dict[str, Instance] = {}
        self._by_app: dict[str, dict[Instance, None]] = {}
        self._claims: dict[Instance, Claim] = {}
        self._readers: set[InstanceChanges] = set()
        self.held = NOTHING
        self.change_count = 0

    @contextmanager
    def changes(self, of: Instance | None = None) -> Iterator[InstanceChanges]:
        """Every change from now on: an instance was added or removed, or got another state, id, process or remark."""
        reader = InstanceChanges(of)
        self._readers.add(reader)
        try:
            yield reader
        finally:
            self._readers.discard(reader)

    def remark(self, instance: Instance, at_s: float, text: str) -> None:
        """Adds a line of the agent's own to the app's log. The newest hundred are kept."""
        instance.remarks.append((at_s, text))
        del instance.remarks[:-REMARKS_KEPT]
        self._changed(instance)

    def has_process(self, instance: Instance, process: Process) -> None:
        """Records a process that was started."""
        instance.processes[process.name] = process
        self._changed(instance)

    def _changed(self, instance: Instance) -> None:
        self.change_count += 1
        for reader in self._readers:
            reader.put(instance)

    def __iter__(self) -> Iterator[Instance]:
        return iter(tuple(self._by_id.values()))

    def __len__(self) -> int:
        return len(self._by_id)

    def add(self, instance: Instance) -> None:
        self._by_id[instance.id] = instance
        self._by_app.setdefault(instance.app, {})[instance] = None
        self._hold(instance, claim_of(instance))
        self._changed(instance)

    def remove(self, instance: Instance) -> None:
        """Idempotent."""
        self._by_id.pop(instance.id, None)
        if (of_app := self._by_app.get(instance.app)) is not None:
            of_app.pop(instance, None)
            if not of_app:
                del self._by_app[instance.app]
        self._hold(instance, NOTHING)
        self._claims.pop(instance, None)
        self._changed(instance)

    def settle(self, instance: Instance) -> None:
        """Updates `held` after the instance's state or its kept output has changed."""
        if instance in self._claims:
            self._hold(instance, claim_of(instance))
        self._changed(instance)

    def _hold(self, instance: Instance, claim: Claim) -> None:
        before = self._claims.get(instance, NOTHING)
        self._claims[instance] = claim
        self.held = Claim(
            self.held.memory_mb - before.memory_mb + claim.memory_mb,
            self.held.disk_mb - before.disk_mb + claim.disk_mb,
        )

    def rename(self, instance: Instance, new_id: str) -> None:
        """Gives an instance the new id of a new version; it is then found under that id only (docs/protocol.md, "Update message")."""
        del self._by_id[instance.id]
        instance.id = new_id
        self._by_id[new_id] = instance
        self._changed(instance)

    def find(self, instance_id: str) -> Instance | None:
        return self._by_id.get(instance_id)

    def of_app(self, app: str) -> tuple[Instance, ...]:
        return tuple(self._by_app.get(app, ()))

    def select(self, wanted: Filter) -> tuple[Instance, ...]:
        return tuple(one for one in self.of_app(wanted.app) if matches(one, wanted))

    def counts(self) -> dict[str, int]:
        """The number of instances of each app, in any state (docs/protocol.md, "Adverts")."""
        return {app: len(instances) for app, instances in self._by_app.items()}

    def in_states(self, states: frozenset[State]) -> tuple[Instance, ...]:
        return tuple(one for one in self._by_id.values() if one.state in states)
