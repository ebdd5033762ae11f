"""`garrison rootfs build|list`"""

from __future__ import annotations

import time
from pathlib import Path

import click

from agent.cli import ui
from agent.cli.up import default_stacks_dir

STACKS = click.option(
    "--stacks",
    "stacks_dir",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Where stacks are kept.",
)


@click.group("rootfs")
def command() -> None:
    """Build and list the root file systems of containers ("stacks")."""


@command.command("build")
@click.argument("name")
@STACKS
def build(name: str, stacks_dir: Path | None) -> None:
    """Builds the stack NAME (debian or busybox). An older build stays in use until the new one is complete."""
    import rootfs_builder

    if name not in rootfs_builder.RECIPES:
        close = ui.nearest(name, rootfs_builder.RECIPES)
        hint = f"did you mean {close}?" if close else f"there are: {', '.join(rootfs_builder.RECIPES)}"
        raise ui.Failure(f"there is no recipe {name!r}", "", hint, ui.USAGE)
    line, began = ui.MovingLine(), time.monotonic()
    try:
        stack = rootfs_builder.build(
            name, stacks_dir or default_stacks_dir(), lambda text: line.show(f"{name}  {text}")
        )
    except (rootfs_builder.BuildError, OSError) as error:
        line.clear()
        raise ui.Failure(f"could not build {name}", str(error)) from error
    line.finish(
        ui.with_time(f"{name}  {ui.size(stack.manifest.size_bytes)}  {stack.path}", time.monotonic() - began)
    )


@command.command("list")
@STACKS
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def list_(stacks_dir: Path | None, as_json: bool) -> None:
    """Lists the stacks that are built."""
    import rootfs_builder

    stacks = rootfs_builder.list_stacks(stacks_dir or default_stacks_dir())
    if as_json:
        ui.emit_json(
            [
                {"name": s.name, "path": str(s.path), "size_bytes": s.manifest.size_bytes,
                 "sha256": s.manifest.sha256, "built_at": s.manifest.built_at}
                for s in stacks
            ]
        )  # fmt: skip
        return
    rows = [(s.name, ui.size(s.manifest.size_bytes), s.manifest.built_at, str(s.path)) for s in stacks]
    if rows:
        ui.table(("STACK", "SIZE", "BUILT", "PATH"), rows)
    else:
        ui.report("no stack is built yet: garrison rootfs build debian")
