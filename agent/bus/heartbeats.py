"""Splits a heartbeat that is larger than the server's limit into parts. Pure.

HM9000 (the health manager) considers the newest heartbeat of a `dea` complete and deletes every instance that is missing from it.
Therefore each part has a `dea` id of its own (`ID`, `ID-2`, ...), an instance stays in its part, and a part that became empty is
still sent, so that its former instances are deleted.
"""

from __future__ import annotations

from collections import defaultdict

import msgspec

from agent.bus import messages as m

_ENVELOPE_BYTES = 512  # everything but the entries; the id has at most 256 bytes


class HeartbeatParts:
    def __init__(self) -> None:
        self._part_of: dict[str, int] = {}
        """The part of each instance id, counted from 0."""
        self._count = 1

    def split(self, whole: m.Heartbeat, limit_bytes: int) -> tuple[m.Heartbeat, ...]:
        """The messages to send: the heartbeat unchanged, as long as it always fitted into one message."""
        if self._count == 1 and len(m.encode(whole)) <= limit_bytes:
            return (whole,)
        parts = self._assign(whole, max(0, limit_bytes - _ENVELOPE_BYTES))
        return tuple(
            m.Heartbeat(tuple(parts[part]), whole.dea if part == 0 else f"{whole.dea}-{part + 1}")
            for part in range(self._count)
        )

    def _assign(self, whole: m.Heartbeat, room_bytes: int) -> defaultdict[int, list[m.HeartbeatEntry]]:
        parts: defaultdict[int, list[m.HeartbeatEntry]] = defaultdict(list)
        used: defaultdict[int, int] = defaultdict(int)

        def put(part: int, entry: m.HeartbeatEntry, size: int) -> None:
            parts[part].append(entry)
            used[part] += size
            placed[entry.instance] = part

        placed: dict[str, int] = {}
        homeless = []
        for entry in whole.droplets:
            size = len(msgspec.json.encode(entry)) + 1
            part = self._part_of.get(entry.instance)
            if part is not None and used[part] + size <= room_bytes:
                put(part, entry, size)
            else:
                homeless.append((entry, size))
        for entry, size in homeless:
            fitting = (part for part in range(self._count) if used[part] + size <= room_bytes)
            part = next(fitting, self._count)
            self._count = max(self._count, part + 1)
            put(part, entry, size)
        self._part_of = placed
        return parts
