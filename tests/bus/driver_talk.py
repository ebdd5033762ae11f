"""Plays a conversation of tests/fixtures/sequences against a real agent: one `Talk` for each phase or variant of it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from driver import FIXTURES, App, Host, fixture, set_path
from driver_apps import make_buildpack, make_package
from driver_known import Known
from driver_match import fill, load, matches
from driver_peer import Said, Word

SEQUENCES = FIXTURES / "sequences"
EXPECT_S, WAIT_S, END_S, NEVER_S = 10.0, 10.0, 15.0, 3.0
#: Phases at which a start is held by held_agent.py; the others are made from outside.
HELD = frozenset({"unpacking", "creating", "spawned"})


@dataclass
class _Count:
    """The `count` of an expect: exactly that many messages until the end of the conversation."""

    subject: str
    wanted: Any
    count: int
    since: int


@dataclass
class Talk:
    """Plays one conversation. ``turn``: the phase or variant that is played."""

    name: str
    turn: str
    script: dict[str, Any]
    host: Host
    taken: set[int] = field(default_factory=set)
    counts: list[_Count] = field(default_factory=list)
    begun: int = 0
    mark: int = 0
    holding: bool = False
    downloading: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.known = Known(self.host)
        self.lookup = self.known.lookup

    @property
    def phase(self) -> str:
        return self.turn.partition(" ")[2]

    # -- the whole ---------------------------------------------------------------------------------------------

    async def play(self) -> None:
        bare = self.host.picture()
        await self.host.start_agent(hold=self.phase if self.phase in HELD else "")
        for letter in sorted(set(re.findall(r"\$([A-Z])[./]", (SEQUENCES / self.name).read_text()))):
            self._make_app(letter)
        await self._given()
        before, status = self.host.picture(), await self.host.status()
        async with self._phase_set_up():
            self.begun = self.mark = self.host.peer.mark
            for step in self.script["talk"]:
                await self._step(step)
        end = self.script["end"]
        await self._check_end(end)
        # The one place where time itself is the condition: nothing may come for so long.
        await asyncio.sleep(NEVER_S)
        self._check_never()
        await self._check_end(end)
        if end.get("nothing_left") and not self.host.running.is_running:
            assert await self.host.left_since(bare) == []
        elif end.get("nothing_left"):
            assert await self.host.left_since(before) == []
            after = await self.host.status()
            assert [after[key] for key in _RESERVED] == [status[key] for key in _RESERVED]

    def _make_app(self, letter: str) -> None:
        uris = self.script.get("given", {}).get(letter, {}).get("uris")
        self.known.apps[letter] = self.host.make_app(letter, uris=None if uris is None else tuple(uris))

    async def _given(self) -> None:
        for letter, wanted in self.script.get("given", {}).items():
            app = self.known.apps[letter]
            for index in (*wanted.get("v1", ()), *wanted.get("crashed", ())):
                running = await self.host.run(app, index, **self._limits())
                self.known.learn(running)
                if index in wanted.get("crashed", ()):
                    await self.host.ask_app(running["stats"]["port"], "exit 1")
                    await self.host.wait_state(app, "CRASHED", index=index)

    def _limits(self) -> dict[str, Any]:
        return {"limits": self.script["limits"]} if "limits" in self.script else {}

    # -- phases ------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _phase_set_up(self) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as undo:
            match self.phase:
                case "queued":
                    other = self.host.make_app("X")
                    reached = undo.enter_context(self.host.files.stalled(other.path))
                    await self.host.start(other)
                    await asyncio.wait_for(reached.wait(), WAIT_S)
                    undo.push_async_callback(self.host.wait_gone, other)
                    undo.push_async_callback(self.host.stop, other)
                case "downloading":
                    path = self.known.apps[self.turn.partition(" ")[0]].path
                    self.downloading = undo.enter_context(self.host.files.stalled(path))
            yield

    async def _wait_phase(self, text: str) -> None:
        letter, _, phase = (self.turn if text == "the one in turn" else text).partition(" ")
        app = self.known.apps[letter]
        match phase:
            case "queued":  # its droplet waits for its turn behind another's
                await self.host.wait_state(app, "STARTING")
                assert app.path not in self.host.files.asked, "its download has begun"
            case "downloading":
                await asyncio.wait_for(self.downloading.wait(), WAIT_S)
            case "health checking":  # its process is there, its port is not
                await self.host.running.wait_log("instance_spawned", app=app.id)
            case "compiling":
                await self.host.running.wait_log("buildpack_begun", app=app.id)
            case _:
                assert phase in HELD, f"phase {text!r} is not known"
                await self._until(self.host.hold_flag.exists, WAIT_S, f"the agent holds while {phase}")
                self.holding = True

    async def _let_go(self, app: App) -> None:
        """Releases the held step once the agent has received what was sent in the meantime."""
        if self.holding:
            deadline = time.monotonic() + WAIT_S
            while any(one["state"] in ("BORN", "STARTING") for one in await self.host.find(app)):
                assert time.monotonic() < deadline, "the agent did not take in what was sent"
            self.host.hold_flag.unlink()
            self.holding = False

    # -- steps -------------------------------------------------------------------------------------------------

    async def _step(self, step: dict[str, Any]) -> None:
        match step:
            case {"burst": list(words)}:
                await self._send([self._word(one) for one in words])
            case {"burst": {"repeat": times, "with": words}}:
                await self._send([self._word(one) for _ in range(times) for one in words])
            case {"send": _}:
                await self._send([self._word(step)])
            case {"world": world}:
                self.mark = self.host.peer.mark
                await self._world(world)
            case {"wait": wanted}:
                await self._wait(wanted)
            case {"expect": subject}:
                await self._expect(subject, step)
            case {"in_order": wanted}:
                await self._in_order(wanted, step.get("within_s", EXPECT_S))
            case _:
                raise AssertionError(f"no such step: {step}")

    async def _send(self, words: list[Word]) -> None:
        self.mark = self.host.peer.mark
        await self.host.peer.burst(words)
        if self.holding:
            await self._let_go(self.known.apps["A"])

    async def _world(self, world: dict[str, Any]) -> None:
        match world:
            case {"app": text, "exits": status}:
                port = self.known.port(text)
                if "note" in world:
                    self.known.kept[world["note"]] = time.time()
                await self.host.ask_app(port, f"exit {status}")
            case {"signal": "KILL"}:
                await self.host.stop_agent(signal.SIGKILL)
            case {"signal": name}:
                self.host.running.signal(signal.Signals[f"SIG{name}"])
            case {"agent": "started"}:
                await self.host.start_agent()
            case _:
                raise AssertionError(f"no such world: {world}")

    async def _wait(self, wanted: dict[str, Any]) -> None:
        within_s = wanted.get("within_s", WAIT_S)
        match wanted:
            case {"phase": text}:
                await self._wait_phase(text)
            case {"agent": "exited", "status": status}:
                assert await self.host.running.wait_exited(within_s) == status
            case {"instance": text}:
                name, _, state = text.partition(" ")
                version = fill(wanted.get("version"), self.lookup)
                await self._until_asked(
                    lambda told: any(self.known.is_meant(one, name, state, version) for one in told),
                    within_s,
                    f"{text} {version or ''}",
                )
            case _:
                raise AssertionError(f"no such wait: {wanted}")

    async def _expect(self, subject: str, step: dict[str, Any]) -> None:
        wanted, since = step.get("match", {}), self.mark

        def look() -> Said | None:
            for one in self._said(subject, since):
                if one.number not in self.taken and matches(wanted, one.body, self.lookup):
                    return one
            return None

        found: Said = await self._until(look, step.get("within_s", EXPECT_S), f"{subject} {wanted}")
        self.taken.add(found.number)
        for name, key in step.get("keep", {}).items():
            self.known.kept[name] = found.body[key]
        if "count" in step:
            self.counts.append(_Count(self._subject(subject), wanted, step["count"], since))

    async def _in_order(self, wanted: list[dict[str, Any]], within_s: float) -> None:
        since = self.mark

        def look() -> list[Said] | None:
            found: list[Said] = []
            for one in self.host.peer.heard[since:]:
                step = wanted[len(found)]
                if one.subject == self._subject(step["on"]) and matches(
                    step.get("match", {}), one.body, self.lookup
                ):
                    found.append(one)
                    if len(found) == len(wanted):
                        return found
            return None

        found: list[Said] = await self._until(look, within_s, f"in order: {wanted}")
        self.taken |= {one.number for one in found}

    # -- the end -----------------------------------------------------------------------------------------------

    async def _check_end(self, end: dict[str, Any]) -> None:
        """Compares the instances, by app, version and index. There must be no others."""
        if not self.host.running.is_running:
            return
        wanted = Counter[tuple[str, str, int]]()
        for letter, what in end.items():
            if letter in self.known.apps:
                for version, indices in what.items():
                    wanted.update((letter, version, index) for index in indices)

        def stands(told: list[dict[str, Any]]) -> bool:
            return Counter(self.known.standing(one) for one in told) == wanted

        await self._until_asked(stands, END_S, f"the end {dict(wanted)}")

    def _check_never(self) -> None:
        for one in self.script.get("never", ()):
            subject, wanted = self._subject(one["on"]), one.get("match", {})
            since = self.begun
            if "after" in one:
                since = max(said.number for said in self._said(one["after"], self.begun)) + 1
            found = [said for said in self._said(subject, since) if matches(wanted, said.body, self.lookup)]
            assert len(found) < one.get("count", 1), f"{self.name}: never {one}, but:\n" + "\n".join(
                said.payload.decode() for said in found
            )
        for one in self.counts:
            found = [
                said
                for said in self._said(one.subject, one.since)
                if matches(one.wanted, said.body, self.lookup)
            ]
            assert len(found) == one.count, (
                f"{self.name}: {one.count} of {one.wanted} on {one.subject}, not {found}"
            )

    # -- words -------------------------------------------------------------------------------------------------

    def _subject(self, text: str) -> str:
        """The subject with its variables replaced. An inbox has the same name on the bus as in the conversation."""
        return str(fill(text, self.lookup))

    def _said(self, subject: str, since: int) -> Iterator[Said]:
        return iter(self.host.peer.on(self._subject(subject), since))

    def _word(self, step: dict[str, Any]) -> Word:
        subject, inbox = self._subject(step["send"]), step.get("inbox", "")
        if "raw" in step:
            return Word(subject, step["raw"].encode("latin-1"), inbox)
        if "from" not in step:
            return Word.of(subject, fill(step["body"], self.lookup), inbox)
        changes = fill(step.get("set", {}), self.lookup)
        body = fixture(step["from"])
        app = self.known.app(changes.get("droplet") or changes.get("app_id"))
        if app is not None:
            body = self._staging(body, app) if "app_id" in body else self._start(body, app)
        for path, value in changes.items():
            set_path(body, path, value)
        return Word.of(subject, body, inbox)

    def _start(self, body: dict[str, Any], app: App) -> dict[str, Any]:
        body = self.host.of_app(body, app) | self._limits()
        if self.phase == "health checking":
            body["start_command"] = "sleep 60; exec ./listener"
        return body

    def _staging(self, body: dict[str, Any], app: App) -> dict[str, Any]:
        files = self.host.files
        files.put(f"/packages/{app.id}", make_package(self.host.listener, app.id))
        waits_s = 3 if "compiling" in str(self.script["talk"]) else 0
        packs = (make_buildpack(takes=False), make_buildpack(takes=True, compile_waits_s=waits_s))
        buildpacks = [
            {"key": one["key"], "url": files.put(f"/buildpacks/{number}", data)}
            for number, (one, data) in enumerate(zip(body["admin_buildpacks"], packs, strict=True))
        ]
        found = self.host.staging_message(app, admin_buildpacks=buildpacks)
        found["start_message"] |= self._limits()
        return found

    # -- asking ------------------------------------------------------------------------------------------------

    async def _ask(self) -> list[dict[str, Any]]:
        """All replies to find.droplet for the apps of the conversation."""
        answers = await asyncio.gather(
            *(self.host.find(app, include_stats=True) for app in self.known.apps.values())
        )
        told = [one for answer in answers for one in answer]
        for one in sorted(told, key=lambda one: one["state_timestamp"]):
            self.known.learn(one)
        return told

    async def _until_asked(
        self, look: Callable[[list[dict[str, Any]]], bool], within_s: float, what: str
    ) -> None:
        deadline = time.monotonic() + within_s
        while not look(told := await self._ask()):
            shown = [(one["droplet"][:8], one["index"], one["version"][:8], one["state"]) for one in told]
            assert time.monotonic() < deadline, (
                f"{self.name} [{self.turn}]: not {what} within {within_s} s but {shown}\n"
                f"{self.host.running.log_text()}"
            )

    async def _until(self, look: Callable[[], Any], within_s: float, what: str) -> Any:
        """Waits until ``look`` has a result. Meanwhile it sends find requests, so that variables get their values."""
        deadline = time.monotonic() + within_s
        while not (found := look()):
            if time.monotonic() > deadline:
                heard = "\n".join(
                    f"  {one.subject} {one.payload[:300].decode(errors='replace')}"
                    for one in self.host.peer.heard[self.mark :]
                    if not one.subject.startswith("question.")
                )
                raise AssertionError(
                    f"{self.name} [{self.turn}]: no {what} within {within_s} s; heard:\n{heard}\n"
                    f"{self.host.running.log_text()}"
                )
            if self.host.running.is_running:
                await self._ask()
            await asyncio.sleep(0.02)
        return found


_RESERVED = ("memory_left_mb", "disk_left_mb", "instances", "stagings")


def turns(path: Path) -> list[str]:
    """The phases or variants of a conversation; one empty entry if it has none."""
    script = load(path)
    found: list[str] = script.get("repeat_for") or script.get("variants") or [""]
    return found
