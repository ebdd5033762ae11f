"""The error that a client of Warden gets as an ErrorResponse."""

from __future__ import annotations

from container.errors import ContainerError


class WardenError(ContainerError, RuntimeError):
    """The request cannot be carried out. The text goes to the client, and clients compare some of the texts."""


def text_of(data: bytes) -> str:
    """A text of a client, for a path or an error. Bytes that are not UTF-8 survive a way there and back."""
    return data.decode("utf-8", "surrogateescape")


def bytes_of(text: str) -> bytes:
    """The reverse of `text_of`."""
    return text.encode("utf-8", "surrogateescape")
