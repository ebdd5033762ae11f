"""The messages of Warden's protocol as values (docs/warden.md, "Messages").

Each field has its number on the wire in its annotation, and its kind where the type alone does not say it. A field without a
default is required. codec.py makes the protobuf descriptors from these classes, so a field stands here and nowhere else.

All texts are bytes: a handle, a path or a program's output need not be UTF-8. On the wire a `string` and `bytes` are the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Annotated, Final

from container.warden.kinds import INT32, UINT32, UINT64, Number
from container.warden.stats import BandwidthStat as BandwidthStat
from container.warden.stats import CpuStat as CpuStat
from container.warden.stats import DiskStat as DiskStat
from container.warden.stats import InfoResponse as InfoResponse
from container.warden.stats import MemoryStat as MemoryStat


class Type(IntEnum):
    """Which request or response a frame carries. A request and its response have the same number."""

    ERROR = 1
    CREATE = 11
    STOP = 12
    DESTROY = 13
    INFO = 14
    SPAWN = 21
    LINK = 22
    RUN = 23
    STREAM = 24
    NET_IN = 31
    NET_OUT = 32
    COPY_IN = 41
    COPY_OUT = 42
    LIMIT_MEMORY = 51
    LIMIT_DISK = 52
    LIMIT_BANDWIDTH = 53
    LIMIT_CPU = 54
    PING = 91
    LIST = 92
    ECHO = 93


class BindMode(IntEnum):
    RO = 0
    RW = 1


class NetProtocol(IntEnum):
    TCP = 0
    UDP = 1
    ICMP = 2
    ALL = 3


@dataclass(frozen=True, slots=True)
class Message:
    """The envelope. ``payload``: a request towards the server, a response towards the client."""

    type: Annotated[Type, 1]
    payload: Annotated[bytes, 2]


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    message: Annotated[bytes | None, 2] = None
    data: Annotated[bytes | None, 4] = None
    backtrace: Annotated[tuple[bytes, ...], 3] = ()


@dataclass(frozen=True, slots=True)
class BindMountRequest:
    src_path: Annotated[bytes, 1]
    dst_path: Annotated[bytes, 2]
    mode: Annotated[BindMode, 3]


@dataclass(frozen=True, slots=True)
class CreateRequest:
    """``grace_time``: seconds."""

    bind_mounts: Annotated[tuple[BindMountRequest, ...], 1] = ()
    grace_time: Annotated[int | None, 2, UINT32] = None
    handle: Annotated[bytes | None, 3] = None
    network: Annotated[bytes | None, 4] = None
    rootfs: Annotated[bytes | None, 5] = None


@dataclass(frozen=True, slots=True)
class CreateResponse:
    handle: Annotated[bytes, 1]


@dataclass(frozen=True, slots=True)
class StopRequest:
    handle: Annotated[bytes, 1]
    background: Annotated[bool, 10] = False
    kill: Annotated[bool, 20] = False


@dataclass(frozen=True, slots=True)
class StopResponse:
    pass


@dataclass(frozen=True, slots=True)
class DestroyRequest:
    handle: Annotated[bytes, 1]


@dataclass(frozen=True, slots=True)
class DestroyResponse:
    pass


@dataclass(frozen=True, slots=True)
class InfoRequest:
    handle: Annotated[bytes, 1]


@dataclass(frozen=True, slots=True)
class ResourceLimits:
    """The limits of setrlimit(2) by their names there."""

    as_: Annotated[Number, 1] = field(default=None, metadata={"name": "as"})
    core: Annotated[Number, 2] = None
    cpu: Annotated[Number, 3] = None
    data: Annotated[Number, 4] = None
    fsize: Annotated[Number, 5] = None
    locks: Annotated[Number, 6] = None
    memlock: Annotated[Number, 7] = None
    msgqueue: Annotated[Number, 8] = None
    nice: Annotated[Number, 9] = None
    nofile: Annotated[Number, 10] = None
    nproc: Annotated[Number, 11] = None
    rss: Annotated[Number, 12] = None
    rtprio: Annotated[Number, 13] = None
    sigpending: Annotated[Number, 14] = None
    stack: Annotated[Number, 15] = None


@dataclass(frozen=True, slots=True)
class SpawnRequest:
    """``script``: the standard input of a shell. ``log_tag``: its output goes to syslog too, under this name."""

    handle: Annotated[bytes, 1]
    script: Annotated[bytes, 2]
    privileged: Annotated[bool, 3] = False
    rlimits: Annotated[ResourceLimits | None, 4] = None
    discard_output: Annotated[bool, 5] = False
    log_tag: Annotated[bytes | None, 6] = None


@dataclass(frozen=True, slots=True)
class RunRequest(SpawnRequest):
    pass


@dataclass(frozen=True, slots=True)
class SpawnResponse:
    job_id: Annotated[int, 1, UINT32]


@dataclass(frozen=True, slots=True)
class LinkRequest:
    handle: Annotated[bytes, 1]
    job_id: Annotated[int, 2, UINT32]


@dataclass(frozen=True, slots=True)
class StreamRequest(LinkRequest):
    pass


@dataclass(frozen=True, slots=True)
class LinkResponse:
    exit_status: Annotated[int | None, 1, UINT32] = None
    stdout: Annotated[bytes | None, 2] = None
    stderr: Annotated[bytes | None, 3] = None
    info: Annotated[InfoResponse | None, 4] = None


@dataclass(frozen=True, slots=True)
class RunResponse(LinkResponse):
    pass


@dataclass(frozen=True, slots=True)
class StreamResponse:
    """A piece of output, or at the end only the status and the info."""

    name: Annotated[bytes | None, 1] = None
    data: Annotated[bytes | None, 2] = None
    exit_status: Annotated[int | None, 3, UINT32] = None
    info: Annotated[InfoResponse | None, 4] = None


@dataclass(frozen=True, slots=True)
class NetInRequest:
    handle: Annotated[bytes, 1]
    container_port: Annotated[int | None, 2, UINT32] = None
    host_port: Annotated[int | None, 3, UINT32] = None


@dataclass(frozen=True, slots=True)
class NetInResponse:
    host_port: Annotated[int, 1, UINT32]
    container_port: Annotated[int, 2, UINT32]


@dataclass(frozen=True, slots=True)
class NetOutRequest:
    handle: Annotated[bytes, 1]
    network: Annotated[bytes | None, 2] = None
    port: Annotated[int | None, 3, UINT32] = None
    port_range: Annotated[bytes | None, 4] = None
    protocol: Annotated[NetProtocol | None, 5] = None
    icmp_type: Annotated[int | None, 6, INT32] = None
    icmp_code: Annotated[int | None, 7, INT32] = None
    log: Annotated[bool | None, 8] = None


@dataclass(frozen=True, slots=True)
class NetOutResponse:
    pass


@dataclass(frozen=True, slots=True)
class CopyInRequest:
    handle: Annotated[bytes, 1]
    src_path: Annotated[bytes, 2]
    dst_path: Annotated[bytes, 3]


@dataclass(frozen=True, slots=True)
class CopyInResponse:
    pass


@dataclass(frozen=True, slots=True)
class CopyOutRequest:
    """``owner``: who gets the files on the host; an argument of chown(1)."""

    handle: Annotated[bytes, 1]
    src_path: Annotated[bytes, 2]
    dst_path: Annotated[bytes, 3]
    owner: Annotated[bytes | None, 4] = None


@dataclass(frozen=True, slots=True)
class CopyOutResponse:
    pass


@dataclass(frozen=True, slots=True)
class LimitMemoryRequest:
    handle: Annotated[bytes, 1]
    limit_in_bytes: Annotated[Number, 2] = None


@dataclass(frozen=True, slots=True)
class LimitMemoryResponse:
    limit_in_bytes: Annotated[Number, 1] = None


@dataclass(frozen=True, slots=True)
class DiskLimits:
    """The same limits under all their names. Blocks have 1,024 bytes."""

    block_limit: Annotated[Number, 10] = None
    block: Annotated[Number, 11] = None
    block_soft: Annotated[Number, 12] = None
    block_hard: Annotated[Number, 13] = None
    inode_limit: Annotated[Number, 20] = None
    inode: Annotated[Number, 21] = None
    inode_soft: Annotated[Number, 22] = None
    inode_hard: Annotated[Number, 23] = None
    byte_limit: Annotated[Number, 30] = None
    byte: Annotated[Number, 31] = None
    byte_soft: Annotated[Number, 32] = None
    byte_hard: Annotated[Number, 33] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitDiskRequest(DiskLimits):
    handle: Annotated[bytes, 1]


@dataclass(frozen=True, slots=True)
class LimitDiskResponse(DiskLimits):
    pass


@dataclass(frozen=True, slots=True)
class LimitBandwidthRequest:
    """``rate``: bytes a second, ``burst``: bytes, the same both ways."""

    handle: Annotated[bytes, 1]
    rate: Annotated[int, 2, UINT64]
    burst: Annotated[int, 3, UINT64]


@dataclass(frozen=True, slots=True)
class LimitBandwidthResponse:
    rate: Annotated[int, 1, UINT64]
    burst: Annotated[int, 2, UINT64]


@dataclass(frozen=True, slots=True)
class LimitCpuRequest:
    handle: Annotated[bytes, 1]
    limit_in_shares: Annotated[Number, 2] = None


@dataclass(frozen=True, slots=True)
class LimitCpuResponse:
    limit_in_shares: Annotated[Number, 1] = None


@dataclass(frozen=True, slots=True)
class PingRequest:
    pass


@dataclass(frozen=True, slots=True)
class PingResponse:
    pass


@dataclass(frozen=True, slots=True)
class ListRequest:
    pass


@dataclass(frozen=True, slots=True)
class ListResponse:
    """No field at all when there is no container."""

    handles: Annotated[tuple[bytes, ...], 1] = ()


@dataclass(frozen=True, slots=True)
class EchoRequest:
    message: Annotated[bytes, 1]


@dataclass(frozen=True, slots=True)
class EchoResponse:
    message: Annotated[bytes, 1]


#: Of each type: the class of its request (None: a client never sends it) and that of its response.
CLASSES: Final[dict[Type, tuple[type | None, type]]] = {
    Type.ERROR: (None, ErrorResponse),
    Type.CREATE: (CreateRequest, CreateResponse),
    Type.STOP: (StopRequest, StopResponse),
    Type.DESTROY: (DestroyRequest, DestroyResponse),
    Type.INFO: (InfoRequest, InfoResponse),
    Type.SPAWN: (SpawnRequest, SpawnResponse),
    Type.LINK: (LinkRequest, LinkResponse),
    Type.RUN: (RunRequest, RunResponse),
    Type.STREAM: (StreamRequest, StreamResponse),
    Type.NET_IN: (NetInRequest, NetInResponse),
    Type.NET_OUT: (NetOutRequest, NetOutResponse),
    Type.COPY_IN: (CopyInRequest, CopyInResponse),
    Type.COPY_OUT: (CopyOutRequest, CopyOutResponse),
    Type.LIMIT_MEMORY: (LimitMemoryRequest, LimitMemoryResponse),
    Type.LIMIT_DISK: (LimitDiskRequest, LimitDiskResponse),
    Type.LIMIT_BANDWIDTH: (LimitBandwidthRequest, LimitBandwidthResponse),
    Type.LIMIT_CPU: (LimitCpuRequest, LimitCpuResponse),
    Type.PING: (PingRequest, PingResponse),
    Type.LIST: (ListRequest, ListResponse),
    Type.ECHO: (EchoRequest, EchoResponse),
}
RESPONSE_TYPES: Final = {response: type_ for type_, (_, response) in CLASSES.items()}
