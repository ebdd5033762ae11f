"""One container as callers have it: its state, jobs, limits, network and files.

`Depot.create` makes it and `destroy` ends it. What it shares with the depot is its `Body`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from container import files, snapshot
from container.body import Body
from container.events import Events
from container.jobs import ExitStatus, Job, PipedJob, RunResult, TerminalJob
from container.parts import Action, ContainerState, Info, WrongState
from container.spec import EgressRule, JobSpec, Limits, PortMapping, User
from container.wshd import WshdGone, WshdSilent
from wsh.vcap import VCAP_HOME

#: Of a tree that is copied out: a sparse file is terabytes of zeros to tar.
COPY_OUT_BYTES: Final = 4 << 30


class Container:
    """Values that can change (limits, ports, state) are read anew at each access."""

    def __init__(self, body: Body, destroy: Callable[[str, float], Awaitable[None]]) -> None:
        self._body = body
        self._parts = body.parts
        self._jobs = body.jobs
        self._wshd = body.wshd
        self._destroy = destroy

    def __repr__(self) -> str:
        return repr(self._body)

    async def destroy(self, grace_s: float = 0) -> None:
        """Remove the container and all that it is made of; with a grace its processes get TERM first. Idempotent.

        Raises what could not be removed. The container is then `ContainerState.DESTROY_FAILED`, and the depot tries again.
        """
        await self._destroy(self.handle, grace_s)

    # What it is.

    @property
    def state(self) -> ContainerState:
        """Where it stands; see `ContainerState`."""
        return self._body.state

    @property
    def events(self) -> Events:
        """What has happened to it, and a subscription to what happens."""
        return self._body.events

    @property
    def handle(self) -> str:
        """Its name in the depot; the one that was asked for, or `link_id`."""
        return self._parts.handle

    @property
    def link_id(self) -> str:
        """11 characters of [0-9a-v] that name its cgroup, its link and its firewall elements."""
        return self._parts.link_id

    @property
    def pid(self) -> int:
        """The host's number of its pid 1."""
        return self._parts.pid

    @property
    def directory(self) -> Path:
        """Its place in the depot."""
        return self._parts.directory

    @property
    def socket_path(self) -> Path:
        """The socket of its pid 1, for `wsh`; closed to all but root of the host."""
        return self._parts.directory / "wshd.sock"

    @property
    def properties(self) -> Mapping[str, str]:
        """The caller's own texts by name, kept over restarts; `set_properties` replaces them."""
        return self._parts.properties

    def set_properties(self, properties: Mapping[str, str]) -> None:
        """Replace them. OSError: they could not be written down, and are as before; WrongState."""
        self._check(Action.CHANGE)
        before, self._parts.properties = self._parts.properties, dict(properties)
        try:
            self._body.save()
        except OSError:
            self._parts.properties = before
            raise

    @property
    def address(self) -> str | None:
        """Its address inside; None: it has no network."""
        return self._parts.lease.container_ip if self._parts.lease is not None else None

    @property
    def host_address(self) -> str | None:
        """The host's end of its link, which is its gateway; None: it has no network."""
        return self._parts.lease.host_ip if self._parts.lease is not None else None

    @property
    def ports(self) -> tuple[PortMapping, ...]:
        """The published ports, with the numbers that they got."""
        return self._parts.ports

    @property
    def limits(self) -> Limits:
        """The limits that hold now."""
        return self._parts.limits

    @property
    def record(self) -> bytes | None:
        """What the caller keeps beside the snapshot; None: nothing."""
        return snapshot.read_record(self._parts.directory)

    def keep_record(self, record: bytes) -> None:
        """Replace it. 0.1 ms. WrongState: the container is being destroyed, and its record with it."""
        self._check(Action.LOOK)
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

    # Life.

    async def end_jobs(self, grace_s: float) -> None:
        """End every process but pid 1, as `stop` does, and stay active: the container takes jobs again afterwards.

        Nothing that ran before can then watch, hold up or change what runs next. WshdGone: pid 1 is dead.
        """
        self._check(Action.SPAWN)
        await self._wshd.stop(grace_s)

    async def stop(self, grace_s: float) -> None:
        """End every process but pid 1: TERM, then KILL after the grace. Files, addresses, limits remain."""
        self._body.enter(Action.STOP)
        self._parts.stopped = True
        try:
            self._body.save()
        finally:  # a full disk keeps nobody alive
            try:
                await self._wshd.stop(grace_s)
            except WshdSilent:
                raise
            except WshdGone:
                pass

    async def wait_dead(self) -> None:
        """Until pid 1 is dead."""
        await self._body.died.wait()

    # Limits and measurements.

    async def info(self) -> Info:
        """Measure it. 0.3 ms. WrongState: it is being destroyed; OSError: a file of the kernel cannot be read."""
        self._check(Action.LOOK)
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
        self._check(Action.LOOK)
        return self._body.cgroup.oom_kills()

    async def limit_memory(self, limit_bytes: int | None) -> None:
        """In bytes; None: no limit. OSError EBUSY on cgroup v1: it uses more than that now. WrongState."""
        self._check(Action.CHANGE)
        self._body.cgroup.set_memory(limit_bytes)
        self._change_limits(replace(self.limits, memory_bytes=limit_bytes))

    async def limit_cpu(self, shares: int) -> None:
        """Its weight against other containers: 1,024 is the usual one. OSError, WrongState."""
        self._check(Action.CHANGE)
        self._body.cgroup.set_cpu_shares(shares)
        self._change_limits(replace(self.limits, cpu_shares=shares))

    async def limit_pids(self, count: int | None) -> None:
        """How many processes and threads it may have; None: no limit. OSError, WrongState."""
        self._check(Action.CHANGE)
        self._body.cgroup.set_pids(count)
        self._change_limits(replace(self.limits, pids=count))

    async def limit_disk(self, limit_bytes: int | None) -> None:
        """Live, both ways. DiskError: more than it was made for (`Limits.disk_max_bytes`)."""
        self._check(Action.CHANGE)
        if self._parts.disk is None:
            raise WrongState(f"{self.handle}: has no disk of its own (disk_limits is off)")
        await asyncio.to_thread(self._parts.disk.resize, limit_bytes)
        self._change_limits(replace(self.limits, disk_bytes=limit_bytes))

    # Network.

    async def net_in(self, mapping: PortMapping) -> PortMapping:
        """Publish a port; answers with the ports that it got."""
        self._check(Action.CHANGE)
        if self._parts.link is None:
            raise WrongState(f"{self.handle}: has no network")
        resolved = await self._body.networks.publish(self._parts.link, mapping)
        self._parts.ports += (resolved,)
        self._body.save()
        return resolved

    async def net_out(self, rule: EgressRule) -> None:
        """Permit one more way out."""
        self._check(Action.CHANGE)
        if self._parts.link is None:
            raise WrongState(f"{self.handle}: has no network")
        rules = (*self._parts.egress, rule)
        await self._body.networks.set_egress(self._parts.link, rules)
        self._parts.egress = rules
        self._body.save()

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
        self._check(Action.CHANGE)
        tree = files.Tree(self._parts.root_fd, self._parts.own_mounts())
        for entry in entries:
            await asyncio.to_thread(files.write_file, tree, entry, self._parts.ids)

    async def copy_in(self, tar: bytes | int, destination: str, *, user: int = User.VCAP) -> None:
        """Unpack a tar stream (bytes, or a descriptor to read from) below ``destination``, by tar inside."""
        with await self.spawn_piped(files.unpack_job(destination, user), "stdin", "stderr") as job:
            _, status, said = await job.run(job.pipe("stdin").send(tar))
        _check_tar(status, said)

    async def copy_out(
        self, path: str, to_fd: int, *, user: int = User.VCAP, limit_bytes: int = COPY_OUT_BYTES
    ) -> None:
        """Pack ``path`` as a tar stream into a descriptor, by tar inside. FilesError, TooMuch: more than ``limit_bytes``."""
        with await self.spawn_piped(files.pack_job(path, user), "stdout", "stderr") as job:
            _, status, said = await job.run(job.pipe("stdout").receive(to_fd, limit_bytes))
        _check_tar(status, said)

    def _tree_for(self, path: str) -> tuple[files.Tree, str]:
        self._check(Action.LOOK)
        parts = self._parts
        root_fd = parts.root_fd
        if self._body.died.is_set() and parts.home_fd >= 0:
            # The container's mounts went apart with pid 1; the home's own tree is still held.
            inner = os.path.normpath(path)
            if inner == VCAP_HOME or inner.startswith(VCAP_HOME + "/"):
                root_fd, path = parts.home_fd, inner[len(VCAP_HOME) :] or "/"
        return files.Tree(root_fd, parts.own_mounts()), path

    # Inside.

    def _check(self, action: Action) -> None:
        self._body.check(action)

    def _change_limits(self, limits: Limits) -> None:
        self._parts.limits = limits
        self._body.save()


def _check_tar(status: ExitStatus, said: str) -> None:
    if not status.ok:
        raise files.FilesError(f"tar: {said or status}")
