"""How much of what others wrote goes into a message, so that a server takes each message (its `max_payload` is 1 MiB by default).

What comes in and is published again and again (ids, versions, partitions, routes) is bounded where it is decoded: a message
beyond it is refused. Texts that are made here from what an app, a buildpack or a user wrote are cut, with a mark.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct, structs

ID_BYTES: Final = 256
LABEL_BYTES: Final = 256
ERROR_BYTES: Final = 4096
MARK: Final = " [cut]"


def check_ids(message: Struct, *names: str) -> None:
    """ValueError: one of these fields has too many bytes."""
    for name in names:
        value = getattr(message, name)
        if isinstance(value, str) and (size := len(value.encode(errors="replace"))) > ID_BYTES:
            raise ValueError(f"{name}: expected at most {ID_BYTES} bytes, got {size}")


def shortened(text: str, limit_bytes: int) -> str:
    """At most ``limit_bytes`` of UTF-8, the mark included; characters stay whole."""
    data = text.encode(errors="replace")
    if len(data) <= limit_bytes:
        return text
    return data[: limit_bytes - len(MARK)].decode(errors="ignore") + MARK


def cut(message: Struct, limit_bytes: int, *names: str) -> None:
    """For ``__post_init__``: what of these fields is text becomes at most so long."""
    for name in names:
        value = getattr(message, name)
        if isinstance(value, str) and len(value) * 4 > limit_bytes:
            structs.force_setattr(message, name, shortened(value, limit_bytes))
