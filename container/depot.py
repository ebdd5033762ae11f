"""The depot: all containers of a host, and the only entry for callers.

    async with Depot.open(settings) as depot:
        await depot.recover()
        container = await depot.create(spec)

Create and destroy run in tasks of the depot, so a caller that is cancelled cannot leave half a container behind. Their
steps are the rungs of create.py. The depot owns destruction: a container is in `handles` until nothing of it is left, and
a removal that failed is tried again as long as the depot is open.
"""

from __future__ import annotations

import asyncio
import platform
import time
from collections.abc import Callable, Coroutine, Generator
from contextlib import AsyncExitStack, ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any, Final

import wsh
from container import create, locks, seccomp, snapshot, users
from container.aio import Background, FileWatcher, Log, SilentLog, finish
from container.body import Body
from container.build import Build
from container.cgroups import open_backend
from container.claims import Claims
from container.container import Container
from container.create import Abandoned, CreateError
from container.disk import Disks
from container.errors import ContainerError
from container.guard import Guard
from container.host import check_kernel, text_of
from container.host_network import claim, open_networks
from container.integrity import Integrity
from container.parts import Action, Info, WrongState
from container.pools import IdSource, LeasePool, NoLease, address_leases, id_leases
from container.recovery import Recovery, recover
from container.resolver import resolver_for
from container.retries import Retries
from container.rotation import Rotation
from container.settings import DepotSettings, beside
from container.shared import Shared
from container.spec import ContainerSpec, SpecError
from container.wshd import Launcher, WshdError, WshdSilent

_CLOSE_TIMEOUT_S: Final = 30.0


class UnknownHandle(ContainerError, LookupError):
    """The depot has no container of that handle, or has none any more."""

    def __init__(self, handle: str) -> None:
        super().__init__(f"the depot has no container {handle!r}")
        self.handle = handle


class RecoverFirst(ContainerError, RuntimeError):
    """The depot holds containers of a former manager, so `Depot.recover` must be called before the first create."""


class ContainersLeft(ContainerError, RuntimeError):
    """The firewall's tables cannot be removed: containers are left that need them."""


def no_fault(rung: str) -> None:
    """The default: no rung fails on purpose."""


@dataclass(slots=True)
class _Making:
    task: asyncio.Task[None]
    build: Build


@dataclass(slots=True)
class _Held:
    """``container`` None: its create failed, and not all of it could be undone."""

    build: Build
    container: Container | None


class _Opening:
    """Awaited, it gives the open depot. As a block it also closes the depot at the end; containers run on.

    If no container is left at the end of the block, the firewall's tables and the cgroup parents are removed too.
    """

    def __init__(self, opening: Coroutine[Any, Any, Depot]) -> None:
        self._opening = opening
        self._depot: Depot | None = None

    def __await__(self) -> Generator[Any, None, Depot]:
        return self._opening.__await__()

    async def __aenter__(self) -> Depot:
        self._depot = await self._opening
        return self._depot

    async def __aexit__(self, *_: object) -> None:
        assert self._depot is not None
        await self._depot.close(remove_tables=not self._depot.handles())


@dataclass
class Depot:
    """All containers of a host. Made by `Depot.open`."""

    settings: DepotSettings
    _shared: Shared
    _claims: Claims
    _locks: ExitStack
    _unrecovered: bool
    _held: dict[str, _Held] = field(default_factory=dict)
    _making: dict[str, _Making] = field(default_factory=dict)
    _ending: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _guarding: tuple[asyncio.Task[None], ...] = ()
    _left_alone: tuple[str, ...] = ()
    _retries: Retries = field(init=False)

    def __post_init__(self) -> None:
        self._retries = Retries(self._shared.background, self._shared.log)

    @classmethod
    def open(
        cls,
        settings: DepotSettings,
        *,
        log: Log | None = None,
        port_rests: Callable[[int], bool] = lambda _: False,
        fault: Callable[[str], None] = no_fault,
    ) -> _Opening:
        """Set up the host: firewall, forwarding, cgroup parents, directories. ``await`` it, or use ``async with``.

        `recover` then takes up the containers of a former manager. ``port_rests``: called before a host port is given
        out; True: not this one yet. HostUnfit: the host cannot have a depot; DepotBusy: another manager uses it.
        """
        return _Opening(cls._open(settings, log, port_rests, fault))

    @classmethod
    async def _open(
        cls,
        settings: DepotSettings,
        log: Log | None,
        port_rests: Callable[[int], bool],
        fault: Callable[[str], None],
    ) -> Depot:
        log = log if log is not None else SilentLog()
        check_kernel(platform.release())
        users.check_ids_free(
            settings.uid_first,
            settings.uid_count,
            passwd=text_of("/etc/passwd"),
            subuid=text_of("/etc/subuid"),
            subgid=text_of("/etc/subgid"),
        )
        # Pure steps come first: a wrong setting raises before anything is opened or locked.
        addresses = LeasePool(
            "address",
            address_leases(settings.pool_network),
            rest_s=settings.release_delay_s,
            now_s=time.monotonic,
        )
        ids = LeasePool("ids", id_leases(settings.uid_first, settings.uid_count), now_s=time.monotonic)
        job_filter = seccomp.compile_filter(seccomp.DEFAULT_PROFILE, platform.machine())
        for directory in (settings.depot_dir, settings.templates_dir):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        settings.depot_dir.chmod(0o700)
        async with AsyncExitStack() as undo:
            held = undo.enter_context(ExitStack())
            held.callback(locks.lock_directory(settings.depot_dir))
            settings, claims, left = claim(settings, log)
            undo.callback(claims.leave, forget=False)
            cgroups = open_backend(settings.cgroup_parent)
            held.callback(locks.lock_directory(cgroups.directory))
            undo.callback(cgroups.remove_parents)
            for gap in cgroups.gaps:
                log.warning("cgroups_lack", what=gap)
            held.callback(locks.lock_tables(settings.table))
            resolver, left_out = resolver_for(
                text_of("/etc/resolv.conf"),
                text_of("/run/systemd/resolve/resolv.conf"),
                servers=settings.dns_servers,
                search=settings.dns_search,
                options=settings.dns_options,
            )
            launcher = Launcher(settings.wshd_binary or wsh.wshd_path())
            undo.callback(launcher.close)
            if left_out:
                log.warning("nameservers_left_out", servers=left_out, used=resolver.servers)
            networks = await open_networks(settings, resolver.servers, port_rests, claims, left, log)
            rotation = Rotation(beside(settings.depot_dir, "rotation"), log)
            rotation.attach(addresses, lambda lease: str(lease.network))
            rotation.attach(networks.port_pool, str)
            undo.push_async_callback(networks.close)
            shared = Shared(
                depot_dir=settings.depot_dir,
                boot_id=snapshot.boot_id(),
                cgroups=cgroups,
                disks=Disks(settings.templates_dir) if settings.disk_limits else None,
                networks=networks,
                launcher=launcher,
                watcher=FileWatcher(),
                addresses=addresses,
                ids=ids,
                link_ids=IdSource(time.time_ns() // 1000),
                resolver=resolver,
                seccomp=job_filter,
                background=Background(log),
                log=log,
                fault=fault,
            )
            undo.pop_all()
            depot = cls(settings, shared, claims, held, any(settings.depot_dir.iterdir()))
            guard = Guard(depot._bodies, log, period_s=settings.guard_period_s, patience_s=settings.silence_s)
            watches = {"guard": guard.run(), "integrity": Integrity(depot._bodies, log).run()}
            depot._guarding = tuple(asyncio.create_task(run, name=name) for name, run in watches.items())
            return depot

    def find(self, handle: str) -> Container:
        """The container of that handle. UnknownHandle."""
        held = self._held.get(handle)
        if held is None or held.container is None:
            raise UnknownHandle(handle)
        return held.container

    async def infos(self) -> dict[str, Info]:
        """The measurements of all containers by handle, as `Container.info`. One that ends meanwhile is left out."""
        found = {}
        for container in [held.container for held in self._held.values() if held.container is not None]:
            with suppress(OSError, WrongState):
                found[container.handle] = await container.info()
        return found

    def handles(self) -> tuple[str, ...]:
        """The handles of all containers of which something is left.

        That includes containers whose destroy failed, and remains of a failed create, which `find` does not return.
        """
        return tuple(self._held)

    def _bodies(self) -> list[Body]:
        return [held.build.body for held in self._held.values() if held.container is not None]

    async def create(self, spec: ContainerSpec, *, record: bytes | None = None) -> Container:
        """Make a container. ``record``: bytes of the caller, kept beside the snapshot (`Container.keep_record`).

        NoLease: a pool is used up. SpecError: the handle is in use. CreateError: a rung failed. RecoverFirst.
        """
        if self._unrecovered:
            raise RecoverFirst(f"{self.settings.depot_dir} is not empty: call recover() before create()")
        link_id = self._shared.link_ids.take()
        handle = spec.handle or link_id
        if handle in self._held or handle in self._making:
            raise SpecError("handle", f"expected a new one, {handle!r} is in use in this depot")
        build = Build(self._shared, handle, link_id, spec=spec, record=record)
        task = self._shared.background.start(create.build(build), name=f"create-{handle}", watched=True)
        self._making[handle] = _Making(task, build)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            build.abandoned = True
            await self._undo_abandoned(task, build)
            raise
        except (NoLease, SpecError):
            raise
        except Exception as e:  # CreateError names the rung and chains the cause
            raise CreateError(build.broken, str(e) or repr(e)) from e
        finally:
            del self._making[handle]
            if build.broken and build.standing:
                self._held[handle] = held = _Held(build, None)
                self._retries.add(handle, lambda: self._destroy(held, 0))
        return self._hold(build)

    def _hold(self, build: Build) -> Container:
        container = Container(build.body, self.destroy)
        self._held[build.handle] = _Held(build, container)
        return container

    async def _undo_abandoned(self, task: asyncio.Task[None], build: Build) -> None:
        """Undoes a create whose caller was cancelled. It ends at its next rung, or has just succeeded."""

        async def undo() -> None:
            try:
                await task
            except Exception as e:
                if not isinstance(e, Abandoned):
                    self._shared.log.warning("abandoned_create_failed", error=repr(e))
                return
            container = self._hold(build)
            try:
                await container.destroy()
            except Exception as e:  # logged, since the caller is gone; the depot tries again
                self._shared.log.warning("abandoned_create_not_undone", error=repr(e))

        work = self._shared.background.start(undo(), name="undo-abandoned-create")
        try:
            await finish(work)
        except asyncio.CancelledError:
            return

    async def destroy(self, handle: str, grace_s: float = 0) -> None:
        """Remove a container and everything that belongs to it. Idempotent: an unknown handle is no error.

        If something cannot be removed, its error is raised. The container stays in `handles`, and the depot tries again.
        """
        task = self._ending.get(handle)
        if task is None:
            held = self._held.get(handle)
            if held is None:
                return
            task = self._shared.background.start(
                self._destroy(held, grace_s), name=f"destroy-{handle}", watched=True
            )
            self._ending[handle] = task
        await finish(task)

    async def _destroy(self, held: _Held, grace_s: float) -> None:
        handle = held.build.handle
        try:
            if held.container is not None:
                await self._end(held.build.body, held.container, grace_s)
            await create.undo(held.build)
        except BaseException:
            if held.container is not None:
                held.build.body.enter(Action.FAIL)
            self._retries.add(handle, lambda: self.destroy(handle))
            raise
        else:  # the handle is free only now, when nothing of the container is left
            if held.container is not None:
                held.build.body.enter(Action.END)
            del self._held[handle]
            self._retries.drop(handle)
        finally:
            self._ending.pop(handle, None)
            if held.container is not None:
                held.build.body.events.close()

    async def _end(self, body: Body, container: Container, grace_s: float) -> None:
        """Stops the processes with the grace. Whatever fails here, they are killed by the undo that follows."""
        try:
            if grace_s > 0 and body.may(Action.STOP):
                await container.stop(grace_s)
        except WshdSilent as e:
            self._shared.log.warning("container_silent_killing", handle=body.handle, error=str(e))
        except (OSError, WshdError) as e:
            self._shared.log.warning("container_not_stopped_killing", handle=body.handle, error=str(e))
        finally:
            body.enter(Action.DESTROY)

    async def recover(self) -> Recovery:
        """Take up the containers of a former manager that still run, and remove the remains of the others.

        Containers of a later version are left alone. Call it once, before the first create. HostUnfit: descriptors or
        memory ran out; no container was ended because of that.
        """
        builds, recovery = await recover(self._shared)
        for build in builds:
            self._hold(build)
        await asyncio.gather(*(self._recover_jobs(build.body) for build in builds))
        self._left_alone = recovery.left_alone
        self._unrecovered = False
        return recovery

    async def _recover_jobs(self, body: Body) -> None:
        try:
            await body.jobs.recover()
        except (OSError, WshdError) as e:  # the container is kept without its jobs; the caller decides
            self._shared.log.warning("jobs_not_recovered", handle=body.handle, error=str(e))

    async def close(self, *, remove_tables: bool = False) -> None:
        """Close the depot. Containers run on, and another `open` and `recover` takes them up.

        ``remove_tables``: also remove the firewall's tables and empty cgroup parents, unless a container of a later
        version was left alone. ContainersLeft: `handles` is not empty; nothing is closed then.
        """
        shared = self._shared
        if remove_tables and self._held:
            raise ContainersLeft(
                f"the firewall's tables are needed by {', '.join(self._held)}: destroy these first"
            )
        for task in self._guarding:
            task.cancel()
        await asyncio.gather(*self._guarding, return_exceptions=True)
        remove_tables = remove_tables and not self._left_alone
        self._retries.stop()
        await shared.background.close(_CLOSE_TIMEOUT_S)
        for held in self._held.values():
            create.let_go(held.build)
        self._held.clear()
        shared.watcher.close()
        shared.launcher.close()
        await shared.networks.close(remove_tables=remove_tables)
        if remove_tables:
            shared.cgroups.remove_parents()
        self._claims.leave(forget=remove_tables)
        self._locks.close()
