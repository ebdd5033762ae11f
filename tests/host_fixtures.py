"""Fixtures for tests with real containers: a test host, and a check that each test leaves it unchanged.

The conftest.py of each such directory imports them by name.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import testhost


@pytest.fixture(scope="session", autouse=True)
def test_host(tmp_path_factory: pytest.TempPathFactory) -> None:
    testhost.own_places.append(str(tmp_path_factory.getbasetemp()))
    try:
        testhost.enter()
    except testhost.HostUnfit as e:
        pytest.exit(f"this machine cannot run these tests: {e}", returncode=1)


@pytest.fixture(autouse=True)
def no_leaks(test_host: None) -> Iterator[None]:
    """Fail a test that leaves mounts, cgroups, links, rules, loop devices, processes, depots or leases changed."""
    before = testhost.take_picture()
    yield
    left = testhost.wait_same(before)
    assert not left, "the test left a trace:\n" + "\n".join(left)


@pytest.fixture
def base_dir() -> Iterator[Path]:
    """A directory on a real disk, since /tmp may be a tmpfs, which does not suit disk images and overlay uppers."""
    path = Path(tempfile.mkdtemp(prefix=f"garrison-{os.getpid()}-", dir="/var/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)
