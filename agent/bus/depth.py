"""A limit on the nesting of untyped values in messages, such as credentials and `vcap_application`. Pure.

Decoders and encoders recurse, and the depth that they reach depends on how much of the stack is in use. A message that was
decoded in one place could then fail to be encoded in another. A limit far below the depth that any of them fails at prevents this.
"""

from __future__ import annotations

from typing import Any, Final

#: Levels of objects and arrays. Real messages have 8; the interpreter gives up near 1,000.
MAX_DEPTH: Final = 64


def is_too_deep(value: Any) -> bool:
    """True if the value nests deeper than MAX_DEPTH. Goes level by level, since recursion could exhaust the stack itself."""
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
    """Raises ValueError if the value nests too deep. A decoder adds the path to the text."""
    if is_too_deep(value):
        raise ValueError(f"{where}: expected at most {MAX_DEPTH} levels, got more")
