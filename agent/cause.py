"""Removes secrets and host paths from an error text before the app's developer reads it. Pure.

Error texts are written for the operator. They may contain paths of the host, and the URL of a droplet with a password or a
signature. The controller and the app's log, which developers read, get the text without them.
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
#: Paths of the kernel that contain a pid or a control group of the host.
_KERNEL_PATHS: Final = r"/proc/(?:self|\d+)(?=/)|/sys/fs/cgroup"
_END: Final = r"(?=[/\s'\":,;)\]]|$)[^\s'\":,;)\]]*"
_MARKS: Final = ".,:;)]"  # punctuation that belongs to the sentence around a URL
HIDDEN: Final = "(a file of the host)"
HIDDEN_ADDRESS: Final = "(an address)"


def host_paths(settings: Settings) -> tuple[str, ...]:
    """The paths that `public` hides: the agent's data and programs, stacks and bind mounts; the longest first."""
    named = [
        settings.base_dir,
        *(stack.package_path for stack in settings.stacks),
        *(bind.src_path for bind in settings.bind_mounts),
        Path(__file__).parents[1],
        buildpacks.path(),
        # only a virtual environment's prefix: the system's is /usr, and containers have a /usr too
        *([Path(sys.prefix)] if sys.prefix != sys.base_prefix else []),
    ]
    found = {str(path) for one in named for path in (one, one.resolve()) if len(path.parts) > 1}
    return tuple(sorted(found, key=len, reverse=True))


def public(text: str, paths: Iterable[str]) -> str:
    """``text`` without the user part and the query of URLs and without ``paths``, at most `LIMIT_BYTES` long."""
    text = _URL.sub(lambda found: found[1] + _without_secrets(found[2]), text)
    prefixes = "|".join([*(re.escape(path.rstrip("/")) for path in paths), _KERNEL_PATHS])
    return shortened(re.sub(rf"(?<![\w./-])(?:{prefixes}){_END}", HIDDEN, text), LIMIT_BYTES)


def public_address(url: str) -> str:
    """Like `public`, for a text that is only a URL. So blanks and quotes in it are part of the URL, for example of a password."""
    scheme, mark, rest = url.partition("://")
    return f"{scheme}{mark}{_without_secrets(rest)}" if mark else HIDDEN_ADDRESS


def _without_secrets(rest: str) -> str:
    """A URL after its scheme, without user part, query and fragment.

    The user part is taken to end at the last @, since a password may contain an unencoded @ or slash. An @ after a `?` or `#`
    may be part of such a password or of a query; either side of it may be secret, so nothing of the URL is shown.
    """
    address = rest.rstrip(_MARKS)
    shown, *query = re.split(r"[?#]", address, maxsplit=1)
    address_shown = HIDDEN_ADDRESS if query and "@" in query[0] else shown.rpartition("@")[2]
    return address_shown + rest[len(address) :]
