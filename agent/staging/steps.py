"""What runs inside a staging container, step by step: the buildpack's programs, and the platform's own.

App, cache and TMPDIR lie on one mount, the container's root, since buildpacks rename and hard-link between them, and both fail with
EXDEV across two mounts. The platform's own programs are run by their absolute path and with an environment of the agent's: the app
chooses what lies in its PATH.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from agent import plain_yaml
from agent.depot import AgentContainer
from agent.droplets.archive import Bounds
from agent.droplets.pack import Packed, pack
from agent.droplets.unpacker import Unpacker
from agent.inside.environment import HOME
from agent.logs import Log
from agent.staging import buildpacks as bp
from agent.staging.buildpacks import Buildpack, Outcome, StagingFailed
from agent.staging.log import StagingLog
from container import ExitStatus, FileEntry, JobSpec, NotAFile, Output, Past, RunResult, WshdError

APP = f"{HOME}/app"
#: Beside the droplet's members, and on the same mount.
CACHE, TMPDIR, ENV_DIR = "/tmp/cache", "/tmp", "/tmp/env"  # noqa: S108  (inside the container)
DROPLET_MEMBERS = ("./app", "./logs", "./tmp", "./staging_info.yml")
PLATFORM_ENV = ("PATH=/usr/bin:/bin", "LANG=C.UTF-8")
TAR = (
    "/bin/tar",
    "--format=gnu",
    "--sort=name",
    "--numeric-owner",
    "--owner=0",
    "--group=0",
    "-b",
    "512",
)
COMPILE_OUTPUT_BYTES = 10 << 20
NAME_BYTES = 255
#: For what a buildpack left running to write what it holds.
LEFT_GRACE_S = 1.0
FAILED = "Script exited with status 1"
OUT_OF_MEMORY = "out of memory"


def may_be_packed(status: ExitStatus) -> bool:
    """tar(1): 1 says that a file changed while it was read, which is no failure of the staging. Pure."""
    return status.code in (0, 1)


def described(status: ExitStatus) -> str:
    """How a program ended, for a person. Pure."""
    if status.lost:
        return "nobody knows how it ended"
    return f"signal {status.signal}" if status.signal is not None else f"exit status {status.code}"


def variable_files(variables: Iterable[tuple[str, str]]) -> tuple[FileEntry, ...]:
    """The env dir of the buildpack API: a file for each variable of the app's whose name can be a file's. Pure."""
    return tuple(
        FileEntry(f"{ENV_DIR}/{name}", value.encode("utf-8", "surrogateescape"), 0o600)
        for name, value in dict(variables).items()
        if "/" not in name and name not in (".", "..") and len(os.fsencode(name)) <= NAME_BYTES
    )


class Steps:
    """``environment`` is the buildpack's; ``memory_mb`` is for the text of an error."""

    def __init__(
        self,
        container: AgentContainer,
        *,
        environment: tuple[str, ...],
        memory_mb: int,
        output: StagingLog,
        log: Log,
    ) -> None:
        self._container = container
        self._environment = environment
        self._memory_mb = memory_mb
        self._output = output
        self._log = log

    # -- the platform's own ------------------------------------------------------------------------------------

    async def prepare(self, variables: Iterable[tuple[str, str]]) -> None:
        await self._must("/bin/mkdir", "-p", CACHE, ENV_DIR, f"{HOME}/logs", f"{HOME}/tmp")  # noqa: S108  (inside)
        await self._container.write_files(*variable_files(variables))

    async def end_all(self) -> None:
        """End what the buildpack left running: it could change what is packed, or hold up the packer for ever."""
        await self._container.end_jobs(LEFT_GRACE_S)

    async def note(self, outcome: Outcome) -> None:
        await self._container.write_files(FileEntry(f"{HOME}/staging_info.yml", outcome.staging_info()))

    async def pack(self, droplet: Path, unpacker: Unpacker, layer_dir: Path, bounds: Bounds) -> Packed:
        """tar in the container as vcap; compressed, hashed and made a layer outside, in one pass. StagingFailed: tar failed."""
        spec = self._platform(*TAR, "-C", HOME, "-c", *DROPLET_MEMBERS)
        with await self._container.spawn_piped(spec, "stdout", "stderr") as job:
            packing = pack(
                job.pipe("stdout").ours, droplet, unpacker=unpacker, layer_dir=layer_dir, bounds=bounds
            )
            packed, status, said = await job.run(packing)
        if not may_be_packed(status):
            raise StagingFailed(
                "Error staging: the droplet cannot be packed",
                "StagingError",
                f"tar: {said or described(status)}",
            )
        return packed

    async def pack_cache(self, archive: Path, bounds: Bounds) -> str | None:
        """None: the archive is there; else why not."""
        spec = self._platform(*TAR, "-C", CACHE, "-c", ".")
        with await self._container.spawn_piped(spec, "stdout", "stderr") as job:
            _, status, said = await job.run(pack(job.pipe("stdout").ours, archive, bounds=bounds))
        return None if may_be_packed(status) else f"tar: {said or described(status)}"

    async def unpack_cache(self, archive: Path) -> str | None:
        """None: the cache is there; else why not, and then the cache is empty."""
        spec = self._platform("/bin/tar", "-xzf", "-", "-C", CACHE)
        fd = os.open(archive, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with await self._container.spawn_piped(spec, "stdin", "stderr") as job:
                _, status, said = await job.run(job.pipe("stdin").send(fd))
        finally:
            os.close(fd)
        if status.ok:
            return None
        await self._must("/bin/rm", "-rf", CACHE)
        await self._must("/bin/mkdir", CACHE)
        return f"tar: {said or described(status)}"

    async def _must(self, *argv: str) -> None:
        result = await self._container.run(self._platform(*argv))
        if not result.status.ok:
            said = result.stderr[-400:].decode(errors="replace").strip()
            raise StagingFailed(
                f"Error staging: {argv[0]} failed", "StagingError", said or described(result.status)
            )

    def _platform(self, *argv: str) -> JobSpec:
        return JobSpec(argv, PLATFORM_ENV, cwd="/", output=Output(64 << 10, Past.DROP_OLDEST))

    # -- the buildpack's ---------------------------------------------------------------------------------------

    async def detect(self, candidates: Sequence[Buildpack], key: str | None) -> tuple[int, Buildpack, str]:
        """(its number, the buildpack, its label)."""
        tried = []
        for one in bp.choose(candidates, key):
            number = candidates.index(one)
            if key is not None:
                return number, one, one.name
            try:
                said = await self._asked(f"{one.inside(number)}/bin/detect", APP)
            except WshdError as e:  # a buildpack that cannot be run does not take the app
                tried.append(f"{one.name} ({e})")
                continue
            if said.status.ok:
                return number, one, bp.label(said.stdout) or one.name
            why = (said.stdout or said.stderr)[-200:].decode(errors="replace").strip()
            why = why.removeprefix(f"{one.name}: ")
            tried.append(f"{one.name} ({why})" if why else one.name)
        self._output.say(f"No buildpack recognised the app; tried: {', '.join(tried)}")
        raise StagingFailed(
            FAILED, "NoAppDetectedError", "An application could not be detected by any available buildpack"
        )

    async def compile(self, directory: str) -> None:
        """Run bin/compile. Its output goes to the staging's log as it comes."""
        program = f"{directory}/bin/compile"
        try:
            job = await self._container.spawn(self._buildpack(program, APP, CACHE, ENV_DIR))
        except WshdError as e:
            raise StagingFailed(FAILED, "BuildpackCompileFailed", f"{program}: {e}") from e
        self._log.info("buildpack_begun", program=program)
        async for chunk in job.stream(None):
            self._output.add(chunk.data, chunk.stream, gap_bytes=chunk.gap_bytes)
        status = await job.wait()
        self._log.info("buildpack_ended", program=program, status=status.number)
        if not status.ok:
            ran_out = await self._memory_ran_out()
            self._output.say(f"bin/compile failed: {described(status)}{ran_out}")
            raise StagingFailed(
                FAILED, "BuildpackCompileFailed", f"Buildpack compilation step failed{ran_out}"
            )

    async def release(self, chosen: Buildpack, directory: str) -> bp.Release:
        """A buildpack without bin/release has nothing to add."""
        if not os.path.lexists(chosen.path / "bin" / "release"):
            return bp.Release()
        try:
            said = await self._asked(f"{directory}/bin/release", APP)
        except WshdError as e:
            raise bp.release_failed(str(e)) from e
        if not said.status.ok:
            why = said.stderr[-400:].decode(errors="replace").strip() or described(said.status)
            raise bp.release_failed(f"{why}{await self._memory_ran_out()}")
        return await asyncio.to_thread(bp.parse_release, said.stdout)

    async def procfile(self) -> dict[str, str] | None:
        try:
            text = await self._container.read_file(f"{APP}/Procfile", plain_yaml.LIMIT_BYTES + 1)
        except (FileNotFoundError, NotAFile):
            return None
        return await asyncio.to_thread(bp.parse_procfile, text)

    async def _asked(self, *argv: str) -> RunResult:
        """Run a program of the buildpack and return its output, of which no more than the largest document is kept."""
        with await self._container.spawn_piped(self._buildpack(*argv), "stdout", "stderr") as job:
            out, status, errors = await job.run(job.pipe("stdout").beginning(plain_yaml.LIMIT_BYTES + 1))
        return RunResult(status, out, errors.encode())

    def _buildpack(self, *argv: str) -> JobSpec:
        return JobSpec(
            argv, self._environment, cwd=HOME, output=Output(COMPILE_OUTPUT_BYTES, Past.DROP_OLDEST)
        )

    async def _memory_ran_out(self) -> str:
        """The cause, if the kernel has killed for memory; else an empty text. The kernel counts a kill before it sends the event."""
        container = self._container
        if OUT_OF_MEMORY in container.events.kinds or (await container.info()).oom_kills:
            return f": out of memory (a staging of this app has {self._memory_mb} MB)"
        return ""
