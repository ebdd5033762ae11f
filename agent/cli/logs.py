"""`garrison logs`: the output of an app."""

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
@click.option("--follow", "-f", is_flag=True, help="Keep printing new output.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document per line.")
@click.option(
    "--config", "-c", type=click.Path(path_type=Path, dir_okay=False), help="The agent's configuration."
)
@reach.state_option
def command(app: str, follow: bool, as_json: bool, config: Path | None, state_dir: Path) -> None:
    """Shows the output of APP (or APP/INDEX) on this host.

    With -f it follows the app over stops, crashes and restarts, until Ctrl-C. Only new output has a time.
    """
    name, _, index = app.partition("/")
    agent = reach.agent(state_dir, config)
    guid = find_app_guid(agent, name, state_dir, config)
    query = {"follow": "1"} if follow else {}
    lines = LogLines(name, with_time=follow)
    for event in agent.lines("GET", f"/v1/apps/{guid}/logs", **query):
        if index and str(event.get("index")) != index:
            continue
        if as_json:
            print(json.dumps(event, separators=(",", ":")), flush=True)
        else:
            lines.add(event)
    lines.flush()


class LogLines:
    """Prints the chunks of several instances and streams as whole lines."""

    def __init__(self, name: str, *, with_time: bool) -> None:
        self._name, self._with_time = name, with_time
        self._rest: dict[tuple[str, str], tuple[bytes, str]] = {}

    def add(self, event: dict[str, Any]) -> None:
        stream = str(event.get("stream", "sys"))
        stream = STREAMS.get(stream, stream)
        label = f"{self._name}/{event.get('index', 'staging')}"
        clock = f"{local_time(event['at'])} " if self._with_time else ""
        lead = f"{clock}{label} {ui.paint(f'{stream:<4}', COLOURS.get(stream, 'dim'))} "
        if event.get("gap_bytes"):
            print(f"{lead}({ui.size(event['gap_bytes'])} are no longer kept)", flush=True)
        if stream == "sys":
            self.flush()
        key = (str(event.get("instance", label)), stream)
        rest, _ = self._rest.pop(key, (b"", ""))
        *whole, rest = (rest + reach.event_bytes(event)).split(b"\n")
        for line in whole:
            print(lead + reach.printable(line), flush=True)
        if rest:
            self._rest[key] = (rest, lead)

    def flush(self) -> None:
        """Prints what did not end with a newline."""
        for rest, lead in self._rest.values():
            print(lead + reach.printable(rest), flush=True)
        self._rest.clear()
        sys.stdout.flush()


def local_time(at: float | None) -> str:
    """The time with milliseconds; as many spaces if it is unknown. ``at``: seconds since 1970."""
    if at is None:
        return "            "
    return time.strftime("%H:%M:%S", time.localtime(at)) + f".{int(at * 1000) % 1000:03d}"
