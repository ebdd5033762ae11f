"""One container as callers see it: its state, jobs, limits, network and files.

`Depot.create` makes it and `destroy` ends it. It shares one `Body` with the depot, which holds the state.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from container import files, snapshot
from container.body import Body
from container.events import Events
from container.jobs import ExitStatus, Job, PipedJob, RunResult, TerminalJob
from container.openings import Openings
from container.parts import Action, ContainerState, Info, WrongState
from container.spec import Bandwidth, CpuCap, EgressRule, JobSpec, Limits, PortMapping, User
from container.wshd import WshdGone, WshdSilent
from wsh.vcap import VCAP_HOME

#: The default limit of `Container.copy_out`. To tar, a sparse file is terabytes of zeros.
COPY_OUT_BYTES: Final = 4 << 30


class Container:
    """A container of a depot. Properties that can change (limits, ports, state) are read anew at each access."""

    def __init__(self, body: Body, destroy: Callable[[str, float], Awaitable[None]]) -> None:
        self._body = body
        self._parts = body.parts
        self._jobs = body.jobs
        self._wshd = body.wshd
        self._destroy = destroy
        self._openings = Openings(body)

    def __repr__(self) -> str:
        return repr(self._body)

    async def destroy(self, grace_s: float = 0) -> None:
        """Remove the container and everything that belongs to it. With a grace its processes get TERM first. Idempotent.

        If something cannot be removed, its error is raised, the state is `ContainerState.DESTROY_FAILED`, and the depot
        tries again later.
        """
        await self._destroy(self.handle, grace_s)

    # What it is.

    @property
    def state(self) -> ContainerState:
        """The present state."""
        return self._body.state

    @property
    def events(self) -> Events:
        """The events so far, and a subscription to later ones."""
        return self._body.events

    @property
    def broken(self) -> str:
        """Which piece of it others have removed, for a reader ("its network link was deleted"); empty: none.

        Its processes run on, but without network or limits, and nothing brings the piece back: destroy it.
        """
        return self._body.broken

    @property
    def handle(self) -> str:
        """Its name in the depot: `ContainerSpec.handle`, or `link_id` if the spec had none."""
        return self._parts.handle

    @property
    def link_id(self) -> str:
        """11 characters of [0-9a-v], the name of its cgroup, its link and its firewall elements."""
        return self._parts.link_id

    @property
    def pid(self) -> int:
        """The host pid of its pid 1."""
        return self._parts.pid

    @property
    def directory(self) -> Path:
        """Its directory in the depot."""
        return self._parts.directory

    @property
    def v1_cgroups(self) -> Mapping[str, Path]:
        """Its cgroup directory by controller on cgroup v1, where each limit is; empty on v2."""
        return self._body.cgroup.v1_directories

    @property
    def ids_first(self) -> int:
        """The host's id of root inside; a user inside has this id plus its own."""
        return self._parts.ids.first

    @property
    def egress(self) -> tuple[EgressRule, ...]:
        """The egress rules that are in force now."""
        return self._parts.egress

    def annotate_snapshot(self, keys: Callable[[], Mapping[str, Any]]) -> None:
        """Add keys to the snapshot file for other readers. ``keys`` is called at each write; the depot never reads them back.

        A key of the depot's own is not replaced. OSError: the file could not be written. WrongState.
        """
        self._check(Action.LOOK)
        self._body.annotations = keys
        self._body.save()

    @property
    def socket_path(self) -> Path:
        """The socket of its pid 1, for `wsh`. Only root of the host may connect."""
        return self._parts.directory / "wshd.sock"

    @property
    def properties(self) -> Mapping[str, str]:
        """Texts of the caller by name. They are kept over restarts; `set_properties` replaces them."""
        return self._parts.properties

    def set_properties(self, properties: Mapping[str, str]) -> None:
        """Replace all properties. OSError: the snapshot could not be written, and they are as before; WrongState."""
        self._check(Action.CHANGE)
        before, self._parts.properties = self._parts.properties, dict(properties)
        try:
            self._body.save()
        except OSError:
            self._parts.properties = before
            raise

    @property
    def address(self) -> str | None:
        """The address of its eth0; None: it has no network."""
        return self._parts.lease.container_ip if self._parts.lease is not None else None

    @property
    def host_address(self) -> str | None:
        """The host's end of its link, which is its gateway; None: it has no network."""
        return self._parts.lease.host_ip if self._parts.lease is not None else None

    @property
    def ports(self) -> tuple[PortMapping, ...]:
        """The published ports, with both numbers filled in."""
        return self._parts.ports

    @property
    def limits(self) -> Limits:
        """The limits that are in force now."""
        return self._parts.limits

    @property
    def record(self) -> bytes | None:
        """The bytes that the caller keeps beside the snapshot; None: there are none."""
        return snapshot.read_record(self._parts.directory)

    def keep_record(self, record: bytes) -> None:
        """Replace the record, in 0.1 ms. WrongState: the container, and its record with it, is being destroyed."""
        self._check(Action.LOOK)
        snapshot.write_record(self._parts.directory, record)

    # Jobs.

    @property
    def jobs(self) -> Mapping[str, Job]:
        """The jobs on the spool by id, until they are forgotten."""
        return self._jobs.known

    async def spawn(self, spec: JobSpec) -> Job:
        """Start a job whose output goes to the spool. WshdError: it cannot be started (ENOENT, EACCES...)."""
        return await self._jobs.spawn(spec)

    async def run(self, spec: JobSpec) -> RunResult:
        """Start a job, wait for its end, return its status and output, and forget it."""
        return await self._jobs.run(spec)

    async def forget(self, job_id: str) -> None:
        """Remove an ended job with its output. UnknownJob; WshdError EBUSY: it still runs."""
        await self._jobs.forget(job_id)

    async def spawn_piped(self, spec: JobSpec, *names: str) -> PipedJob:
        """Start a job with pipes for the ``names`` of stdin, stdout and stderr; the others are /dev/null."""
        return await self._jobs.piped(spec, names)

    async def spawn_terminal(self, spec: JobSpec, rows: int, cols: int) -> TerminalJob:
        """Start a job on a terminal. The caller must close its master descriptor."""
        return await self._jobs.terminal(spec, rows, cols)

    # Life.

    async def end_jobs(self, grace_s: float) -> None:
        """End every process but pid 1, as `stop` does, and stay active: new jobs can be started afterwards.

        Nothing that ran before can then read, delay or change what runs next. WshdGone: pid 1 is dead.
        """
        self._check(Action.SPAWN)
        await self._wshd.stop(grace_s)

    async def stop(self, grace_s: float) -> None:
        """End every process but pid 1: TERM, then KILL after the grace. Files, addresses and limits stay."""
        self._body.enter(Action.STOP)
        self._parts.stopped = True
        try:
            self._body.save()
        finally:  # also on a full disk, where the snapshot cannot be written
            try:
                await self._wshd.stop(grace_s)
            except WshdSilent:
                raise
            except WshdGone:
                pass

    async def wait_dead(self) -> None:
        """Returns when pid 1 is dead."""
        await self._body.died.wait()

    # Limits and measurements.

    async def info(self) -> Info:
        """Measure it, in 0.3 ms. WrongState: it is being destroyed; OSError: a file of the kernel cannot be read."""
        self._check(Action.LOOK)
        cgroup, disk = self._parts.cgroup, self._parts.disk
        assert cgroup is not None
        usage = disk.usage() if disk is not None else None
        link, bandwidth = self._parts.link, self.limits.bandwidth
        use = await self._body.networks.measure(link, bandwidth) if link is not None else None
        user_ns, system_ns = cgroup.cpu_user_system_ns()
        cap = cgroup.cpu_cap()
        return Info(
            state=self.state,
            events=self.events.kinds,
            job_ids=tuple(job_id for job_id, job in self.jobs.items() if job.status is None),
            memory_bytes=cgroup.memory_bytes(),
            memory_limit_bytes=self.limits.memory_bytes,
            memory_stat=cgroup.memory_stat(),
            oom_kills=cgroup.oom_kills(),
            cpu_ns=cgroup.cpu_ns(),
            cpu_user_ns=user_ns,
            cpu_system_ns=system_ns,
            pids=cgroup.pids(),
            disk_bytes=usage.bytes if usage is not None else 0,
            disk_inodes=usage.inodes if usage is not None else 0,
            traffic=use.traffic if use is not None else None,
            bandwidth_in=use.inbound if use is not None else None,
            bandwidth_out=use.outbound if use is not None else None,
            cpu_cap=cap,
            throttling=cgroup.throttling() if cap is not None else None,
            pressure=cgroup.pressure(),
        )

    def oom_kills(self) -> int:
        """How many processes the kernel has killed for memory since the container was made."""
        self._check(Action.LOOK)
        return self._body.cgroup.oom_kills()

    async def limit_memory(self, limit_bytes: int | None) -> None:
        """Set the memory limit in bytes; None: no limit. OSError EBUSY on cgroup v1: it uses more than that now. WrongState."""
        self._check(Action.CHANGE)
        self._body.cgroup.set_memory(limit_bytes)
        self._change_limits(replace(self.limits, memory_bytes=limit_bytes))

    async def limit_cpu(self, shares: int) -> None:
        """Set its weight against other containers; 1,024 is the default. OSError, WrongState."""
        self._check(Action.CHANGE)
        self._body.cgroup.set_cpu_shares(shares)
        self._change_limits(replace(self.limits, cpu_shares=shares))

    async def limit_cpu_cap(self, cap: CpuCap | None) -> None:
        """Set the hard limit of processor time; None: no limit. OSError EOPNOTSUPP: the kernel has none; OSError, WrongState."""
        self._check(Action.CHANGE)
        self._body.cgroup.set_cpu_cap(cap)
        self._change_limits(replace(self.limits, cpu_cap=cap))

    async def limit_pids(self, count: int | None) -> None:
        """Set how many processes and threads it may have; None: no limit. OSError, WrongState."""
        self._check(Action.CHANGE)
        self._body.cgroup.set_pids(count)
        self._change_limits(replace(self.limits, pids=count))

    async def limit_disk(self, limit_bytes: int | None) -> None:
        """Raise or lower the disk limit. DiskError: more than the disk was made for (`Limits.disk_max_bytes`)."""
        self._check(Action.CHANGE)
        if self._parts.disk is None:
            raise WrongState(f"container {self.handle}: has no disk of its own, since disk_limits is off")
        await asyncio.to_thread(self._parts.disk.resize, limit_bytes)
        self._change_limits(replace(self.limits, disk_bytes=limit_bytes))

    async def limit_bandwidth(self, bandwidth: Bandwidth | None) -> None:
        """Set the limit of its traffic, the same into the container and out of it; None: no limit. Connections go on.

        SpecError: the burst is below one packet; ShapingError: the kernel cannot limit; OSError, FirewallError, WrongState.
        """
        self._check(Action.CHANGE)
        if self._parts.link is None:
            raise WrongState(f"{self.handle}: has no network")
        await self._body.networks.limit(self._parts.link, bandwidth, self.limits.bandwidth)
        self._change_limits(replace(self.limits, bandwidth=bandwidth))

    # Network. Each change is made as a whole, also if its caller is cancelled.

    async def net_in(self, mapping: PortMapping) -> PortMapping:
        """Publish a port. Returns the mapping with both ports filled in. PortTaken, NoPorts, FirewallError, WrongState."""
        return await self._openings.net_in(mapping)

    async def remove_net_in(self, mapping: PortMapping) -> None:
        """End a published port, one of `ports`, and the connections that came by it. The port then rests.

        NoSuchRule; FirewallError: it is published as before; WrongState.
        """
        await self._openings.remove_net_in(mapping)

    async def net_out(self, rule: EgressRule) -> None:
        """Add an egress rule. FirewallError, WrongState."""
        await self._openings.net_out(rule)

    async def remove_net_out(self, rule: EgressRule) -> None:
        """Take an egress rule away, one of `egress`; of equal ones the last. Connections that no other rule permits end.

        NoSuchRule; FirewallError: the rules are as before; WrongState.
        """
        await self._openings.remove_net_out(rule)

    # Files.

    async def path_fd(self, path: str) -> int:
        """Open an O_PATH descriptor, which the caller must close. After pid 1's death only paths below /home/vcap work.

        OSError: also for a path that is on no mount of the container's own.
        """
        tree, inner = self._tree_for(path)
        return tree.open(inner, os.O_PATH)

    async def read_file(self, path: str, max_bytes: int, offset: int = 0) -> bytes:
        """Read a regular file on the container's own mounts. Links never lead out of the container. No job is needed.

        NotAFile, OSError, WrongState.
        """
        tree, inner = self._tree_for(path)
        return await asyncio.to_thread(files.read_file, tree, inner, max_bytes, offset)

    async def write_files(self, *entries: files.FileEntry) -> None:
        """Write small files. The manager writes them itself, and makes missing directories."""
        self._check(Action.CHANGE)
        tree = files.Tree(self._parts.root_fd, self._parts.own_mounts())
        for entry in entries:
            await asyncio.to_thread(files.write_file, tree, entry, self._parts.ids)

    async def copy_in(self, tar: bytes | int, destination: str, *, user: int = User.VCAP) -> None:
        """Unpack a tar stream (bytes, or a descriptor to read from) below ``destination``, by a tar job. FilesError."""
        with await self.spawn_piped(files.unpack_job(destination, user), "stdin", "stderr") as job:
            _, status, stderr = await job.run(job.pipe("stdin").send(tar))
        _check_tar(status, stderr)

    async def copy_out(
        self, path: str, to_fd: int, *, user: int = User.VCAP, limit_bytes: int = COPY_OUT_BYTES
    ) -> None:
        """Pack ``path`` as a tar stream into a descriptor, by a tar job. FilesError; TooMuch: more than ``limit_bytes``."""
        with await self.spawn_piped(files.pack_job(path, user), "stdout", "stderr") as job:
            _, status, stderr = await job.run(job.pipe("stdout").receive(to_fd, limit_bytes))
        _check_tar(status, stderr)

    def _tree_for(self, path: str) -> tuple[files.Tree, str]:
        self._check(Action.LOOK)
        parts = self._parts
        root_fd = parts.root_fd
        if self._body.died.is_set() and parts.home_fd >= 0:
            # The kernel took the mounts apart when pid 1 died. The tree of the home is still held by its descriptor.
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


def _check_tar(status: ExitStatus, stderr: str) -> None:
    if not status.ok:
        raise files.FilesError(f"tar: {stderr or f'ended with status {status.number} and no message'}")
