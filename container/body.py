"""The inner half of a container: its state, its pid 1, its jobs, and the events of both.

`Container` is the outer half, which callers hold. `Depot` and the rungs of create.py work on this half. There is one
state for both, and only the table `parts.ACTIONS` changes it. pid 1 is watched by its pidfd, so its death is noticed
at once, whatever caused it.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from container import snapshot
from container.aio import FileWatcher
from container.cgroups import CgroupSet, strays
from container.events import EventKind, Events
from container.jobs import JobHost, Jobs
from container.network import Link, Networks
from container.parts import ACTIONS, Action, ContainerState, Parts, WrongState
from container.snapshot import Phase
from container.wshd import Wshd

#: How long a SIGKILL may take. A killed process ends at once, unless it is frozen or waits for a device.
_DEATH_S: Final = 10.0


class Body:
    """Made by the last rung. `watch` begins to follow pid 1; `unwatch` ends that, and the container runs on."""

    def __init__(self, parts: Parts, watcher: FileWatcher, networks: Networks) -> None:
        self.parts = parts
        self.networks = networks
        self.died = asyncio.Event()
        self.state = ContainerState.STOPPED if parts.stopped else ContainerState.ACTIVE
        self.events = Events(parts.events)
        self.wshd = Wshd(parts.dir_fd, parts.handle)
        self._jobs_host = JobHost(
            parts.spool,
            watcher,
            self.wshd,
            self.died.is_set,
            lambda: self.events.publish(EventKind.OVERRAN),
        )
        self.jobs = Jobs(self._jobs_host, parts.ids, lambda: self.check(Action.SPAWN))
        #: Which piece of it others have removed; empty: none.
        self.broken = ""
        self._unwatch: list[Callable[[], object]] = []
        #: Keys of the caller for the snapshot file.
        self.annotations: Callable[[], Mapping[str, Any]] = dict

    def __repr__(self) -> str:
        return (
            f"<Container {self.parts.handle} {self.state} pid={self.parts.pid} jobs={len(self.jobs.known)}>"
        )

    @property
    def handle(self) -> str:
        return self.parts.handle

    @property
    def cgroup(self) -> CgroupSet:
        assert self.parts.cgroup is not None
        return self.parts.cgroup

    # States.

    def may(self, action: Action) -> bool:
        return (self.state, action) in ACTIONS

    def check(self, action: Action) -> None:
        """WrongState: the table does not permit ``action`` in the present state."""
        if not self.may(action):
            raise WrongState(f"container {self.handle}: cannot {action} in the state {self.state.value!r}")

    def enter(self, action: Action) -> None:
        """Moves to the state to which ``action`` leads. WrongState: it is not permitted."""
        self.check(action)
        self.state = ACTIONS[self.state, action]

    def save(self) -> None:
        """Write the snapshot. OSError."""
        self.parts.events = self.events.kinds
        snapshot.write(self.parts.directory, self.parts.snapshot(Phase.MADE), self.annotations())

    # pid 1.

    def watch(self) -> None:
        """Follow the death of pid 1, memory kills and a new link. OSError: the kernel refuses (limit of inotify instances)."""
        loop, pidfd = asyncio.get_running_loop(), self.parts.pidfd
        loop.add_reader(pidfd, self._on_death)
        self._unwatch.append(lambda: loop.remove_reader(pidfd))
        self._unwatch.append(self.cgroup.watch_oom(loop, self._on_oom))
        if self.parts.link is not None:  # those of a former manager are taken up together, later
            self.follow_link(self.parts.link, is_new=True)

    def follow_link(self, link: Link, *, is_new: bool) -> None:
        """From now on ``link`` is the container's. ``is_new`` False: others may have replaced it while no manager ran."""
        self.parts.link = link
        follow = self.networks.follower.follow
        self._unwatch.append(follow(link, self.parts.pid, self.on_broken, is_new=is_new))

    def unwatch(self) -> None:
        """Stop following. Idempotent. Call it before the descriptors of the parts are closed."""
        while self._unwatch:
            self._unwatch.pop()()

    @property
    def can_be_asked(self) -> bool:
        """True while there is a pid 1 that should reply to requests."""
        return self.state in (ContainerState.ACTIVE, ContainerState.STOPPED) and not self.died.is_set()

    async def kill(self) -> None:
        """End pid 1, and with it every process inside. Idempotent. TimeoutError: pid 1 has not ended in time."""
        if self.parts.pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.parts.pidfd, signal.SIGKILL)
        if not await self._dies_within(_DEATH_S):
            await self.kill_by_cgroup()

    async def kill_by_cgroup(self) -> None:
        """As `kill`, but through the cgroup, which also thaws frozen processes. TimeoutError."""
        await asyncio.to_thread(self.cgroup.kill_all)
        if not await self._dies_within(_DEATH_S):
            raise TimeoutError(
                f"container {self.handle}: pid 1 (host pid {self.parts.pid}) runs on {_DEATH_S:g} s after SIGKILL"
            )

    async def _dies_within(self, timeout_s: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self.died.wait()
        return self.died.is_set()

    def _on_oom(self) -> None:
        self.events.publish(EventKind.OUT_OF_MEMORY)
        if self.may(Action.LOOK):  # otherwise its directory may be removed already
            self.save()

    def on_broken(self, piece: str) -> bool:
        """Others have removed ``piece``. False: it was broken before, or pid 1's own death took the piece away."""
        # A dying pid 1 gives up its network before its pidfd says so.
        if self.broken or not self.can_be_asked or strays.is_exiting(self.parts.pid):
            return False
        self.broken = piece
        self.events.publish(EventKind.BROKEN)
        with suppress(OSError):  # a full disk: the next manager finds the damage by itself
            self.save()
        return True

    def _on_death(self) -> None:
        asyncio.get_running_loop().remove_reader(self.parts.pidfd)
        self.enter(Action.DIE)
        self.died.set()
        for job in self.jobs.known.values():
            job.status  # noqa: B018  read now: the record may be removed before a waiter runs
        for wake in tuple(self._jobs_host.on_death):
            wake()
        self.events.publish(EventKind.DEAD)
