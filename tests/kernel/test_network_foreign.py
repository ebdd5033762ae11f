"""Beside other firewalls: one that would swallow the traffic of containers is named at start, with the command that mends it."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest
import testhost
from depot_kit import stack as stack
from netns_kit import FAR_IP, HOST_IP, TCP, ask
from network_kit import EVERYWHERE, Rig, reaches, rig, tcp

pytestmark = pytest.mark.kernel
OTHERS = {
    "a policy": "add chain inet theirs f { type filter hook forward priority 0; policy drop; }",
    "a last rule": "add chain inet theirs f { type filter hook forward priority 10; }; add rule inet theirs f counter reject",
}


def told(scene: Rig) -> list[dict[str, object]]:
    return scene.told.of("firewall_of_others_drops_containers")


@pytest.mark.parametrize("which", OTHERS)
async def test_what_it_says_is_what_helps(tmp_path: Path, stack: Path, which: str) -> None:
    """Cut off before the commands, in both directions, and not afterwards; the next start is silent."""
    subprocess.run(("nft", f"add table inet theirs; {OTHERS[which]}"), check=True)
    try:
        async with rig(tmp_path / "one", stack) as scene:
            box = await scene.box("app", egress=(EVERYWHERE,), ports=(tcp(7300),))
            (line,) = told(scene)
            assert line["chain"] == "inet theirs f"
            assert not ask(box.space, TCP, FAR_IP, 80)
            for command in str(line["add"]).split(" ; "):
                subprocess.run(shlex.split(command), check=True)
            assert reaches(box.space, TCP, FAR_IP, 80) == "world"
            assert reaches(scene.world.space, TCP, HOST_IP, 7300) == "app"
        async with rig(tmp_path / "two", stack) as scene:
            assert told(scene) == []
    finally:
        testhost.run("nft", "delete", "table", "inet", "theirs")


async def test_a_policy_of_iptables_is_seen_too(tmp_path: Path, stack: Path) -> None:
    """Docker and ufw set it; the tables of iptables-nft are nftables' own."""
    subprocess.run(("iptables-nft", "-P", "FORWARD", "DROP"), check=True)
    try:
        async with rig(tmp_path, stack) as scene:
            (line,) = told(scene)
            assert (line["chain"], line["why"]) == ("ip filter FORWARD", "its policy is drop")
    finally:
        subprocess.run(("iptables-nft", "-P", "FORWARD", "ACCEPT"), check=True)
        testhost.forget_empty_tables()


async def test_our_own_chains_are_no_strangers(tmp_path: Path, stack: Path) -> None:
    """Nor are those that judge something else."""
    subprocess.run(
        (
            "nft",
            "add table inet theirs; add chain inet theirs i { type filter hook input priority 0; policy accept; }",
        ),
        check=True,
    )
    try:
        async with rig(tmp_path, stack) as scene:
            assert told(scene) == []
    finally:
        testhost.run("nft", "delete", "table", "inet", "theirs")
