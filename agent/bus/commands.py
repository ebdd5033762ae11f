"""What the dispatcher hands to the worker: a decoded message and, where there is one, whom to answer."""

from __future__ import annotations

from msgspec import Struct

from agent.bus import messages as m


class StartCommand(Struct, frozen=True):
    message: m.StartMessage


class StopCommand(Struct, frozen=True):
    message: m.StopMessage


class UpdateCommand(Struct, frozen=True):
    message: m.UpdateMessage


class FindCommand(Struct, frozen=True):
    message: m.FindMessage
    reply_to: str


class RouterStartCommand(Struct, frozen=True):
    message: m.RouterStart


class StageCommand(Struct, frozen=True):
    message: m.StagingStart
    reply_to: str


class RefuseStagingCommand(Struct, frozen=True):
    """A staging request that cannot be read, and why: who asks waits for an answer."""

    task_id: str
    error: str
    reply_to: str


class StopStagingCommand(Struct, frozen=True):
    message: m.StagingStop


Command = (
    StartCommand
    | StopCommand
    | UpdateCommand
    | FindCommand
    | RouterStartCommand
    | StageCommand
    | RefuseStagingCommand
    | StopStagingCommand
)


def when_leaving(command: Command) -> Command:
    """An agent that ends refuses a staging, so that its sender does not wait in vain. Pure."""
    match command:
        case StageCommand(message, reply_to):
            return RefuseStagingCommand(message.task_id, "Error staging: the agent is leaving", reply_to)
    return command
