"""One staging: package in, droplet out. The steps in order, each a method; the replies are the registry's.

The buildpack runs in a container of the stack as vcap. The app's tree is a lower of the container's home, so nothing is copied; the
droplet is what stands in /home/vcap afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from agent import plain_yaml
from agent.bus import messages as m
from agent.config import Settings
from agent.droplets.archive import ArchiveError, Bounds
from agent.droplets.layers import Layers
from agent.droplets.pack import Packed, pack
from agent.droplets.transfer import TransferError, Transfers
from agent.droplets.unpacker import JailError, Unpacker
from agent.instances.environment import HOME, staging_environment
from agent.instances.limits import MIB, egress_rules, ipv6_left_out, rootfs_of
from agent.logs import Log
from agent.staging import buildpacks as bp
from agent.staging.buildpacks import AdminBuildpacks, Buildpack, Outcome, StagingFailed
from agent.staging.log import StagingLog
from container import (
    BindMount,
    Container,
    ContainerSpec,
    CreateError,
    Depot,
    FileEntry,
    FilesError,
    JobSpec,
    Limits,
    NoLease,
    NotAFile,
    Output,
    Past,
    SpecError,
    WshdError,
    WshdGone,
)

APP, CACHE = f"{HOME}/app", "/tmp/cache"  # noqa: S108  (inside the container)
COMPILE_OUTPUT_BYTES = 10 << 20
TAR = ("tar", "--format=gnu", "--sort=name", "--numeric-owner", "--owner=0", "--group=0", "-b", "512")
DROPLET_MEMBERS = ("./app", "./logs", "./tmp", "./staging_info.yml")
PIPE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Workshop:
    """What every staging needs."""

    settings: Settings
    depot: Depot
    layers: Layers
    transfers: Transfers
    unpacker: Unpacker
    admin: AdminBuildpacks
    own: tuple[Buildpack, ...]
    work_dir: Path
    log: Log


@dataclass(frozen=True, slots=True)
class Staged:
    """``upload_error``: the droplet was made, but could not be handed over."""

    outcome: Outcome
    sha1: str
    size_bytes: int
    upload_error: str | None = None


class StagingTask:
    def __init__(
        self, message: m.StagingStart, reply_to: str, start: m.StartMessage | None, shop: Workshop
    ) -> None:
        self.message = message
        self.reply_to = reply_to
        self.start = start
        self.output = StagingLog()
        self._shop = shop
        self._dir = shop.work_dir / secrets.token_hex(8)
        self.log = shop.log.bind(task=message.task_id, app=message.app_id)
        limits = start.limits if start is not None else None
        settings = shop.settings.staging
        self.memory_mb = max(settings.memory_limit_mb, message.memory_limit or (limits.mem if limits else 0))
        self.disk_mb = max(settings.disk_limit_mb, message.disk_limit or (limits.disk if limits else 0))

    # -- set-up ------------------------------------------------------------------------------------------------

    async def set_up(self, held: AsyncExitStack) -> Container:
        """Everything up to the first reply. StagingFailed: why not."""
        properties, shop = self.message.properties, self._shop
        if properties.buildpack or properties.buildpack_git_url:
            raise StagingFailed(
                "Error staging: custom buildpacks are not supported yet",
                "StagingError",
                "a buildpack by git URL is not supported by this agent yet; name an installed one",
            )
        stack = next((one for one in shop.settings.stacks if one.name == self.message.stack), None)
        if stack is None:
            raise StagingFailed(f"Error staging: Stack {self.message.stack} does not exist")
        for rule in ipv6_left_out(self.message.egress_network_rules or ()):
            self.output.say(f"       No effect, since IPv6 is off in containers: egress rule {rule}")
            self.log.warning("egress_rule_left_out", rule=rule, because="IPv6 is off in containers")
        self._dir.mkdir(mode=0o755)
        held.callback(shop.layers.throw_away, self._dir)
        home = await self._fetch_package()
        admin = await shop.admin.fetch(self.message.admin_buildpacks or ())
        self._candidates = (*admin, *shop.own)
        try:
            container = await shop.depot.create(self._spec(rootfs_of(stack.package_path), home))
        except (SpecError, CreateError, NoLease) as e:
            raise StagingFailed("Error staging: no container", "StagingError", str(e)) from e
        held.push_async_callback(shop.depot.destroy, container.handle)
        return container

    async def _fetch_package(self) -> Path:
        archive, home = self._dir / "app.zip", self._dir / "home"
        limit_bytes = self.disk_mb * MIB
        try:
            await self._shop.transfers.download_file(
                self.message.download_uri, archive, limit_bytes=limit_bytes
            )
            self.output.say(f"-----> Downloaded app package ({_size(archive.stat().st_size)})")
            home.mkdir(mode=0o755)
            os.chown(home, 2000, 2000)
            await self._shop.layers.import_zip(archive, home / "app", Bounds(total_bytes=limit_bytes))
        except (TransferError, ArchiveError, JailError, OSError) as e:
            raise StagingFailed(f"Error staging: {e}") from e
        archive.unlink()
        return home

    def _spec(self, rootfs: Path, home: Path) -> ContainerSpec:
        settings = self._shop.settings.staging
        binds = tuple(BindMount(one.path, one.inside(number)) for number, one in enumerate(self._candidates))
        return ContainerSpec(
            layers=(rootfs,),
            home_layers=(home,),
            binds=binds,
            limits=Limits(
                memory_bytes=self.memory_mb * MIB,
                cpu_shares=settings.cpu_limit_shares,
                pids=settings.nproc_limit,
                disk_bytes=self.disk_mb * MIB,
                disk_inodes=settings.disk_inode_limit,
            ),
            egress=egress_rules(self.message.egress_network_rules or ()),
            properties={"kind": "staging", "task": self.message.task_id},
        )

    # -- in the container --------------------------------------------------------------------------------------

    async def stage(self, container: Container) -> Staged:
        """Detect, compile, release, pack, upload. StagingFailed: also past the configured duration."""
        try:
            async with asyncio.timeout(self._shop.settings.staging.max_staging_duration):
                outcome = await self._build(container)
        except TimeoutError:
            raise StagingFailed("Staging in container timed out") from None
        except (WshdError, WshdGone, FilesError, OSError) as e:
            raise StagingFailed("Error staging: the container failed", "StagingError", str(e)) from e
        packed = await self._pack(container)
        self.output.say(f"-----> Uploading droplet ({_size(packed.bytes)})")
        try:
            await self._shop.transfers.upload(self.message.upload_uri, self._droplet, "droplet.tgz")
        except TransferError as e:
            return Staged(outcome, packed.sha1, packed.bytes, str(e))
        await self._store_cache(container)
        return Staged(outcome, packed.sha1, packed.bytes)

    @property
    def _droplet(self) -> Path:
        return self._dir / "droplet.tgz"

    def _job(self, *argv: str, env: tuple[str, ...] = ()) -> JobSpec:
        return JobSpec(
            argv, env or self._environment(), cwd=HOME, output=Output(COMPILE_OUTPUT_BYTES, Past.DROP_OLDEST)
        )

    def _environment(self) -> tuple[str, ...]:
        properties = self.message.properties
        return staging_environment(
            self.start,
            environment=properties.environment or (),
            services=properties.services or (),
            memory_mb=self.memory_mb,
            timeout_s=self._shop.settings.staging.max_staging_duration,
        )

    async def _build(self, container: Container) -> Outcome:
        await self._must(container, "mkdir", "-p", CACHE, f"{HOME}/logs", f"{HOME}/tmp")  # noqa: S108  (inside)
        await self._fetch_cache(container)
        number, chosen, name = await self._detect(container)
        if await self._shown(container, f"{chosen.inside(number)}/bin/compile", APP, CACHE) != 0:
            raise StagingFailed(
                "Script exited with status 1", "BuildpackCompileFailed", "Buildpack compilation step failed"
            )
        release = await self._release(container, f"{chosen.inside(number)}/bin/release")
        outcome = bp.decide(chosen, name, self._command(), await self._procfile(container), release)
        await container.write_files(FileEntry(f"{HOME}/staging_info.yml", outcome.staging_info()))
        return outcome

    def _command(self) -> str | None:
        meta = self.message.properties.meta
        return meta.command if meta is not None else None

    async def _detect(self, container: Container) -> tuple[int, Buildpack, str]:
        key = self.message.properties.buildpack_key
        tried = []
        for one in bp.choose(self._candidates, key):
            number = self._candidates.index(one)
            if key is not None:
                return number, one, one.name
            try:
                said = await container.run(self._job(f"{one.inside(number)}/bin/detect", APP))
            except WshdError as e:  # one that cannot be run says no
                tried.append(f"{one.name} ({e})")
                continue
            if said.status.ok:
                return number, one, said.stdout.decode(errors="replace").strip() or one.name
            why = (said.stdout or said.stderr)[-200:].decode(errors="replace").strip()
            why = why.removeprefix(f"{one.name}: ")
            tried.append(f"{one.name} ({why})" if why else one.name)
        self.output.say(f"No buildpack recognised the app; tried: {', '.join(tried)}")
        raise StagingFailed(
            "Script exited with status 1",
            "NoAppDetectedError",
            "An application could not be detected by any available buildpack",
        )

    async def _procfile(self, container: Container) -> dict[str, str] | None:
        try:
            text = await container.read_file(f"{APP}/Procfile", plain_yaml.LIMIT_BYTES + 1)
        except (FileNotFoundError, NotAFile):
            return None
        return await asyncio.to_thread(bp.parse_procfile, text)

    async def _release(self, container: Container, program: str) -> bp.Release:
        try:
            said = await container.run(self._job(program, APP))
        except WshdError as e:
            raise bp.release_failed(str(e)) from e
        if not said.status.ok:
            raise bp.release_failed(said.stderr[-400:].decode(errors="replace").strip())
        return await asyncio.to_thread(bp.parse_release, said.stdout)

    async def _must(self, container: Container, *argv: str) -> None:
        result = await container.run(self._job(*argv))
        if not result.status.ok:
            raise StagingFailed(
                f"Error staging: {argv[0]} failed", "StagingError", result.stderr.decode(errors="replace")
            )

    async def _shown(self, container: Container, *argv: str) -> int:
        """Runs with its output shown live; returns the bus's exit status."""
        try:
            job = await container.spawn(self._job(*argv))
        except WshdError as e:
            raise StagingFailed(
                "Script exited with status 1", "BuildpackCompileFailed", f"{argv[0]}: {e}"
            ) from e
        self.log.info("buildpack_begun", program=argv[0])
        async for chunk in job.stream(None):
            self.output.add(chunk.data, chunk.stream)
        status = await job.wait()
        self.log.info("buildpack_ended", program=argv[0], status=status.bus_status)
        return status.bus_status

    async def _pack(self, container: Container) -> Packed:
        """tar in the container as vcap, compressed, hashed and made a layer outside, in one pass."""
        read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
        tree = self._dir / "layer"
        try:
            with contextlib.suppress(OSError):
                fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            spec = JobSpec((*TAR, "-C", HOME, "-c", *DROPLET_MEMBERS), self._environment(), cwd=HOME)
            job = await container.spawn_direct(spec, None, write_fd, None)
            os.close(write_fd)
            write_fd = -1
            packed = await pack(
                read_fd,
                self._droplet,
                unpacker=self._shop.unpacker,
                layer_dir=tree,
                bounds=Bounds(total_bytes=self.disk_mb * MIB),
            )
            status = await job.wait()
        except (ArchiveError, JailError, OSError, WshdError, WshdGone) as e:
            raise StagingFailed("Error staging: the droplet cannot be packed", "StagingError", str(e)) from e
        finally:
            for fd in (read_fd, write_fd):
                if fd >= 0:
                    os.close(fd)
        if not status.ok:
            raise StagingFailed(
                "Error staging: the droplet cannot be packed", "StagingError", f"tar: {status}"
            )
        if packed.layer is not None:
            await self._shop.layers.adopt(tree, packed.sha1, packed.layer.bytes, packed.layer.files)
        return packed

    # -- the buildpack cache: best effort in every step (dea-bus.md 9: a corrupt cache made every staging fail) ---

    async def _fetch_cache(self, container: Container) -> None:
        url = self.message.buildpack_cache_download_uri
        if not url:
            return
        archive = self._dir / "cache.tgz"
        try:
            await self._shop.transfers.download_file(url, archive, limit_bytes=self.disk_mb * MIB)
            fd = os.open(archive, os.O_RDONLY | os.O_CLOEXEC)
            try:
                job = await container.spawn_direct(self._job("tar", "-xzf", "-", "-C", CACHE), fd, None, None)
            finally:
                os.close(fd)
            status = await job.wait()
            if status.ok:
                self.output.say(f"-----> Downloaded app buildpack cache ({_size(archive.stat().st_size)})")
            else:
                self.log.warning("buildpack_cache_ignored", error=f"tar: {status}")
        except (TransferError, OSError, WshdError) as e:
            self.log.info("buildpack_cache_ignored", error=str(e))

    async def _store_cache(self, container: Container) -> None:
        url = self.message.buildpack_cache_upload_uri
        if not url:
            return
        archive = self._dir / "buildpack_cache.tgz"
        try:
            fd = os.open(archive, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                job = await container.spawn_direct(
                    self._job("tar", "-czf", "-", "-C", CACHE, "."), None, fd, None
                )
            finally:
                os.close(fd)
            if (await job.wait()).ok:
                await self._shop.transfers.upload(url, archive, "buildpack_cache.tgz")
        except (TransferError, OSError, WshdError, FilesError) as e:
            self.log.warning("buildpack_cache_not_stored", error=str(e))


def _size(size_bytes: int) -> str:
    for unit in ("B", "K", "M"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f}{unit}"
        size_bytes //= 1024
    return f"{size_bytes}G"
