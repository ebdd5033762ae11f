"""Size limits for text from outside, so that every message of ours stays below the server's `max_payload` (1 MiB by default).

Fields that are received once and published many times (ids, versions, partitions, routes) are checked when a message is decoded;
a message with a longer field is refused. Texts of our own that quote an app, a buildpack or a user are cut and end in `MARK`.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct, structs

ID_BYTES: Final = 256
LABEL_BYTES: Final = 256
ERROR_BYTES: Final = 4096
MARK: Final = " [cut]"


def check_ids(message: Struct, *names: str) -> None:
    """Raises ValueError if one of these fields has more than ID_BYTES bytes of UTF-8."""
    for name in names:
        value = getattr(message, name)
        if isinstance(value, str) and (size := len(value.encode(errors="replace"))) > ID_BYTES:
            raise ValueError(f"{name}: expected at most {ID_BYTES} bytes, got {size}")


def shortened(text: str, limit_bytes: int) -> str:
    """The text, cut to ``limit_bytes`` of UTF-8 including the mark. No character is split."""
    data = text.encode(errors="replace")
    if len(data) <= limit_bytes:
        return text
    return data[: limit_bytes - len(MARK)].decode(errors="ignore") + MARK


def cut(message: Struct, limit_bytes: int, *names: str) -> None:
    """Shortens these fields in place where they are text; for the ``__post_init__`` of a frozen message."""
    for name in names:
        value = getattr(message, name)
        if isinstance(value, str) and len(value) * 4 > limit_bytes:
            structs.force_setattr(message, name, shortened(value, limit_bytes))
