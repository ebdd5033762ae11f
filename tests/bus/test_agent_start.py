"""The shortest complete run of the agent: a start message leads to RUNNING, and a stop leaves nothing."""

from __future__ import annotations

import pytest
import testhost
from driver import LOCAL_IP, Host

pytestmark = pytest.mark.bus


async def test_an_app_runs_and_is_reached_at_the_port_that_its_route_names(host: Host) -> None:
    """What the router is told must lead to the app."""
    app = host.make_app("shop")
    before = host.picture()

    running = await host.run(app)
    route = (await host.peer.wait_for("router.register", lambda body: body["app"] == app.id)).body
    environment = await host.environment_of(route["port"])

    assert route["host"] == LOCAL_IP
    assert environment["CF_INSTANCE_PORT"] == environment["PORT"] == str(route["port"])
    assert running["stats"]["port"] == route["port"]

    await host.stop(app)
    await host.wait_gone(app)
    assert await host.left_since(before) == []


async def test_a_rule_for_ipv6_is_left_out_and_the_rest_holds(host: Host) -> None:
    """Security groups often name both families; the log says which rule has no effect."""
    app = host.make_app("both")
    rules = [
        {"protocol": "all", "destination": "::/0"},
        {"protocol": "tcp", "destination": "192.0.2.77", "ports": "443"},
    ]

    await host.run(app, egress_network_rules=rules)

    (said,) = host.running.log("egress_rules_left_out", app=app.id)
    assert said["rules"] == ["all ::/0"]
    held = testhost.run("nft", "list", "ruleset")
    assert "192.0.2.77 tcp dport 443 accept" in held
    await host.stop(app)
    await host.wait_gone(app)
