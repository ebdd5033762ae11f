"""Waits until an app runs or is stopped, and shows the progress. For push, scale, start and stop."""

from __future__ import annotations

import sys
import time
from typing import Any

from agent.cli import reach, ui
from agent.cli.instances import ALIVE
from agent.cli.trouble import NO_COMMAND, NOT_LISTENING, Watch, hint_for

INDENT = " " * 12
# Crashes that a second start does not change, so that the wait fails at the first one.
AT_ONCE = (NOT_LISTENING, NO_COMMAND)


def line(lead: str, row: dict[str, Any]) -> str:
    """`Starting    hello/0 ✓ running   hello/1 … starting`"""
    parts = []
    for index in range(row["instances"]):
        state = row["instance_states"].get(str(index), "waiting").lower()
        mark = ui.paint("✓", "green", sys.stderr) if state == "running" else "…"
        parts.append(f"{row['name']}/{index} {mark} {state}")
    if row["instances"] > 6:
        parts = [f"{row['running']} of {row['instances']} running"]
    return f"{lead:<12}" + ("   ".join(parts) or "no instances")


def wait_running(
    peer: reach.Peer, agent: reach.Peer, app: str, timeout_s: float, lead: str
) -> dict[str, Any]:
    """The app's row once all its instances run. What is found about instances that do not start is shown meanwhile.

    Failure: an instance has crashed and will crash again, or the time is over.
    """
    began, moving, watch = time.monotonic(), ui.MovingLine(), Watch(agent, app)
    rows, spent = reach.Changing(peer, f"/v1/apps/{app}"), 0.0
    while True:
        row = rows.read(min(timeout_s - spent, watch.next_look_in()))
        assert isinstance(row, dict)
        spent = time.monotonic() - began
        settled = set(row["instance_states"]) <= {str(i) for i in range(row["instances"])}
        if row["running"] == row["instances"] and settled:
            moving.finish(ui.with_time(line(lead, row), spent))
            return row
        crash = row["crash"]
        failure = None
        if crash is not None and (crash["count"] >= 2 or crash["description"] in AT_ONCE):
            failure = _does_not_stay_up(app, row, watch)
        elif spent >= timeout_s:
            failure = _not_in_time(app, row, watch, timeout_s)
        if failure is not None:
            moving.finish(ui.with_time(line(lead, row), spent))
            for text in failure.output:
                ui.report(f"{INDENT}{text}")
            raise failure
        for fact in watch.look(row):
            moving.clear()
            ui.report(f"{'Note':<12}{fact}")
        moving.show(line(lead, row))


def _does_not_stay_up(app: str, row: dict[str, Any], watch: Watch) -> ui.Failure:
    crash = row["crash"]
    index, description = crash["index"], crash["description"]
    why = f"{description} (exit status {crash['exit_status']})" if crash["exit_status"] >= 0 else description
    return ui.Failure(
        f"{app}/{index} crashed",
        why + _what_serves(row),
        hint_for(description, app, watch.elsewhere(index)),
        output=watch.last_lines(crash["instance"]),
    )


def _not_in_time(app: str, row: dict[str, Any], watch: Watch, timeout_s: float) -> ui.Failure:
    """No instance has crashed twice: a host has no room for one, or one starts slowly."""
    why = f"{row['running']} of {row['instances']} instances run"
    hint = f"its output: garrison logs {app}"
    if row["waiting"]:
        why += f", {next(iter(row['waiting'].values()))}"
        hint = "stop an app, or push it with a smaller --memory or --disk"
    else:
        for index in range(row["instances"]):
            if (elsewhere := watch.elsewhere(index)) is not None:
                why += f", {app}/{index} cannot be reached"
                hint = hint_for(NOT_LISTENING, app, elsewhere)
                break
    return ui.Failure(f"{app} does not run after {timeout_s:.0f} s", why + _what_serves(row), hint)


def _what_serves(row: dict[str, Any]) -> str:
    return "; the former version keeps serving" if row["previous_running"] else ""


def wait_stopped(agent: reach.Peer, app: str, timeout_s: float) -> None:
    """Waits until the agent has no live instance of the app. The controller drops one already when it orders the stop."""
    began, moving = time.monotonic(), ui.MovingLine()
    instances, spent = reach.Changing(agent, "/v1/instances"), 0.0
    while True:
        left = [
            row for row in instances.read(timeout_s - spent) if row["name"] == app and row["state"] in ALIVE
        ]
        spent = time.monotonic() - began
        if not left:
            mark = ui.paint("✓", "green", sys.stderr)
            moving.finish(ui.with_time(f"{'Stopping':<12}{app} {mark} stopped", spent))
            return
        if spent >= timeout_s:
            moving.clear()
            raise ui.Failure(
                f"{app} is not stopped after {timeout_s:.0f} s",
                f"{ui.count(len(left), 'instance')} still running",
                "the agent sends KILL after their grace period; check again with: garrison apps",
            )
        moving.show(f"{'Stopping':<12}{app} … {ui.count(len(left), 'instance')} left")
