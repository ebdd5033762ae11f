"""The programs that `garrison up` starts, on a host that refuses one."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from dev_kit import PASSWORD

from agent.dev import children

pytestmark = pytest.mark.bus


async def test_a_taken_bus_port_is_named(tmp_path: Path) -> None:
    """At once, with the option that names another, instead of the server's log."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(children.ChildFailed) as failed:
            await children.start_nats(tmp_path, port, PASSWORD)
    assert str(failed.value) == (
        f"the bus cannot listen on port {port}: Address already in use; choose another one with --bus-port PORT (0: any free one)"
    )
    assert not (tmp_path / "nats.conf").exists()
