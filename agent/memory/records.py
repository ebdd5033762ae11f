"""The records of the agent's memory as values, and their bytes. No I/O.

A record of an older release is read with defaults for missing fields; unknown fields of a newer one are ignored. FORMAT is
increased only when an older reader would misunderstand a record: such a record is `Later`, and is left to the release that wrote
it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import msgspec

from agent.bus.messages import AppLimits, StartMessage
from agent.bus.routes import routes_of
from agent.instances.health import remembered
from agent.instances.instance import Exit, Instance, State
from agent.phases import AgentPhase
from container import PortMapping

FORMAT = 2
#: The one that kept everything in one file (releases up to 0.1).
ONE_FILE = 1
#: Former releases accepted messages as deep as the interpreter's own limit; ours is far below (agent/bus/depth.py).
FORMER_DEPTH = 3000


class UnreadableRecord(ValueError):
    """The bytes are not such a record."""


class Later(ValueError):
    """The record was written by a later release."""


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """``since_s``: when the phase began, by the host's clock."""

    agent_id: str
    format: int = FORMAT
    phase: AgentPhase = AgentPhase.SERVING
    since_s: float = 0.0


class SavedExit(msgspec.Struct, frozen=True):
    status: int
    description: str
    signal: int | None = None


class SavedInstance(msgspec.Struct, frozen=True, kw_only=True):
    """``record``: the name of the record for the whole life of the instance, whose id may change.

    ``routed``: routers have, or may have, routes to it, also when it is no longer healthy.

    ``exit_pending``: the outbox has not got the exit of the crashed instance, so the next agent must publish it.

    ``leaving``: routes whose unregister is not in the outbox yet.

    ``whole``: False if only the part could be read that a running instance needs.
    """

    id: str
    private_id: str
    message: StartMessage
    version: str
    uris: tuple[str, ...]
    state: State
    state_since_s: float
    started_at_s: float
    handle: str | None
    healthy: bool
    exit: SavedExit
    crashed_at_s: int
    routed: bool = False
    #: Of the host, and inside; for routes that must be taken back though the container is gone.
    ports: tuple[int, int] | None = None
    record: str = ""
    agent_id: str = ""
    exit_pending: bool = False
    leaving: tuple[str, ...] = ()
    whole: bool = True
    format: int = FORMAT

    def __post_init__(self) -> None:
        if not all(1 <= port <= 65535 for port in self.ports or ()):
            raise ValueError(f"ports: expected 1..65535, got {self.ports}")


class SavedStaging(msgspec.Struct, frozen=True):
    task_id: str
    app_id: str
    reply_to: str
    format: int = FORMAT


T = TypeVar("T", bound=msgspec.Struct)


def encode(record: msgspec.Struct) -> bytes:
    return msgspec.json.encode(record)


class _Format(msgspec.Struct):
    format: int = FORMAT


def decode(data: bytes, kind: type[T]) -> T:
    """The format is decoded first, since it decides whether the rest can be read. UnreadableRecord, Later."""
    with _reading():
        found = msgspec.json.decode(data, type=_Format).format
        if found > FORMAT:
            raise Later(f"format {found}, this agent reads up to {FORMAT}")
        return msgspec.json.decode(data, type=kind)


@contextmanager
def _reading() -> Iterator[None]:
    """Turns every error of a decoder into one kind."""
    try:
        yield
    except Later:
        raise
    except (msgspec.MsgspecError, ValueError, RecursionError) as e:
        raise UnreadableRecord(f"{type(e).__name__}: {e}") from e


# ---- instances -----------------------------------------------------------------------------------------------------


class _BareMessage(msgspec.Struct, frozen=True):
    """The part of a start message that a running instance needs, without the limits of later releases."""

    droplet: str | int
    version: str
    name: str
    index: int
    limits: AppLimits
    cc_partition: str
    uris: tuple[str, ...] | None = ()
    sha1: str | None = None
    executableUri: str | None = None
    stack: str | None = None
    health_check_timeout: int | None = None

    def full(self) -> StartMessage:
        return StartMessage(
            str(self.droplet),
            self.version,
            self.name,
            self.index,
            self.limits,
            (),
            self.cc_partition,
            uris=self.uris,
            sha1=self.sha1,
            executableUri=self.executableUri,
            stack=self.stack,
            health_check_timeout=self.health_check_timeout,
        )


class _WithMessage(msgspec.Struct, frozen=True):
    message: _BareMessage


def decode_instance(data: bytes) -> SavedInstance:
    """UnreadableRecord, Later.

    If only the start message does not meet this release's rules (limits have become stricter), the part is read that a running
    instance needs: an upgrade must not end an app because of its environment.
    """
    try:
        return decode(data, SavedInstance)
    except UnreadableRecord:
        with _reading(), _deep():
            bare = msgspec.json.decode(data, type=_WithMessage).message.full()
            fields = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
            fields["message"] = msgspec.Raw(encode(bare))
            return msgspec.structs.replace(decode(msgspec.json.encode(fields), SavedInstance), whole=False)


@contextmanager
def _deep() -> Iterator[None]:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, FORMER_DEPTH))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


class _Handle(msgspec.Struct):
    handle: str | None = None


def handle_of(data: bytes) -> str | None:
    """The container of a record of a later release. This agent must not destroy it."""
    try:
        return msgspec.json.decode(data, type=_Handle).handle
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def save_instance(instance: Instance, agent_id: str = "") -> SavedInstance:
    return SavedInstance(
        id=instance.id,
        private_id=instance.private_id,
        message=instance.message,
        version=instance.version,
        uris=instance.uris,
        state=instance.state,
        state_since_s=instance.state_since_s,
        started_at_s=instance.started_at_s,
        handle=instance.handle,
        healthy=instance.is_healthy,
        exit=SavedExit(instance.exit.status, instance.exit.description, instance.exit.signal),
        crashed_at_s=instance.crashed_at_s,
        routed=instance.routed,
        ports=_ports(instance.port),
        record=instance.record,
        agent_id=agent_id,
        exit_pending=instance.exit_pending,
        leaving=instance.leaving,
        whole=instance.whole,
    )


def _ports(port: PortMapping | None) -> tuple[int, int] | None:
    if port is None or port.host_port is None or port.container_port is None:
        return None
    return port.host_port, port.container_port


def load_instance(saved: SavedInstance) -> Instance:
    """The instance in state BORN. Recovery decides what happens to it, depending on its container."""
    return Instance(
        id=saved.id,
        private_id=saved.private_id,
        message=saved.message,
        version=saved.version,
        uris=routes_of(saved.uris),  # an older agent kept them as they came
        record=saved.record,
        state_since_s=saved.state_since_s,
        started_at_s=saved.started_at_s,
        handle=saved.handle,
        health=remembered(saved.healthy),
        routed=(saved.routed or saved.healthy) and bool(saved.uris),
        exit=Exit(saved.exit.status, saved.exit.description, saved.exit.signal),
        crashed_at_s=saved.crashed_at_s,
        exit_pending=saved.exit_pending,
        leaving=saved.leaving,
        whole=saved.whole,
        port=PortMapping(host_port=saved.ports[0], container_port=saved.ports[1]) if saved.ports else None,
    )


# ---- the one file of former releases -------------------------------------------------------------------------------


class OneFile(msgspec.Struct, frozen=True):
    """The content of the former `agent.json`, each instance as it was written."""

    agent_id: str
    instances: tuple[msgspec.Raw, ...] = ()
    stagings: tuple[SavedStaging, ...] = ()
    format: int = ONE_FILE


def decode_head(data: bytes) -> Head | OneFile:
    """UnreadableRecord, Later."""
    head = decode(data, Head)
    if head.format == FORMAT:
        return head
    with _reading(), _deep():
        return msgspec.json.decode(data, type=OneFile)
