"""The container manager, a library: depot, container, job, limits, network, files, recovery.

`Depot` is the entry; what stands here is the public interface.
"""

from container.container import Container
from container.create import CreateError
from container.depot import ContainersLeft, Depot, RecoverFirst, UnknownHandle
from container.disk import DiskError
from container.errors import ContainerError
from container.events import ContainerEvent, EventKind
from container.files import FileEntry, FilesError, NotAFile
from container.host import HostUnfit, check_kernel, kernel_version
from container.job import Chunk, ExitStatus, Job
from container.jobs import PipedJob, RunResult, TerminalJob
from container.locks import DepotBusy
from container.network import NoPorts
from container.network.firewall import FirewallError
from container.network.ports import PortTaken
from container.parts import ContainerState, Info, WrongState
from container.pipes import TooMuch
from container.pools import NoLease
from container.recovery import Recovery
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
    "ContainerError",
    "ContainerEvent",
    "ContainerSpec",
    "ContainerState",
    "ContainersLeft",
    "CreateError",
    "Depot",
    "DepotBusy",
    "DepotSettings",
    "DiskError",
    "EgressRule",
    "EventKind",
    "ExitStatus",
    "FileEntry",
    "FilesError",
    "FirewallError",
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
    "PortTaken",
    "Protocol",
    "RecoverFirst",
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
