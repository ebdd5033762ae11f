"""`garrison config check|show`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.cli import ui

if TYPE_CHECKING:
    from agent.config import Settings

FILE = click.Path(path_type=Path, dir_okay=False)
DEFAULT = Path("/etc/garrison/config.yml")


def load_or_fail(path: Path, hint: str = "name one with --config FILE") -> Settings:
    """The settings; otherwise each problem on a line of its own and exit status 2. `hint`: how the caller names a file."""
    from agent.config import ConfigErrors, load

    try:
        return load(path)
    except FileNotFoundError:
        raise ui.Failure(f"there is no {path}", "", hint, ui.USAGE) from None
    except ConfigErrors as problems:
        for problem in problems.errors:
            place = f"{path}:{problem.line}" if problem.line else str(path)
            ui.tell(f"{place}  {problem.key_path}: {problem.message}")
        ui.stop(ui.USAGE)


@click.group("config")
def command() -> None:
    """Check or show a configuration file."""


@command.command("check")
@click.argument("file", type=FILE, default=DEFAULT)
def check(file: Path) -> None:
    """Says what is wrong with FILE, line by line; exit status 2 when something is."""
    load_or_fail(file, "name one: garrison config check FILE")
    print(f"{file}: {ui.paint('good', 'green')}")


@command.command("show")
@click.argument("file", type=FILE, default=DEFAULT)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def show(file: Path, as_json: bool) -> None:
    """Prints the settings that FILE leads to, defaults filled in, secrets masked."""
    import msgspec

    settings = _masked(
        msgspec.to_builtins(load_or_fail(file, "name one: garrison config show FILE"), enc_hook=str)
    )
    if as_json:
        ui.emit_json(settings)
        return
    import yaml

    print(yaml.safe_dump(settings, sort_keys=False), end="")


SECRETS = ("password", "token", "secret", "nkey", "seed")


def _masked(value: object, key: str = "") -> object:
    if isinstance(value, dict):
        return {name: _masked(inner, str(name)) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_masked(inner, key) for inner in value]
    if isinstance(value, str):
        if value and any(word in key for word in SECRETS):
            return "***"
        scheme, mark, rest = value.partition("://")
        if mark and "@" in rest:
            return f"{scheme}://***@{rest.rpartition('@')[2]}"
    return value
