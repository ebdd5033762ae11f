"""Creates and removes the container of one staging. steps.py runs programs in it.

The app's tree is a lower of the container's root, above the stack. An app's container has a second overlay for the home;
this one has not, so that app, cache and TMPDIR lie on one mount. Buildpacks rename and hard-link between them, which fails
with EXDEV across two mounts, even of the same file system.
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
    """``tree`` holds the app at its path inside the container. Each of ``candidates`` is mounted read-only at its number.
    ``claim`` gives the container's memory and disk limits."""

    task_id: str
    rootfs: Path
    tree: Path
    candidates: tuple[Buildpack, ...]
    claim: Claim
    egress: tuple[EgressMessage, ...]

    def spec(self, settings: StagingSettings) -> ContainerSpec:
        """Pure. SpecError: an egress rule is invalid."""
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
        """Create the container; ``held`` removes it when it is closed. StagingFailed: it cannot be created."""
        try:
            container = await depot.create(self.spec(settings))
        except (SpecError, CreateError, NoLease) as e:
            raise StagingFailed(
                "Error staging: the container cannot be created", "StagingError", str(e)
            ) from e
        held.push_async_callback(_destroy, depot, container, log)
        return container


def _binds(candidates: Iterable[Buildpack]) -> Iterable[BindMount]:
    for number, one in enumerate(candidates):
        yield BindMount(one.path, one.inside(number), mapped=one.mapped)


async def _destroy(depot: AgentDepot, container: AgentContainer, log: Log) -> None:
    """An error is only logged: the depot tries the removal again, and the droplet may be uploaded by now."""
    try:
        await depot.destroy(container.handle)
    except Exception as e:  # no error of a removal may fail the staging
        log.exception("staging_container_not_removed", handle=container.handle, error=repr(e))
