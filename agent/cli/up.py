"""`garrison up`: a whole platform on this machine, until Ctrl-C."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from agent.cli import reach, ui

PORT = click.IntRange(0, 65535)


def default_stacks_dir() -> Path:
    if cache := os.environ.get("GARRISON_CACHE"):
        return Path(cache) / "stacks"
    from rootfs_builder import default_stacks_dir

    return default_stacks_dir()


class TerminalProgress:
    """Prints a line for each part that is ready. On a terminal the part that is being started has a progress line."""

    def __init__(self) -> None:
        self._line = ui.MovingLine(sys.stdout)

    def headline(self, text: str) -> None:
        print(text, flush=True)

    def done(self, what: str, text: str) -> None:
        self._line.clear()
        print(f"  {ui.paint('✓', 'green')} {what:<10} {text}", flush=True)

    def working(self, what: str, text: str) -> None:
        self._line.show(f"  … {what:<10} {text}")

    def note(self, text: str) -> None:
        self._line.clear()
        print(text, flush=True)


@click.command("up")
@reach.state_option
@click.option(
    "--gateway-port",
    type=PORT,
    default=8080,
    show_default=True,
    metavar="PORT",
    help="HTTP port; 0: any free one.",
)
@click.option(
    "--bus-port",
    type=PORT,
    default=4222,
    show_default=True,
    metavar="PORT",
    help="NATS port; 0: any free one.",
)
@click.option(
    "--stacks",
    "stacks_dir",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Where stacks are kept; a missing one is built there.",
)
@click.option("--pool-network", metavar="CIDR", help="The network of the containers [10.254.0.0/16].")
@click.option(
    "--publish-ports",
    is_flag=True,
    help="Other hosts can reach the apps too, by the apps' ports on this host.",
)
def command(
    state_dir: Path,
    gateway_port: int,
    bus_port: int,
    stacks_dir: Path | None,
    pool_network: str | None,
    publish_ports: bool,
) -> None:
    """Starts a bus, an agent, a controller and a gateway on this machine. Ctrl-C stops all of them.

    The gateway serves each app at http://NAME.localhost:8080. The next `garrison up` starts the apps again.
    """
    import asyncio

    from agent.dev.up import Options, UpFailed, run

    options = Options(
        state_dir=state_dir.absolute(),
        stacks_dir=(stacks_dir or default_stacks_dir()).absolute(),
        gateway_port=gateway_port,
        bus_port=bus_port,
        pool_network=pool_network,
        publish_ports=publish_ports,
    )
    try:
        asyncio.run(run(options, TerminalProgress()))
    except* UpFailed as failures:
        raise ui.Failure("garrison up failed", "\n".join(str(e) for e in failures.exceptions)) from None
