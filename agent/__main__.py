"""Entry point of `garrison`, also as `python -m agent`. Each command's module is imported only when that command runs."""

from __future__ import annotations

import sys

if next((word for word in sys.argv[1:] if not word.startswith("-")), "") == "run":
    # The imports below take several 100 ms. A signal that arrives meanwhile must neither kill the agent nor be lost.
    from agent.signals import hold

    hold()

from agent.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
