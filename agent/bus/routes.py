"""Routes in the form in which routers compare them, and their size limits. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

#: The limit of one route: a host name has at most 253 bytes, the rest is the path.
ROUTE_BYTES: Final = 1024
#: The limit of all routes of an instance together: one register carries them.
ROUTES_BYTES: Final = 256 << 10


def route_of(uri: str) -> str:
    """The canonical form of a route. gorouter ignores case, query and trailing slash (`Uri.RouteKey`), so two spellings name
    one route. If both were registered, unregistering one of them would remove the route that is still wanted."""
    return uri.partition("?")[0].removesuffix("/").lower()


def routes_of(uris: Iterable[str]) -> tuple[str, ...]:
    """The canonical routes without duplicates, in the order of first appearance."""
    return tuple(dict.fromkeys(map(route_of, uris)))


def check_routes(uris: Iterable[str]) -> None:
    """Raises ValueError if the routes are too large for one register."""
    total = 0
    for uri in uris:
        size = len(uri.encode(errors="replace"))
        total += size
        if size > ROUTE_BYTES:
            raise ValueError(f"uris: expected at most {ROUTE_BYTES} bytes each, got {size}")
    if total > ROUTES_BYTES:
        raise ValueError(f"uris: expected at most {ROUTES_BYTES} bytes together, got {total}")
