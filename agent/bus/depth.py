"""How deep values of strangers may nest: credentials, `vcap_application`, whatever a message carries that we only pass on. Pure.

Decoders and encoders recurse, and how far they come depends on the stack that is in use already: a message that one call decoded
could not be encoded by the next. So the bound stands in one place, far below what any of them survives.
"""

from __future__ import annotations

from typing import Any, Final

#: Levels of objects and arrays. Real messages have 8; the interpreter gives up near 1,000.
MAX_DEPTH: Final = 64


def is_too_deep(value: Any) -> bool:
    """Does it nest deeper than MAX_DEPTH? Level by level, so that the question itself does not recurse."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for one in level
            if isinstance(one, dict | list | tuple)
            for child in (one.values() if isinstance(one, dict) else one)
            if isinstance(child, dict | list | tuple)
        ]
        if not level:
            return False
    return True


def check_depth(where: str, value: Any) -> None:
    """ValueError where it nests too deep; a decoder adds the path."""
    if is_too_deep(value):
        raise ValueError(f"{where}: expected at most {MAX_DEPTH} levels, got more")
