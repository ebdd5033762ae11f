"""Bus tests run in a test host (tests/testhost.py): an address of its own, a firewall of its own; each leaves it as it was."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import testhost
from driver import Host, open_host
from driver_apps import build_listener
from servers_fixtures import listen, make_host, server, stack

__all__ = ["listen", "make_host", "server", "stack"]  # fixtures by import


@pytest.fixture(scope="session", autouse=True)
def test_host(tmp_path_factory: pytest.TempPathFactory) -> None:
    testhost.own_places.append(str(tmp_path_factory.getbasetemp()))
    try:
        testhost.enter()
    except testhost.HostUnfit as e:
        pytest.exit(f"this machine cannot run the bus tests: {e}", returncode=1)


@pytest.fixture(autouse=True)
def no_leaks(test_host: None) -> Iterator[None]:
    """Mounts, cgroups, links, rules, loop devices and processes are after the test what they were before."""
    before = testhost.take_picture()
    yield
    left = testhost.wait_same(before)
    assert not left, "the test left a trace:\n" + "\n".join(left)


@pytest.fixture(scope="session")
def listener(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return build_listener(tmp_path_factory.mktemp("app"))


@pytest.fixture
def base_dir() -> Iterator[Path]:
    """A directory on a real disk: loop images and overlay uppers do not belong on a tmpfs."""
    path = Path(tempfile.mkdtemp(prefix=f"garrison-{os.getpid()}-", dir="/var/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


OpenHost = Callable[..., contextlib.AbstractAsyncContextManager[Host]]


@pytest.fixture
def hosts(listener: bytes, base_dir: Path) -> OpenHost:
    """For a test that says itself how its agent is set up: ``async with hosts(resources={...}) as host``."""

    def make(**settings: Any) -> contextlib.AbstractAsyncContextManager[Host]:
        return open_host(base_dir, listener, settings)

    return make


@pytest.fixture
async def host(hosts: OpenHost) -> AsyncIterator[Host]:
    """A bus, a blob store, and an agent that has just advertised itself."""
    async with hosts() as opened:
        await opened.start_agent()
        yield opened
