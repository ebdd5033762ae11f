"""Routes as routers compare them. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

#: Of one route: a host name has 253 at most, the rest is its path.
ROUTE_BYTES: Final = 1024
#: Of all of an instance: they go in one register, again and again.
ROUTES_BYTES: Final = 256 << 10


def route_of(uri: str) -> str:
    """The one form of a route. gorouter compares routes without case, query and trailing slash (its `Uri.RouteKey`), so
    two spellings are one route: registering both and then removing one of them would remove the live route."""
    return uri.partition("?")[0].removesuffix("/").lower()


def routes_of(uris: Iterable[str]) -> tuple[str, ...]:
    """Each route once, in the order of its first appearance."""
    return tuple(dict.fromkeys(map(route_of, uris)))


def check_routes(uris: Iterable[str]) -> None:
    """ValueError: more than a register can carry."""
    total = 0
    for uri in uris:
        size = len(uri.encode(errors="replace"))
        total += size
        if size > ROUTE_BYTES:
            raise ValueError(f"uris: expected at most {ROUTE_BYTES} bytes each, got {size}")
    if total > ROUTES_BYTES:
        raise ValueError(f"uris: expected at most {ROUTES_BYTES} bytes, got {total}")
