"""`garrison start`: start a stopped app again."""

from __future__ import annotations

from pathlib import Path

import click

from agent.cli import reach
from agent.cli.wait import wait_running


@click.command("start")
@click.argument("app", shell_complete=reach.complete_app)
@click.option(
    "--timeout", "timeout_s", default=90.0, show_default=True, help="Seconds to wait until it runs."
)
@reach.state_option
def command(app: str, timeout_s: float, state_dir: Path) -> None:
    """Starts APP from its present droplet, and waits until it runs."""
    peer = reach.controller(state_dir)
    reach.app_or_hint(peer, app)
    peer.call("POST", f"/v1/apps/{app}/start")
    wait_running(peer, reach.agent(state_dir, has_config=False), app, timeout_s, "Starting")
