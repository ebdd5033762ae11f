"""What `garrison up` asks of its agent."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.config import load
from agent.dev.up import Options, _write_config
from agent.host import depot_settings

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("publish_ports", [False, True])
def test_apps_answer_this_host_alone_unless_asked_for(tmp_path: Path, publish_ports: bool) -> None:
    """Their ports lead past the gateway, which listens on loopback."""
    options = Options(tmp_path, tmp_path / "stacks", pool_network="10.77.0.0/16", publish_ports=publish_ports)
    path = _write_config(options, ("nats://u:p@127.0.0.1:4222",))

    settings = depot_settings(load(path))

    assert settings.publish_to_host_only is not publish_ports
    assert settings.pool_network == "10.77.0.0/16"
    assert path.stat().st_mode & 0o777 == 0o600
