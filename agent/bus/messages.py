"""The messages on the bus as typed values. Outside this module a dict is only ever passed on, never read.

Names and order of fields are those on the wire (docs/protocol.md). Unknown keys are ignored: peers from fifteen years of releases
send many. A payload that is not a valid message raises :class:`MessageError`.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from agent.bus.bounds import ID_BYTES, LABEL_BYTES, check_ids, cut
from agent.bus.depth import check_depth
from agent.bus.replies import ErrorInfo as ErrorInfo
from agent.bus.replies import FindReply as FindReply
from agent.bus.replies import StagingRefused as StagingRefused
from agent.bus.replies import StagingReply as StagingReply
from agent.bus.replies import StagingReply1 as StagingReply1
from agent.bus.replies import StagingReply2 as StagingReply2
from agent.bus.replies import Stats as Stats
from agent.bus.replies import Usage as Usage
from agent.bus.routes import check_routes, routes_of

#: Every heartbeat repeats ids, versions and partitions; ``__post_init__`` also limits their size in bytes.
AppId = Annotated[str, Meta(max_length=ID_BYTES)]
#: Peers in Go drop a whole heartbeat if one number overflows an int. No real value is near this limit.
_MOST = (1 << 31) - 1
Count = Annotated[int, Meta(ge=0, le=_MOST)]
Megabytes = Annotated[int, Meta(ge=0, le=_MOST)]
Seconds = Annotated[int, Meta(ge=0, le=_MOST)]
Label = Annotated[str, Meta(max_length=ID_BYTES)]
#: An id that the sender chose. It becomes the name of a directory.
GivenId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{0,64}\Z")]


TASK_ID_CHARACTERS = 256


class MessageError(ValueError):
    """The payload is not a valid message. The text names the field, what was expected and the type found."""


def _normalise_uris(message: StartMessage | UpdateMessage) -> None:
    if message.uris is not None:
        check_routes(message.uris)
        msgspec.structs.force_setattr(message, "uris", routes_of(message.uris))


# ---- received: run -------------------------------------------------------------------------------------------------


class AppLimits(Struct, frozen=True):
    mem: Megabytes
    disk: Megabytes
    fds: Count


class EgressMessage(Struct, frozen=True):
    """One rule of `egress_network_rules` (docs/protocol.md, "Limits")."""

    protocol: str
    destination: str = ""
    ports: str | None = None
    type: int | None = None
    code: int | None = None
    log: bool | None = None


class Service(Struct, frozen=True):
    """A bound service. Only the required keys are checked; VCAP_SERVICES contains all of it."""

    name: str
    label: str
    credentials: Any
    tags: Any = None
    plan: str | UnsetType = UNSET
    plan_option: str | None = None
    syslog_drain_url: str | None = None

    def __post_init__(self) -> None:
        check_depth("credentials", self.credentials)
        check_depth("tags", self.tags)


class StartMessage(Struct, frozen=True):
    """`dea.<id>.start`."""

    droplet: AppId | Count
    version: Label
    name: str
    index: Count
    limits: AppLimits
    services: tuple[Service, ...]
    cc_partition: Label
    uris: tuple[str, ...] | None = ()
    sha1: str | None = None
    executableUri: str | None = None
    env: tuple[str, ...] | None = ()
    stack: str | None = None
    start_command: str | None = None
    health_check_timeout: Seconds | None = None
    vcap_application: dict[str, Any] | None = None
    egress_network_rules: tuple[EgressMessage, ...] | None = ()
    instance_id: GivenId | None = None
    private_instance_id: GivenId | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.droplet, str):
            msgspec.structs.force_setattr(self, "droplet", str(self.droplet))
        check_ids(self, "droplet", "version", "cc_partition")
        check_depth("vcap_application", self.vcap_application)
        _normalise_uris(self)

    @property
    def app(self) -> AppId:
        return str(self.droplet)


#: The state names that a filter may contain: those of the DEA.
STATE_NAMES = frozenset(
    {"BORN", "STARTING", "RUNNING", "STOPPING", "STOPPED", "CRASHED", "RESUMING", "EVACUATING", "DELETED"}
)


class Filter(Struct, frozen=True):
    """Selects instances (docs/protocol.md, "Filters"). An empty list selects all. With an unknown state the message is refused."""

    droplet: AppId | Count
    version: str | None = None
    instances: tuple[str, ...] | None = ()
    instance_ids: tuple[str, ...] | None = ()
    indices: tuple[int, ...] | None = ()
    states: tuple[str, ...] | None = ()

    def __post_init__(self) -> None:
        unknown = [name for name in self.states or () if name.upper() not in STATE_NAMES]
        if unknown:
            raise ValueError(f"states: expected names of instance states, got {unknown[0][:50]!r}")

    @property
    def app(self) -> AppId:
        return str(self.droplet)

    @property
    def ids(self) -> frozenset[str]:
        return frozenset((*(self.instances or ()), *(self.instance_ids or ())))

    @property
    def wanted_states(self) -> frozenset[str]:
        return frozenset(name.upper() for name in self.states or ())


class StopMessage(Filter, frozen=True):
    """`dea.stop`. ``only_app``: `droplet` was the only key, so the app's stagings are stopped too."""

    only_app: bool = msgspec.field(default=False, name="-only-app")


class FindMessage(Filter, frozen=True):
    """`dea.find.droplet`. ``path``: only the presence of the key matters, not its value."""

    path: str | UnsetType | None = UNSET
    include_stats: bool | None = False


class UpdateMessage(Struct, frozen=True):
    """`dea.update`. None leaves uris or version unchanged (docs/protocol.md, "Update message")."""

    droplet: AppId | Count
    uris: tuple[str, ...] | None = None
    version: Label | None = None

    def __post_init__(self) -> None:
        check_ids(self, "version")
        _normalise_uris(self)

    @property
    def app(self) -> AppId:
        return str(self.droplet)


class RouterStart(Struct, frozen=True):
    """`router.start`, and the reply to `router.greet`."""

    minimumRegisterIntervalInSeconds: Any = None
    pruneThresholdInSeconds: Any = None

    @property
    def interval_s(self) -> float | None:
        return _seconds(self.minimumRegisterIntervalInSeconds)

    @property
    def prune_s(self) -> float | None:
        """The time without a register after which the router drops a route; None: unknown."""
        return _seconds(self.pruneThresholdInSeconds)


def _seconds(value: object) -> float | None:
    """None: the value is not a positive number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        return None
    return float(min(value, _MOST))


# ---- received: staging ---------------------------------------------------------------------------------------------


class AdminBuildpack(Struct, frozen=True):
    key: str
    url: str

    def __post_init__(self) -> None:
        check_ids(self, "key")


class StagingMeta(Struct, frozen=True):
    command: str | None = None


class StagingProperties(Struct, frozen=True):
    environment: tuple[str, ...] | None = ()
    services: tuple[Service, ...] | None = ()
    buildpack: str | None = None
    buildpack_git_url: str | None = None
    buildpack_key: str | None = None
    meta: StagingMeta | None = None


class StagingStart(Struct, frozen=True):
    """`staging.<id>.start`."""

    app_id: str
    task_id: str
    properties: StagingProperties
    download_uri: str
    upload_uri: str
    stack: str | None = None
    buildpack_cache_download_uri: str | None = None
    buildpack_cache_upload_uri: str | None = None
    #: Decoded by the staging, after everything else is valid: old senders express "none" in several ways.
    start_message: Any = None
    admin_buildpacks: tuple[AdminBuildpack, ...] | None = None
    egress_network_rules: tuple[EgressMessage, ...] | None = ()
    memory_limit: int | None = None
    disk_limit: int | None = None

    def __post_init__(self) -> None:
        check_ids(self, "app_id", "task_id")


class StagingStop(Struct, frozen=True):
    app_id: str


# ---- published -----------------------------------------------------------------------------------------------------


class Advertise(Struct, frozen=True):
    id: str
    stacks: tuple[str, ...]
    available_memory: float
    available_disk: float
    app_id_to_count: dict[str, int]
    placement_properties: dict[str, str]


class StagingAdvertise(Struct, frozen=True):
    id: str
    stacks: tuple[str, ...]
    available_memory: float
    available_disk: float


class HeartbeatEntry(Struct, frozen=True):
    cc_partition: str
    droplet: str
    version: str
    instance: str
    index: int
    state: str
    state_timestamp: float


class Heartbeat(Struct, frozen=True):
    droplets: tuple[HeartbeatEntry, ...]
    dea: str


class RouterMessage(Struct, frozen=True):
    dea: str
    app: str
    uris: tuple[str, ...]
    host: str
    port: int
    tags: dict[str, str]
    private_instance_id: str


class RouterRegister(RouterMessage, frozen=True):
    pass


class RouterUnregister(RouterMessage, frozen=True):
    pass


class DropletExited(Struct, frozen=True):
    cc_partition: str
    droplet: str
    version: str
    instance: str
    index: int
    reason: str
    exit_status: int
    exit_description: str
    crash_timestamp: int

    def __post_init__(self) -> None:
        cut(self, LABEL_BYTES, "exit_description")


class DeaShutdown(Struct, frozen=True):
    id: str
    ip: str
    version: str
    app_id_to_count: dict[str, int]


EventMessage = RouterUnregister | DropletExited | DeaShutdown | StagingReply
StateMessage = Heartbeat | Advertise | StagingAdvertise | RouterRegister


T = TypeVar("T", bound=Struct)
_encoder = msgspec.json.Encoder()


def decode(kind: type[T], payload: bytes) -> T:
    """The payload as a message of ``kind``. Raises MessageError."""
    try:
        if kind is StopMessage:
            keys = msgspec.json.decode(payload)
            found = msgspec.convert(keys, kind)
            msgspec.structs.force_setattr(found, "only_app", set(keys) == {"droplet"})
            return found
        return msgspec.json.decode(payload, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as e:
        raise MessageError(str(e)) from e


def convert(kind: type[T], value: object) -> T:
    """As :func:`decode`, from a value that is parsed already (the start message within a staging message)."""
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, ValueError, RecursionError) as e:
        raise MessageError(str(e)) from e


class _WithTaskId(Struct, frozen=True):
    task_id: str | int | float | None = None


def task_id_of(payload: bytes) -> str:
    """The task id of an invalid staging request, for the reply to it; empty if it cannot be read."""
    try:
        task_id = msgspec.json.decode(payload, type=_WithTaskId).task_id
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return ""
    return "" if task_id is None else str(task_id)[:TASK_ID_CHARACTERS]


def encode(message: Struct) -> bytes:
    return _encoder.encode(message)


def with_sha1(message: StartMessage, sha1: str) -> StartMessage:
    """The start message of a staging, completed by the checksum of its droplet (docs/protocol.md, "Staging replies")."""
    return msgspec.structs.replace(message, sha1=sha1)
