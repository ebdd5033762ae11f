"""The depot: all containers of a host, and the only entry for callers.

    async with Depot.open(settings) as depot:
        await depot.recover()
        container = await depot.create(spec)

Create and destroy run in tasks of the depot's own: a caller that is cancelled cannot leave half a container
behind. The steps themselves are the rungs of create.py. The depot owns destruction: a container is in `handles`
until nothing of it is left, and what cannot be removed is tried again for as long as the depot is open.
"""

from __future__ import annotations

import asyncio
import platform
import time
from collections.abc import Callable, Coroutine, Generator
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from typing import Any, Final

import wsh
from container import create, locks, seccomp, snapshot, users
from container.aio import Background, FileWatcher, Log, SilentLog, finish
from container.body import Body
from container.build import Build
from container.cgroups import open_backend
from container.container import Container
from container.create import Abandoned, CreateError
from container.disk import Disks
from container.errors import ContainerError
from container.guard import Guard
from container.host import HostUnfit, check_kernel, text_of
from container.network import Networks
from container.network.firewall import FirewallError
from container.network.ports import NoPorts
from container.parts import Action
from container.pools import IdSource, LeasePool, NoLease, address_leases, id_leases
from container.recovery import Recovery, recover
from container.resolver import resolver_for
from container.retries import Retries
from container.rotation import Rotation
from container.settings import DepotSettings, beside, network_settings
from container.shared import Shared
from container.spec import ContainerSpec, SpecError
from container.wshd import Launcher, WshdError, WshdSilent

_CLOSE_TIMEOUT_S: Final = 30.0


class UnknownHandle(ContainerError, LookupError):
    """No container of this depot has that handle (any more)."""

    def __init__(self, handle: str) -> None:
        super().__init__(f"no container {handle!r}")
        self.handle = handle


class RecoverFirst(ContainerError, RuntimeError):
    """The depot directory has containers of a former manager: `Depot.recover` comes before the first create."""


class ContainersLeft(ContainerError, RuntimeError):
    """The tables of the firewall are needed by containers that are still there."""


def no_fault(rung: str) -> None:
    """Production: no rung breaks on purpose."""


@dataclass(slots=True)
class _Making:
    task: asyncio.Task[None]
    build: Build


@dataclass(slots=True)
class _Held:
    """``container`` None: its create failed, and could not be undone whole."""

    build: Build
    container: Container | None


class _Opening:
    """Awaited it is the depot. As a block it is closed in the end: containers go on, and where there are none the
    host's shared pieces go too.
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
    """See the module. Made by `Depot.open`."""

    settings: DepotSettings
    _shared: Shared
    _locks: ExitStack
    _unrecovered: bool
    _held: dict[str, _Held] = field(default_factory=dict)
    _making: dict[str, _Making] = field(default_factory=dict)
    _ending: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _guarding: asyncio.Task[None] | None = None
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
        """Set up the host: firewall base, forwarding, cgroup parents, directories. ``await`` it, or open it as a
        block with ``async with``. Containers of a former manager are `recover`'s.

        HostUnfit: why there can be none; DepotBusy: another manager has part of it.
        ``port_rests``: asked before a host port is given out; True: not this one yet.
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
        # What only computes comes first: a wrong setting raises before anything is held.
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
            cgroups = open_backend(settings.cgroup_parent)
            held.callback(locks.lock_directory(cgroups.directory))
            undo.callback(cgroups.remove_parents)
            for gap in cgroups.gaps:
                log.warning("cgroups_lack", what=gap)
            held.callback(locks.lock_tables())
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
            networks = await _open_networks(settings, resolver.servers, port_rests, log)
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
            depot = cls(settings, shared, held, any(settings.depot_dir.iterdir()))
            guard = Guard(depot._bodies, log, period_s=settings.guard_period_s, patience_s=settings.silence_s)
            depot._guarding = asyncio.get_running_loop().create_task(guard.run(), name="guard")
            return depot

    def find(self, handle: str) -> Container:
        """UnknownHandle."""
        held = self._held.get(handle)
        if held is None or held.container is None:
            raise UnknownHandle(handle)
        return held.container

    def handles(self) -> tuple[str, ...]:
        """Of all containers of which something is left: those whose destroy has failed, and remains of a create
        that could not be undone (`find` does not know these), are tried again until they are gone.
        """
        return tuple(self._held)

    def _bodies(self) -> list[Body]:
        return [held.build.body for held in self._held.values() if held.container is not None]

    async def create(self, spec: ContainerSpec, *, record: bytes | None = None) -> Container:
        """Make a container. NoLease: a pool is empty. SpecError: the handle is in use. CreateError: a rung
        broke. RecoverFirst. ``record``: the caller's own bytes, kept beside the snapshot (`Container.keep_record`).
        """
        if self._unrecovered:
            raise RecoverFirst(f"{self.settings.depot_dir} is not empty: call recover() before create()")
        link_id = self._shared.link_ids.take()
        handle = spec.handle or link_id
        if handle in self._held or handle in self._making:
            raise SpecError("handle", f"{handle!r} is in use")
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
        except Exception as e:  # the frame that names the rung; the cause is kept
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
        """The caller is gone: the create ends at its next rung, or has just been done."""

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
            except Exception as e:  # it is tried again like any other; the caller is gone
                self._shared.log.warning("abandoned_create_not_undone", error=repr(e))

        work = self._shared.background.start(undo(), name="undo-abandoned-create")
        try:
            await finish(work)
        except asyncio.CancelledError:
            return

    async def destroy(self, handle: str, grace_s: float = 0) -> None:
        """Remove a container and all that it is made of. Idempotent: an unknown handle is fine.

        Raises what could not be removed. The container is then still there, and is tried again, also without being asked.
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
        else:  # its handle is free only when nothing of it is left
            if held.container is not None:
                held.build.body.enter(Action.END)
            del self._held[handle]
            self._retries.drop(handle)
        finally:
            self._ending.pop(handle, None)
            if held.container is not None:
                held.build.body.events.close()

    async def _end(self, body: Body, container: Container, grace_s: float) -> None:
        """Whatever keeps its processes from ending in peace, they are killed after it."""
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
        """After a start: take up what lives, leave alone what a later version made, remove the rest whole. Called once,
        before the first create. HostUnfit: it is short of descriptors or memory; nothing was ended for that.
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
        except (OSError, WshdError) as e:  # its jobs are unknown then, which is for the caller to judge
            self._shared.log.warning("jobs_not_recovered", handle=body.handle, error=str(e))

    async def close(self, *, remove_tables: bool = False) -> None:
        """Let go. Containers go on, and another `open` and `recover` finds them.

        ``remove_tables``: the host's shared pieces go too (tables, empty cgroup parents). ContainersLeft: `handles` are
        left that need them; nothing is closed then. They stay where a container of a later version was left alone.
        """
        shared = self._shared
        if remove_tables and self._held:
            raise ContainersLeft(f"the firewall's tables are needed by {', '.join(self._held)}")
        if self._guarding is not None:
            self._guarding.cancel()
            await asyncio.gather(self._guarding, return_exceptions=True)
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
        self._locks.close()


async def _open_networks(
    settings: DepotSettings, dns_servers: tuple[str, ...], port_rests: Callable[[int], bool], log: Log
) -> Networks:
    chosen = network_settings(settings, dns_servers, port_rests)
    try:
        return await Networks.open(chosen, log)
    except (FirewallError, NoPorts) as e:
        raise HostUnfit(f"network: {e}") from e
