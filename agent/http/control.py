"""The local control socket: HTTP over `base_dir/agent.sock`, mode 0600. For the command line; nothing of it is on the bus.

What is asked and answered stands in agent/cli/__init__.py. A refusal is a status of 400 and above with {error}.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from aiohttp import web

from agent.depot import AgentDepot
from agent.http import long_poll
from agent.http.output import stream_output
from agent.inside.start import shell_argv
from agent.instances import listening
from agent.instances.instance import Instance, State
from agent.instances.output import AppOutput
from agent.instances.registry import Registry
from agent.instances.specs import instance_environment
from agent.logs import Log
from agent.output import OutputChunk
from agent.staging.registry import StagingRegistry
from container import UnknownHandle


class Control:
    def __init__(
        self,
        *,
        registry: Registry,
        stagings: StagingRegistry,
        depot: AgentDepot,
        crashes_dir: Path,
        local_ip: str,
        post_setup_hook: str | None,
        status: Callable[[], dict[str, Any]],
        detach: Callable[[], None],
        log: Log,
        clock: Callable[[], float],
    ) -> None:
        self._clock = clock
        self._registry = registry
        self._stagings = stagings
        self._depot = depot
        self._crashes_dir = crashes_dir
        self._local_ip = local_ip
        self._post_setup_hook = post_setup_hook
        self._status = status
        self._detach = detach
        self._log = log
        self._runner: web.AppRunner | None = None
        self._path: Path | None = None

    async def open(self, path: Path) -> None:
        app = web.Application()
        app.add_routes(
            [
                web.get("/v1/status", self._get_status),
                web.get("/v1/instances", self._get_instances),
                web.get("/v1/instances/{id}/logs", self._get_instance_logs),
                web.get("/v1/apps/{app}/logs", self._get_app_logs),
                web.get("/v1/staging/{task}/log", self._get_staging_log),
                web.get("/v1/instances/{id}/listening", self._get_listening),
                web.post("/v1/instances/{id}/shell", self._post_shell),
                web.post("/v1/detach", self._post_detach),
            ]
        )
        self._runner = web.AppRunner(
            app,
            access_log=None,
            shutdown_timeout=0.5,
            handler_cancellation=True,  # a client that has gone would else be followed until its app ends
        )
        await self._runner.setup()
        await web.SockSite(self._runner, _private_socket(path)).start()
        self._path = path

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
        if self._path is not None:
            try:
                self._path.unlink(missing_ok=True)
            except OSError as e:  # a socket that nobody serves refuses; the next agent replaces it
                self._log.warning("control_socket_not_removed", error=str(e))

    # -- questions ---------------------------------------------------------------------------------------------

    async def _get_status(self, request: web.Request) -> web.Response:
        return web.json_response(self._status())

    async def _get_instances(self, request: web.Request) -> web.Response:
        try:
            poll = long_poll.from_query(request.query)
        except ValueError as e:
            return web.json_response({"error": str(e)}, status=400)
        if poll is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(poll.wait_s):
                    await self._change_after(poll.after)
        return web.json_response(
            [self._shown(one) for one in self._registry],
            headers={long_poll.HEADER: str(self._registry.change_count)},
        )

    async def _change_after(self, known: int) -> None:
        with self._registry.changes() as changes:
            while self._registry.change_count == known:
                await changes.next()

    def _shown(self, instance: Instance) -> dict[str, Any]:
        return {
            "instance": instance.id,
            "app": instance.app,
            "name": instance.message.name,
            "index": instance.index,
            "version": instance.version,
            "state": instance.state.value,
            "since": instance.state_since_s,
            "handle": instance.handle,
            "port": instance.port.host_port if instance.port is not None else None,
            "uris": list(instance.uris),
            "memory_bytes": instance.memory_bytes,
            "cpu": instance.cpu_fraction,
            "disk_bytes": instance.disk_bytes,
            "exit_status": instance.exit.status if instance.state is State.CRASHED else None,
            "exit_description": instance.exit.description,
        }

    def _named(self, request: web.Request) -> Instance:
        """Any unique beginning of an id or a handle."""
        wanted = request.match_info["id"]
        found = [
            one
            for one in self._registry
            if one.id.startswith(wanted) or (one.handle is not None and one.handle.startswith(wanted))
        ]
        if len(found) != 1:
            why = "no instance" if not found else f"{len(found)} instances"
            raise web.HTTPNotFound(
                text=json.dumps({"error": f"{why} {wanted!r}"}), content_type="application/json"
            )
        return found[0]

    async def _get_instance_logs(self, request: web.Request) -> web.StreamResponse:
        instance = self._named(request)
        return await self._logs(request, lambda: (instance,))

    async def _get_app_logs(self, request: web.Request) -> web.StreamResponse:
        app = request.match_info["app"]
        return await self._logs(request, lambda: self._registry.of_app(app), self._stagings.failure_of(app))

    async def _logs(
        self,
        request: web.Request,
        instances: Callable[[], Iterable[Instance]],
        failure: OutputChunk | None = None,
    ) -> web.StreamResponse:
        """``failure``: of the app's last staging."""
        follow = request.query.get("follow") == "1"

        source = AppOutput(instances, self._registry, self._crashes_dir, self._clock)
        return await stream_output(request, source, first=failure, follow=follow)

    async def _get_staging_log(self, request: web.Request) -> web.StreamResponse:
        try:
            wait_s = long_poll.wait_s_from_query(request.query)
        except ValueError as e:
            return web.json_response({"error": str(e)}, status=400)
        task = await self._stagings.wait_for(request.match_info["task"], wait_s)
        if task is None:
            return web.json_response({"error": "no such staging"}, status=404)
        return await stream_output(request, task.output, follow=True)

    async def _get_listening(self, request: web.Request) -> web.Response:
        instance = self._named(request)
        try:
            found = listening.of(self._depot.find(instance.handle or "").pid)
        except (UnknownHandle, OSError):
            return web.json_response({"error": f"{instance!r} has no container"}, status=409)
        return web.json_response(
            {
                "port": instance.port.container_port if instance.port is not None else None,
                "listening": [{"address": one.address, "port": one.port} for one in found],
            }
        )

    async def _post_shell(self, request: web.Request) -> web.Response:
        instance = self._named(request)
        try:
            container = self._depot.find(instance.handle or "")
        except UnknownHandle:
            return web.json_response({"error": f"{instance!r} has no container"}, status=409)
        return web.json_response(
            {
                "handle": container.handle,
                "socket": str(container.socket_path),
                "environment": instance_environment(instance, self._local_ip),
                "argv": shell_argv(self._post_setup_hook),
            }
        )

    async def _post_detach(self, request: web.Request) -> web.Response:
        self._log.info("detach_asked")
        self._detach()
        return web.json_response({})


def _private_socket(path: Path) -> socket.socket:
    """Bound, mode 0600 from birth. Without an await: the umask is the whole process's."""
    path.unlink(missing_ok=True)
    # a socket's path ends at 107 bytes, a base_dir may be longer
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    old = os.umask(0o177)
    try:
        listening.bind(f"/proc/self/fd/{directory}/{path.name}")
    except OSError:
        listening.close()
        raise
    finally:
        os.umask(old)
        os.close(directory)
    return listening
