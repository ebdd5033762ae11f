"""All instances of this host, and who is meant by a filter. No I/O: commands are applied here in wire order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from agent.bus.messages import Filter
from agent.instances.instance import Instance, State


def matches(instance: Instance, wanted: Filter) -> bool:
    """dea-bus.md 1.5: every filter that is there and not empty must hold."""
    if wanted.version and instance.version != wanted.version:
        return False
    if wanted.ids and instance.id not in wanted.ids:
        return False
    if wanted.indices and instance.index not in wanted.indices:
        return False
    return not wanted.wanted_states or instance.state.value in wanted.wanted_states


class Registry:
    def __init__(self) -> None:
        self._by_id: dict[str, Instance] = {}

    def __iter__(self) -> Iterator[Instance]:
        return iter(tuple(self._by_id.values()))

    def __len__(self) -> int:
        return len(self._by_id)

    def add(self, instance: Instance) -> None:
        self._by_id[instance.id] = instance

    def remove(self, instance: Instance) -> None:
        """Idempotent."""
        self._by_id.pop(instance.id, None)

    def rename(self, instance: Instance, new_id: str) -> None:
        """A new version gives an instance a new id, under which alone it is found (dea-bus.md 1.5)."""
        del self._by_id[instance.id]
        instance.id = new_id
        self._by_id[new_id] = instance

    def find(self, instance_id: str) -> Instance | None:
        return self._by_id.get(instance_id)

    def of_app(self, app: str) -> tuple[Instance, ...]:
        return tuple(one for one in self._by_id.values() if one.app == app)

    def select(self, wanted: Filter) -> tuple[Instance, ...]:
        return tuple(one for one in self.of_app(wanted.app) if matches(one, wanted))

    def counts(self) -> dict[str, int]:
        """Instances by app, in whatever state (dea-bus.md 1.3)."""
        return dict(Counter(one.app for one in self._by_id.values()))

    def in_states(self, states: frozenset[State]) -> tuple[Instance, ...]:
        return tuple(one for one in self._by_id.values() if one.state in states)
