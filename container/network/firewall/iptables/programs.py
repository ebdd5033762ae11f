"""Runs iptables-restore and iptables-save. Both variants of the package have the same options."""

from __future__ import annotations

import asyncio
import os
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Final, Literal

from container.network.firewall import FirewallError

Variant = Literal["nft", "legacy"]
VARIANTS: Final[tuple[Variant, ...]] = ("nft", "legacy")
_TIMEOUT_S: Final = 30.0
_LOCK_WAIT_S: Final = 10
_ERROR_CHARACTERS: Final = 500
_SAVED_LIMIT_BYTES: Final = 64 << 20
_PATH: Final = "/usr/sbin:/sbin:/usr/bin:/bin"


def present() -> Variant | None:
    """The variant whose programs this host has; of both, the one that ``iptables`` means. None: neither."""
    found = [one for one in VARIANTS if shutil.which(f"iptables-{one}-restore", path=_PATH)]
    usual = os.path.realpath(shutil.which("iptables-restore", path=_PATH) or "")
    if len(found) > 1 and "legacy" in Path(usual).name:
        return "legacy"
    return found[0] if found else None


class Programs:
    """The programs of one variant. FirewallError: they are not installed."""

    def __init__(self, variant: Variant) -> None:
        self.variant = variant
        self._restore, self._save = self._find("restore"), self._find("save")

    def _find(self, verb: str) -> str:
        name = f"iptables-{self.variant}-{verb}"
        path = shutil.which(name, path=_PATH)
        if path is None:
            raise FirewallError(f"{name}: not found in {_PATH}; install the package iptables")
        return path

    async def restore(self, text: str) -> None:
        """Each table of ``text`` in one transaction, in this order. FirewallError: one was refused; those before it are made."""
        await self._run(self._restore, "--noflush", "-w", str(_LOCK_WAIT_S), given=text)

    async def save(self) -> str:
        """The rules of all tables. FirewallError."""
        return await self._run(self._save)

    async def _run(self, *argv: str, given: str = "") -> str:
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={"PATH": _PATH, "LC_ALL": "C"},
                limit=_SAVED_LIMIT_BYTES,
            )
        except OSError as e:
            raise FirewallError(f"{argv[0]}: {e.strerror}") from e
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                out, error = await process.communicate(given.encode())
        except TimeoutError:
            raise FirewallError(f"{argv[0]}: no end after {_TIMEOUT_S:g} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode != 0:
            raise FirewallError(_explain(Path(argv[0]).name, error.decode(errors="replace"), given))
        return out.decode(errors="replace")


def _explain(program: str, error: str, given: str) -> str:
    """The reason, with the line that it names."""
    reasons = [line.strip() for line in error.splitlines() if line.strip() and not line.startswith("Try ")]
    text = "; ".join(dict.fromkeys(reasons))[:_ERROR_CHARACTERS] or "refused without a reason"
    lines = given.splitlines()
    words = text.replace(":", " ").split()
    numbers = [int(word) for before, word in pairwise(words) if before == "line" and word.isdigit()]
    if numbers and 0 < numbers[0] <= len(lines):
        return f"{program}: {text} ({lines[numbers[0] - 1]!r})"
    return f"{program}: {text}"
