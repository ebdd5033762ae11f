"""Finds out why an app does not run, and what to do about it. Only `Watch` does I/O: it sends requests to the agent."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from agent.cli import reach, ui

LAST_LINES = 10
LOOK_PERIOD_S = 1.0
# How long a fact must hold before it is shown: an app may listen elsewhere for a moment, and the next advert may have room.
LASTING_S = 3.0
# Descriptions of an exit (agent/instances/life.py and launch.py).
NOT_LISTENING = "failed to accept connections within health check timeout"
NO_COMMAND = "missing start command"
OUT_OF_MEMORY = "out of memory"


@dataclass
class Seen:
    """What is known of the instances that start.

    ``elsewhere``: by index, where the app listens instead of on its port. ``since``: by fact, when it was first found, in seconds
    of a monotonic clock.
    """

    elsewhere: dict[int, str] = field(default_factory=dict)
    since: dict[str, float] = field(default_factory=dict)

    def lasting(self, facts: Mapping[str, str], now_s: float) -> list[str]:
        """Those of the facts (by their subject) that have held for long enough to be shown."""
        self.since = {key: self.since.get(key, now_s) for key in facts}
        return [fact for key, fact in facts.items() if now_s - self.since[key] >= LASTING_S]


def where_it_listens(answer: Mapping[str, Any]) -> str | None:
    """Where the app listens instead of on its port, from `/v1/instances/ID/listening`. None: on its port, or it has none."""
    port, sockets = answer["port"], answer["listening"]
    if port is None:
        return None
    places = [
        f"[{s['address']}]:{s['port']}" if ":" in s["address"] else f"{s['address']}:{s['port']}"
        for s in sockets
    ]
    if any(s["port"] == port and not _is_loopback(s["address"]) for s in sockets):
        return None
    if not places:
        return "it listens on no port"
    only = " only, which is not reachable from outside" if any(s["port"] == port for s in sockets) else ""
    return f"it listens on {', '.join(places[:3])}{only}"


def _is_loopback(address: str) -> bool:
    return address.startswith("127.") or address == "::1"


def hint_for(description: str, app: str, elsewhere: str | None) -> str:
    if description == NOT_LISTENING:
        lead = f"{elsewhere}; " if elsewhere is not None else ""
        return f"{lead}it must listen on 0.0.0.0:$PORT"
    if description == NO_COMMAND:
        return "set one with --command, or in a Procfile: web: COMMAND"
    if description == OUT_OF_MEMORY:
        return "push it with a larger --memory"
    if description.startswith("Not enough"):
        return "stop an app, or push it with a smaller --memory or --disk"
    return f"all of its output: garrison logs {app}"


class Watch:
    """Requests from the agent what the starting instances do. Without an answer nothing more is known."""

    def __init__(self, agent: reach.Peer, app: str) -> None:
        self._agent, self._app = agent, app
        self._next_at = 0.0
        self._seen = Seen()
        self._shown: set[str] = set()

    def next_look_in(self) -> float:
        """Seconds until `look` sends a request again. It has to poll: no event reports that an app begins to listen."""
        return max(0.0, self._next_at - time.monotonic())

    def look(self, row: Mapping[str, Any]) -> list[str]:
        """The facts that have held for some seconds and were not shown yet."""
        now_s = time.monotonic()
        if now_s < self._next_at:
            return []
        self._next_at = now_s + LOOK_PERIOD_S
        starting = {int(i) for i, state in row["instance_states"].items() if state == "STARTING"}
        if starting:
            self._request(starting)
        facts = {
            f"waits {index}": f"{self._app}/{index} waits: {why}" for index, why in row["waiting"].items()
        }
        facts |= {
            f"port {index}": f"{self._app}/{index}: {self._seen.elsewhere[index]}; it must listen on 0.0.0.0:$PORT"
            for index in starting & set(self._seen.elsewhere)
            if self._seen.elsewhere[index] != "it listens on no port"
        }
        news = [fact for fact in self._seen.lasting(facts, now_s) if fact not in self._shown]
        self._shown.update(news)
        return news

    def elsewhere(self, index: int) -> str | None:
        return self._seen.elsewhere.get(index)

    def _request(self, indexes: set[int]) -> None:
        try:
            for one in self._agent.call("GET", "/v1/instances"):
                if one["name"] == self._app and one["state"] == "STARTING" and one["index"] in indexes:
                    answer = self._agent.call("GET", f"/v1/instances/{one['instance']}/listening")
                    where = where_it_listens(answer)
                    if where is None:
                        self._seen.elsewhere.pop(one["index"], None)
                    else:
                        self._seen.elsewhere[one["index"]] = where
        except ui.Failure:
            return  # the instance has ended meanwhile, or the agent is being started again

    def last_lines(self, instance: str) -> list[str]:
        """The last lines of a crashed instance's output."""
        lines: deque[str] = deque(maxlen=LAST_LINES)
        rest: dict[str, bytes] = {}
        try:
            for event in self._agent.lines("GET", f"/v1/instances/{instance}/logs"):
                stream = str(event.get("stream"))
                *whole, rest[stream] = (rest.get(stream, b"") + reach.event_bytes(event)).split(b"\n")
                lines.extend(reach.printable(line) for line in whole)
        except (ui.Failure, OSError, ValueError):
            return list(lines)  # the crashed instance has been removed meanwhile
        lines.extend(reach.printable(line) for line in rest.values() if line)
        return list(lines)
