"""A push: new settings, a package and its droplet, which become the app together or not at all.

A push begins with a claim, before anything is uploaded: an app has one push at a time. Its files are stored under the id of the
push, which becomes the app's version, so the present version is not touched. Once the droplet is there, the push becomes the app
by one replacement of the store's file. If a push ends in any other way, its files are removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from agent.dev.records import App, AppStore

#: A claim ends after this time without a request, since its owner was killed between two requests.
IDLE_S = 30.0
#: The files of one version, and of an app over all its versions: directory and suffix.
OF_VERSION = (("packages", ".zip"), ("droplets", ".tgz"))
CACHES = ("caches", ".tgz")


class PushRefused(Exception):
    """The request cannot be fulfilled; ``http_status`` is the status of the response."""

    def __init__(self, http_status: int, why: str) -> None:
        super().__init__(why)
        self.http_status = http_status


class Changes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The settings of a push. An unset one keeps its value; null means the default."""

    instances: int | msgspec.UnsetType = msgspec.UNSET
    memory_mb: int | msgspec.UnsetType = msgspec.UNSET
    disk_mb: int | msgspec.UnsetType = msgspec.UNSET
    command: str | msgspec.UnsetType | None = msgspec.UNSET
    buildpack: str | msgspec.UnsetType | None = msgspec.UNSET
    health_check_timeout_s: int | msgspec.UnsetType | None = msgspec.UNSET
    stack: str | msgspec.UnsetType = msgspec.UNSET
    set_env: Mapping[str, str] = {}
    unset_env: tuple[str, ...] = ()

    def applied_to(self, app: App) -> App:
        """A changed copy of the app. PushRefused: a value is out of range. Pure."""
        given = {
            name: value
            for name in self.__struct_fields__
            if name not in ("set_env", "unset_env") and (value := getattr(self, name)) is not msgspec.UNSET
        }
        env = {name: value for name, value in app.env.items() if name not in self.unset_env}
        changed = msgspec.structs.replace(app, **given, env=env | dict(self.set_env))
        if not 0 <= changed.instances <= 1000 or changed.memory_mb <= 0 or changed.disk_mb <= 0:
            raise PushRefused(400, "instances must be 0 to 1000, memory_mb and disk_mb positive")
        return changed


@dataclass(eq=False)
class Push:
    """``draft``: the app as it will be. ``over``: set once the push has ended, whatever its result."""

    id: str
    changes: Changes
    draft: App
    is_new: bool
    began_at_s: float
    used_at_s: float
    requests: int = 0
    staging: bool = False
    given_up: bool = False
    droplet_sha1: str | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)


class Pushes:
    """The pushes that have not ended, by the name of their app, and the files of pushes and apps. Times are monotonic seconds.

    ``on_change`` is called when a push begins, ends, or becomes the app.
    """

    def __init__(self, files: Path, store: AppStore, on_change: Callable[[], None] = lambda: None) -> None:
        self._files, self._store, self._on_change = files, store, on_change
        self._open: dict[str, Push] = {}
        for folder, _ in (*OF_VERSION, CACHES):
            (files / folder).mkdir(parents=True, exist_ok=True, mode=0o700)
        self._rename_old()
        self._remove_unknown()

    def claim(self, name: str, changes: Changes, now_s: float) -> Push:
        """Begins a push. PushRefused: the app has another push, or a value is out of range."""
        if (other := self.of(name, now_s)) is not None:
            since_s = now_s - other.began_at_s
            raise PushRefused(
                409, f"{name} is being pushed already, since {since_s:.0f} s; nothing was changed"
            )
        push_id, app = str(uuid.uuid4()), self._store.apps.get(name)
        draft = app or App(guid=str(uuid.uuid4()), name=name, version=push_id, uris=[f"{name}.localhost"])
        push = Push(push_id, changes, changes.applied_to(draft), app is None, now_s, now_s)
        self._open[name] = push
        self._on_change()
        return push

    def of(self, name: str, now_s: float) -> Push | None:
        push = self._open.get(name)
        if push is not None and not push.requests and now_s - push.used_at_s > IDLE_S:
            self.end(push)
            return None
        return push

    def get(self, name: str, push_id: str, now_s: float) -> Push:
        push = self.of(name, now_s)
        if push is None or push.id != push_id:
            raise PushRefused(404, f"this push of {name} is over")
        return push

    def all(self) -> tuple[Push, ...]:
        return tuple(self._open.values())

    def staged_versions(self) -> dict[str, str]:
        """The versions that are being staged, by the guid of their app. The host starts index 0 of each itself."""
        return {push.draft.guid: push.id for push in self._open.values() if push.staging}

    @contextlib.contextmanager
    def used(self, push: Push) -> Iterator[None]:
        """To be held while a request of the push is handled. An exception ends the push."""
        push.requests += 1
        try:
            yield
        except BaseException:
            self.end(push)
            raise
        finally:
            push.requests -= 1
            push.used_at_s = time.monotonic()

    def end(self, push: Push) -> None:
        """Ends the push and removes its files, unless it has become the app. Idempotent."""
        if self._open.get(push.draft.name) is push:
            del self._open[push.draft.name]
        current = self._store.apps.get(push.draft.name)
        if current is None or current.version != push.id:
            self._remove_version(push.id)
        self._path(CACHES, push.id).unlink(missing_ok=True)
        push.over.set()
        self._on_change()

    def end_idle(self, now_s: float) -> None:
        for name in tuple(self._open):
            self.of(name, now_s)

    # Files

    def package(self, version: str) -> Path:
        return self._path(OF_VERSION[0], version)

    def droplet(self, version: str) -> Path:
        return self._path(OF_VERSION[1], version)

    def cache(self, guid: str) -> Path:
        return self._path(CACHES, guid)

    def upload_target(self, folder: str, version: str) -> tuple[Path, Push | None]:
        """The file for a host's upload, and its push. PushRefused: no push has this version. A cache may arrive after the
        last reply; it has no push then.
        """
        push = next((one for one in self._open.values() if one.id == version and one.staging), None)
        if push is not None:
            return (self.droplet(version) if folder == "droplets" else self.cache(version)), push
        app = next((one for one in self._store.apps.values() if one.version == version), None)
        if folder == "caches" and app is not None:
            return self.cache(app.guid), None
        raise PushRefused(404, "no such staging")

    def commit(self, push: Push, **staged: Any) -> App:
        """Makes the push the app. ``staged``: fields of App from the staging. OSError: apps.json cannot be written; nothing
        has changed.
        """
        apps, name = self._store.apps, push.draft.name
        before = apps.get(name)
        # applied to the present app, which may have been scaled since the push began
        app = push.changes.applied_to(before or push.draft)
        app = msgspec.structs.replace(
            app, version=push.id, started=True, droplet_bytes=self.droplet(push.id).stat().st_size, **staged
        )
        apps[name] = app
        try:
            self._store.save()
        except OSError:
            if before is None:
                del apps[name]
            else:
                apps[name] = before
            raise
        with contextlib.suppress(FileNotFoundError):  # a staging without a cache
            self.cache(push.id).replace(self.cache(app.guid))
        if before is not None:
            self._remove_version(before.version)
        self._on_change()
        return app

    def forget(self, app: App) -> None:
        self._remove_version(app.version)
        self.cache(app.guid).unlink(missing_ok=True)

    def _path(self, kind: tuple[str, str], name: str) -> Path:
        return self._files / kind[0] / f"{name}{kind[1]}"

    def _remove_version(self, version: str) -> None:
        for kind in OF_VERSION:
            self._path(kind, version).unlink(missing_ok=True)

    def _rename_old(self) -> None:
        """Renames the files of earlier releases, which had the app's guid as their name."""
        for app in self._store.apps.values():
            for kind in OF_VERSION:
                old, new = self._path(kind, app.guid), self._path(kind, app.version)
                if old.exists() and not new.exists():
                    old.rename(new)

    def _remove_unknown(self) -> None:
        """Removes the files of pushes that had not ended when the controller was killed."""
        apps = self._store.apps.values()
        for folder, suffix in (*OF_VERSION, CACHES):
            known = {app.guid if folder == CACHES[0] else app.version for app in apps}
            for path in (self._files / folder).iterdir():
                if path.name.removesuffix(suffix) not in known:
                    path.unlink()


async def until_over(push: Push, timeout_s: float) -> None:
    """Waits until the push has ended, or the time is over."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await push.over.wait()
