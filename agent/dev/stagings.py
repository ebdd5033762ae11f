"""One staging over the bus, as the Cloud Controller does it: choose a host, publish a request, receive two replies."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import msgspec

from agent.bus.client import PeerClient
from agent.dev import messages
from agent.dev.changes import ChangeCount
from agent.dev.placement import HostPool
from agent.dev.pushes import Push

STAGING_TIMEOUT_S = 900.0
FIND_HOST_TIMEOUT_S = 12.0


@dataclass(frozen=True, slots=True)
class Failed:
    type: str
    error: str


@dataclass(frozen=True, slots=True)
class Stager:
    bus: PeerClient
    hosts: HostPool
    rng: random.Random
    changes: ChangeCount

    async def stage(
        self, push: Push, base: str, *, has_cache: bool
    ) -> AsyncGenerator[dict[str, Any] | Failed | messages.ReceivedStagingReply, None]:
        """Yields the events `task` and `set_up`, and at last the second reply, or why there is none."""
        app, task_id = push.draft, uuid.uuid4().hex
        body = messages.staging_message(app, task_id=task_id, version=push.id, base=base, has_cache=has_cache)
        host = await self._find(app.stack, body)
        if host is None:
            yield Failed(
                "NoCompatibleCell", self.hosts.why_none(app.stack, body["memory_limit"], body["disk_limit"])
            )
            return
        yield {"event": "task", "task_id": task_id, "guid": app.guid, "host": host}
        self.hosts.note_placement(host, None, body["memory_limit"])
        await self.bus.publish("staging.stop", msgspec.json.encode({"app_id": app.guid}))
        subject, payload = f"staging.{host}.start", msgspec.json.encode(body)
        async with self.bus.request_many(subject, payload) as replies:
            for stage in ("set_up", "staged"):
                try:
                    async with asyncio.timeout(STAGING_TIMEOUT_S):
                        data = await replies.get()
                except TimeoutError:
                    yield Failed("StagingTimeExpired", f"host {host} has not replied for 15 minutes")
                    return
                if not data:
                    yield Failed("StagingError", f"host {host} does not receive staging requests")
                    return
                reply = msgspec.json.decode(data, type=messages.ReceivedStagingReply)
                if reply.error is not None or reply.error_info is not None:
                    info = reply.error_info or {}
                    error = info.get("message") or reply.error
                    yield Failed(info.get("type", "StagingError"), str(error))
                    return
                if stage == "set_up":
                    yield {"event": "set_up"}
        yield reply

    async def _find(self, stack: str, body: dict[str, Any]) -> str | None:
        deadline = time.monotonic() + FIND_HOST_TIMEOUT_S
        while True:
            known, now = self.changes.number, time.monotonic()
            self.hosts.prune(now)
            host = self.hosts.find_stager(stack, body["memory_limit"], body["disk_limit"], self.rng)
            if host is not None or now >= deadline:
                return host
            await self.changes.wait(known, deadline - now)
