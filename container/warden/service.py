"""Carries out the requests of Warden's protocol on a depot (docs/warden.md, "Requests").

A request is a message with a handler in a table. A handler returns its response or raises; each error of the container
manager becomes the text of an ErrorResponse. Handlers of different connections run at the same time; what two of them must
not do at once (a handle created twice, a container destroyed twice) is decided without an await in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from container.aio import Log, finish
from container.container import Container
from container.depot import Depot, UnknownHandle
from container.disk import DiskError
from container.errors import ContainerError
from container.network.shaping import least_burst_bytes
from container.parts import ContainerState
from container.pools import NoLease
from container.spec import PortMapping
from container.warden import copies, records
from container.warden import messages as m
from container.warden.containers import ACTIVE, STOP_GRACE_S, STOPPED, WardenContainer
from container.warden.errors import WardenError, text_of
from container.warden.jobs import WardenJob, account, job_spec
from container.warden.layout import CgroupLinks, write_files
from container.warden.limits import (
    DEFAULT_CPU_SHARES,
    LEAST_CPU_SHARES,
    NO_MEMORY_LIMIT,
    disk_response,
    job_rlimits,
    wanted_disk_bytes,
    wanted_inodes,
)
from container.warden.netout import egress_rule
from container.warden.records import SavedContainer, SavedJob
from container.warden.specs import container_spec
from container.warden.syslog import DEFAULT_SOCKET, TAG_BYTES
from wsh.units import MIB

PAGE_BYTES: Final = 4096
_PASSWD_BYTES: Final = MIB
#: How long a container may take to end before it is destroyed as it is: the stop with its grace, and the results of its jobs.
_ENDING_S: Final = STOP_GRACE_S + 20
#: Longer handles and tags would not fit into a record.
_HANDLE_BYTES: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class WardenServiceSettings:
    """``grace_s`` None: containers stay for ever. ``rlimits``: those that differ from Warden's own defaults."""

    rootfs: Path
    grace_s: int | None = 300
    rlimits: Mapping[str, int] = field(default_factory=dict)
    job_output_limit_bytes: int = 10 * MIB
    disk_limits: bool = True
    lang: str = "en_US.UTF-8"
    syslog_socket: Path = DEFAULT_SOCKET
    cgroup_links: Path | None = None


class WardenService:
    """All containers of one server. `take_up` comes before the first request."""

    def __init__(self, depot: Depot, settings: WardenServiceSettings, log: Log) -> None:
        self._depot = depot
        self._settings = settings
        self._log = log
        self._containers: dict[bytes, WardenContainer] = {}
        self._creating: set[bytes] = set()
        self._links = CgroupLinks(settings.cgroup_links, log)
        self._next_job = 1
        self._background: set[asyncio.Task[None]] = set()
        self._handlers: dict[type, Callable[[Any, object], Awaitable[object]]] = {
            m.PingRequest: self._ping,
            m.EchoRequest: self._echo,
            m.ListRequest: self._list,
            m.CreateRequest: self._create,
            m.StopRequest: self._stop,
            m.DestroyRequest: self._destroy,
            m.InfoRequest: self._info,
            m.SpawnRequest: self._spawn,
            m.LinkRequest: self._link,
            m.RunRequest: self._run,
            m.NetInRequest: self._net_in,
            m.NetOutRequest: self._net_out,
            m.CopyInRequest: self._copy_in,
            m.CopyOutRequest: self._copy_out,
            m.LimitMemoryRequest: self._limit_memory,
            m.LimitCpuRequest: self._limit_cpu,
            m.LimitDiskRequest: self._limit_disk,
            m.LimitBandwidthRequest: self._limit_bandwidth,
        }

    # -- connections -------------------------------------------------------------------------------------------

    def take_up(self) -> None:
        """Adds what the depot has recovered. Grace times begin anew."""
        for handle in self._depot.handles():
            with suppress(UnknownHandle):
                self._take_up(self._depot.find(handle))
        self._links.begin(one.container.link_id for one in self._containers.values())

    def _take_up(self, container: Container) -> None:
        try:
            saved = records.decode(container.record or b"{}")
        except ValueError as e:  # the container is kept under its id
            self._log.warning("warden_record_damaged", handle=container.handle, error=str(e))
            saved = SavedContainer(grace_s=self._settings.grace_s)
        made = WardenContainer(container, saved, self._log, self._expired, self._settings.syslog_socket)
        self._next_job = max([self._next_job, *(number + 1 for number in made.jobs)])
        self._containers[made.handle] = made
        self._links.add(container)
        made.begin_grace()

    def connected(self, connection: object) -> None:
        """A connection refers to every container that exists when it begins."""
        for one in self._containers.values():
            one.refer(connection)

    def disconnected(self, connection: object) -> None:
        for one in tuple(self._containers.values()):
            one.release(connection)

    async def close(self) -> None:
        """Ends what runs in the background. Containers and jobs run on."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        for one in self._containers.values():
            one.close()

    # -- requests ----------------------------------------------------------------------------------------------

    async def respond(self, request: object, connection: object) -> AsyncGenerator[object, None]:
        """The responses to a request, in order. WardenError: the client gets its text."""
        self._forget_removed()
        try:
            if isinstance(request, m.StreamRequest):
                async with aclosing(self._job(request, connection).stream()) as responses:
                    async for response in responses:
                        yield response
            else:
                yield await self._handlers[type(request)](request, connection)
        except WardenError:
            raise
        except (ContainerError, OSError) as e:
            raise WardenError(str(e)) from e

    def _find(self, handle: bytes, connection: object) -> WardenContainer:
        """Naming a container is a reference to it."""
        found = self._containers.get(handle)
        if found is None:
            raise WardenError("unknown handle")
        found.refer(connection)
        return found

    async def _ping(self, _request: m.PingRequest, _connection: object) -> m.PingResponse:
        return m.PingResponse()

    async def _echo(self, request: m.EchoRequest, _connection: object) -> m.EchoResponse:
        return m.EchoResponse(request.message)

    async def _list(self, _request: m.ListRequest, _connection: object) -> m.ListResponse:
        return m.ListResponse(tuple(self._containers))

    # -- create, stop, destroy ---------------------------------------------------------------------------------

    async def _create(self, request: m.CreateRequest, connection: object) -> m.CreateResponse:
        handle = request.handle or None
        if handle is not None and len(handle) > _HANDLE_BYTES:
            raise WardenError(f"handle: expected at most {_HANDLE_BYTES} bytes, got {len(handle)}")
        if handle in self._containers or handle in self._creating:
            raise WardenError(f"container with handle: {text_of(handle or b'')} already exists.")
        spec = container_spec(request, self._settings.rootfs)
        grace_s = request.grace_time if request.grace_time is not None else self._settings.grace_s
        saved = SavedContainer(handle, grace_s)
        if handle is not None:
            self._creating.add(handle)
        try:
            container = await self._depot.create(spec, record=records.encode(saved))
        except NoLease as e:
            if request.network and e.kind == "address":
                raise WardenError(f"Could not acquire network: {text_of(request.network)}") from e
            raise WardenError(f"Could not acquire {'network' if e.kind == 'address' else e.kind}") from e
        finally:
            self._creating.discard(handle or b"")
        made = WardenContainer(container, saved, self._log, self._expired, self._settings.syslog_socket)
        self._containers[made.handle] = made
        made.refer(connection)
        self._show(made, spec.layers[0])
        return m.CreateResponse(made.handle)

    def _show(self, made: WardenContainer, rootfs: Path) -> None:
        """Writes what scripts look for. The container works without it."""
        try:
            write_files(made.container, rootfs)
            made.save()
        except OSError as e:
            self._log.warning("warden_files_not_written", handle=made.container.handle, error=str(e))
        self._links.add(made.container)

    async def _stop(self, request: m.StopRequest, connection: object) -> m.StopResponse:
        box = self._find(request.handle, connection)
        box.check(ACTIVE, STOPPED)
        stopping = box.stop(0) if request.kill else box.stop()
        if request.background:
            self._start(stopping, f"warden-stop-{box.container.handle}")
        else:
            await stopping
        return m.StopResponse()

    async def _destroy(self, request: m.DestroyRequest, connection: object) -> m.DestroyResponse:
        await self._end(self._find(request.handle, connection))
        return m.DestroyResponse()

    def _expired(self, box: WardenContainer) -> None:
        self._start(self._end(box), f"warden-expire-{box.container.handle}")

    async def _end(self, box: WardenContainer) -> None:
        """Destroys it once, however many ask."""
        if box.destroying is None:
            with suppress(WardenError):
                await box.info()  # for the clients that still link its jobs
        if box.destroying is None:
            box.destroying = asyncio.create_task(
                self._end_once(box), name=f"warden-end-{box.container.handle}"
            )
        await finish(box.destroying)

    async def _end_once(self, box: WardenContainer) -> None:
        container = box.container
        with suppress(ContainerError, OSError):  # what does not end by itself is killed with the container
            async with asyncio.timeout(_ENDING_S):
                await box.stop()
        try:
            await self._depot.destroy(container.handle)
        except BaseException:  # the depot tries again; so may a client
            box.destroying = None
            raise
        self._forget(box)

    def _forget(self, box: WardenContainer) -> None:
        box.close()
        self._links.remove(box.container.link_id)
        del self._containers[box.handle]

    def _forget_removed(self) -> None:
        """Forgets those that the depot has removed in the meantime, after a destroy that failed."""
        for box in tuple(self._containers.values()):
            if box.destroying is None and box.container.state is ContainerState.DESTROYED:
                self._forget(box)

    def _start(self, work: Any, name: str) -> None:
        async def logged() -> None:
            try:
                await work
            except (ContainerError, OSError) as e:
                self._log.warning("warden_background_failed", what=name, error=str(e))

        task = asyncio.create_task(logged(), name=name)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _info(self, request: m.InfoRequest, connection: object) -> m.InfoResponse:
        box = self._find(request.handle, connection)
        box.check(ACTIVE, STOPPED)
        return await box.info()

    # -- jobs --------------------------------------------------------------------------------------------------

    async def _spawn(self, request: m.SpawnRequest, connection: object) -> m.SpawnResponse:
        return m.SpawnResponse((await self._begin_job(request, connection)).id)

    async def _begin_job(self, request: m.SpawnRequest, connection: object) -> WardenJob:
        box = self._find(request.handle, connection)
        box.check(ACTIVE)
        passwd = await box.container.read_file("/etc/passwd", _PASSWD_BYTES)
        user = account(passwd, "root" if request.privileged else "vcap")
        job_id, self._next_job = self._next_job, self._next_job + 1
        tag = None if request.log_tag is None else request.log_tag[:TAG_BYTES]
        settings = self._settings
        spec = job_spec(
            request,
            job_id,
            user,
            job_rlimits(settings.rlimits, request.rlimits),
            settings.job_output_limit_bytes,
            settings.lang,
        )
        return await box.spawn(job_id, spec, SavedJob(request.discard_output, tag))

    def _job(self, request: m.LinkRequest, connection: object) -> WardenJob:
        return self._find(request.handle, connection).job(request.job_id)

    async def _link(self, request: m.LinkRequest, connection: object) -> m.LinkResponse:
        return await self._job(request, connection).link()

    async def _run(self, request: m.RunRequest, connection: object) -> m.RunResponse:
        """A client that leaves meanwhile does not end the job, nor its start."""
        job = await finish(asyncio.create_task(self._begin_job(request, connection)))
        done = await job.link()
        return m.RunResponse(done.exit_status, done.stdout, done.stderr, done.info)

    # -- network, files ----------------------------------------------------------------------------------------

    async def _net_in(self, request: m.NetInRequest, connection: object) -> m.NetInResponse:
        box = self._find(request.handle, connection)
        box.check(ACTIVE)
        mapping = PortMapping(
            host_port=request.host_port or None, container_port=request.container_port or None
        )
        made = await box.container.net_in(mapping)
        assert made.host_port is not None
        assert made.container_port is not None
        return m.NetInResponse(made.host_port, made.container_port)

    async def _net_out(self, request: m.NetOutRequest, connection: object) -> m.NetOutResponse:
        box = self._find(request.handle, connection)
        box.check(ACTIVE)
        await box.container.net_out(egress_rule(request))
        return m.NetOutResponse()

    async def _copy_in(self, request: m.CopyInRequest, connection: object) -> m.CopyInResponse:
        box = self._find(request.handle, connection)
        box.check(ACTIVE)
        await copies.copy_in(box.container, text_of(request.src_path), text_of(request.dst_path))
        return m.CopyInResponse()

    async def _copy_out(self, request: m.CopyOutRequest, connection: object) -> m.CopyOutResponse:
        box = self._find(request.handle, connection)
        box.check(ACTIVE, STOPPED)
        owner = text_of(request.owner) if request.owner else None
        await copies.copy_out(box.container, text_of(request.src_path), text_of(request.dst_path), owner)
        return m.CopyOutResponse()

    # -- limits ------------------------------------------------------------------------------------------------

    async def _limit_memory(self, request: m.LimitMemoryRequest, connection: object) -> m.LimitMemoryResponse:
        box = self._find(request.handle, connection)
        box.check(ACTIVE, STOPPED)
        if (wanted := request.limit_in_bytes) is not None:
            wanted -= wanted % PAGE_BYTES
            try:
                await box.container.limit_memory(None if wanted >= NO_MEMORY_LIMIT else wanted)
            except OSError as e:
                raise WardenError(f"Failed setting memory limit: {e}") from e
        limit = box.container.limits.memory_bytes
        return m.LimitMemoryResponse(NO_MEMORY_LIMIT if limit is None else limit)

    async def _limit_cpu(self, request: m.LimitCpuRequest, connection: object) -> m.LimitCpuResponse:
        box = self._find(request.handle, connection)
        box.check(ACTIVE, STOPPED)
        if request.limit_in_shares is not None:
            try:
                await box.container.limit_cpu(max(LEAST_CPU_SHARES, request.limit_in_shares))
            except OSError as e:
                raise WardenError(f"Failed setting cpu shares: {e}") from e
        return m.LimitCpuResponse(box.container.limits.cpu_shares or DEFAULT_CPU_SHARES)

    async def _limit_disk(self, request: m.LimitDiskRequest, connection: object) -> m.LimitDiskResponse:
        """With disk limits off in the configuration the response is empty, as it is in Warden."""
        box = self._find(request.handle, connection)
        box.check(ACTIVE, STOPPED)
        if not self._settings.disk_limits:
            return m.LimitDiskResponse()
        limits = box.container.limits
        if (wanted := wanted_disk_bytes(request)) is not None:
            try:
                await box.container.limit_disk(wanted or None)
            except DiskError as e:
                raise WardenError(f"Failed setting disk limit: {e}") from e
        if (inodes := wanted_inodes(request)) is not None and inodes < limits.disk_inodes:
            self._log.warning("warden_inode_limit_not_lowered", handle=box.container.handle, inodes=inodes)
        return disk_response(box.container.limits.disk_bytes or 0, limits.disk_inodes)

    async def _limit_bandwidth(
        self, request: m.LimitBandwidthRequest, connection: object
    ) -> m.LimitBandwidthResponse:
        box = self._find(request.handle, connection)
        box.check(ACTIVE, STOPPED)
        least = least_burst_bytes(self._depot.settings.mtu)
        await box.limit_bandwidth(request.rate, request.burst, least)
        return m.LimitBandwidthResponse(request.rate, request.burst)
