"""The staging of a push: the buildpack's output live, and what became of it."""

from __future__ import annotations

import http.client
import threading
import time
from collections import deque
from typing import Any

from agent.cli import reach, ui

INDENT = " " * 12
LOG_APPEARS_S = 15.0
LAST_LINES = 10  # of a quiet push that fails


def stage(peer: reach.Peer, path: str, agent: reach.Peer, app: str, *, quiet: bool) -> dict[str, Any]:
    """`path`: the push's. A Failure: why it was not staged."""
    began = time.monotonic()
    live: LiveOutput | None = None
    moving = ui.MovingLine()
    moving.show("Staging")
    for event in peer.lines("POST", f"{path}/stage"):
        if event["event"] == "task":
            live = LiveOutput(agent, event["task_id"], moving, quiet)
            live.start()
        elif event["event"] in ("staged", "failed"):
            if live is not None:
                live.finish()
            moving.clear()
            spent = time.monotonic() - began
            if event["event"] == "failed":
                if quiet and live is not None:
                    live.show_last()
                ui.tell(ui.with_time(f"{'Staging':<12}failed", spent))
                raise _staging_failed(app, event)
            lead = f"{'Staging':<12}" if quiet else INDENT
            size, sha1 = ui.size(event["droplet_bytes"]), event["droplet_sha1"][:7]
            ui.tell(ui.with_time(f"{lead}{event['buildpack']} buildpack, droplet {size}, sha1 {sha1}", spent))
            return {key: value for key, value in event.items() if key != "event"}
    raise ui.Failure("staging ended without a word", "", "see dev.log and agent.log in the state directory")


def _staging_failed(app: str, event: dict[str, Any]) -> ui.Failure:
    what = f"{app} is not staged"
    match event["type"]:
        case "NoAppDetectedError":
            hint = "name one with --buildpack, or add one of the files that are named above"
            return ui.Failure(what, "no buildpack recognised the app", hint)
        case "InsufficientResources" | "NoCompatibleCell":
            return ui.Failure(what, event["error"], "stop an app, or push with less --memory")
        case "BuildpackCompileFailed" | "BuildpackReleaseFailed":
            return ui.Failure(what, event["error"], "the lines above are the buildpack's own")
        case _:
            return ui.Failure(what, event["error"], "more in agent.log in the state directory")


class LiveOutput(threading.Thread):
    """The buildpack's output from the agent's control socket, line by line, while the staging goes on."""

    def __init__(self, agent: reach.Peer, task_id: str, moving: ui.MovingLine, quiet: bool) -> None:
        super().__init__(name="staging-output", daemon=True)
        self._agent, self._task_id, self._moving, self._quiet = agent, task_id, moving, quiet
        self._over = threading.Event()
        self._rest = b""
        self._lead = f"{'Staging':<12}"
        self._last: deque[bytes] = deque(maxlen=LAST_LINES)

    def run(self) -> None:
        deadline = time.monotonic() + LOG_APPEARS_S
        while True:
            last_try = self._over.is_set() or time.monotonic() > deadline
            try:
                for event in self._agent.lines("GET", f"/v1/staging/{self._task_id}/log", follow="1"):
                    self._show(event)
                return
            except reach.Refusal as refusal:
                # The controller reports the task before the agent has it, and the agent reports it to nobody: ask again.
                if refusal.http_status != 404 or last_try:
                    return
                self._over.wait(0.05)
            except (ui.Failure, OSError, ValueError, http.client.HTTPException) as lost:
                ui.tell(f"{INDENT}(the live output is lost: {lost}; the staging goes on)")
                return

    def _show(self, event: dict[str, Any]) -> None:
        data = self._rest + reach.event_bytes(event)
        *lines, self._rest = data.split(b"\n")
        for line in lines:
            self._print(line)

    def _print(self, line: bytes) -> None:
        self._last.append(line)
        if not self._quiet:
            self._moving.clear()
            ui.tell(self._lead + reach.printable(line))
            self._lead = INDENT

    def finish(self) -> None:
        self._over.set()
        self.join(3)
        if self._rest:
            self._print(self._rest)
            self._rest = b""

    def show_last(self) -> None:
        for line in self._last:
            ui.tell(INDENT + reach.printable(line))
