"""Follows the staging of a push: prints the buildpack's output as it arrives, and then the result."""

from __future__ import annotations

import http.client
import threading
import time
from collections import deque
from typing import Any

from agent.cli import reach, ui

INDENT = " " * 12
LOG_APPEARS_S = 15.0
#: One request waits so long for the staging to begin. A push that the agent has refused is reported at most so much later.
WAIT_S = 0.5
LAST_LINES = 10  # of the output, shown when a quiet push fails


def stage(peer: reach.Peer, path: str, agent: reach.Peer, app: str, *, quiet: bool) -> dict[str, Any]:
    """Stages the push at ``path``; returns the droplet's data. Failure: it was not staged, with the reason."""
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
                ui.report(ui.with_time(f"{'Staging':<12}failed", spent))
                raise _staging_failed(app, event)
            lead = f"{'Staging':<12}" if quiet else INDENT
            size, sha1 = ui.size(event["droplet_bytes"]), event["droplet_sha1"][:7]
            ui.report(
                ui.with_time(f"{lead}{event['buildpack']} buildpack, droplet {size}, sha1 {sha1}", spent)
            )
            return {key: value for key, value in event.items() if key != "event"}
    raise ui.Failure("staging ended without a result", "", "see dev.log and agent.log in the state directory")


def _staging_failed(app: str, event: dict[str, Any]) -> ui.Failure:
    what = f"{app} was not staged"
    match event["type"]:
        case "NoAppDetectedError":
            hint = "name a buildpack with --buildpack, or add one of the files listed above"
            return ui.Failure(what, "no buildpack recognised the app", hint)
        case "InsufficientResources" | "NoCompatibleCell":
            return ui.Failure(what, event["error"], "stop an app, or push with less --memory")
        case "BuildpackCompileFailed" | "BuildpackReleaseFailed":
            return ui.Failure(what, event["error"], "the lines above are the buildpack's output")
        case _:
            return ui.Failure(what, event["error"], "more in agent.log in the state directory")


class LiveOutput(threading.Thread):
    """Prints the buildpack's output, which it reads from the agent's control socket while the staging runs."""

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
                # The controller reports the task before the agent has received it.
                wait_s = 0.0 if last_try else WAIT_S
                for event in self._agent.lines("GET", f"/v1/staging/{self._task_id}/log", wait_s=f"{wait_s}"):
                    self._show(event)
                return
            except reach.Refusal as refusal:
                if refusal.http_status != 404 or last_try:
                    return
            except (ui.Failure, OSError, ValueError, http.client.HTTPException) as lost:
                ui.report(f"{INDENT}(no more output here: {lost}; the staging continues)")
                return

    def _show(self, event: dict[str, Any]) -> None:
        if event.get("gap_bytes"):
            self._print_rest()
            self._print(f"({ui.size(event['gap_bytes'])} are no longer kept)".encode())
        data = self._rest + reach.event_bytes(event)
        *lines, self._rest = data.split(b"\n")
        for line in lines:
            self._print(line)

    def _print(self, line: bytes) -> None:
        self._last.append(line)
        if not self._quiet:
            self._moving.clear()
            ui.report(self._lead + reach.printable(line))
            self._lead = INDENT

    def finish(self) -> None:
        self._over.set()
        self.join(3)
        self._print_rest()

    def _print_rest(self) -> None:
        """The beginning of a line whose end will not come."""
        if self._rest:
            self._print(self._rest)
            self._rest = b""

    def show_last(self) -> None:
        for line in self._last:
            ui.report(INDENT + reach.printable(line))
