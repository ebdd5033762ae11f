"""Reads the host's apt configuration: the sources of a suite, and the settings to reach them.

mmdebstrap ignores the host's configuration and uses its own default mirror, which the host may not reach.
So the entries of the suite are read from /etc/apt and passed as text. Entries of other suites are left out.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

#: The settings of the host's apt that a build needs to reach the sources. It uses no others.
_REACH = re.compile(
    r"Acquire::(?:(?:https?|ftp)::.*Proxy.*|Check-Valid-Until|Check-Date|Retries) ", re.IGNORECASE
)


def _belongs(suite_word: str, suite: str) -> bool:
    """True for the suite and its pockets: ``bookworm``, ``bookworm-updates``, ``bookworm-security``, ``bookworm/updates``."""
    return suite_word == suite or suite_word.startswith((f"{suite}-", f"{suite}/"))


def _deb822_entries(text: str, suite: str) -> Iterator[str]:
    for stanza in re.split(r"\n\s*\n", text):
        lines = [line for line in stanza.splitlines() if line.strip() and not line.startswith("#")]
        fields = {
            key.strip().lower(): value.strip() for key, _, value in (line.partition(":") for line in lines)
        }
        suites = [word for word in fields.get("suites", "").split() if _belongs(word, suite)]
        if not suites or "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes") == "no":
            continue
        options = f"[signed-by={fields['signed-by']}] " if fields.get("signed-by", "").startswith("/") else ""
        for uri in fields.get("uris", "").split():
            for word in suites:
                yield f"deb {options}{uri} {word} {fields.get('components', 'main')}"


def _one_line_entries(text: str, suite: str) -> Iterator[str]:
    for line in text.splitlines():
        match = re.match(r"deb\s+(\[[^\]]*\]\s+)?(\S+)\s+(\S+)", line.strip())
        if match and _belongs(match[3], suite):
            yield line.strip()


def host_sources(suite: str, apt_dir: Path = Path("/etc/apt")) -> tuple[str, ...]:
    """The host's entries for ``suite`` in the one-line format, also those of deb822 files; empty if it has none."""
    entries: list[str] = []
    for path in (apt_dir / "sources.list", *sorted((apt_dir / "sources.list.d").glob("*.list"))):
        if path.is_file():
            entries += _one_line_entries(path.read_text(), suite)
    for path in sorted((apt_dir / "sources.list.d").glob("*.sources")):
        entries += _deb822_entries(path.read_text(), suite)
    return tuple(dict.fromkeys(entries))


def host_options() -> tuple[str, ...]:
    """The host's apt settings that a build needs to reach those sources (proxies, dates)."""
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    return tuple(line.rstrip(";") for line in dump.splitlines() if _REACH.match(line))
