"""Other firewalls of the host that would swallow the traffic of containers, and the command that makes an exception in each.

Every base chain with the hook "forward" judges a packet. What ours accepts, another may still drop: by its policy, or by a last
rule that drops or rejects all. Their rules are theirs, so nothing is changed here; the operator is told what to add.
docs/network.md, "Beside other firewalls".
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from container.network.firewall import FirewallError
from container.network.firewall.nftables.library import Context
from container.network.policy import INTERFACE_PREFIX

_LINKS: Final = f"{INTERFACE_PREFIX}*"
_MOST_CHAINS: Final = 4096


@dataclass(frozen=True, slots=True)
class ForeignDrop:
    """``chain``: "FAMILY TABLE CHAIN". ``add``: the commands that let containers through; each is a whole line."""

    chain: str
    why: str
    add: tuple[str, ...]


def foreign_drops(own_tables: Collection[str]) -> list[ForeignDrop]:
    """Those of this network namespace, which takes 2 to 160 ms. Empty also where libnftables cannot be used. FirewallError."""
    try:
        context = Context()
    except FirewallError:
        return []
    try:
        chains = _objects(context.ask("list chains"), "chain")
        found = []
        for chain in _forwarding(chains, own_tables):
            name = f"{chain['family']} {chain['table']} {chain['name']}"
            rules = _objects(context.ask(f"list chain {name}"), "rule")
            if (drop := judge(chain, rules)) is not None:
                found.append(drop)
        return found
    finally:
        context.close()


def _forwarding(chains: list[dict[str, Any]], own_tables: Collection[str]) -> Iterator[dict[str, Any]]:
    for chain in chains[:_MOST_CHAINS]:
        if (
            chain.get("hook") == "forward"
            and chain.get("family") in ("ip", "inet")
            and chain.get("table") not in own_tables
        ):
            yield chain


def _objects(text: str, kind: str) -> list[dict[str, Any]]:
    """The objects of one kind in a list. FirewallError: it is no list."""
    try:
        listed = msgspec.json.decode(text or '{"nftables": []}', type=dict[str, list[dict[str, Any]]])
    except (msgspec.MsgspecError, ValueError, RecursionError) as e:
        raise FirewallError(f"nftables: a list that cannot be read: {e}") from e
    return [one[kind] for one in listed.get("nftables", []) if isinstance(one.get(kind), dict)]


def judge(chain: Mapping[str, Any], rules: list[dict[str, Any]]) -> ForeignDrop | None:
    """Whether a chain swallows what comes from containers. None: it does not, or makes an exception for our links. Pure."""
    if any(_lets_links_pass(rule) for rule in rules):
        return None
    name = f"{chain['family']} {chain['table']} {chain['name']}"
    if chain.get("policy") == "drop":
        why = "its policy is drop"
    elif rules and _refuses_all(rules[-1]):
        why = "its last rule refuses all"
    else:
        return None
    return ForeignDrop(name, why, _commands(chain, name))


def _commands(chain: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Of a firewall whose rules are written anew by a program of its own, that program's."""
    if chain["table"] == "firewalld":
        return (
            f"firewall-cmd --permanent --zone=trusted --add-interface={INTERFACE_PREFIX}+",
            "firewall-cmd --reload",
        )
    return tuple(f'nft insert rule {name} {which} "{_LINKS}" accept' for which in ("iifname", "oifname"))


def _lets_links_pass(rule: Mapping[str, Any]) -> bool:
    words = rule.get("expr", [])
    named = any(
        isinstance(word, dict)
        and isinstance(match := word.get("match"), dict)
        and match.get("right") == _LINKS
        for word in words
    )
    return named and any(isinstance(word, dict) and "accept" in word for word in words)


def _refuses_all(rule: Mapping[str, Any]) -> bool:
    words = [word for word in rule.get("expr", []) if isinstance(word, dict)]
    rest = [word for word in words if not word.keys() & {"counter", "log", "limit"}]
    return len(rest) == 1 and bool(rest[0].keys() & {"drop", "reject"})
