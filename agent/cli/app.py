"""The entry of the command line: the list of commands, and how an error becomes a message and an exit status.

Only click is imported here. A command's module is imported when that command runs, so that `garrison --help` is quick.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import click

from agent.cli import ui

# name -> (module, what it does), in the order of `--help`
COMMANDS = {
    "up": ("agent.cli.up", "A whole platform on this machine, until Ctrl-C"),
    "push": ("agent.cli.push", "From a directory to a URL: upload, stage, start"),
    "apps": ("agent.cli.apps", "The apps: state, instances, memory, route"),
    "logs": ("agent.cli.logs", "The output of an app"),
    "shell": ("agent.cli.shell", "A shell inside an instance"),
    "scale": ("agent.cli.scale", "More or fewer instances of an app"),
    "stop": ("agent.cli.stop", "Stop an app and keep its droplet"),
    "start": ("agent.cli.start", "Start a stopped app again"),
    "delete": ("agent.cli.delete", "Stop an app and remove it"),
    "rootfs": ("agent.cli.rootfs", "Build and list the root file systems of containers"),
    "config": ("agent.cli.config", "Check or show a configuration file"),
    "run": ("agent.cli.run", "The host agent, for a platform that has its own controller"),
    "detach": ("agent.cli.detach", "Stop the agent and leave the apps running"),
    "warden": ("agent.cli.warden", "The container manager alone, with Warden's protocol"),
    "completion": ("agent.cli.completion", "Completion for bash, zsh or fish"),
}
NEWCOMER = ("up", "push", "apps", "logs", "shell")


class Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(COMMANDS[cmd_name][0]).command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            close = ui.nearest(name, COMMANDS)
            hint = f"did you mean `garrison {close}`?" if close else "`garrison --help` lists the commands"
            raise ui.Failure(f"there is no command {name!r}", "", hint, ui.USAGE)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, what) for name, (_, what) in COMMANDS.items()])


def _newcomer(ctx: click.Context) -> None:
    click.echo("Garrison runs web apps in containers on this host.\n")
    for name in NEWCOMER:
        click.echo(f"  garrison {name:<8}{COMMANDS[name][1]}")
    click.echo("\nStart with `garrison up`, then `garrison push DIRECTORY` in another terminal.")
    click.echo("All commands: garrison --help      One command: garrison push --help")


def _print_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"garrison {version('garrison')}")
        ctx.exit()


@click.group(
    cls=Commands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show it."
)
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Garrison runs web apps in containers: one host agent, driven over NATS."""
    ctx.obj = {"debug": debug}
    if ctx.invoked_subcommand is None:
        _newcomer(ctx)


def _usage_failure(error: click.UsageError) -> ui.Failure:
    """click's error as a Failure: what, why, and as the hint the nearest valid option or `--help`."""
    path = error.ctx.command_path if error.ctx is not None else "garrison"
    why = error.format_message().partition(" Did you mean")[0].rstrip(".")
    close = list(getattr(error, "possibilities", None) or ())[:1]
    hint = f"did you mean {close[0]}?   " if close else ""
    return ui.Failure(path, why[:1].lower() + why[1:], f"{hint}see: {path} --help", ui.USAGE)


def main(argv: list[str] | None = None) -> int:
    """Exit statuses: 0 done, 1 failed, 2 usage or configuration, 3 nothing reachable, 130 interrupted."""
    arguments = sys.argv[1:] if argv is None else argv
    debug = "--debug" in arguments or bool(os.environ.get("GARRISON_DEBUG"))
    ui.escape_unencodable()
    try:
        status: Any = cli.main(args=argv, prog_name="garrison", standalone_mode=False)
        return status if isinstance(status, int) else ui.DONE
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except (click.Abort, KeyboardInterrupt):
        ui.report("interrupted")
        return ui.INTERRUPTED
    except ui.Failure as error:
        return _failed(error, arguments)
    except click.UsageError as error:
        return _failed(_usage_failure(error), arguments)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads our output any more
        return ui.FAILED
    except Exception as error:  # the outermost frame of the program
        if debug:
            raise
        return _failed(
            ui.Failure(type(error).__name__, str(error), "more with `garrison --debug ...`"), arguments
        )


def _failed(failure: ui.Failure, arguments: Sequence[str]) -> int:
    """With `--json` a failure is printed as a JSON document too. Arguments after `--` belong to another program."""
    own = takewhile(lambda argument: argument != "--", arguments)
    if "--json" in own and "shell" not in arguments[:1]:
        ui.emit_json(failure.document())
    failure.show()
    return failure.status
