"""The ladder: how a container is made, found again, and taken apart. The acting half of `Depot`.

Each rung has a name, is followed at once by its undo, and is given back in reverse by rollback and destroy
alike. What the kernel does not take back by itself (depot directory, disk image and its mount, cgroup,
firewall elements) is named by the snapshot in the depot before it is made; `remove_remains` needs no more
than that.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from container import overlay, snapshot
from container.aio import Background, FileWatcher, Log, readable
from container.cgroups import Cgroups, CgroupSet
from container.container import Container
from container.disk import DiskError, Disks
from container.files import open_home
from container.network import Networks
from container.parts import Parts
from container.plan import HOME, Facts, make_plan
from container.pools import AddressLease, IdLease, IdSource, Pool
from container.resolver import Resolver
from container.snapshot import Phase, Snapshot
from container.spec import ContainerSpec
from container.undo import UndoStack
from container.wshd import RECOVERY_TIMEOUT_S, Launch, Launcher, Wshd, WshdSilent

#: Names of the rungs in order; the fault hook of tests is called with each.
RUNGS: Final = ("leases", "directory", "disk", "cgroups", "launch", "network", "ready", "files", "snapshot")


class CreateError(RuntimeError):
    """A rung broke; nothing is left of the container. The cause is chained."""

    def __init__(self, rung: str, why: str) -> None:
        super().__init__(f"create: {rung}: {why}")
        self.rung = rung
        self.why = why


class Abandoned(RuntimeError):
    """The caller of create has gone away meanwhile."""


@dataclass(slots=True)
class Host:
    """What all containers of a depot share."""

    depot_dir: Path
    boot_id: str
    cgroups: Cgroups
    disks: Disks | None  # None: no disk limits, uppers are plain directories in the depot
    networks: Networks
    launcher: Launcher
    watcher: FileWatcher
    addresses: Pool[AddressLease]
    ids: Pool[IdLease]
    link_ids: IdSource
    resolver: Resolver
    seccomp: bytes
    background: Background
    log: Log
    fault: Callable[[str], None]


class Ladder:
    """Where a create stands."""

    def __init__(self, fault: Callable[[str], None]) -> None:
        self._fault = fault
        self.rung: str = RUNGS[0]
        self.abandoned = False

    def step(self, rung: str) -> None:
        assert rung in RUNGS
        self.rung = rung
        if self.abandoned:
            raise Abandoned(rung)
        self._fault(rung)


async def build(
    host: Host,
    spec: ContainerSpec,
    handle: str,
    link_id: str,
    ladder: Ladder,
    undo: UndoStack,
    record: bytes | None,
) -> Container:
    """Climb the ladder. Raises what the rung raised, with all rungs below given back.

    What cannot be given back is left in ``undo``, for the caller to try again.
    """
    try:
        return await _climb(host, spec, handle, link_id, ladder, undo, record)
    except BaseException:
        try:
            await undo.aclose()
        except Exception as e:  # what broke the rung is told to the caller, this to the operator
            host.log.warning("create_not_undone_whole", handle=handle, error=repr(e))
        raise


async def _climb(
    host: Host,
    spec: ContainerSpec,
    handle: str,
    link_id: str,
    ladder: Ladder,
    undo: UndoStack,
    record: bytes | None,
) -> Container:
    ladder.step("leases")
    ids = host.ids.take()
    undo.callback(host.ids.give_back, ids)
    lease = host.addresses.take() if spec.network else None
    parts = Parts(
        handle=handle,
        link_id=link_id,
        hostname=spec.hostname or link_id,
        directory=host.depot_dir / handle,
        ids=ids,
        limits=spec.limits,
        boot_id=host.boot_id,
        has_home=bool(spec.home_layers),
        egress=spec.egress,
        properties=spec.properties,
        lease=lease,
    )
    undo.push_async_callback(_give_back_address, host, parts)

    ladder.step("directory")
    parts.directory.mkdir(mode=0o700)
    undo.push_async_callback(asyncio.to_thread, overlay.remove_tree, parts.directory)
    parts.dir_fd = os.open(parts.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    undo.callback(parts.close)
    snapshot.write(parts.directory, parts.snapshot(Phase.MAKING))
    if record is not None:
        snapshot.write_record(parts.directory, record)
    parts.spool.mkdir(mode=0o700)

    ladder.step("disk")
    uppers = await _make_disk(host, parts, undo)

    ladder.step("cgroups")
    undo.push_async_callback(remove_cgroup, host, link_id)
    parts.cgroup = host.cgroups.create(link_id)
    _set_limits(parts.cgroup, parts)

    ladder.step("launch")
    facts = Facts(
        handle=handle,
        hostname=parts.hostname,
        ids=ids,
        upper_dir=uppers.root,
        home_upper_dir=uppers.home,
        stack_homes=overlay.stack_homes(spec.layers),
        cgroup_init=parts.cgroup.init_files,
        cgroup_job=parts.cgroup.job_files,
        cgroup_shown=parts.cgroup.shown,
        ethernet=host.networks.plan_for(link_id, lease) if lease is not None else None,
        resolver=host.resolver,
        seccomp=host.seccomp,
        socket=parts.directory / "wshd.sock",
    )
    launch = host.launcher.start(make_plan(spec, facts))
    undo.push_async_callback(_end_launch, launch, parts)
    parts.pid = await launch.pid()
    # The launcher waits for its child until `ready`, so the number cannot have been given away yet.
    parts.pidfd = os.pidfd_open(parts.pid)
    parts.pid_start_ticks = snapshot.start_ticks(parts.pid)

    ladder.step("network")
    if lease is not None:
        undo.push_async_callback(_detach, host, parts)
        parts.link = await host.networks.attach(link_id, parts.pid, lease, spec.egress)
        for mapping in spec.ports:
            parts.ports += (await host.networks.publish(parts.link, mapping),)
        launch.go()

    ladder.step("ready")
    await launch.ready()

    ladder.step("files")
    _open_roots(parts)

    ladder.step("snapshot")
    snapshot.write(parts.directory, parts.snapshot(Phase.MADE))
    return Container(parts, watcher=host.watcher, networks=host.networks, release=undo)


async def rebuild(host: Host, found: Snapshot) -> Parts:
    """Take a container up again that a former manager made. Raises OSError, LookupError: it is not alive
    any more.

    Its network is restored by the caller, for all containers at once.
    """
    directory = host.depot_dir / found.handle
    lease = next((one for one in host.addresses.entries if one.network == found.network), None)
    if found.network is not None and lease is None:
        raise LookupError(f"{found.network} is not of the configured pool_network")
    parts = Parts(
        handle=found.handle,
        link_id=found.link_id,
        hostname=found.hostname,
        directory=directory,
        ids=IdLease(found.ids_first),
        limits=found.limits,
        boot_id=found.boot_id,
        has_home=found.home,
        egress=found.egress,
        properties=found.properties,
        lease=lease,
        ports=found.ports,
        pid=found.pid,
        pid_start_ticks=found.pid_start_ticks,
        stopped=found.stopped,
        events=found.events,
    )
    try:
        parts.dir_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        parts.pidfd = os.pidfd_open(found.pid)
        if snapshot.start_ticks(found.pid) != found.pid_start_ticks:
            raise ProcessLookupError(f"pid {found.pid} is another process by now")
        await _ping(host, parts)
        parts.cgroup = host.cgroups.find(found.link_id)
        if parts.cgroup is None:
            raise LookupError("its cgroup is gone")
        if host.disks is not None:
            parts.disk = await host.disks.reopen(directory / "disk.img", directory / "disk")
            if not parts.disk.is_mounted():
                raise LookupError("its disk is not mounted here")
        _set_limits_again(host, parts)
        _open_roots(parts)
    except BaseException:
        parts.close()
        raise
    return parts


async def _ping(host: Host, parts: Parts) -> None:
    """WshdGone: it is none of ours. One that is silent is taken up: it may only be slow, and the guard looks after it."""
    try:
        await Wshd(parts.dir_fd, parts.handle).ping(RECOVERY_TIMEOUT_S)
    except WshdSilent as e:
        host.log.warning("container_silent", handle=parts.handle, error=str(e))


def adopt(host: Host, parts: Parts) -> Container:
    """The container of rebuilt parts, with the same undo as if it had been built here."""
    host.ids.claim(parts.ids)
    if parts.lease is not None:
        host.addresses.claim(parts.lease)
    undo = UndoStack()
    undo.callback(host.ids.give_back, parts.ids)
    undo.push_async_callback(_give_back_address, host, parts)
    undo.push_async_callback(asyncio.to_thread, overlay.remove_tree, parts.directory)
    undo.callback(parts.close)
    undo.push_async_callback(_remove_disk, parts)
    undo.push_async_callback(remove_cgroup, host, parts.link_id)
    if parts.link is not None:
        undo.push_async_callback(_detach, host, parts)
    return Container(parts, watcher=host.watcher, networks=host.networks, release=undo)


async def remove_remains(host: Host, directory: Path, found: Snapshot | None) -> None:
    """Remove what a dead manager left of a container: idempotent, and able to stop at any point and begin
    again.

    Without a snapshot there is nothing but the directory: it is written before the rest is made. Firewall
    elements and cgroups that no living container owns are swept by `Depot.recover` after this.
    """
    if found is not None:
        await remove_cgroup(host, found.link_id)
    if host.disks is not None:
        disk = await host.disks.reopen(directory / "disk.img", directory / "disk")
        await disk.destroy()
    await asyncio.to_thread(overlay.remove_tree, directory)
    if found is not None:
        _rest_leases(host, found)


def _rest_leases(host: Host, found: Snapshot) -> None:
    """They rest as after a release here: packets of the former owner may still be on the way."""
    for lease in host.addresses.entries:
        if lease.network == found.network:
            host.addresses.rest(lease)
    host.networks.rest_ports(found.ports)


async def _make_disk(host: Host, parts: Parts, undo: UndoStack) -> overlay.Uppers:
    mount_point = parts.directory / "disk"
    mount_point.mkdir(mode=0o755)
    if host.disks is not None:
        limits = parts.limits
        undo.push_async_callback(_remove_disk, parts)
        parts.disk = await host.disks.create(
            parts.directory / "disk.img",
            mount_point,
            limits.disk_bytes,
            limits.disk_inodes,
            max_bytes=limits.disk_max_bytes,
        )
    return overlay.make_uppers(mount_point, parts.ids)


async def _remove_disk(parts: Parts) -> None:
    if parts.disk is not None:
        await parts.disk.destroy()


def _set_limits(cgroup: CgroupSet, parts: Parts) -> None:
    limits = parts.limits
    if limits.memory_bytes is not None:
        cgroup.set_memory(limits.memory_bytes)
    if limits.cpu_shares is not None:
        cgroup.set_cpu_shares(limits.cpu_shares)
    if limits.pids is not None:
        cgroup.set_pids(limits.pids)


def _set_limits_again(host: Host, parts: Parts) -> None:
    """As this manager sets them, which may not be where the former one did. One that is refused costs no app its life."""
    cgroup, disk = parts.cgroup, parts.disk
    assert cgroup is not None
    steps: list[Callable[[], None]] = [cgroup.take_up, lambda: _set_limits(cgroup, parts)]
    if disk is not None:
        steps.append(lambda: disk.take_up(parts.limits.disk_bytes))
    for step in steps:
        try:
            step()
        except (OSError, DiskError) as e:
            host.log.warning("limit_not_set_again", handle=parts.handle, error=str(e))


async def remove_cgroup(host: Host, link_id: str) -> None:
    cgroup = host.cgroups.find(link_id)
    if cgroup is not None:
        await asyncio.to_thread(_end_cgroup, cgroup)


def _end_cgroup(cgroup: CgroupSet) -> None:
    """Both wait for the kernel to reap, so both belong in a thread."""
    cgroup.kill_all()
    cgroup.destroy()


async def _end_launch(launch: Launch, parts: Parts) -> None:
    await launch.abort()
    if parts.pidfd >= 0:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(parts.pidfd, signal.SIGKILL)
        await readable(parts.pidfd)


async def _detach(host: Host, parts: Parts) -> None:
    if parts.link is not None:
        await host.networks.detach(parts.link)


async def _give_back_address(host: Host, parts: Parts) -> None:
    """The /30 rests until its link is gone as well: else two connected routes lead to it (network.md 2)."""
    if parts.lease is None:
        return
    if parts.link is None:
        host.addresses.give_back(parts.lease)
        return
    host.background.start(_rest_address(host, parts), name=f"address-rest-{parts.link_id}")


async def _rest_address(host: Host, parts: Parts) -> None:
    assert parts.link is not None
    assert parts.lease is not None
    try:
        await host.networks.gone(parts.link)
    finally:
        host.addresses.give_back(parts.lease)


def _open_roots(parts: Parts) -> None:
    """Held until destroy: they keep the trees readable after pid 1 (house.md, isolation)."""
    parts.root_fd = os.open(f"/proc/{parts.pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        parts.home_fd = open_home(parts.root_fd, HOME)
    except OSError as e:
        if e.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):  # no home, or a link in its place
            raise
