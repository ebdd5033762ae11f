"""Hatch build hook: compiles wshd and wsh into ``wsh/_bin``.

The compiler is ``$CC``, else musl-gcc, else gcc; the programs are linked static. They are written into
the source tree (git-ignored) because an editable install does not carry files that a hook only lists.
"""

from __future__ import annotations

import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CustomBuildHook(BuildHookInterface[Any]):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        import subprocess

        root = Path(self.root)
        subprocess.run(["make", "-C", str(root / "wsh"), "--silent", "all"], check=True)
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"
