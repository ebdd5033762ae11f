"""`garrison completion bash|zsh|fish`"""

from __future__ import annotations

import click


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Prints a script for SHELL. For bash: source <(garrison completion bash)"""
    from click.shell_completion import get_completion_class

    from agent.cli.app import cli

    script = get_completion_class(shell)
    assert script is not None
    print(script(cli, {}, "garrison", "_GARRISON_COMPLETE").source())
