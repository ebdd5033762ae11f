"""Which part carries out a command of the bus."""

from __future__ import annotations

from collections.abc import Callable

from agent.announce import Announcer
from agent.bus import commands as c
from agent.bus.messages import StartMessage
from agent.instances.keeper import Keeper
from agent.staging.keeper import StagingKeeper


def carry_out(
    command: c.Command,
    start: Callable[[StartMessage], None],
    keeper: Keeper,
    stagings: StagingKeeper,
    announcer: Announcer,
) -> None:
    """At once: the order of the commands is the order in which they came over the connection."""
    match command:
        case c.StartCommand(message):
            start(message)
        case c.StopCommand(stop):
            if stop.only_app:
                stagings.stop_app(stop.app)
            keeper.stop(stop)
        case c.UpdateCommand(update):
            keeper.update(update)
        case c.FindCommand(question, reply_to):
            keeper.find(question, reply_to)
        case c.RouterStartCommand(router):
            announcer.receive_router_start(router)
        case c.StageCommand(request, reply_to):
            stagings.stage(request, reply_to)
        case c.RefuseStagingCommand(task_id, error, reply_to):
            stagings.refuse(task_id, error, reply_to)
        case c.StopStagingCommand(stop_staging):
            stagings.stop_app(stop_staging.app_id)
