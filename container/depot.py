"""The depot: all containers of a host, and the only entry for callers.

    depot = await Depot.open(settings)
    await depot.recover()
    container = await depot.create(spec)

Create and destroy run in tasks of the depot's own: a caller that is cancelled cannot leave half a container
behind. The steps themselves are in make.py.
"""

from __future__ import annotations

import asyncio
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import wsh
from container import locks, make, seccomp, snapshot, users
from container.aio import Background, FileWatcher, Log, SilentLog, finish
from container.cgroups import open_backend
from container.container import Container
from container.disk import Disks
from container.guard import Guard
from container.host import HostUnfit, check_kernel, refuse_if_short, text_of
from container.make import Abandoned, CreateError, Host, Ladder
from container.network import Networks, Restored
from container.network.firewall import FirewallError
from container.network.ports import NoPorts
from container.parts import ContainerState, Parts
from container.pools import IdLease, IdSource, NoLease, Pool, address_leases, id_leases
from container.resolver import resolver_for
from container.retries import Retries
from container.rotation import Rotation
from container.settings import DepotSettings, beside, network_settings
from container.snapshot import Holdings, LaterSnapshot, Phase, Snapshot, SnapshotError
from container.spec import ContainerSpec, SpecError
from container.undo import UndoStack
from container.wshd import LaterWshd, Launcher, WshdError, WshdSilent

_CLOSE_TIMEOUT_S: Final = 30.0


class UnknownHandle(LookupError):
    def __init__(self, handle: str) -> None:
        super().__init__(f"no container {handle!r}")
        self.handle = handle


@dataclass(frozen=True, slots=True)
class Recovery:
    """Handles: taken up again, removed whole, and left alone because a later version made them. ``records``: what the caller kept
    beside those that were removed.
    """

    found: tuple[str, ...]
    removed: tuple[str, ...]
    left_alone: tuple[str, ...] = ()
    records: Mapping[str, bytes] = field(default_factory=dict)


def no_fault(rung: str) -> None:
    """Production: no rung breaks on purpose."""


@dataclass(slots=True)
class _Making:
    task: asyncio.Task[Container]
    ladder: Ladder


@dataclass
class Depot:
    """See the module. Made by `Depot.open`."""

    settings: DepotSettings
    _host: Host
    _locks: ExitStack
    _containers: dict[str, Container] = field(default_factory=dict)
    _making: dict[str, _Making] = field(default_factory=dict)
    _ending: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _guarding: asyncio.Task[None] | None = None
    _left_alone: tuple[str, ...] = ()
    _retries: Retries = field(init=False)

    def __post_init__(self) -> None:
        self._retries = Retries(self._host.background, self._host.log)

    @classmethod
    async def open(
        cls,
        settings: DepotSettings,
        *,
        log: Log | None = None,
        port_rests: Callable[[int], bool] = lambda _: False,
        fault: Callable[[str], None] = no_fault,
    ) -> Depot:
        """Set up the host: firewall base, forwarding, cgroup parents, directories. Containers are
        `recover`'s. HostUnfit: why there can be none; DepotBusy: another manager has part of it.

        ``port_rests``: asked before a host port is given out; True: not this one yet.
        """
        log = log if log is not None else SilentLog()
        check_kernel(platform.release())
        users.check_ids_free(
            settings.uid_first,
            settings.uid_count,
            passwd=text_of("/etc/passwd"),
            subuid=text_of("/etc/subuid"),
            subgid=text_of("/etc/subgid"),
        )
        # What only computes comes first: a wrong setting is told before anything is held.
        addresses = Pool(
            "address",
            address_leases(settings.pool_network),
            rest_s=settings.release_delay_s,
            now_s=time.monotonic,
        )
        ids = Pool("ids", id_leases(settings.uid_first, settings.uid_count), now_s=time.monotonic)
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
            host = Host(
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
            depot = cls(settings, host, held)
            guard = Guard(
                depot._containers.values, log, period_s=settings.guard_period_s, patience_s=settings.silence_s
            )
            depot._guarding = asyncio.get_running_loop().create_task(guard.run(), name="guard")
            return depot

    def find(self, handle: str) -> Container:
        try:
            return self._containers[handle]
        except KeyError:
            raise UnknownHandle(handle) from None

    def handles(self) -> tuple[str, ...]:
        """Also of containers whose destroy has failed: they are tried again until they are gone."""
        return tuple(self._containers)

    async def create(self, spec: ContainerSpec, *, record: bytes | None = None) -> Container:
        """Make a container. NoLease: a pool is empty. SpecError: the handle is in use. CreateError: a rung
        broke. ``record``: the caller's own bytes, kept beside the snapshot (`Container.keep_record`).
        """
        link_id = self._host.link_ids.take()
        handle = spec.handle or link_id
        if handle in self._containers or handle in self._making or handle in self._retries:
            raise SpecError("handle", f"{handle!r} is in use")
        ladder = Ladder(self._host.fault)
        undo = UndoStack()
        work = make.build(self._host, spec, handle, link_id, ladder, undo, record)
        task = self._host.background.start(work, name=f"create-{handle}", watched=True)
        self._making[handle] = _Making(task, ladder)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            ladder.abandoned = True
            await self._undo_abandoned(task)
            raise
        except (NoLease, SpecError):
            raise
        except Exception as e:  # the frame that names the rung; the cause is kept
            raise CreateError(ladder.rung, str(e) or repr(e)) from e
        finally:
            del self._making[handle]
            if len(undo):
                self._retries.add(handle, undo.aclose)
        container = task.result()
        self._containers[handle] = container
        return container

    async def _undo_abandoned(self, task: asyncio.Task[Container]) -> None:
        """The caller is gone: the ladder ends at its next rung, or has just been climbed."""

        async def undo() -> None:
            try:
                container = await task
            except Exception as e:
                if not isinstance(e, Abandoned):
                    self._host.log.warning("abandoned_create_failed", error=repr(e))
                return
            self._containers[container.handle] = container
            try:
                await self.destroy(container.handle)
            except Exception as e:  # it is tried again like any other; the caller is gone
                self._host.log.warning("abandoned_create_not_undone", error=repr(e))

        work = self._host.background.start(undo(), name="undo-abandoned-create")
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
            container = self._containers.get(handle)
            if container is None:
                return
            task = self._host.background.start(
                self._destroy(container, grace_s), name=f"destroy-{handle}", watched=True
            )
            self._ending[handle] = task
        await finish(task)

    async def _destroy(self, container: Container, grace_s: float) -> None:
        try:
            try:
                if grace_s > 0 and container.state is not ContainerState.DESTROYED:
                    await container.stop(grace_s)
            except WshdSilent as e:
                self._host.log.warning("container_silent_killing", handle=container.handle, error=str(e))
            finally:
                await container.release()
        finally:
            del self._ending[container.handle]
            if container.is_released:  # its handle is free only when nothing of it is left
                del self._containers[container.handle]
                self._retries.drop(container.handle)
            else:
                self._retries.add(container.handle, lambda: self.destroy(container.handle))

    async def recover(self) -> Recovery:
        """After a start: take up what lives, leave alone what a later version made, remove the rest whole. Called once, before the
        first create. HostUnfit: it is short of descriptors or memory; nothing was ended for that.
        """
        host, found, later = self._host, dict[str, Parts](), dict[str, Holdings]()
        removed, records = list[str](), dict[str, bytes]()
        for directory in sorted(host.depot_dir.iterdir()):
            known, why = None, "was being made"
            try:
                known = _snapshot_of(directory)
                if known.phase is Phase.MADE and known.boot_id == host.boot_id:
                    found[known.handle] = await make.rebuild(host, known)
                    continue
            except (LaterSnapshot, LaterWshd) as e:
                later[directory.name] = snapshot.read_holdings(directory)
                host.log.warning("container_of_a_later_version_left_alone", handle=directory.name, why=str(e))
                continue
            except Exception as e:  # whatever is wrong with one costs no other its life, and no start
                refuse_if_short(e)
                why = str(e) or repr(e)
            host.log.info("container_removed", handle=directory.name, why=why)
            if (record := snapshot.read_record(directory)) is not None:
                records[directory.name] = record
            try:
                await make.remove_remains(host, directory, known)
            except Exception as e:
                # One that cannot be removed is no reason not to take up the others.
                host.log.warning("container_not_removed", handle=directory.name, error=str(e))
                continue
            removed.append(directory.name)
        self._left_alone = tuple(later)
        kept = [self._hold(one) for one in later.values()]
        await self._sweep_cgroups({parts.link_id for parts in found.values()}, list(later.values()))
        await self._restore_links(list(found.values()), [one for one in kept if one is not None])
        for handle, parts in found.items():
            self._containers[handle] = make.adopt(host, parts)
        # Together: one that does not answer holds up no other.
        await asyncio.gather(*(self._recover_jobs(container) for container in self._containers.values()))
        return Recovery(tuple(found), tuple(removed), tuple(later), records)

    async def _recover_jobs(self, container: Container) -> None:
        try:
            await container.recover_jobs()
        except (OSError, WshdError) as e:  # its jobs are unknown then, which is for the caller to judge
            self._host.log.warning("jobs_not_recovered", handle=container.handle, error=str(e))

    def _hold(self, held: Holdings) -> Restored | None:
        """What a container that is left alone has of the host is nobody else's; its rules stand on."""
        host = self._host
        if held.ids_first is not None:
            host.ids.claim(IdLease(held.ids_first))
        lease = next((one for one in host.addresses.entries if one.network == held.network), None)
        if lease is None or held.link_id is None:
            return None
        host.addresses.claim(lease)
        return Restored(held.link_id, lease, held.egress, held.ports)

    async def _sweep_cgroups(self, owned: set[str], later: list[Holdings]) -> None:
        if any(one.link_id is None for one in later):
            self._host.log.warning(
                "cgroups_not_swept", why="one of them is a later version's, and not known by name"
            )
            return
        owned |= {one.link_id for one in later if one.link_id is not None}
        for name in self._host.cgroups.list():
            if name in owned:
                continue
            try:
                await make.remove_cgroup(self._host, name)
            except (OSError, ValueError) as e:  # a process does not go; or the directory is none of ours
                self._host.log.warning("cgroup_not_removed", name=name, error=str(e))

    async def _restore_links(self, found: list[Parts], kept: list[Restored]) -> None:
        """All at once, also when there are none: rules of containers that are gone go with it."""
        wanted = [
            Restored(parts.link_id, parts.lease, parts.egress, parts.ports)
            for parts in found
            if parts.lease is not None
        ]
        links = await self._host.networks.restore([*wanted, *kept])
        for parts in found:
            parts.link = links.get(parts.link_id)

    async def close(self, *, remove_tables: bool = False) -> None:
        """Let go. Containers go on, and another `open` and `recover` finds them.

        ``remove_tables``: the host's shared pieces go too (tables, empty cgroup parents); for the last one out, which
        is who has no `handles` left. They stay where a container of a later version was left alone.
        """
        host = self._host
        if self._guarding is not None:
            self._guarding.cancel()
            await asyncio.gather(self._guarding, return_exceptions=True)
        remove_tables = remove_tables and not self._left_alone
        self._retries.stop()
        await host.background.close(_CLOSE_TIMEOUT_S)
        for container in self._containers.values():
            container.detach()
        self._containers.clear()
        host.watcher.close()
        host.launcher.close()
        await host.networks.close(remove_tables=remove_tables)
        if remove_tables:
            host.cgroups.remove_parents()
        self._locks.close()


async def _open_networks(
    settings: DepotSettings, dns_servers: tuple[str, ...], port_rests: Callable[[int], bool], log: Log
) -> Networks:
    chosen = network_settings(settings, dns_servers, port_rests)
    try:
        return await Networks.open(chosen, log)
    except (FirewallError, NoPorts) as e:
        raise HostUnfit(f"network: {e}") from e


def _snapshot_of(directory: Path) -> Snapshot:
    """SnapshotError, LaterSnapshot."""
    found = snapshot.read(directory)
    if found.handle != directory.name:
        raise SnapshotError(f"the snapshot is of {found.handle!r}")
    return found
