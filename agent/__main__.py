"""`garrison`, also as `python -m agent`. Imports only the command line's frame: commands come lazily."""

from __future__ import annotations

import sys

if next((word for word in sys.argv[1:] if not word.startswith("-")), "") == "run":
    # before the imports, which take a good part of a second: a signal in it must neither kill the agent nor be lost
    from agent.signals import hold

    hold()

from agent.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
