"""Stagings as the Cloud Controller requests them: a package, buildpacks whose programs the test sets, an inbox for the replies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from driver import App, Host
from driver_apps import make_package, zip_of
from driver_peer import Said

Files = Mapping[str, tuple[bytes, int]]


def buildpack(
    *,
    detect: str = "echo Listener",
    compile: str = "true",
    release: str | None = "echo 'default_process_types: {web: ./listener, worker: ./listener}'",
    mode: int = 0o755,
) -> bytes:
    """A zip with the three programs (without ``release``: two). $1 is the app, $2 the cache, $3 the env dir."""
    programs = {"detect": detect, "compile": compile, "release": release}
    return zip_of(
        {
            f"bin/{name}": (f"#!/bin/bash\n{text}\n".encode(), mode)
            for name, text in programs.items()
            if text is not None
        }
    )


@dataclass(frozen=True, slots=True)
class Staging:
    host: Host
    app: App
    task_id: str
    inbox: str

    def heard(self) -> list[Said]:
        return self.host.peer.on(self.inbox)

    def replies(self) -> list[dict[str, Any]]:
        return [one.body for one in self.heard()]

    async def reply(self, number: int, within_s: float = 60) -> dict[str, Any]:
        """Waits for a reply. ``number``: the first is 1."""
        await self.host.peer.until(lambda: len(self.heard()) >= number, within_s)
        assert len(self.heard()) >= number, (
            f"no reply {number}, only {self.replies()}:\n{self.host.running.log_text()}"
        )
        return self.replies()[number - 1]

    async def compiling(self) -> None:
        await self.host.running.wait_log("buildpack_begun", task=self.task_id, within_s=60)

    async def over(self) -> None:
        """Waits until the staging's container is gone and its replies are sent."""
        await self.host.wait_depot_empty()
        await self.host.peer.flush()


@dataclass(slots=True)
class Desk:
    """Sends staging requests and keeps what they need."""

    host: Host
    _number: int = 0

    def pack(self, key: str, data: bytes) -> dict[str, str]:
        """Serves an admin buildpack. Returns its entry of the message."""
        return {"key": key, "url": self.host.files.put(f"/buildpacks/{key}", data)}

    def app(self, package: Files | None = None) -> App:
        """Makes an app and serves its package; without ``package`` it is the listener app."""
        app = self.host.make_app("staged")
        data = make_package(self.host.listener, app.id) if package is None else zip_of(package)
        self.host.files.put(f"/packages/{app.id}", data)
        return app

    async def stage(
        self, *packs: dict[str, str], app: App | None = None, task_id: str | None = None, **changes: Any
    ) -> Staging:
        """Sends a staging request. ``changes`` replace fields. Without ``start_message`` nothing is started afterwards."""
        self._number += 1
        app = app or self.app()
        task_id = f"task-{self._number}" if task_id is None else task_id
        staging = Staging(self.host, app, task_id, f"staging.inbox.{self._number}")
        message = self.host.staging_message(
            app,
            **{
                "task_id": staging.task_id,
                "admin_buildpacks": list(packs),
                "start_message": None,
                **changes,
            },
        )
        await self.host.peer.say(f"staging.{self.host.dea}.start", message, staging.inbox)
        return staging
