"""One container: its state, jobs, limits, network and files. Made by `Depot.create`, ended by
`Depot.destroy`.

States are a table (parts.MOVES). pid 1 is watched by its pidfd: its death is seen at once, whoever caused it.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from container import events as kinds
from container import files, snapshot
from container.aio import FileWatcher
from container.cgroups import CgroupSet
from container.events import Events
from container.job import ExitStatus, Job, JobHost
from container.jobs import Jobs, PipedJob, RunResult, TerminalJob
from container.network import Networks
from container.parts import MOVES, ContainerState, Info, Move, Parts, WrongState
from container.plan import HOME
from container.snapshot import Phase
from container.spec import EgressRule, JobSpec, Limits, PortMapping, User
from container.undo import UndoStack
from container.wshd import Wshd, WshdGone, WshdSilent

#: Of a tree that is copied out: an app's sparse file is terabytes of zeros to tar.
COPY_OUT_BYTES: Final = 4 << 30

#: A process that was killed ends at once, but for one that is frozen or waits for a device.
_DEATH_S: Final = 10.0


class Container:
    def __init__(self, parts: Parts, *, watcher: FileWatcher, networks: Networks, release: UndoStack) -> None:
        """Takes over what is in ``release``, when nothing can fail any more: until then it is the maker's to undo."""
        self._parts = parts
        self._networks = networks
        self._died = asyncio.Event()
        self.state = ContainerState.STOPPED if parts.stopped else ContainerState.ACTIVE
        self.events = Events(parts.events)
        self._wshd = Wshd(parts.dir_fd, parts.handle)
        self._jobs_host = JobHost(
            parts.spool, watcher, self._wshd, self._died.is_set, lambda: self.events.tell(kinds.OVERRAN)
        )
        self._jobs = Jobs(self._jobs_host, parts.ids, lambda: self._check(Move.SPAWN))
        loop = asyncio.get_running_loop()
        loop.add_reader(parts.pidfd, self._on_death)
        release.callback(loop.remove_reader, parts.pidfd)
        self._stop_oom_watch = self._cgroup.watch_oom(loop, self._on_oom)
        release.callback(self._stop_oom_watch)
        release.push_async_callback(self.kill)
        self._release = release.pop_all()

    def __repr__(self) -> str:
        return f"<Container {self.handle} {self.state} pid={self.pid} jobs={len(self.jobs)}>"

    # What it is.

    @property
    def handle(self) -> str:
        return self._parts.handle

    @property
    def link_id(self) -> str:
        return self._parts.link_id

    @property
    def pid(self) -> int:
        return self._parts.pid

    @property
    def directory(self) -> Path:
        """Its place in the depot."""
        return self._parts.directory

    @property
    def socket_path(self) -> Path:
        return self._parts.directory / "wshd.sock"

    @property
    def properties(self) -> Mapping[str, str]:
        return self._parts.properties

    @property
    def address(self) -> str | None:
        return self._parts.lease.container_ip if self._parts.lease is not None else None

    @property
    def host_address(self) -> str | None:
        return self._parts.lease.host_ip if self._parts.lease is not None else None

    @property
    def ports(self) -> tuple[PortMapping, ...]:
        return self._parts.ports

    @property
    def limits(self) -> Limits:
        return self._parts.limits

    @property
    def record(self) -> bytes | None:
        """What the caller keeps beside the snapshot; None: nothing."""
        return snapshot.read_record(self._parts.directory)

    def keep_record(self, record: bytes) -> None:
        """Replace it. 0.1 ms. WrongState: the container is being destroyed, and its record with it."""
        self._check(Move.LOOK)
        snapshot.write_record(self._parts.directory, record)

    # Jobs.

    @property
    def jobs(self) -> Mapping[str, Job]:
        """Those on the spool that are not forgotten, by id."""
        return self._jobs.known

    async def spawn(self, spec: JobSpec) -> Job:
        """Start a job whose output goes to the spool. WshdError: it cannot be started (ENOENT, EACCES...)."""
        return await self._jobs.spawn(spec)

    async def run(self, spec: JobSpec) -> RunResult:
        """Start a job, wait for its end, and drop it."""
        return await self._jobs.run(spec)

    async def forget(self, job_id: str) -> None:
        """Drop an ended job with its output. WshdError EBUSY: it still runs."""
        await self._jobs.forget(job_id)

    async def spawn_piped(self, spec: JobSpec, *names: str) -> PipedJob:
        """A job with pipes to us for the named ones of stdin, stdout, stderr; the others are /dev/null."""
        return await self._jobs.piped(spec, names)

    async def spawn_terminal(self, spec: JobSpec, rows: int, cols: int) -> TerminalJob:
        """A job on a terminal; the master descriptor is the caller's to close."""
        return await self._jobs.terminal(spec, rows, cols)

    async def recover_jobs(self) -> None:
        """After a restart: the jobs that wshd knows and those whose files lie in the spool."""
        await self._jobs.recover()

    # Life.

    async def end_jobs(self, grace_s: float) -> None:
        """End every process but pid 1, as `stop` does, and stay active: the container takes jobs again afterwards.

        Nothing that ran before can then watch, hold up or change what runs next. WshdGone: pid 1 is dead.
        """
        self._check(Move.SPAWN)
        await self._wshd.stop(grace_s)

    async def stop(self, grace_s: float) -> None:
        """End every process but pid 1: TERM, then KILL after the grace. Files, addresses, limits remain."""
        self._enter(Move.STOP)
        self._parts.stopped = True
        try:
            self._save()
        finally:  # a full disk keeps nobody alive
            try:
                await self._wshd.stop(grace_s)
            except WshdSilent:
                raise
            except WshdGone:
                pass

    async def wait_dead(self) -> None:
        """Until pid 1 is dead."""
        await self._died.wait()

    @property
    def can_be_asked(self) -> bool:
        """Is there a pid 1 that should answer?"""
        return self.state in (ContainerState.ACTIVE, ContainerState.STOPPED) and not self._died.is_set()

    async def look_at_jobs(self, timeout_s: float) -> None:
        """Asks pid 1 for what it knows of ended jobs. WshdSilent: it does not answer; WshdGone, WshdError."""
        await self._jobs.look(timeout_s)

    async def kill(self) -> None:
        """End pid 1, and with it every process inside. Idempotent; for the depot. TimeoutError: it does not end."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._parts.pidfd, signal.SIGKILL)
        if not await self._dies_within(_DEATH_S):
            await self.kill_by_cgroup()

    async def kill_by_cgroup(self) -> None:
        """As `kill`, whatever state its processes are in: frozen ones are thawed. TimeoutError."""
        await asyncio.to_thread(self._cgroup.kill_all)
        if not await self._dies_within(_DEATH_S):
            raise TimeoutError(f"{self.handle}: pid 1 ({self.pid}) does not end")

    async def _dies_within(self, timeout_s: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._died.wait()
        return self._died.is_set()

    @property
    def is_released(self) -> bool:
        """Nothing is left of it."""
        return self.state is ContainerState.DESTROYED and not len(self._release)

    async def release(self) -> None:
        """Give back all that the container is made of. What fails is left, and is tried again by the next call; for
        `Depot.destroy`.
        """
        self._enter(Move.DESTROY)
        try:
            await self._release.aclose()
        finally:
            self.events.close()

    def detach(self) -> None:
        """Let go of descriptors only: the container goes on without this manager."""
        if self._parts.pidfd >= 0:  # else destroy has come so far, and failed after it
            asyncio.get_running_loop().remove_reader(self._parts.pidfd)
        self._stop_oom_watch()
        self._parts.close()
        self._release.pop_all()
        self.events.close()

    # Limits and measurements.

    async def info(self) -> Info:
        self._check(Move.LOOK)
        cgroup, disk = self._parts.cgroup, self._parts.disk
        assert cgroup is not None
        usage = disk.usage() if disk is not None else None
        return Info(
            state=self.state,
            events=self.events.kinds,
            job_ids=tuple(job_id for job_id, job in self.jobs.items() if job.status is None),
            memory_bytes=cgroup.memory_bytes(),
            memory_limit_bytes=self.limits.memory_bytes,
            memory_stat=cgroup.memory_stat(),
            oom_kills=cgroup.oom_kills(),
            cpu_ns=cgroup.cpu_ns(),
            pids=cgroup.pids(),
            disk_bytes=usage.bytes if usage is not None else 0,
            disk_inodes=usage.inodes if usage is not None else 0,
        )

    def oom_kills(self) -> int:
        """How often the kernel has killed for memory, since the container was made."""
        self._check(Move.LOOK)
        return self._cgroup.oom_kills()

    async def limit_memory(self, limit_bytes: int | None) -> None:
        self._check(Move.CHANGE)
        self._cgroup.set_memory(limit_bytes)
        self._change_limits(replace(self.limits, memory_bytes=limit_bytes))

    async def limit_cpu(self, shares: int) -> None:
        self._check(Move.CHANGE)
        self._cgroup.set_cpu_shares(shares)
        self._change_limits(replace(self.limits, cpu_shares=shares))

    async def limit_pids(self, count: int | None) -> None:
        self._check(Move.CHANGE)
        self._cgroup.set_pids(count)
        self._change_limits(replace(self.limits, pids=count))

    async def limit_disk(self, limit_bytes: int | None) -> None:
        """Live, both ways. DiskError: more than it was made for (`Limits.disk_max_bytes`)."""
        self._check(Move.CHANGE)
        if self._parts.disk is None:
            raise WrongState(f"{self.handle}: has no disk of its own (disk_limits is off)")
        await asyncio.to_thread(self._parts.disk.resize, limit_bytes)
        self._change_limits(replace(self.limits, disk_bytes=limit_bytes))

    # Network.

    async def net_in(self, mapping: PortMapping) -> PortMapping:
        """Publish a port; answers with the ports that it got."""
        self._check(Move.CHANGE)
        if self._parts.link is None:
            raise WrongState(f"{self.handle}: has no network")
        resolved = await self._networks.publish(self._parts.link, mapping)
        self._parts.ports += (resolved,)
        self._save()
        return resolved

    async def net_out(self, rule: EgressRule) -> None:
        """Permit one more way out."""
        self._check(Move.CHANGE)
        if self._parts.link is None:
            raise WrongState(f"{self.handle}: has no network")
        rules = (*self._parts.egress, rule)
        await self._networks.set_egress(self._parts.link, rules)
        self._parts.egress = rules
        self._save()

    # Files.

    async def path_fd(self, path: str) -> int:
        """An O_PATH descriptor of the caller's; after pid 1's death only below /home/vcap. OSError: also of what is on no
        mount of the container's own.
        """
        tree, inner = self._tree_for(path)
        return tree.open(inner, os.O_PATH)

    async def read_file(self, path: str, max_bytes: int, offset: int = 0) -> bytes:
        """Regular files only, never through a link out of the container, and of its own mounts; also when all jobs have
        ended.
        """
        tree, inner = self._tree_for(path)
        return await asyncio.to_thread(files.read_file, tree, inner, max_bytes, offset)

    async def write_files(self, *entries: files.FileEntry) -> None:
        """Small files, by the manager itself; missing directories are made."""
        self._check(Move.CHANGE)
        tree = files.Tree(self._parts.root_fd, self._parts.own_mounts())
        for entry in entries:
            await asyncio.to_thread(files.write_file, tree, entry, self._parts.ids)

    async def copy_in(self, tar: bytes | int, destination: str, *, user: User = User.VCAP) -> None:
        """Unpack a tar stream (bytes, or a descriptor to read from) below ``destination``, by tar inside."""
        with await self.spawn_piped(files.unpack_job(destination, user), "stdin", "stderr") as job:
            _, status, said = await job.run(job.pipe("stdin").send(tar))
        _check_tar(status, said)

    async def copy_out(
        self, path: str, to_fd: int, *, user: User = User.VCAP, limit_bytes: int = COPY_OUT_BYTES
    ) -> None:
        """Pack ``path`` as a tar stream into a descriptor, by tar inside. FilesError, TooMuch: more than ``limit_bytes``."""
        with await self.spawn_piped(files.pack_job(path, user), "stdout", "stderr") as job:
            _, status, said = await job.run(job.pipe("stdout").receive(to_fd, limit_bytes))
        _check_tar(status, said)

    def _tree_for(self, path: str) -> tuple[files.Tree, str]:
        self._check(Move.LOOK)
        parts = self._parts
        root_fd = parts.root_fd
        if self._died.is_set() and parts.home_fd >= 0:
            # The container's mounts went apart with pid 1; the home's own tree is still held.
            inner = os.path.normpath(path)
            if inner == HOME or inner.startswith(HOME + "/"):
                root_fd, path = parts.home_fd, inner[len(HOME) :] or "/"
        return files.Tree(root_fd, parts.own_mounts()), path

    # Inside.

    @property
    def _cgroup(self) -> CgroupSet:
        assert self._parts.cgroup is not None
        return self._parts.cgroup

    def _check(self, move: Move) -> None:
        if (self.state, move) not in MOVES:
            raise WrongState(f"{self.handle}: cannot {move} while {self.state}")

    def _enter(self, move: Move) -> None:
        self._check(move)
        self.state = MOVES[self.state, move]

    def _change_limits(self, limits: Limits) -> None:
        self._parts.limits = limits
        self._save()

    def _save(self) -> None:
        self._parts.events = self.events.kinds
        snapshot.write(self._parts.directory, self._parts.snapshot(Phase.MADE))

    def _on_oom(self) -> None:
        self.events.tell(kinds.OUT_OF_MEMORY)
        if self.state is not ContainerState.DESTROYED:
            self._save()

    def _on_death(self) -> None:
        asyncio.get_running_loop().remove_reader(self._parts.pidfd)
        self._enter(Move.DIE)
        self._died.set()
        for job in self.jobs.values():
            job.status  # noqa: B018  settled now: the files may be removed before a waiter has its turn
        for wake in tuple(self._jobs_host.on_death):
            wake()
        self.events.tell(kinds.DEAD)


def _check_tar(status: ExitStatus, said: str) -> None:
    if not status.ok:
        raise files.FilesError(f"tar: {said or status}")
