"""One staging, from the app's package to the uploaded droplet: each step in order, as a method.

The package is unpacked to a tree on disk. The tree becomes a lower of a container with the stack (workshop.py), where the
buildpack runs as vcap (steps.py). The droplet is the content of /home/vcap afterwards. No step copies the app's files.

One deadline covers everything from the download of the package to the upload of the cache. With a deadline for each step,
the steps together could take longer than the controller waits. The buildpack cache is optional: its download gets a share
of the time, and its errors are only logged. So nothing can fail the staging once the droplet is uploaded.

keeper.py accepts and stops stagings, and publishes the replies.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent.bus import messages as m
from agent.cause import public_address
from agent.config import Settings
from agent.depot import AgentContainer, AgentDepot
from agent.droplets.archive import ArchiveError, Bounds
from agent.droplets.layers import Layers
from agent.droplets.pack import Packed
from agent.droplets.transfer import TransferError, Transfers
from agent.droplets.unpacker import JailError, Unpacker
from agent.inside.environment import HOME, VARIABLE_BYTES, staging_environment, too_long, user_variables
from agent.inside.limits import ipv6_left_out
from agent.logs import Log
from agent.resources import Claim
from agent.stacks import no_stack, rootfs_of
from agent.staging import buildpacks as bp
from agent.staging.admin import AdminBuildpacks
from agent.staging.buildpacks import Buildpack, Outcome, StagingFailed
from agent.staging.log import StagingLog
from agent.staging.steps import TMPDIR, Steps
from agent.staging.workshop import Workshop
from container import FilesError, SpecError, WshdError, WshdGone
from wsh.units import MIB

TIMED_OUT: Final = "Staging in container timed out"
#: The part of the staging's time that the download of the buildpack cache may take.
CACHE_SHARE: Final = 0.25


@dataclass(frozen=True, slots=True)
class StagingParts:
    """The objects that all stagings of the host share."""

    settings: Settings
    depot: AgentDepot
    layers: Layers
    transfers: Transfers
    unpacker: Unpacker
    admin: AdminBuildpacks
    own: tuple[Buildpack, ...]
    work_dir: Path
    log: Log
    clock: Callable[[], float]
    new_id: Callable[[int], str]


@dataclass(frozen=True, slots=True)
class Staged:
    """A droplet that was made. ``upload_error``: why it could not be uploaded; None: it was."""

    outcome: Outcome
    sha1: str
    size_bytes: int
    upload_error: str | None = None


class StagingTask:
    """``start``: the app's start message, which gives limits and the environment; None: the request has none. The keeper calls
    `set_up`, then `stage`."""

    def __init__(
        self, message: m.StagingStart, reply_to: str, start: m.StartMessage | None, parts: StagingParts
    ) -> None:
        self.message = message
        self.reply_to = reply_to
        self.start = start
        self.output = StagingLog(parts.clock)
        self._parts = parts
        self._dir = parts.work_dir / parts.new_id(8)
        self.log = parts.log.bind(task=message.task_id, app=message.app_id)
        limits = start.limits if start is not None else None
        settings = parts.settings.staging
        self.claim = Claim(
            max(settings.memory_limit_mb, message.memory_limit or (limits.mem if limits else 0)),
            max(settings.disk_limit_mb, message.disk_limit or (limits.disk if limits else 0)),
        )

    @property
    def _disk_bytes(self) -> int:
        """The limit of the container's disk, and so of each archive."""
        return self.claim.disk_mb * MIB

    # -- set-up ------------------------------------------------------------------------------------------------

    async def set_up(self, held: AsyncExitStack) -> AgentContainer:
        """Download package and buildpacks, and create the container. The deadline of the whole staging is counted from here.

        ``held`` removes the container and the files of the staging. StagingFailed: a step failed, or the deadline has passed.
        """
        duration_s = self._parts.settings.staging.max_staging_duration
        self._deadline = asyncio.get_running_loop().time() + duration_s
        properties, parts = self.message.properties, self._parts
        if properties.buildpack or properties.buildpack_git_url:
            raise StagingFailed(
                "Error staging: custom buildpacks are not supported yet",
                "StagingError",
                "a buildpack by git URL is not supported by this agent yet; name an installed one",
            )
        stack = next((one for one in parts.settings.stacks if one.name == self.message.stack), None)
        if stack is None or (why := no_stack(stack.package_path)) is not None:
            self.log.warning(
                "stack_missing", stack=self.message.stack, error="not configured" if stack is None else why
            )
            raise StagingFailed(f"Error staging: Stack {self.message.stack} does not exist")
        for rule in ipv6_left_out(self.message.egress_network_rules or ()):
            self.output.say(f"       Egress rule ignored, since IPv6 is off in containers: {rule}")
            self.log.warning("egress_rule_left_out", rule=rule, because="IPv6 is off in containers")
        async with self._in_time():
            self._dir.mkdir(mode=0o755)
            held.callback(parts.layers.throw_away, self._dir)
            held.enter_context(parts.admin.use(self.message.admin_buildpacks))
            tree = await self._fetch_package()
            admin = await parts.admin.fetch(self.message.admin_buildpacks or ())
            self._candidates = (*admin, *parts.own)
            workshop = Workshop(
                self.message.task_id,
                rootfs_of(stack.package_path),
                tree,
                self._candidates,
                self.claim,
                tuple(self.message.egress_network_rules or ()),
            )
            return await workshop.open(parts.depot, parts.settings.staging, held, self.log)

    async def _fetch_package(self) -> Path:
        """Download and unpack the package. Returns a tree with nothing but the app, at its path inside the container."""
        archive, tree = self._dir / "app.zip", self._dir / "root"
        home = tree / HOME.removeprefix("/")
        try:
            await self._parts.transfers.download_file(
                self.message.download_uri,
                archive,
                limit_bytes=self._disk_bytes,
                owner=self.message.app_id,
            )
            self.output.say(f"-----> Downloaded app package ({_size(archive.stat().st_size)})")
            home.parent.mkdir(mode=0o755, parents=True)
            self._parts.unpacker.make_root(home)
            await self._parts.layers.import_zip(archive, home / "app", Bounds(total_bytes=self._disk_bytes))
        except TransferError as e:
            self.output.say(
                f"The app package cannot be downloaded from {public_address(self.message.download_uri)}: {e}"
            )
            raise StagingFailed(f"Error staging: {e}") from e
        except (ArchiveError, JailError, OSError) as e:
            raise StagingFailed(f"Error staging: {e}") from e
        archive.unlink()
        return tree

    # -- in the container --------------------------------------------------------------------------------------

    async def stage(self, container: AgentContainer) -> Staged:
        """Detect, compile, release, pack and upload the droplet, then store the cache. StagingFailed: a step failed, or the
        deadline has passed. A failed upload of the droplet is returned as ``upload_error``."""
        environment = self._environment()
        if (why := too_long(environment, VARIABLE_BYTES)) is not None:
            raise StagingFailed("Error staging: the environment is too large", "StagingError", why)
        steps = Steps(
            container,
            environment=environment,
            memory_mb=self.claim.memory_mb,
            output=self.output,
            log=self.log,
        )
        async with self._in_time():
            outcome = await self._build(steps)
            packed = await self._pack(steps)
            self.output.say(f"-----> Uploading droplet ({_size(packed.bytes)})")
            try:
                await self._parts.transfers.upload(self.message.upload_uri, self._droplet, "droplet.tgz")
            except TransferError as e:
                return Staged(outcome, packed.sha1, packed.bytes, str(e))
        await self._store_cache(steps)
        return Staged(outcome, packed.sha1, packed.bytes)

    @asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        """Limit the block to the staging's deadline, and raise errors of the container or the host as StagingFailed."""
        try:
            async with asyncio.timeout_at(self._deadline) as limit:
                yield
        except TimeoutError as e:
            if limit.expired():
                raise StagingFailed(TIMED_OUT) from None
            raise StagingFailed("Error staging: the container failed", "StagingError", repr(e)) from e
        except (WshdError, WshdGone, FilesError, SpecError, OSError) as e:
            raise StagingFailed("Error staging: the container failed", "StagingError", str(e)) from e

    @property
    def _droplet(self) -> Path:
        return self._dir / "droplet.tgz"

    def _environment(self) -> tuple[str, ...]:
        properties = self.message.properties
        return staging_environment(
            self.start,
            environment=properties.environment or (),
            services=properties.services or (),
            memory_mb=self.claim.memory_mb,
            timeout_s=self._parts.settings.staging.max_staging_duration,
            tmpdir=TMPDIR,
        )

    async def _build(self, steps: Steps) -> Outcome:
        properties = self.message.properties
        await steps.prepare(user_variables(properties.environment or ()))
        await self._fetch_cache(steps)
        number, chosen, name = await steps.detect(self._candidates, properties.buildpack_key)
        directory = chosen.inside(number)
        await steps.compile(directory)
        release = await steps.release(chosen, directory)
        await (
            steps.end_all()
        )  # a process that the buildpack left running must not change the tree while it is packed
        command = properties.meta.command if properties.meta is not None else None
        outcome = bp.decide(chosen, name, command, await steps.procfile(), release)
        self.output.say(outcome.announced())
        await steps.note(outcome)
        return outcome

    async def _pack(self, steps: Steps) -> Packed:
        tree, bounds = self._dir / "layer", Bounds(total_bytes=self._disk_bytes)
        try:
            packed = await steps.pack(self._droplet, self._parts.unpacker, tree, bounds)
        except (ArchiveError, JailError, OSError, WshdError) as e:
            raise StagingFailed("Error staging: the droplet cannot be packed", "StagingError", str(e)) from e
        if packed.layer is not None:
            await self._parts.layers.adopt(tree, packed.sha1, packed.layer.bytes, packed.layer.files)
        return packed

    # -- the buildpack cache: its errors are only logged (with the original DEA a corrupt cache failed every staging) --

    async def _fetch_cache(self, steps: Steps) -> None:
        """Download and unpack the cache within `CACHE_SHARE` of the time, so that a slow server cannot fail the staging."""
        url = self.message.buildpack_cache_download_uri
        if not url:
            return
        archive = self._dir / "cache.tgz"
        try:
            async with asyncio.timeout(self._parts.settings.staging.max_staging_duration * CACHE_SHARE):
                await self._parts.transfers.download_file(
                    url, archive, limit_bytes=self._disk_bytes, owner=self.message.app_id
                )
            refused = await steps.unpack_cache(archive)
        except (TransferError, TimeoutError, OSError, WshdError) as e:
            self.log.info("buildpack_cache_ignored", error=str(e) or TIMED_OUT)
            return
        if refused is not None:
            self.log.warning("buildpack_cache_ignored", error=refused)
            return
        self.output.say(f"-----> Downloaded app buildpack cache ({_size(archive.stat().st_size)})")
        archive.unlink()

    async def _store_cache(self, steps: Steps) -> None:
        """Pack and upload the cache. The droplet is uploaded by now, so an error or a passed deadline is only logged."""
        url = self.message.buildpack_cache_upload_uri
        if not url:
            return
        archive = self._dir / "buildpack_cache.tgz"
        try:
            async with asyncio.timeout_at(self._deadline):
                refused = await steps.pack_cache(archive, Bounds(total_bytes=self._disk_bytes))
                if refused is None:
                    await self._parts.transfers.upload(url, archive, "buildpack_cache.tgz")
        except (TransferError, TimeoutError, ArchiveError, OSError, WshdError) as e:
            refused = str(e) or TIMED_OUT
        if refused is not None:
            self.log.warning("buildpack_cache_not_stored", error=refused)


def _size(size_bytes: int) -> str:
    for unit in ("B", "K", "M"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f}{unit}"
        size_bytes //= 1024
    return f"{size_bytes}G"
