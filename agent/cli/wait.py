"""Waits until an app runs, or is stopped, as it should be, and shows it on the way. For push, scale, start and stop."""

from __future__ import annotations

import sys
import time
from typing import Any

from agent.cli import reach, ui
from agent.cli.instances import ALIVE

POLL_S = 0.15


def line(lead: str, row: dict[str, Any]) -> str:
    """`Starting    hello/0 ✓ running   hello/1 … starting`"""
    words = []
    for index in range(row["instances"]):
        state = row["instance_states"].get(str(index), "waiting").lower()
        mark = ui.paint("✓", "green", sys.stderr) if state == "running" else "…"
        words.append(f"{row['name']}/{index} {mark} {state}")
    if row["instances"] > 6:
        words = [f"{row['running']} of {row['instances']} running"]
    return f"{lead:<12}" + ("   ".join(words) or "no instances")


def wait_running(peer: reach.Peer, app: str, timeout_s: float, lead: str) -> dict[str, Any]:
    """The app's row once all its instances run; a Failure when one crashes or the time is over."""
    began, moving = time.monotonic(), ui.MovingLine()
    while True:
        row = peer.call("GET", f"/v1/apps/{app}")
        assert isinstance(row, dict)
        spent = time.monotonic() - began
        settled = set(row["instance_states"]) <= {str(i) for i in range(row["instances"])}
        if row["running"] == row["instances"] and settled:
            moving.finish(ui.with_time(line(lead, row), spent))
            return row
        crash = row["crash"]
        if crash is not None and crash["count"] >= 2:
            moving.finish(ui.with_time(line(lead, row), spent))
            raise ui.Failure(
                f"{app}/{crash['index']} does not stay up",
                f"{crash['description']} (exit status {crash['exit_status']})",
                f"its last words: garrison logs {app}",
            )
        if spent > timeout_s:
            moving.finish(ui.with_time(line(lead, row), spent))
            raise ui.Failure(
                f"{app} does not run after {timeout_s:.0f} s",
                f"{row['running']} of {row['instances']} instances run",
                f"is there room for it? garrison apps; what does it say? garrison logs {app}",
            )
        moving.show(line(lead, row))
        time.sleep(POLL_S)


def wait_stopped(agent: reach.Peer, app: str, timeout_s: float) -> None:
    """The agent's word, since the controller counts an instance as gone once it has told it to stop."""
    began, moving = time.monotonic(), ui.MovingLine()
    while True:
        rows = agent.call("GET", "/v1/instances")
        left = [row for row in rows if row["name"] == app and row["state"] in ALIVE]
        spent = time.monotonic() - began
        if not left:
            mark = ui.paint("✓", "green", sys.stderr)
            moving.finish(ui.with_time(f"{'Stopping':<12}{app} {mark} stopped", spent))
            return
        if spent > timeout_s:
            moving.clear()
            raise ui.Failure(
                f"{app} is not stopped after {timeout_s:.0f} s",
                f"{ui.count(len(left), 'instance')} still end",
                "they get a KILL when their grace is over; look again with: garrison apps",
            )
        moving.show(f"{'Stopping':<12}{app} … {ui.count(len(left), 'instance')} left")
        time.sleep(POLL_S)
