"""`garrison delete`: stop an app and remove it."""

from __future__ import annotations

from pathlib import Path

import click

from agent.cli import reach, ui


@click.command("delete")
@click.argument("app", shell_complete=reach.complete_app)
@click.option("--yes", is_flag=True, help="Do not ask.")
@reach.state_option
def command(app: str, yes: bool, state_dir: Path) -> None:
    """Stops APP and removes its package, droplet and cache."""
    peer = reach.controller(state_dir)
    row = reach.app_or_hint(peer, app)
    ui.confirm(
        f"{app}: stops {ui.count(row['running'], 'instance')}, removes package, droplet and cache", yes
    )
    peer.call("DELETE", f"/v1/apps/{app}")
    ui.report(f"Deleted     {app}")
