"""Which hosts are refused before anything is made on them."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from agent.host import local_address
from container import HostUnfit, check_kernel, kernel_version

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("release", ["5.19.0", "6.1.0-56-amd64", "6.18.44-fc", "10.0"])
def test_a_kernel_from_5_19_on_is_fine(release: str) -> None:
    """Versions are numbers: 5.19 is later than 5.4, and 10.0 than 6.1."""
    check_kernel(release)


@pytest.mark.parametrize("release", ["5.18.19", "5.4.0-100-generic", "4.19.0", "", "unknown"])
def test_an_older_kernel_is_refused_with_the_reason(release: str) -> None:
    """The person is told what it lacks and what is needed, not that a mount failed."""
    with pytest.raises(HostUnfit, match=r"overlay over idmapped layers: 5\.19 or later"):
        check_kernel(release)


def test_a_version_is_the_first_two_numbers() -> None:
    """Whatever a distribution writes behind them."""
    assert kernel_version("6.1.0-56-cloud-amd64") == (6, 1)


class Lines(list[str]):
    """A log that keeps the names of its warnings."""

    def warning(self, event: str, **_: object) -> None:
        self.append(event)


def test_a_host_without_a_default_route_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Routers on other hosts would get 127.0.0.1; an address that was configured needs no route."""

    class Unrouted(socket.socket):
        def connect(self, address: Any) -> None:
            raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket, "socket", Unrouted)
    lines: Any = Lines()
    assert local_address("192.0.2.7", lines) == "192.0.2.7"
    assert lines == []
    assert local_address(None, lines) == "127.0.0.1"
    assert lines == ["local_ip_is_loopback"]
