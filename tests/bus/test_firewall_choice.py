"""An agent whose firewall is iptables, or the one that this host can have: an app runs, is reached, and leaves nothing."""

from __future__ import annotations

import signal

import pytest
import testhost
from conftest import OpenHost

pytestmark = pytest.mark.bus


@pytest.mark.parametrize("firewall", ["iptables-nft", "iptables-legacy", "auto"])
async def test_an_app_runs_behind_it(hosts: OpenHost, firewall: str) -> None:
    """Over a restart of the agent too."""
    async with hosts(network={"firewall": firewall}) as host:
        await host.start_agent()
        app = host.make_app("shop")
        running = await host.run(app)
        assert "PORT" in await host.environment_of(running["stats"]["port"])
        tables = testhost.run("nft", "list", "tables")
        assert ("table inet garrison" in tables) is (firewall == "auto")
        if firewall == "auto":
            await host.running.wait_log(
                "firewall_back_end_chosen", name="nftables", why="nftables can be used"
            )

        await host.stop_agent(signal.SIGKILL)
        await host.start_agent()
        assert "PORT" in await host.environment_of(running["stats"]["port"])
        await host.stop(app)
        await host.wait_depot_empty()
    for variant in ("nft", "legacy"):
        assert "garrison" not in testhost.run(f"iptables-{variant}-save")
    testhost.forget_empty_tables()
