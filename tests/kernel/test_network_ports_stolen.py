"""A published port on which a program of the host began to listen while no manager ran."""

from __future__ import annotations

import socket

import pytest

from container import PortMapping, Protocol
from container.network import NoPorts, PortTaken
from container.network.ports import HostPorts

pytestmark = pytest.mark.kernel
FIRST = 20_000
OURS = PortMapping(Protocol.TCP, FIRST, 8080)


def listener(port: int) -> socket.socket:
    found = socket.socket(socket.AF_INET6)
    found.bind(("::", port))
    found.listen()
    return found


def test_it_stays_its_containers_and_is_given_back_with_it() -> None:
    """The rules lead to the container all the same; the port is nobody else's until it is released, then anybody's."""
    ports = HostPorts(range(FIRST, FIRST + 1))
    try:
        with listener(FIRST):
            assert ports.claim(OURS) is False
        with pytest.raises(PortTaken, match="published already"):
            ports.take(OURS)
        with pytest.raises(NoPorts):
            ports.take(PortMapping())
        ports.give_back(OURS)
        ports.give_back(OURS)
        assert ports.take(PortMapping()).host_port == FIRST
    finally:
        ports.close()


def test_one_that_is_free_is_held_against_the_host() -> None:
    """What nobody took meanwhile is reserved again, and free again when it is given back."""
    ports = HostPorts(range(FIRST, FIRST + 1))
    try:
        assert ports.claim(OURS) is True
        with pytest.raises(OSError, match="in use"):
            listener(FIRST)
        ports.give_back(OURS)
        listener(FIRST).close()
    finally:
        ports.close()
