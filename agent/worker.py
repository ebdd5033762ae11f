"""The composition root: builds the parts, wires subject to handler, starts, drains, stops.

TERM, INT, QUIT   stop every app (with a deadline) and leave nothing
USR1              publish dea.shutdown and advertise no more
USR2              evacuate: as USR1, publish instances as EVACUATING, end when they are gone
HUP               open the log file anew
detach            (control socket) end, and leave the apps running for the next agent
"""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import buildpacks
from agent import recovery
from agent.admission import Admission
from agent.announce import Announcer, OwnMessages
from agent.bus.connection import Bus
from agent.config import Settings
from agent.dispatch import Dispatcher
from agent.droplets.layers import Layers
from agent.droplets.unpacker import Unpacker
from agent.ending import Deadline, Ending
from agent.factories import Factories, on_host
from agent.host import local_address, told_as_unfit
from agent.http.control import Control
from agent.instances.keeper import Keeper
from agent.instances.parts import LifeParts
from agent.instances.prober import Prober
from agent.instances.registry import Registry
from agent.lag import LoopLag
from agent.leaving import Leaving
from agent.lives import Lives, Starter
from agent.logs import Log, LogFile, reopen
from agent.memory.agent import AgentMemory
from agent.memory.instances import InstanceRecords
from agent.phases import RESUMED, AgentPhase, Phases, Wish
from agent.probe import WriteProbe
from agent.resources import host_memory_mb
from agent.signals import Signals, hold
from agent.staging.admin import AdminBuildpacks
from agent.staging.buildpacks import own_buildpacks
from agent.staging.keeper import StagingKeeper
from agent.staging.registry import StagingRegistry
from agent.staging.task import StagingParts
from agent.supervisor import Supervisor
from agent.upkeep import Upkeep


class Worker:
    """One agent. ``run`` returns its exit status."""

    def __init__(
        self,
        settings: Settings,
        log: Log,
        log_file: LogFile | None = None,
        factories: Factories | None = None,
    ) -> None:
        """``factories``: None: those of the host."""
        self._factories = factories if factories is not None else on_host()
        self._settings = settings
        self._log = log
        self._log_file = log_file
        self._signals = Signals()
        self._supervisor = Supervisor(log)
        self._lag = LoopLag(log)
        self._probe = WriteProbe(settings.base_dir, log)
        self._registry = Registry()
        self._phases = Phases()
        self._deadline = Deadline()

    # -- life --------------------------------------------------------------------------------------------------

    async def run(self) -> int:
        """Until it is asked to end. 0: as asked; 1: something that the agent cannot do without broke. HostUnfit: it cannot begin.

        However it ends, it never ends an app that it was not asked to stop.
        """
        self._listen_to_signals()
        status = 0
        try:
            async with AsyncExitStack() as undo:
                with told_as_unfit(self._settings.base_dir):
                    await self._build(undo)
                try:
                    await self._serve()
                except* Exception as group:
                    errors = [repr(one) for one in group.exceptions]
                    self._log.error("agent_broke", errors=errors, exc_info=group)
                    status = 1
        finally:
            hold()
        self._log.info("agent_ended", status=status, phase=self._phases.now.value)
        return status

    async def _serve(self) -> None:
        async with self._supervisor as supervisor:
            await self._take_over()  # before the bus: who asks gets an answer that is true
            run_bus = partial(self._bus.run, self._dispatcher.carry_out, self._announcer.publish_anew)
            supervisor.keep("bus", run_bus)
            self._announcer.begin(supervisor)
            supervisor.keep("memory", self._memory.written.run)
            self._upkeep.begin()
            supervisor.keep("lag", self._lag.run)
            self._signals.on(self._leaving.leave_pool, signal.SIGUSR1)
            self._signals.on(self._evacuate, signal.SIGUSR2)
            self._resume_phase()
            await self._control.open(self._settings.control_socket)
            self._log.info(
                "agent_started", id=self._id, ip=self._ip, stacks=[s.name for s in self._settings.stacks]
            )
            await self._until_asked_to_end()
            await self._end()
            with supervisor.guard("memory"):
                await self._memory.written.save()
            self._lives.cancel()

    async def _build(self, undo: AsyncExitStack) -> None:
        """Whatever has to be closed is pushed on ``undo`` as soon as it is there."""
        settings, log = self._settings, self._log
        self._ip = local_address(settings.local_ip, log)
        self._memory = AgentMemory(
            settings.base_dir,
            log,
            clock=self._factories.clock,
            new_id=self._factories.new_id,
        )
        undo.callback(self._memory.written.close)
        self._id = self._memory.agent_id
        base = settings.base_dir
        self._bus = Bus(
            settings.nats,
            agent_id=self._id,
            outbox_dir=base / "outbox",
            staging=settings.staging.enabled,
            log=log,
            port_rest_s=settings.port.rest_s,
            ahead=self._memory.written,
        )
        self._depot = await self._factories.open_depot(settings, log, self._bus.port_rests)
        self._records = InstanceRecords(self._memory.written, self._registry, self._depot, self._id)
        undo.push_async_callback(self._close_depot)
        self._recovered = await self._depot.recover()
        log.info(
            "depot_recovered",
            found=len(self._recovered.found),
            removed=len(self._recovered.removed),
            left_alone=len(self._recovered.left_alone),
        )
        self._transfers = self._factories.transfers(settings)
        undo.push_async_callback(self._transfers.close)
        unpacker = self._factories.unpacker(settings)
        self._layers = Layers(base / "layers", base / "trash", self._transfers, unpacker, self._log)
        undo.push_async_callback(self._layers.close)
        await self._layers.open()
        for left in (base / "staging").iterdir():  # by an agent that was killed
            self._layers.throw_away(left)
        self._build_parts(unpacker)
        self._build_surfaces()
        undo.push_async_callback(self._control.close)

    def _build_parts(self, unpacker: Unpacker) -> None:
        """What decides and works; each gets those before it."""
        settings, log = self._settings, self._log
        clock, new_id = self._factories.clock, self._factories.new_id
        self._admission = Admission(settings, self._registry, self._probe, host_memory_mb=host_memory_mb())
        self._own_messages = OwnMessages(settings, self._id, self._ip, self._registry, clock)
        self._keeper = Keeper(
            settings,
            self._registry,
            self._admission,
            self._phases,
            self._bus,
            self._own_messages,
            log=log,
            save=self._records.save,
            clock=clock,
            new_id=new_id,
        )
        life_parts = LifeParts(
            settings=settings,
            depot=self._depot,
            layers=self._layers,
            registry=self._registry,
            records=self._records,
            prober=Prober(self._ip, settings.default_health_check_timeout, self._factories.clock, log),
            local_ip=self._ip,
            starts=asyncio.Semaphore(settings.starts.concurrent),
            clock=self._factories.clock,
            log=log,
            happen=self._keeper.happen,
            wait_passed=self._bus.wait_passed,
            admitted=self._admission.admitted,
            left_s=self._deadline.left_s,
        )
        self._lives = Lives(life_parts, self._supervisor)
        self._announcer = Announcer(
            settings, self._own_messages, self._bus, self._admission, self._phases, self._probe, log=log
        )
        start = Starter(self._keeper, self._lives)
        self._build_stagings(unpacker, start)
        self._dispatcher = Dispatcher(start, self._keeper, self._staging_keeper, self._announcer)

    def _build_stagings(self, unpacker: Unpacker, start: Starter) -> None:
        """``start``: called with the start message of a staging that has succeeded."""
        settings, log, base = self._settings, self._log, self._settings.base_dir
        clock, new_id = self._factories.clock, self._factories.new_id
        parts = StagingParts(
            settings,
            self._depot,
            self._layers,
            self._transfers,
            unpacker,
            AdminBuildpacks(base / "admin_buildpacks", self._transfers, self._layers, log),
            own_buildpacks(buildpacks.path(), buildpacks.ORDER),
            base / "staging",
            log,
            clock,
            new_id,
        )
        self._stagings = StagingRegistry(clock)
        self._staging_keeper = StagingKeeper(
            parts,
            self._stagings,
            self._bus,
            self._admission,
            self._phases,
            begin=self._lives.begin_staging,
            start=start,
            changed=self._memory.save_staging,
        )

    def _build_surfaces(self) -> None:
        """What works on the parts from outside: the lives, upkeep, the control socket."""
        settings, log = self._settings, self._log
        self._leaving = Leaving(
            self._phases,
            self._memory,
            self._keeper,
            self._announcer,
            self._stagings,
            bail_out_s=settings.evacuation_bail_out_time_in_seconds,
            end=self._ask_stop,
            log=log,
            clock=self._factories.clock,
        )
        self._ending = Ending(
            self._deadline,
            self._bus,
            self._announcer,
            self._keeper,
            self._staging_keeper,
            self._lives,
            self._registry,
            self._depot,
            self._supervisor,
            log,
        )
        self._upkeep = Upkeep(
            settings,
            self._supervisor,
            self._registry,
            self._keeper,
            self._admission,
            self._depot,
            self._layers,
            log,
            self._factories.clock,
        )
        self._control = Control(
            registry=self._registry,
            stagings=self._stagings,
            depot=self._depot,
            crashes_dir=self._upkeep.crashes_dir,
            local_ip=self._ip,
            post_setup_hook=settings.post_setup_hook,
            status=self._status,
            detach=self._ask_detach,
            log=log,
            clock=self._factories.clock,
        )

    async def _close_depot(self) -> None:
        """The last one out takes the host's shared pieces along; containers that go on need them."""
        await self._depot.close(remove_tables=not self._depot.handles())

    async def _take_over(self) -> None:
        """What a former agent left: instances with their containers, stagings that nobody will finish."""
        found = self._memory.found
        recovery.answer_stagings(found.stagings, self._memory, self._bus)
        left = recovery.gather(found.instances, self._depot, self._recovered, self._log)
        owned = await recovery.take_over(
            left,
            self._depot,
            self._registry,
            self._keeper,
            self._lives.begin,
            self._upkeep.sample,
            self._log,
            self._factories.clock,
        )
        not_ours = left.not_ours | {one.handle for one in found.damage if one.later}
        for handle in self._depot.handles():
            if handle not in owned and handle not in not_ours:
                self._log.info("container_without_owner_destroyed", handle=handle)
                self._supervisor.start("destroy", self._depot.destroy(handle), handle=handle)
        self._keeper.measure_crashes(self._upkeep.crashes_dir)
        if not await self._memory.take_possession():
            self._supervisor.keep("possession", self._memory.take_possession_later)

    def _resume_phase(self) -> None:
        """A former agent was leaving: so is this one."""
        match RESUMED.get(self._memory.head.phase):
            case Wish.LEAVE_POOL:
                self._leaving.leave_pool()
            case Wish.EVACUATE:
                self._evacuate()

    # -- the end -----------------------------------------------------------------------------------------------

    def _listen_to_signals(self) -> None:
        """First of all. Handlers that need parts which are not built yet are added to `Signals` later."""
        self._signals.listen(asyncio.get_running_loop())
        self._signals.on(self._ask_stop, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
        self._signals.on(lambda: reopen(self._log_file, self._log), signal.SIGHUP)

    async def _until_asked_to_end(self) -> None:
        await self._phases.ending.wait()

    def _ask_stop(self) -> None:
        self._ask(Wish.STOP)

    def _ask_detach(self) -> None:
        self._ask(Wish.DETACH)

    def _ask(self, wish: Wish) -> None:
        """Also before the parts are built: whoever serves then ends at once."""
        if self._phases.take(wish):
            self._log.info("agent_ending", phase=self._phases.now.value)

    def _evacuate(self) -> None:
        if self._leaving.begin_evacuation():
            self._supervisor.start("evacuation", self._leaving.end_when_empty())

    async def _end(self) -> None:
        if self._phases.now is AgentPhase.DETACHING:
            await self._ending.let_go()
            return
        await self._ending.shut_down(self._settings.shutdown.deadline_s)
        self._memory.enter(AgentPhase.SERVING)  # a drained host is empty now, so the next agent serves again

    def _status(self) -> dict[str, Any]:
        left = self._admission.left()
        return {
            "id": self._id,
            "ip": self._ip,
            "connected": self._bus.connected,
            "memory_left_mb": left.memory_mb,
            "disk_left_mb": left.disk_mb,
            "instances": len(self._registry),
            "stagings": len(self._stagings),
            "evacuating": not self._phases.permits.starts,
            "failures": self._supervisor.failures,
            **self._lag.status(),
        }
