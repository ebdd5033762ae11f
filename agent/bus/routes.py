"""Routes as routers compare them. Pure."""

from __future__ import annotations

from collections.abc import Iterable


def route_of(uri: str) -> str:
    """The one form of a route. gorouter compares routes without case, query and trailing slash (its `Uri.RouteKey`), so
    two spellings are one route: registering both and then removing one of them would remove the live route."""
    return uri.partition("?")[0].removesuffix("/").lower()


def routes_of(uris: Iterable[str]) -> tuple[str, ...]:
    """Each route once, in the order of its first appearance."""
    return tuple(dict.fromkeys(map(route_of, uris)))
