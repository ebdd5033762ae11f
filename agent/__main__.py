"""`garrison`, also as `python -m agent`. Imports only the command line's frame: commands come lazily."""

from __future__ import annotations

import sys

from agent.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
