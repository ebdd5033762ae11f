"""The rungs of a container: each piece that it is made of, with its make, undo, take-up and removal.

Their order and the loops over them are in create.py, which says what each of the four may rely on.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

from container import overlay, snapshot
from container.aio import readable
from container.body import Body
from container.build import Build
from container.cgroups import CgroupSet
from container.disk import DiskError
from container.errors import ContainerError
from container.files import open_home
from container.parts import Parts
from container.plan import LaunchFacts, make_plan
from container.pools import IdLease, has_address
from container.shared import Shared
from container.snapshot import Phase, Snapshot
from container.wshd import RECOVERY_TIMEOUT_S, Wshd, WshdSilent
from wsh.vcap import VCAP_HOME


class Rung:
    """One piece of a container. What a rung does not override needs nothing done."""

    name: str

    async def make(self, build: Build) -> None:
        raise NotImplementedError

    async def undo(self, build: Build) -> None:
        """Idempotent, and right for a piece that is half made."""

    async def take_up(self, build: Build) -> None:
        """OSError, ContainerError: the piece is not there, so the container does not live."""

    async def remains(self, shared: Shared, directory: Path, found: Snapshot | None) -> None:
        """Remove what a dead manager left. Idempotent. ``found`` None: it had no snapshot yet, so only a directory."""


class Lost(ContainerError, LookupError):
    """A container of a former manager cannot be taken up: a piece of it is gone."""


class Leases(Rung):
    """Ids and a /30, and the record of all that the other rungs make."""

    name = "leases"

    async def make(self, build: Build) -> None:
        shared, spec = build.shared, build.wanted
        ids = shared.ids.take()
        try:
            lease = shared.addresses.take(has_address(spec.address)) if spec.network else None
        except BaseException:
            shared.ids.give_back(ids)
            raise
        build._parts = Parts(
            handle=build.handle,
            link_id=build.link_id,
            hostname=spec.hostname or build.link_id,
            directory=build.directory,
            ids=ids,
            limits=spec.limits,
            boot_id=shared.boot_id,
            has_home=bool(spec.home_layers),
            egress=spec.egress,
            properties=spec.properties,
            lease=lease,
        )

    async def undo(self, build: Build) -> None:
        """The /30 rests until its link is gone as well: two connected routes would lead to it otherwise."""
        if build._parts is None:
            return
        shared, parts = build.shared, build.parts
        if parts.lease is not None and parts.link is not None:
            shared.background.start(_rest_address(shared, parts), name=f"address-rest-{parts.link_id}")
        elif parts.lease is not None:
            shared.addresses.give_back(parts.lease)
        shared.ids.give_back(parts.ids)

    async def take_up(self, build: Build) -> None:
        shared, found = build.shared, build.former
        lease = next((one for one in shared.addresses.entries if one.network == found.network), None)
        if found.network is not None and lease is None:
            raise Lost(f"{found.network} is not of the configured pool_network")
        ids = IdLease(found.ids_first)
        if ids in shared.ids.in_use or lease in shared.addresses.in_use:
            raise Lost("another container has its ids or its address")
        shared.ids.claim(ids)
        if lease is not None:
            shared.addresses.claim(lease)
        build._parts = Parts(
            handle=found.handle,
            link_id=found.link_id,
            hostname=found.hostname,
            directory=build.directory,
            ids=ids,
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

    async def remains(self, shared: Shared, directory: Path, found: Snapshot | None) -> None:
        """They rest as after a release here: packets of the former owner may still be on the way."""
        if found is None:
            return
        for lease in shared.addresses.entries:
            if lease.network == found.network:
                shared.addresses.rest(lease)
        shared.networks.rest_ports(found.ports)


class Directory(Rung):
    """Its place in the depot, with the first snapshot and the caller's record."""

    name = "directory"

    async def make(self, build: Build) -> None:
        parts = build.parts
        parts.directory.mkdir(mode=0o700)
        build.has_directory = True
        parts.dir_fd = os.open(parts.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        snapshot.write(parts.directory, parts.snapshot(Phase.MAKING))
        if build.record is not None:
            snapshot.write_record(parts.directory, build.record)
        parts.spool.mkdir(mode=0o700)

    async def undo(self, build: Build) -> None:
        """A directory that was there before stays: it is not ours."""
        build.parts.close()
        if build.has_directory:
            await asyncio.to_thread(overlay.remove_tree, build.parts.directory)

    async def take_up(self, build: Build) -> None:
        parts = build.parts
        build.has_directory = True
        parts.dir_fd = os.open(parts.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    async def remains(self, shared: Shared, directory: Path, found: Snapshot | None) -> None:
        await asyncio.to_thread(overlay.remove_tree, directory)


class DiskImage(Rung):
    """The file system of the container's uppers, or plain directories where there are no disk limits."""

    name = "disk"

    async def make(self, build: Build) -> None:
        parts, disks = build.parts, build.shared.disks
        image, mount_point = _disk_of(parts.directory)
        mount_point.mkdir(mode=0o755)
        if disks is not None:
            limits = parts.limits
            parts.disk = await disks.create(
                image, mount_point, limits.disk_bytes, limits.disk_inodes, max_bytes=limits.disk_max_bytes
            )
        build.uppers = overlay.make_uppers(mount_point, parts.ids)

    async def undo(self, build: Build) -> None:
        if build.parts.disk is not None:
            await build.parts.disk.destroy()

    async def take_up(self, build: Build) -> None:
        parts, disks = build.parts, build.shared.disks
        if disks is None:
            return
        parts.disk = disk = await disks.reopen(*_disk_of(parts.directory))
        if not disk.is_mounted():
            raise Lost("its disk is not mounted here")
        _set_again(build, lambda: disk.take_up(parts.limits.disk_bytes))

    async def remains(self, shared: Shared, directory: Path, found: Snapshot | None) -> None:
        if shared.disks is not None:
            disk = await shared.disks.reopen(*_disk_of(directory))
            await disk.destroy()


class CgroupTree(Rung):
    """Its groups with their limits."""

    name = "cgroups"

    async def make(self, build: Build) -> None:
        parts = build.parts
        parts.cgroup = build.shared.cgroups.create(build.link_id)
        parts.cgroup.set_limits(parts.limits)

    async def undo(self, build: Build) -> None:
        await remove_cgroup(build.shared, build.link_id)

    async def take_up(self, build: Build) -> None:
        parts = build.parts
        parts.cgroup = cgroup = build.shared.cgroups.find(build.link_id)
        if cgroup is None:
            raise Lost("its cgroup is gone")
        _set_again(build, cgroup.take_up, lambda: cgroup.set_limits(parts.limits))

    async def remains(self, shared: Shared, directory: Path, found: Snapshot | None) -> None:
        if found is not None:
            await remove_cgroup(shared, found.link_id)


class Launched(Rung):
    """pid 1 with its namespaces; it waits for the network."""

    name = "launch"

    async def make(self, build: Build) -> None:
        shared, parts = build.shared, build.parts
        assert build.uppers is not None
        assert parts.cgroup is not None
        facts = LaunchFacts(
            handle=build.handle,
            hostname=parts.hostname,
            ids=parts.ids,
            upper_dir=build.uppers.root,
            home_upper_dir=build.uppers.home,
            stack_homes=overlay.stack_homes(build.wanted.layers),
            cgroup_init=parts.cgroup.init_files,
            cgroup_job=parts.cgroup.job_files,
            cgroup_shown=parts.cgroup.shown,
            ethernet=shared.networks.plan_for(build.link_id, parts.lease)
            if parts.lease is not None
            else None,
            resolver=shared.resolver,
            seccomp=shared.seccomp,
            socket=parts.directory / "wshd.sock",
        )
        build.launch = launch = shared.launcher.start(make_plan(build.wanted, facts))
        parts.pid = await launch.pid()
        # The launcher waits for its child until `ready`, so the number cannot have been given away yet.
        parts.pidfd = os.pidfd_open(parts.pid)
        parts.pid_start_ticks = snapshot.start_ticks(parts.pid)

    async def undo(self, build: Build) -> None:
        if build.launch is not None:
            await build.launch.abort()
        pidfd = build.parts.pidfd
        if pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            await readable(pidfd)

    async def take_up(self, build: Build) -> None:
        parts = build.parts
        parts.pidfd = os.pidfd_open(parts.pid)
        if snapshot.start_ticks(parts.pid) != parts.pid_start_ticks:
            raise ProcessLookupError(errno.ESRCH, f"pid {parts.pid} is another process by now")


class Linked(Rung):
    """Its link, firewall elements and published ports."""

    name = "network"

    async def make(self, build: Build) -> None:
        network, parts, spec = build.shared.networks, build.parts, build.wanted
        assert build.launch is not None
        if (lease := parts.lease) is None:
            return
        parts.link = await network.attach(build.link_id, parts.pid, lease, spec.egress, spec.limits.bandwidth)
        for mapping in spec.ports:
            parts.ports += (await network.publish(parts.link, mapping),)
        build.launch.go()

    async def undo(self, build: Build) -> None:
        if build.parts.link is not None:
            await build.shared.networks.detach(build.parts.link)


class Ready(Rung):
    """wshd serves its socket, and the link passes packets."""

    name = "ready"

    async def make(self, build: Build) -> None:
        assert build.launch is not None
        await build.launch.ready()
        if build.parts.link is not None:
            await build.shared.networks.up(build.parts.link)

    async def take_up(self, build: Build) -> None:
        """WshdGone: it is none of ours. One that is silent is taken up: it may only be slow, and the guard looks after it."""
        try:
            await Wshd(build.parts.dir_fd, build.handle).ping(RECOVERY_TIMEOUT_S)
        except WshdSilent as e:
            build.shared.log.warning("container_silent", handle=build.handle, error=str(e))


class Files(Rung):
    """Descriptors of its root and home; they keep the trees readable after pid 1 is dead."""

    name = "files"

    async def make(self, build: Build) -> None:
        parts = build.parts
        parts.root_fd = os.open(f"/proc/{parts.pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            parts.home_fd = open_home(parts.root_fd, VCAP_HOME)
        except OSError as e:
            if e.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):  # no home, or a link in its place
                raise

    async def take_up(self, build: Build) -> None:
        await self.make(build)


class Recorded(Rung):
    """The second snapshot: from here on the next manager takes the container up."""

    name = "snapshot"

    async def make(self, build: Build) -> None:
        snapshot.write(build.parts.directory, build.parts.snapshot(Phase.MADE))


class Watched(Rung):
    """Its death and its memory kills are noticed."""

    name = "watch"

    async def make(self, build: Build) -> None:
        shared = build.shared
        build._body = body = Body(build.parts, shared.watcher, shared.networks)
        body.watch()

    async def undo(self, build: Build) -> None:
        """Kills pid 1, and with it every process inside."""
        if build._body is not None:
            await build._body.kill()
            build._body.unwatch()

    async def take_up(self, build: Build) -> None:
        await self.make(build)


async def remove_cgroup(shared: Shared, link_id: str) -> None:
    """Ends its processes and removes its groups. Idempotent. OSError: a process does not end."""
    cgroup = shared.cgroups.find(link_id)
    if cgroup is not None:
        await asyncio.to_thread(_end_cgroup, cgroup)


def _end_cgroup(cgroup: CgroupSet) -> None:
    """Both wait for the kernel to reap, so both belong in a thread."""
    cgroup.kill_all()
    cgroup.destroy()


def _disk_of(directory: Path) -> tuple[Path, Path]:
    """The image and its mount point."""
    return directory / "disk.img", directory / "disk"


def _set_again(build: Build, *steps: Callable[[], None]) -> None:
    """Limits as this manager sets them, which may not be where the former one did. A refused limit ends no container."""
    for step in steps:
        try:
            step()
        except (OSError, DiskError) as e:
            build.shared.log.warning("limit_not_set_again", handle=build.handle, error=str(e))


async def _rest_address(shared: Shared, parts: Parts) -> None:
    assert parts.link is not None
    assert parts.lease is not None
    try:
        await shared.networks.gone(parts.link)
    finally:
        shared.addresses.give_back(parts.lease)
