"""Routes that were taken back, for as long as a router may not have heard of it. Pure; the time comes in.

The server's acknowledgement is no router's: one that was away keeps a dead route until it prunes it, after 120 s.
"""

from __future__ import annotations

import msgspec

from agent.bus.messages import RouterRegister, RouterUnregister

KEPT_S = 120.0


class Unregistered:
    def __init__(self) -> None:
        self._kept: list[tuple[float, RouterUnregister]] = []

    def add(self, event: RouterUnregister, now_s: float) -> None:
        self._expire(now_s)
        self._kept.append((now_s, event))

    def registered(self, word: RouterRegister) -> None:
        """Host and port have a new owner: nothing is repeated there. The same owner: not what it has again."""
        kept = []
        for since_s, event in self._kept:
            if (event.host, event.port) == (word.host, word.port):
                if event.private_instance_id != word.private_instance_id:
                    continue
                left = tuple(uri for uri in event.uris if uri not in word.uris)
                if not left:
                    continue
                if left != event.uris:
                    event = msgspec.structs.replace(event, uris=left)
            kept.append((since_s, event))
        self._kept = kept

    def due(self, now_s: float) -> list[RouterUnregister]:
        """To be said again, oldest first."""
        self._expire(now_s)
        return [event for _, event in self._kept]

    def _expire(self, now_s: float) -> None:
        self._kept = [one for one in self._kept if now_s - one[0] < KEPT_S]
