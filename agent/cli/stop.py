"""`garrison stop`: stop an app and keep its droplet."""

from __future__ import annotations

import time
from pathlib import Path

import click

from agent.cli import reach, ui


@click.command("stop")
@click.argument("app", shell_complete=reach.complete_app)
@reach.state_option
def command(app: str, state_dir: Path) -> None:
    """Stops all instances of APP; `garrison start` brings them back without a new staging."""
    peer = reach.controller(state_dir)
    reach.app_or_hint(peer, app)
    began = time.monotonic()
    peer.call("POST", f"/v1/apps/{app}/stop")
    ui.tell(ui.with_time(f"Stopping    {app} ✓ told to stop", time.monotonic() - began))
