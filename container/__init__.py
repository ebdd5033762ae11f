"""The container manager, a library: depot, container, job, limits, network, files, recovery.

The names in this module are the public interface. `Depot` is the entry, and `ContainerError` is the base of every
error. A name is imported at its first use, so a program that needs only a value type does not load netlink and asyncio.
docs/containers.md begins with a whole program.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from container.cgroups.figures import Pressure as Pressure
    from container.cgroups.figures import Throttling as Throttling
    from container.container import Container as Container
    from container.create import CreateError as CreateError
    from container.depot import ContainersLeft as ContainersLeft
    from container.depot import Depot as Depot
    from container.depot import RecoverFirst as RecoverFirst
    from container.depot import UnknownHandle as UnknownHandle
    from container.disk import DiskError as DiskError
    from container.errors import ContainerError as ContainerError
    from container.events import ContainerEvent as ContainerEvent
    from container.events import EventKind as EventKind
    from container.events import Events as Events
    from container.files import FileEntry as FileEntry
    from container.files import FilesError as FilesError
    from container.files import NotAFile as NotAFile
    from container.host import HostUnfit as HostUnfit
    from container.host import check_kernel as check_kernel
    from container.host import kernel_version as kernel_version
    from container.jobs import Chunk as Chunk
    from container.jobs import ExitStatus as ExitStatus
    from container.jobs import Job as Job
    from container.jobs import PipedJob as PipedJob
    from container.jobs import RunResult as RunResult
    from container.jobs import TerminalJob as TerminalJob
    from container.jobs import UnknownJob as UnknownJob
    from container.jobs.pipes import Pipe as Pipe
    from container.jobs.pipes import TooMuch as TooMuch
    from container.locks import DepotBusy as DepotBusy
    from container.network import NoPorts as NoPorts
    from container.network.firewall import FirewallError as FirewallError
    from container.network.ports import PortTaken as PortTaken
    from container.network.shaping import ShapingError as ShapingError
    from container.network.shaping import Traffic as Traffic
    from container.parts import ContainerState as ContainerState
    from container.parts import Info as Info
    from container.parts import NoSuchRule as NoSuchRule
    from container.parts import WrongState as WrongState
    from container.pools import NoLease as NoLease
    from container.recovery import Recovery as Recovery
    from container.settings import DepotSettings as DepotSettings
    from container.spec import Access as Access
    from container.spec import Bandwidth as Bandwidth
    from container.spec import BindMount as BindMount
    from container.spec import ContainerSpec as ContainerSpec
    from container.spec import CpuCap as CpuCap
    from container.spec import EgressRule as EgressRule
    from container.spec import JobSpec as JobSpec
    from container.spec import Limits as Limits
    from container.spec import Output as Output
    from container.spec import Past as Past
    from container.spec import PortMapping as PortMapping
    from container.spec import PortRange as PortRange
    from container.spec import Protocol as Protocol
    from container.spec import SpecError as SpecError
    from container.spec import User as User
    from container.spec import parse_network as parse_network
    from container.users import IdsTaken as IdsTaken
    from container.wshd import LaunchError as LaunchError
    from container.wshd import WshdError as WshdError
    from container.wshd import WshdGone as WshdGone
    from container.wshd import WshdSilent as WshdSilent

#: The module of each public name. The block above repeats it for type checkers; a test compares the two.
_MODULES = {
    "cgroups.figures": ("Pressure", "Throttling"),
    "container": ("Container",),
    "create": ("CreateError",),
    "depot": ("ContainersLeft", "Depot", "RecoverFirst", "UnknownHandle"),
    "disk": ("DiskError",),
    "errors": ("ContainerError",),
    "events": ("ContainerEvent", "EventKind", "Events"),
    "files": ("FileEntry", "FilesError", "NotAFile"),
    "host": ("HostUnfit", "check_kernel", "kernel_version"),
    "jobs": ("Chunk", "ExitStatus", "Job", "PipedJob", "RunResult", "TerminalJob", "UnknownJob"),
    "locks": ("DepotBusy",),
    "network": ("NoPorts",),
    "network.firewall": ("FirewallError",),
    "network.ports": ("PortTaken",),
    "network.shaping": ("ShapingError", "Traffic"),
    "parts": ("ContainerState", "Info", "NoSuchRule", "WrongState"),
    "jobs.pipes": ("Pipe", "TooMuch"),
    "pools": ("NoLease",),
    "recovery": ("Recovery",),
    "settings": ("DepotSettings",),
    "spec": (
        "Access", "Bandwidth", "BindMount", "ContainerSpec", "CpuCap", "EgressRule", "JobSpec", "Limits", "Output", "Past",
        "PortMapping", "PortRange", "Protocol", "SpecError", "User", "parse_network",
    ),
    "users": ("IdsTaken",),
    "wshd": ("LaunchError", "WshdError", "WshdGone", "WshdSilent"),
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    """Imports a public name at its first use (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
