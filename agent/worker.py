"""The composition root: builds the parts, wires subject to handler, starts, drains, stops.

TERM, INT, QUIT   stop every app (with a deadline) and leave nothing
USR1              say dea.shutdown and advertise no more
USR2              evacuate: as USR1, tell the apps are leaving, end when they are gone
detach            (control socket) end, and leave the apps running for the next agent
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time
import uuid
from collections.abc import Callable, Coroutine
from enum import Enum
from pathlib import Path
from typing import Any

import buildpacks
from agent import recovery, snapshot
from agent.announce import Voice
from agent.bus import messages as m
from agent.bus.connection import Bus
from agent.config import Settings
from agent.droplets.layers import Layers
from agent.droplets.transfer import Transfers
from agent.droplets.unpacker import Unpacker
from agent.http.control import Control
from agent.instances.instance import ROUTED, Instance, State
from agent.instances.keeper import Keeper
from agent.instances.life import Home, live
from agent.instances.registry import Registry
from agent.instances.stats import sample
from agent.logs import Log
from agent.resources import MIB, host_memory_mb
from agent.staging.buildpacks import AdminBuildpacks, own_buildpacks
from agent.staging.registry import RESTARTED, StagingRegistry
from agent.staging.task import Workshop
from container import Depot, DepotSettings

EVACUATION_PERIOD_S = 5.0
REAPER_PERIOD_S = 10.0
FAREWELL_S = 3.0
DIRECTORIES = (
    "db",
    "tmp",
    "staging",
    "crashes",
    "layers",
    "trash",
    "templates",
    "admin_buildpacks",
    "outbox",
)


class End(Enum):
    SHUTDOWN = "shutdown"
    DETACH = "detach"


def local_address(configured: str | None) -> str:
    """The address peers reach this host by: configured, or the source of the default route (no packet is sent)."""
    if configured is not None:
        return configured
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("1.2.3.4", 9))
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def depot_settings(settings: Settings) -> DepotSettings:
    base, network = settings.base_dir, settings.network
    return DepotSettings(
        depot_dir=base / "depot",
        templates_dir=base / "templates",
        cgroup_parent=settings.cgroup_parent,
        pool_network=network.pool_network,
        release_delay_s=network.release_delay,
        mtu=network.mtu,
        dns_servers=network.dns_servers,
        allow_networks=network.allow_networks,
        allow_host_access=network.allow_host_access,
        port_first=settings.port.pool_start_port or 0,
        port_count=settings.port.pool_size or 0,
        uid_first=settings.user.pool_start_uid,
        uid_count=settings.user.pool_size,
    )


class Worker:
    """One agent. ``run`` returns its exit status."""

    def __init__(self, settings: Settings, log: Log) -> None:
        self._settings = settings
        self._log = log
        self._registry = Registry()
        self._ending: asyncio.Event = asyncio.Event()
        self._end = End.SHUTDOWN
        self._detached = asyncio.Event()
        self._deadline = float("inf")
        self._advertising = True
        self._register_now = asyncio.Event()
        self._save_due = False
        self._lives: dict[Instance, asyncio.Task[None]] = {}
        self._staging_runs: set[asyncio.Task[None]] = set()
        self._group: asyncio.TaskGroup
        self._evacuating_since: float | None = None

    # -- life --------------------------------------------------------------------------------------------------

    async def run(self) -> int:
        """Until it is told to end. 0: as told; 1: something that the agent cannot do without broke."""
        for name in DIRECTORIES:
            (self._settings.base_dir / name).mkdir(mode=0o755, parents=True, exist_ok=True)
        await self._build()
        status = 0
        try:
            async with asyncio.TaskGroup() as self._group:
                background = [
                    self._group.create_task(work, name=name)
                    for name, work in (
                        ("bus", self._bus.run()),
                        ("advertise", self._every(self._settings.intervals.advertise, self._advertise)),
                        ("heartbeat", self._beat_for_ever()),
                        ("routes", self._register_for_ever()),
                        ("stats", self._sample_for_ever()),
                        ("reaper", self._reap_for_ever()),
                    )
                ]
                self._take_over()
                self._listen_to_signals()
                await self._control.open(self._settings.control_socket)
                self._log.info(
                    "agent_started", id=self._id, ip=self._ip, stacks=[s.name for s in self._settings.stacks]
                )
                await self._ending.wait()
                await self._finish()
                for task in background:
                    task.cancel()
        except* Exception as group:
            self._log.error("agent_broke", errors=[repr(one) for one in group.exceptions], exc_info=group)
            status = 1
        await self._control.close()
        await self._layers.close()
        await self._transfers.close()
        await self._depot.close(remove_tables=self._end is End.SHUTDOWN and not self._depot.handles())
        self._log.info("agent_ended", status=status, how=self._end.value)
        return status

    async def _build(self) -> None:
        settings, log = self._settings, self._log
        self._ip = local_address(settings.local_ip)
        try:
            memory = snapshot.read(self._memory_path)
        except snapshot.SnapshotDamaged as e:
            log.error("snapshot_damaged_starting_empty", error=str(e))
            memory = None
        self._memory = memory or snapshot.Memory(str(uuid.uuid4()))
        self._id = self._memory.agent_id
        base = settings.base_dir
        self._depot = await Depot.open(depot_settings(settings), log=log)
        recovered = await self._depot.recover()
        log.info("depot_recovered", found=len(recovered.found), removed=len(recovered.removed))
        self._transfers = Transfers(settings.downloads.concurrent, stall_s=settings.downloads.stall_s)
        unpacker = Unpacker(low_water_bytes=settings.resources.low_water_mb * MIB)
        self._layers = Layers(base / "layers", base / "trash", self._transfers, unpacker, self._log)
        await self._layers.open()
        for left in (base / "staging").iterdir():  # by an agent that was killed
            self._layers.throw_away(left)
        self._keeper = Keeper(
            settings,
            self._registry,
            log=log,
            host_memory_mb=host_memory_mb(),
            staging_claims=lambda: self._stagings.claims(),
            begin=self._begin_life,
            save=self._save,
        )
        self._voice = Voice(settings, self._id, self._ip, self._registry)
        self._bus = Bus(
            settings.nats,
            agent_id=self._id,
            outbox_dir=base / "outbox",
            apply=self._apply,
            on_connected=self._speak_anew,
            staging=settings.staging.enabled,
            log=log,
        )
        self._keeper.bus, self._keeper.voice = self._bus, self._voice
        shop = Workshop(
            settings,
            self._depot,
            self._layers,
            self._transfers,
            unpacker,
            AdminBuildpacks(base / "admin_buildpacks", self._transfers, self._layers),
            own_buildpacks(buildpacks.path(), buildpacks.ORDER),
            base / "staging",
            log,
        )
        self._stagings = StagingRegistry(
            shop,
            self._bus,
            begin=self._begin_staging,
            start=self._keeper.start,
            lacks=self._keeper.lacks,
            changed=self._save,
        )
        self._home = Home(
            settings=settings,
            depot=self._depot,
            layers=self._layers,
            local_ip=self._ip,
            starts=asyncio.Semaphore(settings.starts.concurrent),
            log=log,
            happen=self._keeper.happen,
            wait_room=self._keeper.room_of,
            deadline_s=lambda: max(0.0, self._deadline - time.monotonic()),
            detached=self._detached,
        )
        self._control = Control(
            registry=self._registry,
            stagings=self._stagings,
            depot=self._depot,
            crashes_dir=base / "crashes",
            status=self._status,
            detach=self._ask_detach,
            log=log,
        )

    @property
    def _memory_path(self) -> Path:
        return self._settings.base_dir / "db" / "agent.json"

    def _take_over(self) -> None:
        """What a former agent left: instances with their containers, stagings that nobody will finish."""
        for saved in self._memory.stagings:
            self._bus.tell(m.StagingRefused(saved.task_id, RESTARTED), reply_to=saved.reply_to)
        recovery.take_over(
            self._memory.instances, self._depot, self._registry, self._keeper, self._begin_life, self._log
        )
        owned = {one.handle for one in self._registry}
        for handle in self._depot.handles():
            if handle not in owned:
                self._log.info("container_without_owner_destroyed", handle=handle)
                self._group.create_task(self._depot.destroy(handle), name=f"destroy-{handle}")
        self._save()

    # -- commands ----------------------------------------------------------------------------------------------

    def _apply(self, command: m.Command) -> None:
        match command:
            case m.StartCommand(message):
                self._keeper.start(message)
            case m.StopCommand(stop):
                if stop.only_app:
                    self._stagings.stop_app(stop.app)
                self._keeper.stop(stop)
            case m.UpdateCommand(update):
                self._keeper.update(update)
            case m.FindCommand(question, reply_to):
                self._keeper.find(question, reply_to)
            case m.RouterStartCommand(router):
                self._voice.heard_router(router)
                self._bus.repeat_unregisters()
                self._register_now.set()
            case m.StageCommand(request, reply_to):
                self._stagings.stage(request, reply_to)
            case m.StopStagingCommand(stop_staging):
                self._stagings.stop_app(stop_staging.app_id)

    def _begin_life(self, instance: Instance) -> None:
        task = self._group.create_task(live(instance, self._home), name=f"life-{instance.id[:8]}")
        self._lives[instance] = task
        task.add_done_callback(lambda _: self._lives.pop(instance, None))

    def _begin_staging(self, task_id: str, life: Coroutine[None, None, None]) -> None:
        run = self._group.create_task(life, name=f"staging-life-{task_id[:8]}")
        self._staging_runs.add(run)
        run.add_done_callback(self._staging_runs.discard)

    # -- the periodic voice ------------------------------------------------------------------------------------

    def _speak_anew(self) -> None:
        """After each connect: state and voice are never stored, one fresh of each."""
        self._bus.say(self._voice.heartbeat())
        self._advertise()
        for route in self._voice.routes():
            self._bus.say(route)

    def _advertise(self) -> None:
        if not self._advertising or self._keeper.is_low():
            return
        dea, staging = self._voice.adverts(self._keeper.left())
        self._bus.say(dea)
        if self._settings.staging.enabled:
            self._bus.say(staging)

    async def _every(self, period_s: float, work: Callable[[], None]) -> None:
        while True:
            await asyncio.sleep(period_s)
            work()

    async def _beat_for_ever(self) -> None:
        while True:
            period_s = self._settings.intervals.heartbeat
            if self._evacuating_since is not None:
                period_s = min(period_s, EVACUATION_PERIOD_S)
            await asyncio.sleep(period_s)
            self._bus.say(self._voice.heartbeat())

    async def _register_for_ever(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._voice.register_interval_s):
                    await self._register_now.wait()
            self._register_now.clear()
            for route in self._voice.routes():
                self._bus.say(route)

    async def _sample_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._settings.intervals.stats)
            for instance in self._registry.in_states(ROUTED):
                if (container := recovery.container_of(instance, self._depot)) is not None:
                    await sample(instance, container, self._log)

    async def _reap_for_ever(self) -> None:
        while True:
            await asyncio.sleep(REAPER_PERIOD_S)
            self._keeper.reap_crashes(self._settings.base_dir / "crashes", time.time())
            if self._keeper.is_low():
                await self._layers.sweep({one.message.sha1 for one in self._registry if one.message.sha1})

    # -- memory ------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        """Once per turn of the loop, however much changed in it."""
        if not self._save_due:
            self._save_due = True
            asyncio.get_running_loop().call_soon(self._save_now)

    def _save_now(self) -> None:
        self._save_due = False
        instances = tuple(snapshot.save_instance(one) for one in self._registry)
        try:
            snapshot.write(self._memory_path, snapshot.Memory(self._id, instances, self._stagings.saved()))
        except OSError as e:
            self._log.error("snapshot_not_written", error=str(e))

    # -- the end -----------------------------------------------------------------------------------------------

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            loop.add_signal_handler(number, self._ask_end, End.SHUTDOWN)
        loop.add_signal_handler(signal.SIGUSR1, self._leave_pool)
        loop.add_signal_handler(signal.SIGUSR2, self._evacuate)

    def _ask_end(self, how: End) -> None:
        if not self._ending.is_set():
            self._log.info("agent_ending", how=how.value)
            self._end = how
            self._ending.set()

    def _ask_detach(self) -> None:
        self._ask_end(End.DETACH)

    def _leave_pool(self) -> None:
        if self._advertising:
            self._advertising = False
            self._bus.tell(self._voice.shutdown())

    def _evacuate(self) -> None:
        if self._evacuating_since is None:
            self._evacuating_since = time.monotonic()
            self._log.info("evacuation_begun")
            self._leave_pool()
            self._keeper.evacuate()
            self._bus.say(self._voice.heartbeat())
            self._group.create_task(self._evacuation(), name="evacuation")

    async def _evacuation(self) -> None:
        """Done when everything has been stopped by its controller, or the time is over (dea-bus.md 5.4)."""
        assert self._evacuating_since is not None
        bail_out = self._evacuating_since + self._settings.evacuation_bail_out_time_in_seconds
        while (self._keeper.busy() or len(self._stagings)) and time.monotonic() < bail_out:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.2):
                    await self._ending.wait()
            if self._ending.is_set():
                return
        self._ask_end(End.SHUTDOWN)

    async def _finish(self) -> None:
        self._deadline = time.monotonic() + self._settings.shutdown.deadline_s
        if self._end is End.DETACH:
            await self._let_go()
            return
        self._bus.ignore_commands()
        self._keeper.evacuating = True
        self._leave_pool()
        self._stagings.stop_all()
        for instance in self._registry:
            if instance.state is not State.CRASHED:
                self._keeper.stop_one(instance)
        await self._wait_lives(self._settings.shutdown.deadline_s * 0.75)
        for handle in self._depot.handles():  # past the grace: no more asking
            self._log.warning("container_killed_at_deadline", handle=handle)
            await self._depot.destroy(handle)
        await self._bus.farewell(min(FAREWELL_S, max(0.5, self._deadline - time.monotonic())))
        self._save_now()

    async def _let_go(self) -> None:
        """The lives end, the containers do not; what is known is on disk for the next agent."""
        self._bus.ignore_commands()
        self._save_now()
        self._detached.set()
        self._stagings.stop_all()
        await self._wait_lives(2.0, only_staging=True)
        for task in tuple(self._lives.values()):
            task.cancel()
        await asyncio.gather(*self._lives.values(), return_exceptions=True)
        await self._bus.farewell(FAREWELL_S)

    async def _wait_lives(self, timeout_s: float, *, only_staging: bool = False) -> None:
        waiting: set[asyncio.Task[None]] = set(self._staging_runs)
        if not only_staging:
            waiting |= set(self._lives.values())
        if waiting:
            await asyncio.wait(waiting, timeout=timeout_s)

    def _status(self) -> dict[str, Any]:
        left = self._keeper.left()
        return {
            "id": self._id,
            "ip": self._ip,
            "connected": self._bus.connected,
            "memory_left_mb": left.memory_mb,
            "disk_left_mb": left.disk_mb,
            "instances": len(self._registry),
            "stagings": len(self._stagings),
            "evacuating": self._keeper.evacuating,
        }
