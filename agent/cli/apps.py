"""`garrison apps`: the state, instances, memory and route of each app."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from agent.cli import reach, ui
from wsh.units import MIB

COLOURS = {"running": "green", "crashing": "red", "starting": "yellow", "staging": "yellow", "stopped": "dim"}


@click.command("apps")
@reach.state_option
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def command(state_dir: Path, as_json: bool) -> None:
    """Shows every app: its state, instances, memory, route, and how long it has been up.

    The former version keeps serving until the new one runs, also while the new one crashes: `0/2 (2 old)`.
    """
    port = reach.gateway_port(state_dir)
    rows = reach.controller(state_dir).call("GET", "/v1/apps", stats="1")
    if as_json:
        ui.emit_json([_document(row, port) for row in rows])
    elif rows:
        ui.table(("APP", "STATE", "INSTANCES", "MEMORY", "ROUTE", "UP"), [_cells(row, port) for row in rows])
    else:
        ui.report("no apps yet: garrison push DIRECTORY")


def url(row: dict[str, Any], port: int) -> str:
    return f"http://{row['uris'][0]}:{port}" if row["uris"] else ""


def _usage(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [answer["stats"] for answer in row.get("stats", []) if answer.get("stats")]


def _cells(row: dict[str, Any], port: int) -> tuple[str, ...]:
    usage = _usage(row)
    memory = "–"
    if usage:
        used = sum(stats["usage"]["mem"] for stats in usage) / MIB
        memory = f"{used:.0f} / {sum(stats['mem_quota'] for stats in usage) >> 20} MiB"
    old = row["previous_running"]
    return (
        row["name"],
        row["state"],
        f"{row['running']}/{row['instances']}" + (f" ({old} old)" if old else ""),
        memory,
        url(row, port) if row["running"] or old else "–",
        _up(row, usage),
    )


def _up(row: dict[str, Any], usage: list[dict[str, Any]]) -> str:
    crash = row["crash"]
    if row["state"] == "crashing" and crash is not None:
        how = f"exited {crash['exit_status']}" if crash["exit_status"] >= 0 else crash["description"]
        return f"{how}, {ui.age(crash['seconds_ago'])} ago: garrison logs {row['name']}"
    if row["waiting"] and not row["running"]:
        return str(next(iter(row["waiting"].values())))
    return ui.age(min(stats["uptime"] for stats in usage)) if usage else "–"


def _document(row: dict[str, Any], port: int) -> dict[str, Any]:
    """A row of `--json`. The keys are stable and documented; units are bytes and seconds."""
    usage = _usage(row)
    return {
        "name": row["name"],
        "guid": row["guid"],
        "state": row["state"],
        "instances": row["instances"],
        "running": row["running"],
        "previous_running": row["previous_running"],
        "pushing": row["pushing"],
        "waiting": row["waiting"],
        "memory_limit_bytes": row["memory_limit_bytes"],
        "memory_bytes": sum(stats["usage"]["mem"] for stats in usage),
        "url": url(row, port),
        "endpoints": [f"http://{stats['host']}:{stats['port']}" for stats in usage],
        "uptime_s": min((stats["uptime"] for stats in usage), default=None),
        "crash": row["crash"],
    }
