"""The container manager, a library: depot, container, job, limits, network, files, recovery.

Knows nothing of NATS, apps or droplets. `Depot` is the entry; what stands here is the public interface.
"""

from container.container import Container
from container.depot import Depot, Recovery, UnknownHandle
from container.events import Event
from container.files import FileEntry, FilesError, NotAFile
from container.host import HostUnfit, check_kernel, kernel_version
from container.job import Chunk, ExitStatus, Job
from container.jobs import PipedJob, RunResult, TerminalJob
from container.locks import DepotBusy
from container.make import CreateError
from container.network import NoPorts
from container.parts import ContainerState, Info, WrongState
from container.pipes import TooMuch
from container.pools import NoLease
from container.settings import DepotSettings
from container.spec import (
    Access,
    BindMount,
    ContainerSpec,
    EgressRule,
    JobSpec,
    Limits,
    Output,
    Past,
    PortMapping,
    PortRange,
    Protocol,
    SpecError,
    User,
    parse_network,
)
from container.users import IdsTaken
from container.wshd import LaunchError, WshdError, WshdGone, WshdSilent

__all__ = [
    "Access",
    "BindMount",
    "Chunk",
    "Container",
    "ContainerSpec",
    "ContainerState",
    "CreateError",
    "Depot",
    "DepotBusy",
    "DepotSettings",
    "EgressRule",
    "Event",
    "ExitStatus",
    "FileEntry",
    "FilesError",
    "HostUnfit",
    "IdsTaken",
    "Info",
    "Job",
    "JobSpec",
    "LaunchError",
    "Limits",
    "NoLease",
    "NoPorts",
    "NotAFile",
    "Output",
    "Past",
    "PipedJob",
    "PortMapping",
    "PortRange",
    "Protocol",
    "Recovery",
    "RunResult",
    "SpecError",
    "TerminalJob",
    "TooMuch",
    "UnknownHandle",
    "User",
    "WrongState",
    "WshdError",
    "WshdGone",
    "WshdSilent",
    "check_kernel",
    "kernel_version",
    "parse_network",
]
