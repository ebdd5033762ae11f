"""A container as Warden's clients see it: handle, references, grace time, jobs, and the states of the protocol."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from container.aio import Log
from container.container import Container
from container.errors import ContainerError
from container.events import EventKind
from container.jobs import Job
from container.jobs.spool import STREAMS
from container.parts import ContainerState, Info, WrongState
from container.spec import Bandwidth, JobSpec
from container.warden import messages as m
from container.warden import records, syslog
from container.warden.errors import WardenError, bytes_of
from container.warden.jobs import WardenJob, job_number
from container.warden.layout import snapshot_keys
from container.warden.limits import bandwidth_stat, memory_stat
from container.warden.records import SavedContainer, SavedJob

_BORN, ACTIVE, STOPPED, DESTROYED = "born", "active", "stopped", "destroyed"
_STATES: Final = {
    ContainerState.ACTIVE: ACTIVE,
    ContainerState.STOPPED: STOPPED,
    ContainerState.DEAD: STOPPED,
    ContainerState.DESTROYING: DESTROYED,
    ContainerState.DESTROY_FAILED: DESTROYED,
    ContainerState.DESTROYED: DESTROYED,
}
#: Events that clients know.
_SHOWN_EVENTS: Final = (EventKind.OUT_OF_MEMORY, EventKind.OVERRAN)
#: How long processes may take to end after SIGTERM. The protocol has no field for it.
STOP_GRACE_S: Final = 10.0
_TICKS_NS: Final = 10_000_000  # USER_HZ is 100


class WardenContainer:
    """``destroy`` is called when nobody has referred to the container for the grace time."""

    def __init__(
        self,
        container: Container,
        saved: SavedContainer,
        log: Log,
        destroy: Callable[[WardenContainer], None],
        syslog_socket: Path,
    ) -> None:
        self.container = container
        self.handle = saved.handle if saved.handle is not None else bytes_of(container.link_id)
        self.jobs: dict[int, WardenJob] = {}
        self.destroying: asyncio.Task[None] | None = None
        self._saved = saved
        self._syslog = syslog_socket
        self._following: set[asyncio.Task[None]] = set()
        self._starting: dict[int, SavedJob] = {}
        self._log = log
        self._destroy = destroy
        self._references: set[object] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._last_info: m.InfoResponse | None = None
        self._watching = asyncio.create_task(self._watch(), name=f"warden-events-{container.link_id}")
        for job_id, job in container.jobs.items():
            if (number := job_number(job_id)) is not None:
                self._add(number, job, saved.jobs.get(str(number), SavedJob()), is_new=False)

    # -- references --------------------------------------------------------------------------------------------

    def refer(self, connection: object) -> None:
        """The connection uses it, so it is not destroyed before the connection has ended."""
        self._references.add(connection)
        self._stop_timer()

    def release(self, connection: object) -> None:
        """The connection has ended. With the last one the grace time begins."""
        if connection in self._references:
            self._references.remove(connection)
            self.begin_grace()

    def begin_grace(self) -> None:
        """Begins the grace time, unless a connection refers to it."""
        if self._references or self._saved.grace_s is None or self.destroying is not None:
            return
        self._stop_timer()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._saved.grace_s, self._expire)

    def _expire(self) -> None:
        self._log.info("warden_grace_time_over", handle=self.container.handle)
        self._destroy(self)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def close(self) -> None:
        """Ends what runs in the background for it. The container itself runs on."""
        self._stop_timer()
        for task in (self._watching, *self._following):
            task.cancel()

    # -- state -------------------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        return DESTROYED if self.destroying is not None else _STATES[self.container.state]

    def check(self, *allowed: str) -> None:
        """WardenError: it is in none of these states."""
        if self.state not in allowed:
            raise WardenError(
                f"Container state must be one of '{', '.join(allowed)}', current state is '{self.state}'"
            )

    async def info(self) -> m.InfoResponse:
        """The measurements; after its end the last ones."""
        try:
            self._last_info = self._shown(await self.container.info())
        except (ContainerError, OSError) as e:
            if self._last_info is None or self.state != DESTROYED:
                raise WardenError(f"Failed getting the usage of the container: {e}") from e
        return self._last_info

    def _shown(self, info: Info) -> m.InfoResponse:
        box = self.container
        return m.InfoResponse(
            state=bytes_of(self.state),
            events=tuple(bytes_of(kind.value) for kind in _SHOWN_EVENTS if kind in info.events),
            host_ip=bytes_of(box.host_address or ""),
            container_ip=bytes_of(box.address or ""),
            container_path=bytes_of(str(box.directory)),
            memory_stat=memory_stat(info.memory_stat, info.memory_limit_bytes),
            cpu_stat=m.CpuStat(info.cpu_ns, info.cpu_user_ns // _TICKS_NS, info.cpu_system_ns // _TICKS_NS),
            disk_stat=m.DiskStat(info.disk_bytes, info.disk_inodes),
            bandwidth_stat=bandwidth_stat(info, box.limits.bandwidth, self._saved.burst),
            job_ids=tuple(sorted(one.id for one in self.jobs.values() if one.is_running)),
        )

    async def limit_bandwidth(self, rate: int, burst: int, least_burst: int) -> None:
        """Limits both directions. The kernel lets no burst below one packet work, so a smaller one is only remembered."""
        await self.container.limit_bandwidth(Bandwidth(rate, max(burst, least_burst)))
        self._saved = msgspec.structs.replace(self._saved, burst=burst if burst < least_burst else None)
        self.save()

    async def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """Returns when all its processes and jobs have ended. A stop that runs already may be shortened.

        It is carried out in a stopped container too, where there is nothing to do, unless a former stop was cut off.
        """
        await self.container.stop(grace_s)
        await asyncio.gather(*(job.ended() for job in tuple(self.jobs.values())))

    async def _watch(self) -> None:
        """Stops the container when it has run out of memory, as Warden does."""
        async for event in self.container.events.subscribe():
            if event.kind is EventKind.OUT_OF_MEMORY and self.state == ACTIVE:
                self._log.info("warden_container_out_of_memory_stopping", handle=self.container.handle)
                try:
                    await self.container.stop(STOP_GRACE_S)
                except WrongState:  # destroyed meanwhile
                    pass
                except (ContainerError, OSError) as e:
                    self._log.warning(
                        "warden_container_not_stopped", handle=self.container.handle, error=str(e)
                    )

    # -- jobs --------------------------------------------------------------------------------------------------

    def job(self, job_id: int) -> WardenJob:
        """WardenError: there is none of that number, or it was linked before."""
        if (found := self.jobs.get(job_id)) is None:
            raise WardenError("no such job")
        return found

    async def spawn(self, job_id: int, spec: JobSpec, saved: SavedJob) -> WardenJob:
        """Starts a job. What it is, is recorded first, so that the next server knows it. WardenError: it cannot be started."""
        self._starting[job_id] = saved
        try:
            self.save()
            job = await self.container.spawn(spec)
        except (ContainerError, OSError) as e:
            raise WardenError(f"the job cannot be started: {e}") from e
        finally:
            del self._starting[job_id]
        return self._add(job_id, job, saved)

    def _add(self, job_id: int, job: Job, saved: SavedJob, *, is_new: bool = True) -> WardenJob:
        self.jobs[job_id] = made = WardenJob(job_id, job, saved, self.info, self._drop_job)
        if saved.tag is not None and (is_new or made.is_running):
            for stream in STREAMS:
                offset = 0 if is_new else job.size_bytes(stream)
                self._begin(syslog.forward(job, stream, saved.tag, self._syslog, offset), "syslog", job)
        self._begin(self._note_job(job), "snapshot", job)
        return made

    def _begin(self, work: Coroutine[Any, Any, None], what: str, job: Job) -> None:
        task = asyncio.create_task(work, name=f"warden-{what}-{job.id}")
        self._following.add(task)
        task.add_done_callback(self._following.discard)

    async def _note_job(self, job: Job) -> None:
        """Writes the job's beginning and its end into the snapshot, for those that look there."""
        with suppress(WrongState):
            self._annotate()
            await job.wait()
            self._annotate()

    def _annotate(self) -> None:
        try:
            self.container.annotate_snapshot(self._snapshot_keys)
        except OSError as e:
            self._log.warning("warden_snapshot_not_written", handle=self.container.handle, error=str(e))

    async def _drop_job(self, job_id: int, job: Job) -> None:
        """Forgets a job whose result is taken. What cannot be removed now goes with the container."""
        if self.jobs.pop(job_id, None) is None:
            return
        try:
            with suppress(WrongState):
                self.save()
            await job.forget()
        except (ContainerError, OSError) as e:
            self._log.warning(
                "warden_job_not_forgotten", handle=self.container.handle, job=job_id, error=str(e)
            )

    def save(self) -> None:
        """Writes what the next server must know."""
        jobs = {str(one.id): one.saved for one in self.jobs.values()}
        jobs |= {str(job_id): saved for job_id, saved in self._starting.items()}
        self._saved = msgspec.structs.replace(self._saved, jobs=jobs)
        self.container.keep_record(records.encode(self._saved))
        self._annotate()

    def _snapshot_keys(self) -> dict[str, Any]:
        jobs = {str(one.id): one.snapshot_keys() for one in self.jobs.values()}
        return snapshot_keys(self.container, self.handle, self.state, self._saved.grace_s, jobs)
