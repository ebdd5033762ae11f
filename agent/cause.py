"""The cause of a failure as the developer of the app reads it, from the controller or in the app's log. Pure.

An error's text is made for the operator: it may hold the address that a droplet came from, with a password or a signature in it, and
the host's paths. Neither is the developer's to see.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import buildpacks
from agent.bus.bounds import shortened
from agent.config import Settings

LIMIT_BYTES: Final = 4096
_URL: Final = re.compile(r"(\b[a-z][a-z0-9+.-]*://)([^\s\"'<>]*)", re.IGNORECASE)
#: The manager's own view of processes and control groups.
_KERNEL_PATHS: Final = r"/proc/(?:self|\d+)(?=/)|/sys/fs/cgroup"
_END: Final = r"(?=[/\s'\":,;)\]]|$)[^\s'\":,;)\]]*"
_MARKS: Final = ".,:;)]"  # of the sentence around an address
HIDDEN: Final = "(a file of the host)"
HIDDEN_ADDRESS: Final = "(an address)"


def host_paths(settings: Settings) -> tuple[str, ...]:
    """Where this agent and what it gives to containers lie."""
    named = [
        settings.base_dir,
        *(stack.package_path for stack in settings.stacks),
        *(bind.src_path for bind in settings.bind_mounts),
        Path(__file__).parents[1],
        buildpacks.path(),
        # of a virtual environment: a system's own prefix is /usr, and containers have that too
        *([Path(sys.prefix)] if sys.prefix != sys.base_prefix else []),
    ]
    found = {str(path) for one in named for path in (one, one.resolve()) if len(path.parts) > 1}
    return tuple(sorted(found, key=len, reverse=True))


def public(text: str, paths: Iterable[str]) -> str:
    """Without the user part and the query of URLs, without the host's paths, and not without end."""
    text = _URL.sub(lambda found: found[1] + _without_secrets(found[2]), text)
    prefixes = "|".join([*(re.escape(path.rstrip("/")) for path in paths), _KERNEL_PATHS])
    return shortened(re.sub(rf"(?<![\w./-])(?:{prefixes}){_END}", HIDDEN, text), LIMIT_BYTES)


def public_address(url: str) -> str:
    """`public` for a text that is nothing but an address: a password in it may hold blanks and quotes."""
    scheme, mark, rest = url.partition("://")
    return f"{scheme}{mark}{_without_secrets(rest)}" if mark else HIDDEN_ADDRESS


def _without_secrets(rest: str) -> str:
    """Up to the last @: a password may hold one, or a slash that nobody has encoded. An @ behind a question mark or a hash may
    belong to such a password or to a query, and a secret stands on one side of it or on the other: then neither is shown.
    """
    address = rest.rstrip(_MARKS)
    shown, *query = re.split(r"[?#]", address, maxsplit=1)
    address_shown = HIDDEN_ADDRESS if query and "@" in query[0] else shown.rpartition("@")[2]
    return address_shown + rest[len(address) :]
