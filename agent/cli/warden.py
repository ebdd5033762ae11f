"""`garrison warden`: the container manager alone, for clients of Warden's protocol."""

from __future__ import annotations

from pathlib import Path

import click

from agent.cli import ui


@click.command("warden")
@click.option(
    "--config",
    "-c",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="Warden's configuration file, with Warden's own keys.",
)
def command(config: Path) -> None:
    """Serves Warden's protocol on a Unix socket, with containers of its own.

    USR2 drains: requests end, containers stay. TERM and INT end at once; the next start takes the containers up.
    """
    import asyncio

    from agent.config import LoggingSettings
    from agent.logs import LogFile, configure
    from container import HostUnfit
    from container.warden.config import WardenConfigError, load, log_level
    from container.warden.main import run

    try:
        settings, unknown = load(config)
    except WardenConfigError as e:
        raise ui.Failure("the configuration cannot be used", str(e)) from e
    path = Path(settings.logging.file) if settings.logging.file else None
    logging = LoggingSettings(level=log_level(settings.logging), file=path)
    try:
        file = LogFile(path) if path is not None else None
    except OSError as e:
        raise ui.Failure("the log cannot be written", f"{path}: {e.strerror}") from e
    log = configure(logging, file)
    for key in unknown:
        log.warning("warden_config_key_unknown", key=key)
    try:
        asyncio.run(run(settings, log))
    except HostUnfit as e:
        raise ui.Failure("the container manager cannot run on this host", str(e)) from e
    except OSError as e:
        raise ui.Failure("the container manager cannot serve", str(e)) from e
