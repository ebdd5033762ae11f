"""`garrison shell`: becomes `wsh`, the shell client, with the socket of the instance's pid 1."""

from __future__ import annotations

import os
from pathlib import Path

import click

from agent.cli import reach, ui
from agent.cli.instances import find, listing


@click.command("shell", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--root", is_flag=True, help="As root of the container instead of vcap.")
@click.option(
    "--config", "-c", type=click.Path(path_type=Path, dir_okay=False), help="The agent's configuration."
)
@reach.state_option
@click.argument("instance", shell_complete=reach.complete_instance)
@click.argument("argv", nargs=-1, type=click.UNPROCESSED)
def command(instance: str, argv: tuple[str, ...], root: bool, config: Path | None, state_dir: Path) -> None:
    """Opens a shell in INSTANCE (APP/INDEX or a handle), or runs a command there: shell hello/0 -- ls -l

    The exit status is the command's own.
    """
    agent = reach.agent(state_dir, config)
    row = find(listing(agent), instance)
    there = agent.call("POST", f"/v1/instances/{row['instance']}/shell")
    from wsh import wsh_path

    program = str(wsh_path())
    words = [program, "--socket", there["socket"], "--user", "0:0" if root else "2000:2000"]
    words += ["--cwd", "/root" if root else "/home/vcap"]
    environment = {
        "HOME": "/root" if root else "/home/vcap",
        "USER": "root" if root else "vcap",
        "LANG": "C.UTF-8",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        if root
        else "/usr/local/bin:/usr/bin:/bin",
        "TERM": os.environ.get("TERM", "dumb"),
    }
    for key, value in environment.items():
        words += ["--env", f"{key}={value}"]
    command_words = argv[1:] if argv[:1] == ("--",) else argv
    words += ["--", *(command_words or ("/bin/bash", "-l"))]
    try:
        os.execv(program, words)  # noqa: S606
    except OSError as error:
        raise ui.Failure("cannot run wsh", f"{program}: {error.strerror}", "make -C wsh") from error
