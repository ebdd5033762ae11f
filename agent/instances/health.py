"""The health of an instance as a value, and the rules that decide how it is checked (docs/protocol.md, "Health check"). Pure.

The checks themselves are in prober.py.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from agent.inside.start import HOME

#: Fixed in the original for a state file; a port has the message's own limit.
STATE_FILE_TIMEOUT_S: Final = 300.0


class HealthKind(Enum):
    NONE = "none"  # an app without routes is healthy as soon as it runs
    PORT = "port"
    FILE = "file"  # the droplet names a file in which the app reports that it runs


class HealthPhase(Enum):
    UNKNOWN = "unknown"  # not checked yet
    CHECKING = "checking"
    HEALTHY = "healthy"
    FAILED = "failed"  # the time ran out


@dataclass(frozen=True, slots=True)
class Health:
    """``port`` or ``path``: what is checked, according to ``kind``. ``timeout_s``: how long an app may take from its start to its
    first success."""

    phase: HealthPhase = HealthPhase.UNKNOWN
    kind: HealthKind = HealthKind.NONE
    port: int = 0
    path: str = ""
    timeout_s: float = 0.0

    @property
    def is_healthy(self) -> bool:
        return self.phase is HealthPhase.HEALTHY

    def enter(self, phase: HealthPhase) -> Health:
        return replace(self, phase=phase)

    def too_late(self) -> str:
        """The cause of a failure, for the app's log."""
        if self.kind is HealthKind.FILE:
            return f"{self.path} did not say RUNNING within {self.timeout_s} s"
        return f"port {self.port} did not accept within {self.timeout_s} s"


NOT_CHECKED: Final = Health()


def remembered(is_healthy: bool) -> Health:
    """The health that a record of the memory has. The kind is determined again when it is needed."""
    return Health(HealthPhase.HEALTHY if is_healthy else HealthPhase.UNKNOWN)


def choose_health(
    state_file: str | None, *, uris: tuple[str, ...], host_port: int | None, timeout_s: float
) -> Health:
    """Decides how an app is checked: by the file that its droplet names, else by its port, else not at all.

    ``state_file``: relative to the app's home. ``timeout_s``: for a check of the port.
    """
    if state_file is not None:
        return Health(
            HealthPhase.CHECKING,
            HealthKind.FILE,
            path=f"{HOME}/{state_file}",
            timeout_s=STATE_FILE_TIMEOUT_S,
        )
    if not uris or host_port is None:
        return Health(HealthPhase.HEALTHY)
    return Health(HealthPhase.CHECKING, HealthKind.PORT, port=host_port, timeout_s=timeout_s)


def time_left_s(timeout_s: float, started_at_s: float, now_s: float) -> float:
    """The seconds that an instance has left to become healthy. A former agent may have started it.

    A clock that was set never gives more than the whole time or less than 0. With 0 left there is still one check.
    """
    return min(timeout_s, max(0.0, timeout_s - (now_s - started_at_s)))


def says_running(text: bytes) -> bool:
    """True if it is JSON whose `state` is RUNNING. False also for an incomplete file, which is still being written."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.get("state") == "RUNNING"
