"""Bus tests run in a test host (tests/testhost.py) with its own address and firewall. Each test must leave the host unchanged."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from driver import Host, open_host
from driver_apps import build_listener
from host_fixtures import base_dir, no_leaks, test_host
from servers_fixtures import listen, make_host, server, stack

__all__ = [
    "base_dir",
    "listen",
    "make_host",
    "no_leaks",
    "server",
    "stack",
    "test_host",
]  # fixtures by import


@pytest.fixture(scope="session")
def listener(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return build_listener(tmp_path_factory.mktemp("app"))


OpenHost = Callable[..., contextlib.AbstractAsyncContextManager[Host]]


@pytest.fixture
def hosts(listener: bytes, base_dir: Path) -> OpenHost:
    """Opens a host whose agent has the given settings: ``async with hosts(resources={...}) as host``."""

    def make(**settings: Any) -> contextlib.AbstractAsyncContextManager[Host]:
        return open_host(base_dir, listener, settings)

    return make


@pytest.fixture
async def host(hosts: OpenHost) -> AsyncIterator[Host]:
    """A bus, a blob store, and an agent that has published its first advert."""
    async with hosts() as opened:
        await opened.start_agent()
        yield opened
