"""Each subject once: what it is called, what its payload is, which command it becomes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from agent.bus import commands as c
from agent.bus import messages as m


@dataclass(frozen=True, slots=True)
class Inbound:
    """A subscription. ``make`` gets the payload and the reply subject; MessageError: not for us."""

    subject: str
    make: Callable[[bytes, str], c.Command]
    staging: bool = False


def _find(payload: bytes, reply_to: str) -> c.Command:
    if not reply_to:
        raise m.MessageError("a question without a reply subject")
    return c.FindCommand(m.decode(m.FindMessage, payload), reply_to)


def _router_start(payload: bytes, reply_to: str) -> c.Command:
    """Any payload is a greeting: a router that describes nothing of itself is a router all the same."""
    try:
        return c.RouterStartCommand(m.decode(m.RouterStart, payload))
    except m.MessageError:
        return c.RouterStartCommand(m.RouterStart())


def _stage(payload: bytes, reply_to: str) -> c.Command:
    """A controller waits a quarter of an hour for the answer: a request that cannot be read is answered too. What is no object
    is no request, and nobody waits for its answer.
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
