"""`garrison shell`: replaces itself with `wsh`, the shell client, connected to the pid 1 of the instance's container.

The command has the app's environment. wsh gets it in a file descriptor, since every user of the host can read arguments.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from agent.cli import reach, ui
from agent.cli.instances import find, listing
from wsh.vcap import VCAP_HOME, VCAP_ID

#: The PATH of root, and of vcap when an agent of an earlier release does not send the app's environment.
_PATHS = {
    "root": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "vcap": "/usr/local/bin:/usr/bin:/bin",
}


@click.command("shell", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option(
    "--root", is_flag=True, help="As root of the container instead of vcap, without the app's .profile.d."
)
@click.option(
    "--config", "-c", type=click.Path(path_type=Path, dir_okay=False), help="The agent's configuration."
)
@reach.state_option
@click.argument("instance", shell_complete=reach.complete_instance)
@click.argument("argv", nargs=-1, type=click.UNPROCESSED)
def command(instance: str, argv: tuple[str, ...], root: bool, config: Path | None, state_dir: Path) -> None:
    """Opens a shell in INSTANCE (APP/INDEX or a handle), or runs a command there: shell hello/0 -- flask db upgrade

    The shell starts in the app's directory with its environment and .profile.d. The exit status is that of the command.
    """
    agent = reach.agent(state_dir, config)
    row = find(listing(agent), instance)
    there = agent.call("POST", f"/v1/instances/{row['instance']}/shell")
    wanted = argv[1:] if argv[:1] == ("--",) else argv
    from wsh import wsh_path

    program = str(wsh_path())
    arguments = [program, "--socket", there["socket"], *_wsh_arguments(there, wanted, root=root)]
    try:
        os.execv(program, arguments)  # noqa: S606
    except OSError as error:
        raise ui.Failure("cannot run wsh", f"{program}: {error.strerror}", "make -C wsh") from error


def _wsh_arguments(there: dict[str, Any], wanted: tuple[str, ...], *, root: bool) -> list[str]:
    """The arguments of wsh. They name the descriptor of the environment, which stays open over the exec."""
    user, home = ("root", "/root") if root else ("vcap", VCAP_HOME)
    own = [f"HOME={home}", f"USER={user}", "LANG=C.UTF-8", f"PATH={_PATHS[user]}"]
    app = there.get("environment", ())
    if root or not app:  # of two values for one name the later counts
        environment, before = [*app, *own], ()
        wanted = wanted or ("/bin/bash", "-l")
    else:
        environment, before = app, there["argv"]
        # not a login shell: /etc/profile would replace the PATH that the app's .profile.d has set
        wanted = wanted or ("/bin/bash",)
    uid = "0:0" if root else f"{VCAP_ID}:{VCAP_ID}"
    return [
        "--user",
        uid,
        "--cwd",
        home,
        "--env-fd",
        str(_environment_fd(environment)),
        "--",
        *before,
        *wanted,
    ]


def _environment_fd(environment: Iterable[str]) -> int:
    fd = os.memfd_create("environment", 0)
    with os.fdopen(os.dup(fd), "wb") as file:
        for name, value in dict(variable.split("=", 1) for variable in environment).items():
            file.write(os.fsencode(f"{name}={value}") + b"\0")
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
