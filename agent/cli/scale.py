"""`garrison scale`: more or fewer instances of an app."""

from __future__ import annotations

from pathlib import Path

import click

from agent.cli import reach, ui
from agent.cli.wait import wait_running


@click.command("scale")
@click.argument("app", shell_complete=reach.complete_app)
@click.argument("instances", type=click.IntRange(0, 1000))
@click.option(
    "--timeout", "timeout_s", default=90.0, show_default=True, help="Seconds to wait until all run."
)
@reach.state_option
def command(app: str, instances: int, timeout_s: float, state_dir: Path) -> None:
    """Changes the number of instances of APP to INSTANCES, and waits until they run."""
    peer = reach.controller(state_dir)
    before = reach.app_or_hint(peer, app)
    peer.call("POST", f"/v1/apps/{app}/scale", {"instances": instances})
    if before["state"] == "stopped":
        ui.report(f"{app} is stopped; start it with {instances} instances: garrison start {app}")
        return
    wait_running(peer, reach.agent(state_dir, has_config=False), app, timeout_s, "Scaling")
