"""The containers' /etc/resolv.conf, from the settings and the host's own file (docs/network.md, "Names"). Pure (resolv.conf(5))."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

#: A word that may be written to the file: no control characters, and bounded.
_WORD: Final = re.compile(r"[!-~]{1,255}\Z")
MAX_WORDS: Final = 32


@dataclass(frozen=True, slots=True)
class Resolver:
    """What a resolv.conf says."""

    servers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """As a file."""
        lines = [f"nameserver {server}" for server in self.servers]
        lines += [
            f"{name} {' '.join(words)}"
            for name, words in (("search", self.search), ("options", self.options))
            if words
        ]
        return "".join(f"{line}\n" for line in lines)


def parse(text: str) -> Resolver:
    """Reads a file as glibc does: the last `search` or `domain` counts, `options` add up, anything else is ignored."""
    servers: list[str] = []
    search: tuple[str, ...] = ()
    options: list[str] = []
    for line in text.splitlines():
        name, words = _directive(line)
        if name == "nameserver":
            servers += words[:1]
        elif name == "search" and words:
            search = words
        elif name == "domain" and words:
            search = words[:1]
        elif name == "options":
            options += words
    return Resolver(tuple(servers), search, tuple(dict.fromkeys(options))[:MAX_WORDS])


def _directive(line: str) -> tuple[str, tuple[str, ...]]:
    name, *words = line.split() or [""]
    found: list[str] = []
    for word in words[:MAX_WORDS]:
        if word[0] in "#;":
            break
        if _WORD.match(word):
            found.append(word)
    return name, tuple(found)


def resolver_for(
    host: str,
    upstreams: str,
    *,
    servers: tuple[str, ...] = (),
    search: tuple[str, ...] | None = None,
    options: tuple[str, ...] | None = None,
) -> tuple[Resolver, tuple[str, ...]]:
    """(the containers' resolver, the servers that were left out). What is configured is used as it is.

    No ``servers``, and None for the others: the host's. ``host``: the text of its resolv.conf. ``upstreams``: the text of
    systemd-resolved's list, which is used when a container can reach no server of the first; loopback and IPv6 servers
    cannot be reached. Search list and options come from the file whose servers are used. If that has no search list, the
    one of the host's own file is used.
    """
    own, source, left_out = parse(host), parse(host), list[str]()
    for found in () if servers else (own, parse(upstreams)):
        left_out += [server for server in found.servers if not _is_reachable(server)]
        usable = (server for server in found.servers if _is_reachable(server))
        if servers := tuple(dict.fromkeys(usable)):
            source = found
            break
    if search is None:
        search = source.search or own.search
    if options is None:
        options = source.options
    return Resolver(servers, search, options), tuple(left_out)


def _is_reachable(server: str) -> bool:
    try:
        address = ipaddress.ip_address(server.split("%")[0])
    except ValueError:
        return False
    return address.version == 4 and not address.is_loopback
