"""`garrison config check|show`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from agent.cli import ui

if TYPE_CHECKING:
    from agent.config import Settings

FILE = click.Path(path_type=Path, dir_okay=False)
DEFAULT = Path("/etc/garrison/config.yml")


def load_or_fail(
    path: Path,
    hint: str = "name one with --config FILE",
    *,
    doubts: Literal["ignore", "print", "refuse"] = "ignore",
    as_json: bool = False,
) -> Settings:
    """The settings in the file. When it has errors, each is printed on a line and the program ends with exit status 2.

    ``hint``: how the user names another file with the caller's command. ``doubts``: what to do with values that contradict
    each other, or name something that this host does not have; unless they are ignored, settings without effect are printed
    too. ``as_json``: for a refused file one document is also printed on standard output.
    """
    from agent.config import read

    try:
        found = read(path, on_this_host=doubts != "ignore")
    except FileNotFoundError:
        raise ui.Failure(f"there is no {path}", "", hint, ui.USAGE) from None
    except OSError as e:
        raise ui.Failure(f"{path} cannot be read", e.strerror or str(e), hint, ui.USAGE) from e
    problems = (*found.notes, *found.errors, *found.doubts) if doubts != "ignore" else found.errors
    for problem in sorted(problems, key=lambda one: one.line):
        place = f"{path}:{problem.line}" if problem.line else str(path)
        key = f"{problem.key_path}: " if problem.key_path else ""
        ui.report(f"{place}  {key}{problem.message}")
    if found.settings is None or found.errors or (doubts == "refuse" and found.doubts):
        if as_json:
            rows = [{"line": one.line, "key": one.key_path, "message": one.message} for one in problems]
            ui.emit_json({"error": f"{path} is refused", "problems": rows, "status": ui.USAGE})
        ui.stop(ui.USAGE)
    return found.settings


@click.group("config")
def command() -> None:
    """Check or show a configuration file."""


@command.command("check")
@click.argument("file", type=FILE, default=DEFAULT)
def check(file: Path) -> None:
    """Prints each error in FILE with its line. The exit status is 2 if there are any.

    The stack directories, key files and interfaces that FILE names must exist on this host. DEA settings that have no effect
    here are printed with the reason; they are not errors.
    """
    load_or_fail(file, "name one: garrison config check FILE", doubts="refuse")
    print(f"{file}: {ui.paint('good', 'green')}")


@command.command("show")
@click.argument("file", type=FILE, default=DEFAULT)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def show(file: Path, as_json: bool) -> None:
    """Prints all settings as the agent reads them from FILE: with defaults, and with secrets masked."""
    import msgspec

    settings = _masked(
        msgspec.to_builtins(
            load_or_fail(file, "name one: garrison config show FILE", as_json=as_json), enc_hook=str
        )
    )
    if as_json:
        ui.emit_json(settings)
        return
    import yaml

    print(yaml.safe_dump(settings, sort_keys=False), end="")


def _masked(value: object, key: str = "") -> object:
    from agent import config_file

    if isinstance(value, dict):
        return {name: _masked(inner, str(name)) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_masked(inner, key) for inner in value]
    if isinstance(value, str):
        if value and any(word in key for word in config_file.SECRETS):
            return "***"
        scheme, mark, rest = value.partition("://")
        if mark and "@" in rest:
            return f"{scheme}://***@{rest.rpartition('@')[2]}"
    return value
