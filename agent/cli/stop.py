"""`garrison stop`: stop an app and keep its droplet."""

from __future__ import annotations

from pathlib import Path

import click

from agent.cli import reach
from agent.cli.wait import wait_stopped


@click.command("stop")
@click.argument("app", shell_complete=reach.complete_app)
@click.option(
    "--timeout", "timeout_s", default=30.0, show_default=True, help="Seconds to wait until it is stopped."
)
@reach.state_option
def command(app: str, timeout_s: float, state_dir: Path) -> None:
    """Stops all instances of APP and waits until they have ended. `garrison start` starts them again without a staging."""
    peer = reach.controller(state_dir)
    reach.app_or_hint(peer, app)
    peer.call("POST", f"/v1/apps/{app}/stop")
    wait_stopped(reach.agent(state_dir, has_config=False), app, timeout_s)
