"""A long poll: the query by which a request waits until what it asks for has changed.

Each answer has the number of changes so far in the header `X-Garrison-Changes`. A request with `after=N&wait_s=S` is answered
as soon as the number is not N any more, or after S seconds. A smaller number is a change too, since it means that the server
was started again. Pure, and without asyncio, because the commands import it and must start fast.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

HEADER: Final = "X-Garrison-Changes"
#: The limit of `wait_s`. It also bounds how long a request is held whose client has closed the connection.
LONGEST_WAIT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class LongPoll:
    after: int
    wait_s: float

    def query(self) -> dict[str, str]:
        return {"after": str(self.after), "wait_s": f"{self.wait_s:.3f}"}


def from_query(query: Mapping[str, str]) -> LongPoll | None:
    """None: the request has neither key and is answered at once. ValueError: a value that cannot be, or one key alone."""
    after, wait_s = query.get("after"), query.get("wait_s")
    if after is None and wait_s is None:
        return None
    if after is None or not re.fullmatch(r"[0-9]{1,18}", after):
        raise ValueError(f"after: expected the number of an answer's {HEADER}, got {after!r}")
    return LongPoll(int(after), _seconds(wait_s))


def wait_s_from_query(query: Mapping[str, str]) -> float:
    """For a request that waits until what it names is there. 0: the key is missing. ValueError: a value that cannot be."""
    return _seconds(query["wait_s"]) if "wait_s" in query else 0.0


def _seconds(text: str | None) -> float:
    if text is None or not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text):
        raise ValueError(f"wait_s: expected seconds, got {text!r}")
    if float(text) > LONGEST_WAIT_S:
        raise ValueError(f"wait_s: expected at most {LONGEST_WAIT_S:.0f}, got {text}")
    return float(text)
