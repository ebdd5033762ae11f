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


class StopStagingCommand(Struct, frozen=True):
    message: m.StagingStop


Command = (
    StartCommand
    | StopCommand
    | UpdateCommand
    | FindCommand
    | RouterStartCommand
    | StageCommand
    | StopStagingCommand
)
