"""The controller's HTTP server: `/v1` for the commands, and `/staging` for the agent, as in the Cloud Controller.

Every request needs the password of `up.json` (basic authentication): packages and droplets are the user's code, and the
machine may have other users. An upload with `async=true` is answered with a job that the agent polls.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import os
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from agent.bus.client import NotConnected
from agent.dev.controller import Controller
from agent.dev.pushes import Changes, Push, PushRefused
from agent.http import long_poll
from wsh.units import MIB

USER = "garrison"
MAX_UPLOAD_BYTES = 2 << 30


@dataclass(frozen=True)
class ControllerInfo:
    """The part of `GET /v1/info` that the controller does not know itself."""

    version: str
    gateway_port: int
    control_socket: Path


class Api:
    def __init__(self, controller: Controller, facts: Callable[[], ControllerInfo], password: str) -> None:
        self._controller = controller
        self._facts = facts
        self._expected = base64.b64encode(f"{USER}:{password}".encode())
        self._jobs: dict[str, str] = {}

    def application(self) -> web.Application:
        pushes = self._controller.pushes
        app = web.Application(middlewares=[self._guard], client_max_size=MIB)
        app.add_routes(
            [
                web.get("/v1/info", self._info),
                web.get("/v1/apps", self._apps),
                web.get("/v1/apps/{name}", self._app),
                web.delete("/v1/apps/{name}", self._delete),
                web.post("/v1/apps/{name}/pushes", self._claim),
                web.put("/v1/apps/{name}/pushes/{push}/package", self._package),
                web.post("/v1/apps/{name}/pushes/{push}/stage", self._stage),
                web.delete("/v1/apps/{name}/pushes/{push}", self._give_up),
                web.post("/v1/apps/{name}/start", self._start),
                web.post("/v1/apps/{name}/stop", self._stop),
                web.post("/v1/apps/{name}/scale", self._scale),
                web.get("/staging/packages/{id}", self._serve(pushes.package)),
                web.get("/staging/droplets/{id}/download", self._serve(pushes.droplet)),
                web.post("/staging/droplets/{id}/upload", self._take("droplets")),
                web.get("/staging/buildpack_cache/{id}/download", self._serve(pushes.cache)),
                web.post("/staging/buildpack_cache/{id}/upload", self._take("caches")),
                web.get("/staging/jobs/{job}", self._job),
            ]
        )
        return app

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").removeprefix("Basic ").encode()
        if not hmac.compare_digest(given, self._expected):
            return web.json_response({"error": "wrong or no password"}, status=401)
        try:
            return await handler(request)
        except PushRefused as refused:
            return web.json_response({"error": str(refused)}, status=refused.http_status)
        except NotConnected:
            return web.json_response({"error": "the bus is not reachable"}, status=503)

    # For the commands

    async def _info(self, _request: web.Request) -> web.Response:
        facts, controller = self._facts(), self._controller
        return web.json_response(
            {
                "version": facts.version,
                "gateway_port": facts.gateway_port,
                "control_socket": str(facts.control_socket),
                "bus_connected": controller.bus.connected,
                "hosts": sorted(controller.hosts.hosts),
                "max_upload_bytes": MAX_UPLOAD_BYTES,
            }
        )

    async def _apps(self, request: web.Request) -> web.Response:
        rows = self._controller.rows()
        if "stats" in request.query:
            apps = [self._controller.store.apps.get(row["name"]) for row in rows]
            requests = [self._controller.stats(app) if app is not None else _none() for app in apps]
            for row, stats in zip(rows, await asyncio.gather(*requests), strict=True):
                row["stats"] = stats
        return web.json_response(rows)

    async def _app(self, request: web.Request) -> web.Response:
        """PushRefused: there is no such app at the beginning, or it has been deleted during the wait."""
        name, changes = request.match_info["name"], self._controller.changes
        self._controller.app(name)
        try:
            poll = long_poll.from_query(request.query)
        except ValueError as error:
            raise PushRefused(400, str(error)) from error
        if poll is not None:
            await changes.wait(poll.after, poll.wait_s)
        app, headers = self._controller.app(name), {long_poll.HEADER: str(changes.number)}
        row = self._controller.status(app)
        if "stats" in request.query:
            row["stats"] = await self._controller.stats(app)
        return web.json_response(row, headers=headers)

    async def _delete(self, request: web.Request) -> web.Response:
        await self._controller.delete(request.match_info["name"])
        return web.json_response({})

    async def _start(self, request: web.Request) -> web.Response:
        await self._controller.start(request.match_info["name"])
        return web.json_response({})

    async def _stop(self, request: web.Request) -> web.Response:
        await self._controller.stop(request.match_info["name"])
        return web.json_response({})

    async def _scale(self, request: web.Request) -> web.Response:
        instances = (await _json_object(request)).get("instances")
        if not isinstance(instances, int):
            raise PushRefused(400, f"instances: expected a number, got {instances!r}")
        await self._controller.scale(request.match_info["name"], instances)
        return web.json_response({})

    async def _claim(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        try:
            changes = msgspec.json.decode(await request.read() or b"{}", type=Changes)
        except msgspec.DecodeError as error:
            raise PushRefused(400, str(error)) from error
        before = self._controller.store.apps.get(name)
        push = self._controller.claim(name, changes)
        known = before.env if before is not None else {}
        return web.json_response(
            {
                "push": push.id,
                "guid": push.draft.guid,
                "not_set": [variable for variable in changes.unset_env if variable not in known],
            },
            status=201,
        )

    def _push(self, request: web.Request) -> Push:
        name, push_id = request.match_info["name"], request.match_info["push"]
        return self._controller.pushes.get(name, push_id, time.monotonic())

    async def _package(self, request: web.Request) -> web.Response:
        push = self._push(request)
        with self._controller.pushes.used(push):
            target = self._controller.pushes.package(push.id)
            sha1 = await self._save(request.content.iter_chunked(1 << 18), target, push)
            return web.json_response({"sha1": sha1, "bytes": target.stat().st_size})

    async def _stage(self, request: web.Request) -> web.StreamResponse:
        """The response has one line of JSON for each event, sent as it happens."""
        push = self._push(request)
        with self._controller.pushes.used(push):
            async with contextlib.aclosing(self._controller.stage(push)) as events:
                first = await anext(events)  # raises PushRefused while the status can still be chosen
                response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
                try:
                    await response.prepare(request)
                    await response.write(msgspec.json.encode(first) + b"\n")
                    async for event in events:
                        await response.write(msgspec.json.encode(event) + b"\n")
                    await response.write_eof()
                except ConnectionResetError:  # the client has closed the connection: end the staging too
                    await self._controller.leave(push)
        return response

    async def _give_up(self, request: web.Request) -> web.Response:
        await self._controller.give_up(self._push(request))
        return web.json_response({})

    # For the agent

    def _serve(
        self, path_of: Callable[[str], Path]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def serve(request: web.Request) -> web.StreamResponse:
            path = path_of(_id(request))
            if not path.is_file():
                raise PushRefused(404, f"there is no {path.parent.name.removesuffix('s')} with this id")
            return web.FileResponse(path)

        return serve

    def _take(self, folder: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def take(request: web.Request) -> web.StreamResponse:
            target, push = self._controller.pushes.upload_target(folder, _id(request))
            sha1 = await self._save_part(request, target, push)
            if push is not None and folder == "droplets":
                push.droplet_sha1 = sha1
            if request.query.get("async") != "true":
                return web.json_response({"entity": {"status": "finished"}}, status=201)
            job = uuid.uuid4().hex
            self._jobs[job] = "finished"
            return web.json_response(self._job_document(request, job, "queued"), status=201)

        return take

    async def _save_part(self, request: web.Request, target: Path, push: Push | None) -> str:
        if not (request.content_type or "").startswith("multipart/"):
            raise PushRefused(400, f"expected multipart/form-data, got {request.content_type}")
        async for part in await request.multipart():
            if getattr(part, "name", None) == "upload[droplet]":
                return await self._save(_chunks(part), target, push)
        raise PushRefused(400, "no part named upload[droplet]")

    async def _job(self, request: web.Request) -> web.Response:
        job = request.match_info["job"]
        state = self._jobs.pop(job, None)
        if state is None:  # answered once already, or unknown: "finished", as in the Cloud Controller
            return web.json_response(self._job_document(request, "0", "finished"))
        return web.json_response(self._job_document(request, job, state))

    def _job_document(self, request: web.Request, job: str, state: str) -> dict[str, Any]:
        user_password = base64.b64decode(self._expected).decode()
        return {
            "metadata": {
                "guid": job,
                "created_at": "1970-01-01T00:00:00Z",
                "url": f"http://{user_password}@{request.host}/staging/jobs/{job}",
            },
            "entity": {"guid": job, "status": state},
        }

    async def _save(self, chunks: Any, target: Path, push: Push | None) -> str:
        """Writes the chunks to a new file, then renames it to ``target``. Returns the SHA-1.

        PushRefused: there are too many bytes, or the push has ended meanwhile.
        """
        digest, size = hashlib.sha1(usedforsecurity=False), 0
        new = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        try:
            with new.open("wb") as file:
                os.fchmod(file.fileno(), 0o600)
                async for chunk in chunks:
                    size += len(chunk)
                    if size > MAX_UPLOAD_BYTES:
                        raise PushRefused(413, f"larger than {MAX_UPLOAD_BYTES} bytes")
                    digest.update(chunk)
                    file.write(chunk)
            if push is not None and push.over.is_set():
                raise PushRefused(404, f"this push of {push.draft.name} is over")
            new.replace(target)
        finally:
            new.unlink(missing_ok=True)
        return digest.hexdigest()


async def _chunks(part: Any) -> Any:
    while chunk := await part.read_chunk(1 << 18):
        yield chunk


def _id(request: web.Request) -> str:
    """The id (of a version, or of an app) in the path. It becomes a file name, so it must be a UUID."""
    try:
        return str(uuid.UUID(request.match_info["id"]))
    except ValueError:
        raise PushRefused(404, "expected a UUID") from None


async def _none() -> list[dict[str, Any]]:
    return []


async def _json_object(request: web.Request) -> dict[str, Any]:
    try:
        return msgspec.json.decode(await request.read() or b"{}", type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise PushRefused(400, str(error)) from error
