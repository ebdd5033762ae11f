"""`garrison run`: the host agent itself."""

from __future__ import annotations

from pathlib import Path

import click

from agent.cli import ui


@click.command("run")
@click.option(
    "--config",
    "-c",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("/etc/garrison/config.yml"),
    show_default=True,
    help="The configuration file.",
)
def command(config: Path) -> None:
    """Runs the host agent in the foreground.

    TERM, INT and QUIT stop the apps and then the agent; `garrison detach` stops only the agent. HUP reopens the log file,
    for use after a rotation.
    """
    from agent.signals import hold

    hold()  # agent.__main__ has done it already; other callers of this command have not

    from agent.cli.config import load_or_fail

    settings = load_or_fail(config, doubts="print")

    import asyncio

    from agent.logs import LogFile, configure
    from agent.worker import Worker
    from container import HostUnfit

    try:
        file = LogFile(settings.logging.file) if settings.logging.file is not None else None
    except OSError as e:
        raise ui.Failure("the log cannot be written", f"{settings.logging.file}: {e.strerror}") from e
    log = configure(settings.logging, file)
    try:
        status = asyncio.run(Worker(settings, log, file).run())
    except HostUnfit as e:
        log.error("host_unfit", error=str(e))
        raise ui.Failure("the agent cannot run on this host", str(e)) from e
    ui.stop(status or ui.DONE)
