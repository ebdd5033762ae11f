"""An instance: one running copy of an app, and its states as one table.

The table is the documentation. `Instance.move` looks a pair up. A pair that is not in the table is refused: it is logged as an
error and does not affect the app. Effects are named here, and keeper.py carries them out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Final

from agent.bus.messages import StartMessage
from agent.instances.health import NOT_CHECKED, Health
from agent.instances.process import WEB, Process
from container import PortMapping


class State(StrEnum):
    """The values are published (docs/protocol.md, "Instance states")."""

    BORN = "BORN"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    STOPPING = "STOPPING"
    STOPPED = "STOPPED"
    CRASHED = "CRASHED"
    EVACUATING = "EVACUATING"


class InstanceEvent(Enum):
    START = "start"
    REFUSED = "refused"  # no memory, no disk, no stack
    HEALTHY = "healthy"
    FAILED = "failed"  # the start broke, or the health check ran out
    EXITED = "exited"  # its process ended by itself
    STOP = "stop"
    GONE = "gone"  # a stop is done: nothing of it is left
    EVACUATE = "evacuate"
    REAP = "reap"  # its remains have been kept long enough


class Course(Enum):
    """How a new agent goes on with an instance of the former one (agent/recovery.py decides it)."""

    RUN = "it runs"
    START = "its job is there, and has not been found healthy yet"
    BEGIN = "it waits, or has a container without a job: the start goes on from there"
    LOST = "nothing of it is left"
    STOP = "it was being stopped"
    CRASHED = "it has crashed"


class Effect(Enum):
    HEARTBEAT = "heartbeat"
    REGISTER = "register"
    UNREGISTER = "unregister"
    ANNOUNCE_EXIT = "announce exit"
    SAVE = "save"
    FORGET = "forget"


@dataclass(frozen=True, slots=True)
class StateChange:
    state: State
    effects: tuple[Effect, ...] = ()


_S, _E, _F = State, InstanceEvent, Effect
#: SAVE stands first everywhere: what is published waits for what was marked before it (agent/memory/ahead.py).
_CRASH = StateChange(_S.CRASHED, (_F.SAVE, _F.UNREGISTER, _F.ANNOUNCE_EXIT))
_GOING = StateChange(_S.STOPPING, (_F.SAVE, _F.UNREGISTER))
_STILL_GOING = StateChange(_S.STOPPING)

#: A stop wins over whatever ends meanwhile: such an end is no crash (docs/protocol.md, "Stop message").
MOVES: Final[Mapping[tuple[State, InstanceEvent], StateChange]] = {
    (_S.BORN, _E.START): StateChange(_S.STARTING, (_F.SAVE,)),
    (_S.BORN, _E.REFUSED): StateChange(_S.CRASHED, (_F.SAVE, _F.ANNOUNCE_EXIT)),
    (_S.BORN, _E.STOP): _GOING,
    (_S.BORN, _E.EVACUATE): StateChange(_S.EVACUATING, (_F.SAVE,)),
    (_S.STARTING, _E.HEALTHY): StateChange(_S.RUNNING, (_F.SAVE, _F.HEARTBEAT, _F.REGISTER)),
    (_S.STARTING, _E.FAILED): _CRASH,
    (_S.STARTING, _E.EXITED): _CRASH,
    (_S.STARTING, _E.STOP): _GOING,
    (_S.STARTING, _E.EVACUATE): StateChange(_S.EVACUATING, (_F.SAVE,)),
    (_S.RUNNING, _E.EXITED): _CRASH,
    (_S.RUNNING, _E.STOP): _GOING,
    (_S.RUNNING, _E.EVACUATE): StateChange(_S.EVACUATING, (_F.SAVE,)),
    (_S.EVACUATING, _E.HEALTHY): StateChange(_S.EVACUATING, (_F.SAVE, _F.HEARTBEAT, _F.REGISTER)),
    (_S.EVACUATING, _E.START): StateChange(_S.EVACUATING),
    (_S.EVACUATING, _E.FAILED): _CRASH,
    (_S.EVACUATING, _E.EXITED): _CRASH,
    (_S.EVACUATING, _E.STOP): _GOING,
    (_S.STOPPING, _E.START): _STILL_GOING,
    (_S.STOPPING, _E.HEALTHY): _STILL_GOING,
    (_S.STOPPING, _E.FAILED): _STILL_GOING,
    (_S.STOPPING, _E.EXITED): _STILL_GOING,
    (_S.STOPPING, _E.STOP): _STILL_GOING,
    (_S.STOPPING, _E.GONE): StateChange(_S.STOPPED, (_F.SAVE, _F.FORGET)),
    (_S.CRASHED, _E.REAP): StateChange(_S.STOPPED, (_F.SAVE, _F.FORGET)),
}

#: What a new agent does with an instance of the former one, by its course and by whether it was EVACUATING. An exit that
#: the former agent had not published yet is no effect here: it may be in the outbox already (keeper.py).
RECOVERY: Final[Mapping[tuple[Course, bool], StateChange]] = {
    (Course.RUN, False): StateChange(_S.RUNNING, (_F.SAVE, _F.HEARTBEAT, _F.REGISTER)),
    (Course.RUN, True): StateChange(_S.EVACUATING, (_F.SAVE, _F.HEARTBEAT, _F.REGISTER)),
    (Course.START, False): StateChange(_S.STARTING, (_F.SAVE,)),
    (Course.START, True): StateChange(_S.EVACUATING, (_F.SAVE,)),
    (Course.BEGIN, False): StateChange(_S.BORN, (_F.SAVE,)),
    (Course.BEGIN, True): StateChange(_S.EVACUATING, (_F.SAVE,)),
    (Course.LOST, False): _CRASH,
    (Course.LOST, True): _CRASH,
    (Course.STOP, False): _GOING,
    (Course.CRASHED, False): StateChange(_S.CRASHED, (_F.SAVE,)),
}

#: What becomes of an instance whose life ended by an error of the agent's own.
LIFE_BROKE: Final[Mapping[State, InstanceEvent]] = {
    _S.BORN: _E.REFUSED,
    _S.STARTING: _E.FAILED,
    _S.RUNNING: _E.EXITED,
    _S.EVACUATING: _E.EXITED,
    _S.STOPPING: _E.GONE,
}

#: What reserves (docs/protocol.md, "Instance states"). EVACUATING did not in the original, so that a draining host looked empty.
HOLDS: Final = frozenset({_S.BORN, _S.STARTING, _S.RUNNING, _S.STOPPING, _S.EVACUATING})
#: What a heartbeat lists (docs/protocol.md, "Heartbeat").
IN_HEARTBEAT: Final = frozenset({_S.STARTING, _S.RUNNING, _S.CRASHED, _S.EVACUATING})
#: What a `dea.stop` stops (docs/protocol.md, "Stop message").
STOPPABLE: Final = frozenset({_S.BORN, _S.STARTING, _S.RUNNING, _S.STOPPING, _S.EVACUATING})
#: What has routes.
ROUTED: Final = frozenset({_S.RUNNING, _S.EVACUATING})
#: What has routes or may come to have them: a `dea.update` changes these.
UPDATABLE: Final = frozenset({_S.BORN, _S.STARTING}) | ROUTED


#: How the bus names the end of an app that the kernel killed for want of memory.
OUT_OF_MEMORY: Final = "out of memory"


class MoveRefused(RuntimeError):
    """The table has no such row."""


@dataclass(frozen=True, slots=True)
class Exit:
    """How an instance ended. ``status`` is the bus's: 255 for a signal, -1 if there is none."""

    status: int
    description: str
    signal: int | None = None


@dataclass(slots=True, eq=False)
class Instance:
    """One instance. ``version``, ``uris`` and ``id`` may change by `dea.update`; the rest of the message does not.

    ``record`` names what is remembered of it; ``exit_pending``: its exit is not in the outbox yet; ``leaving``: routes that were
    taken from it, and the unregister is not in the outbox yet; ``whole``: its start message is known whole, so that it could be
    started from it (agent/memory/records.py).

    What readers of `Registry.changes` want to know (state, id, processes, remarks) is changed through the registry and the keeper.
    """

    id: str
    private_id: str
    message: StartMessage
    version: str
    uris: tuple[str, ...]
    record: str = ""
    state: State = State.BORN
    state_since_s: float = 0.0
    started_at_s: float = 0.0
    handle: str | None = None
    port: PortMapping | None = None
    processes: dict[str, Process] = field(default_factory=dict)  # by name
    exit: Exit = field(default=Exit(-1, ""))
    crashed_at_s: int = 0
    kept_bytes: int = 0  # of its output, once it has crashed
    exit_pending: bool = False
    leaving: tuple[str, ...] = ()
    whole: bool = True
    health: Health = NOT_CHECKED
    routed: bool = False  # routers have, or may have, routes to it
    stop_requested: asyncio.Event = field(default_factory=asyncio.Event)
    withdrawn: asyncio.Event | None = None  # set when the bus has its unregister; None: there was none
    cpu_fraction: float = 0.0
    memory_bytes: int = 0
    disk_bytes: int = 0
    layer_bytes: int = 0
    cpu_seen: tuple[float, int] | None = None  # monotonic seconds, cumulative nanoseconds
    remarks: list[tuple[float, str]] = field(default_factory=list)  # the agent's own lines in the app's log

    def __repr__(self) -> str:
        return f"<Instance {self.id[:8]} {self.app}/{self.index} {self.state}>"

    @property
    def app(self) -> str:
        return self.message.app

    @property
    def index(self) -> int:
        return self.message.index

    @property
    def memory_mb(self) -> int:
        return self.message.limits.mem

    @property
    def disk_mb(self) -> int:
        return self.message.limits.disk

    @property
    def web(self) -> Process | None:
        """The app's own process; None: it has not been started yet."""
        return self.processes.get(WEB)

    @property
    def is_healthy(self) -> bool:
        """Whether it has passed its health check, so that routers may have routes to it."""
        return self.health.is_healthy

    def move(self, event: InstanceEvent, now_s: float) -> tuple[Effect, ...]:
        """Changes the state as the table says and returns the effects to carry out. MoveRefused: there is no such row, and nothing
        was changed."""
        try:
            move = MOVES[self.state, event]
        except KeyError:
            raise MoveRefused(f"{self!r}: {event.value} is not possible") from None
        return self._apply(move, now_s)

    def take_up(self, course: Course, *, evacuating: bool, since_s: float) -> tuple[Effect, ...]:
        """Enters the state that a new agent gives to an instance of the former agent, and returns the effects to carry out.

        ``since_s``: since when it is in that state. MoveRefused: there is no such row.
        """
        try:
            move = RECOVERY[course, evacuating]
        except KeyError:
            raise MoveRefused(f"{self!r}: {course.name} while evacuating is not possible") from None
        return self._apply(move, since_s)

    def _apply(self, move: StateChange, now_s: float) -> tuple[Effect, ...]:
        if move.state is not self.state:
            self.state = move.state
            self.state_since_s = now_s
        return move.effects
