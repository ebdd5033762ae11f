"""All subjects: the commands that are made from received messages, and the subject of each published message."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from agent.bus import commands as c
from agent.bus import messages as m


@dataclass(frozen=True, slots=True)
class Inbound:
    """A subscription. ``make`` makes a command from the payload and the reply inbox; it raises MessageError for a message that is
    refused. ``staging``: only subscribed to if this host stages."""

    subject: str
    make: Callable[[bytes, str], c.Command]
    staging: bool = False


def _find(payload: bytes, reply_to: str) -> c.Command:
    if not reply_to:
        raise m.MessageError("expected a reply inbox, got none")
    return c.FindCommand(m.decode(m.FindMessage, payload), reply_to)


def _router_start(payload: bytes, reply_to: str) -> c.Command:
    """Accepts any payload: a router may send `router.start` without describing itself."""
    try:
        return c.RouterStartCommand(m.decode(m.RouterStart, payload))
    except m.MessageError:
        return c.RouterStartCommand(m.RouterStart())


def _stage(payload: bytes, reply_to: str) -> c.Command:
    """An undecodable request gets a reply too, since its controller would wait for 15 minutes. Only a payload that is not a JSON
    object gets none: no controller sent it, so nobody waits for a reply.
    """
    try:
        return c.StageCommand(m.decode(m.StagingStart, payload), reply_to)
    except m.MessageError as e:
        if not reply_to or not payload.lstrip().startswith(b"{"):
            raise
        return c.RefuseStagingCommand(m.task_id_of(payload), f"Error staging: {e}", reply_to)


def inbound(agent_id: str) -> tuple[Inbound, ...]:
    return (
        Inbound(f"dea.{agent_id}.start", lambda p, _: c.StartCommand(m.decode(m.StartMessage, p))),
        Inbound("dea.stop", lambda p, _: c.StopCommand(m.decode(m.StopMessage, p))),
        Inbound("dea.update", lambda p, _: c.UpdateCommand(m.decode(m.UpdateMessage, p))),
        Inbound("dea.find.droplet", _find),
        Inbound("router.start", _router_start),
        Inbound(f"staging.{agent_id}.start", _stage, staging=True),
        Inbound("staging.stop", lambda p, _: c.StopStagingCommand(m.decode(m.StagingStop, p)), staging=True),
    )


#: The subject of each message that we publish. Staging replies go to the inbox of their request.
OUTBOUND: dict[type, str] = {
    m.Advertise: "dea.advertise",
    m.StagingAdvertise: "staging.advertise",
    m.Heartbeat: "dea.heartbeat",
    m.RouterRegister: "router.register",
    m.RouterUnregister: "router.unregister",
    m.DropletExited: "droplet.exited",
    m.DeaShutdown: "dea.shutdown",
}
GREET = "router.greet"
