"""The container of one staging: what it is made of, and its making and removal. What runs in it is in steps.py.

The app's tree is a lower of the container's root, above the stack, and there is no second overlay for the home as an app's
container has one. So app, cache and TMPDIR lie on one mount, and buildpacks may rename and hard-link between them; two
mounts gave EXDEV, also two of one file system.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from agent.bus.messages import EgressMessage
from agent.config import StagingSettings
from agent.depot import AgentContainer, AgentDepot
from agent.inside.limits import egress_rules
from agent.logs import Log
from agent.resources import Claim
from agent.staging.buildpacks import Buildpack, StagingFailed
from container import (
    BindMount,
    ContainerSpec,
    CreateError,
    Limits,
    NoLease,
    SpecError,
)
from wsh.units import MIB


@dataclass(frozen=True, slots=True)
class Workshop:
    """``tree`` holds the app at its place in the root; ``candidates`` are mounted read-only, each at its number;
    ``claim`` is what admission holds for it, and its limit."""

    task_id: str
    rootfs: Path
    tree: Path
    candidates: tuple[Buildpack, ...]
    claim: Claim
    egress: tuple[EgressMessage, ...]

    def spec(self, settings: StagingSettings) -> ContainerSpec:
        """Pure. SpecError: an egress rule makes no sense."""
        return ContainerSpec(
            layers=(self.tree, self.rootfs),
            binds=tuple(_binds(self.candidates)),
            limits=Limits(
                memory_bytes=self.claim.memory_mb * MIB,
                cpu_shares=settings.cpu_limit_shares,
                pids=settings.nproc_limit,
                disk_bytes=self.claim.disk_mb * MIB,
                disk_inodes=settings.disk_inode_limit,
            ),
            egress=egress_rules(self.egress),
            properties={"kind": "staging", "task": self.task_id},
        )

    async def open(
        self, depot: AgentDepot, settings: StagingSettings, held: AsyncExitStack, log: Log
    ) -> AgentContainer:
        """Made now, removed with ``held``. StagingFailed: it cannot be made."""
        try:
            container = await depot.create(self.spec(settings))
        except (SpecError, CreateError, NoLease) as e:
            raise StagingFailed("Error staging: no container", "StagingError", str(e)) from e
        held.push_async_callback(_destroy, depot, container, log)
        return container


def _binds(candidates: Iterable[Buildpack]) -> Iterable[BindMount]:
    for number, one in enumerate(candidates):
        yield BindMount(one.path, one.inside(number), mapped=one.mapped)


async def _destroy(depot: AgentDepot, container: AgentContainer, log: Log) -> None:
    """The depot tries again what could not be removed; the staging ends all the same."""
    try:
        await depot.destroy(container.handle)
    except Exception as e:  # whatever it was: the droplet may be with the controller by now
        log.exception("staging_not_removed_whole", error=repr(e))
