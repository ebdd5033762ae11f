"""`garrison detach`: stop the agent and leave the apps running."""

from __future__ import annotations

from pathlib import Path

import click

from agent.cli import reach, ui


@click.command("detach")
@click.option(
    "--config", "-c", type=click.Path(path_type=Path, dir_okay=False), help="The agent's configuration."
)
@reach.state_option
def command(config: Path | None, state_dir: Path) -> None:
    """Ends the agent and leaves the apps running. The next agent on this host takes them up.

    `garrison up` starts its agent again.
    """
    reach.agent(state_dir, config).call("POST", "/v1/detach")
    ui.report("Detached    the agent ends; the apps run on")
