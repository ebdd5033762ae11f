"""`garrison logs`: what an app says."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import click

from agent.cli import reach, ui
from agent.cli.instances import find_app_guid

STREAMS = {"stdout": "out", "stderr": "err"}
COLOURS = {"err": "yellow", "sys": "cyan"}


@click.command("logs")
@click.argument("app", shell_complete=reach.complete_app)
@click.option("--follow", "-f", is_flag=True, help="Go on as it says more.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document a line.")
@click.option(
    "--config", "-c", type=click.Path(path_type=Path, dir_okay=False), help="The agent's configuration."
)
@reach.state_option
def command(app: str, follow: bool, as_json: bool, config: Path | None, state_dir: Path) -> None:
    """Shows what APP (or APP/INDEX) has said on this host, oldest first."""
    name, _, index = app.partition("/")
    agent = reach.agent(state_dir, config)
    guid = find_app_guid(agent, name, state_dir, config)
    query = {"follow": "1"} if follow else {}
    lines = Lines(name)
    for event in agent.lines("GET", f"/v1/apps/{guid}/logs", **query):
        if index and str(event.get("index")) != index:
            continue
        if as_json:
            print(json.dumps(event, separators=(",", ":")), flush=True)
        else:
            lines.add(event)
    lines.flush()


class Lines:
    """Chunks of several instances and streams, printed as whole lines."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._rest: dict[tuple[str, str], tuple[bytes, str]] = {}

    def add(self, event: dict[str, Any]) -> None:
        stream = str(event.get("stream", "sys"))
        stream = STREAMS.get(stream, stream)
        label = f"{self._name}/{event.get('index', '?')}"
        lead = f"{clock(event.get('at'))} {label} {ui.paint(f'{stream:<4}', COLOURS.get(stream, 'dim'))} "
        if event.get("gap_bytes"):
            print(f"{lead}({ui.size(event['gap_bytes'])} are no longer kept)", flush=True)
        key = (label, stream)
        rest, _ = self._rest.pop(key, (b"", ""))
        *whole, rest = (rest + reach.event_bytes(event)).split(b"\n")
        for line in whole:
            print(lead + reach.printable(line), flush=True)
        if rest:
            self._rest[key] = (rest, lead)
        if stream == "sys":
            self.flush()

    def flush(self) -> None:
        """What did not end with a newline."""
        for rest, lead in self._rest.values():
            print(lead + reach.printable(rest), flush=True)
        self._rest.clear()
        sys.stdout.flush()


def clock(at: Any) -> str:
    """Local time with milliseconds; `at` is in seconds since 1970."""
    if not isinstance(at, int | float):
        return "--:--:--.---"
    return time.strftime("%H:%M:%S", time.localtime(at)) + f".{int(at * 1000) % 1000:03d}"
