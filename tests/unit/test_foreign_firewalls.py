"""Which forward chains of others would swallow the traffic of containers, and what is to be added to each."""

from __future__ import annotations

from typing import Any

import pytest

from container.network.firewall.nftables.foreign import judge

pytestmark = pytest.mark.unit

DROP, REJECT, ACCEPT = {"drop": None}, {"reject": {"type": "icmpx"}}, {"accept": None}
COUNTER = {"counter": {"packets": 1, "bytes": 2}}


def chain(policy: str = "accept", table: str = "theirs") -> dict[str, Any]:
    return {"family": "inet", "table": table, "name": "fwd", "hook": "forward", "policy": policy}


def rule(*words: object) -> dict[str, Any]:
    return {"expr": list(words)}


def match(right: str) -> dict[str, Any]:
    return {"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": right}}


@pytest.mark.parametrize(
    ("found", "rules", "why"),
    [
        (chain(), [], None),
        (chain("drop"), [], "its policy is drop"),
        (chain("drop"), [rule(match("eth0"), ACCEPT)], "its policy is drop"),
        (chain("drop"), [rule(match("w-*"), COUNTER, ACCEPT)], None),
        (chain("drop"), [rule(match("w-*"), COUNTER)], "its policy is drop"),
        (chain(), [rule(match("eth0"), DROP)], None),
        (chain(), [rule(DROP), rule(match("eth0"), ACCEPT)], None),  # only the last rule is what ends a chain
        (chain(), [rule(COUNTER, REJECT)], "its last rule refuses all"),
        (chain(), [rule(match("w-*"), ACCEPT), rule(REJECT)], None),
        (chain(), [rule("weird"), {}], None),
    ],
)
def test_a_chain_is_judged_by_its_policy_and_its_end(
    found: dict[str, Any], rules: list[dict[str, Any]], why: str | None
) -> None:
    drop = judge(found, rules)
    assert (drop.why if drop is not None else None) == why
    if drop is not None:
        assert drop.add == (
            'nft insert rule inet theirs fwd iifname "w-*" accept',
            'nft insert rule inet theirs fwd oifname "w-*" accept',
        )


def test_firewalld_has_a_program_of_its_own() -> None:
    """What is inserted into its table is gone at its next reload."""
    drop = judge(chain(table="firewalld"), [rule(REJECT)])
    assert drop is not None
    assert drop.add[0] == "firewall-cmd --permanent --zone=trusted --add-interface=w-+"
