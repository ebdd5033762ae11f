"""Calls the handler of each command that is received from the bus.

Handlers do not wait: they begin tasks for what takes time. So commands take effect in the order in which they were received.
"""

from __future__ import annotations

from agent.announce import Announcer
from agent.bus import commands as c
from agent.instances.keeper import Keeper
from agent.lives import Starter
from agent.staging.keeper import StagingKeeper


class Dispatcher:
    """Holds the objects whose methods are the handlers."""

    def __init__(self, start: Starter, keeper: Keeper, stagings: StagingKeeper, announcer: Announcer) -> None:
        self._start = start
        self._keeper = keeper
        self._stagings = stagings
        self._announcer = announcer

    def carry_out(self, command: c.Command) -> None:
        match command:
            case c.StartCommand(message):
                self._start(message)
            case c.StopCommand(stop):
                if stop.only_app:
                    self._stagings.stop_app(stop.app)
                self._keeper.stop(stop)
            case c.UpdateCommand(update):
                self._keeper.update(update)
            case c.FindCommand(question, reply_to):
                self._keeper.find(question, reply_to)
            case c.RouterStartCommand(router):
                self._announcer.receive_router_start(router)
            case c.StageCommand(request, reply_to):
                self._stagings.stage(request, reply_to)
            case c.RefuseStagingCommand(task_id, error, reply_to):
                self._stagings.refuse(task_id, error, reply_to)
            case c.StopStagingCommand(stop_staging):
                self._stagings.stop_app(stop_staging.app_id)
