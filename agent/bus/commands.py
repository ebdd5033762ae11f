"""Commands: decoded messages as the dispatcher passes them to the worker, with the reply inbox where a reply is expected."""

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
    """A staging request that cannot be decoded. It is a command because its sender waits for a reply with the error."""

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
    """The command as an ending agent carries it out: a staging is refused, so that its sender does not wait in vain. Pure."""
    match command:
        case StageCommand(message, reply_to):
            return RefuseStagingCommand(message.task_id, "Error staging: the agent is leaving", reply_to)
    return command
