"""Netlink by hand: attributes and messages, whole and broken."""

from __future__ import annotations

import pytest

from container.network.netlink import attribute, attributes, message, messages

pytestmark = pytest.mark.unit


def test_attributes_are_padded_and_read_back() -> None:
    """To four bytes, the padding not counted."""
    data = attribute(1, b"abcde") + attribute(0x8000 | 2, attribute(3, b"\1"))

    assert len(data) == 12 + 12
    assert attributes(data) == {1: b"abcde", 2: attribute(3, b"\1")}


@pytest.mark.parametrize("data", [b"\3\0\1\0", b"\x20\0\1\0ab", b"\0" * 7, b"", b"\4"])
def test_broken_attributes_end_the_reading(data: bytes) -> None:
    """Too short, too long, cut off: no loop without end, no error."""
    assert attributes(data) in ({}, {0: b""})


@pytest.mark.parametrize("cut", [1, 4, 15, 17])
def test_a_broken_message_ends_the_datagram(cut: int) -> None:
    """Those before it count."""
    whole = message(7, 1, b"body")

    assert list(messages(whole + whole[:-cut])) == [(7, b"body")]
    assert list(messages(whole + bytes(16))) == [(7, b"body")]
