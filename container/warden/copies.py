"""CopyIn and CopyOut: trees between the host and a container, with the path rules of rsync (docs/warden.md, "Copies").

A tar stream goes through a pipe. On the way in, this process packs the host's files, which it trusts. On the way out, the
stream is hostile (extract.py). The end on the host has a thread of its own: whoever is inside can stop tar, and the thread
waits as long. On the threads that everybody shares, a few such copies would stop the whole server.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import tarfile
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path, PurePosixPath
from typing import Any, Final

from container.container import Container
from container.errors import ContainerError
from container.spec import JobSpec
from container.warden.errors import WardenError
from container.warden.extract import extract

_ENV: Final = ("PATH=/usr/bin:/bin", "LANG=C.UTF-8")


async def copy_in(container: Container, source: str, target: str) -> None:
    """Copies a file or directory of the host into the container, as vcap. WardenError."""
    path = Path(source)
    if not path.is_absolute() or not os.path.lexists(path):
        raise WardenError(f"src_path: {source} does not exist on the host")
    is_tree = path.is_dir() and (source.endswith("/") or not path.is_symlink())
    if is_tree:
        directory, name = target, "." if source.endswith("/") else path.name
    elif target.endswith("/") or await _is_directory(container, target):
        directory, name = target, path.name
    else:
        directory, name = os.path.split(target)
    made = await container.run(JobSpec(("/bin/mkdir", "-p", "--", directory or "/"), _ENV, cwd="/"))
    if not made.status.ok:
        raise WardenError(f"dst_path: {made.stderr.decode(errors='replace').strip()}")
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    await _both(
        _with_fd(container.copy_in(read_fd, directory or "/"), read_fd),
        _in_own_thread(lambda: _pack(write_fd, path, name), write_fd),
    )


async def _is_directory(container: Container, path: str) -> bool:
    asked = await container.run(JobSpec(("/bin/sh", "-c", '[ -d "$1" ]', "sh", path), _ENV, cwd="/"))
    return asked.status.ok


def _pack(fd: int, path: Path, name: str) -> None:
    """Writes the tar stream and closes the descriptor."""

    def chosen(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        tar.inodes = {}  # type: ignore[attr-defined]  # hard links become copies
        return member if member.isreg() or member.isdir() or member.issym() else None

    with (
        os.fdopen(fd, "wb") as file,
        contextlib.suppress(BrokenPipeError),
    ):  # tar inside reports why it stopped
        with tarfile.open(
            fileobj=file, mode="w|", format=tarfile.GNU_FORMAT, errors="surrogateescape"
        ) as tar:
            tar.add(path if path.is_symlink() and name != "." else path.resolve(), name, filter=chosen)


async def copy_out(container: Container, source: str, target: str, owner: str | None) -> None:
    """Copies a file or directory of the container to the host. It belongs to root there, or to ``owner``. WardenError."""
    wanted = Path(target)
    if not wanted.is_absolute():
        raise WardenError(f"dst_path: expected an absolute path, got {target}")
    skipped = 0
    rename: str | None
    if source.endswith("/"):  # the contents alone
        directory, source, skipped, rename = wanted, os.path.normpath(source), 1, None
    elif target.endswith("/") or wanted.is_dir() or await _is_directory(container, source):
        directory, rename = wanted, PurePosixPath(source).name or None
    else:
        directory, rename = wanted.parent, wanted.name
    await asyncio.to_thread(directory.mkdir, parents=True, exist_ok=True)
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    await _both(
        _with_fd(container.copy_out(source, write_fd), write_fd),
        _in_own_thread(lambda: _extract_from(read_fd, directory, skipped, rename), read_fd),
    )
    if owner is not None:
        argv = ("chown", "-R", "-h", "--", owner, str(wanted))
        done = await asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True, check=False)
        if done.returncode:
            raise WardenError(f"owner: {done.stderr.strip()}")


async def _in_own_thread(work: Callable[[], None], fd: int) -> None:
    """Runs what may block for as long as the container likes. ``work`` closes ``fd``. WardenError: there is no thread for it.

    The thread ends when the other end of its pipe is closed, so also after a cancellation. A server that ends does not
    wait for it.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle(error: BaseException | None) -> None:
        if not done.done():
            done.set_exception(error) if error is not None else done.set_result(None)

    def run() -> None:
        error: BaseException | None = None
        try:
            work()
        except BaseException as e:  # raised again where it is awaited
            error = e
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, error)

    try:
        threading.Thread(target=run, name="warden-copy", daemon=True).start()
    except RuntimeError as e:
        os.close(fd)
        raise WardenError(f"copy: {e}") from e
    await done


async def _with_fd(work: Coroutine[Any, Any, None], fd: int) -> None:
    try:
        await work
    finally:
        os.close(fd)


async def _both(inside: Coroutine[Any, Any, None], outside: Coroutine[Any, Any, None]) -> None:
    """Waits for both ends of a pipe: each ends when the other has closed it. The error from inside says more."""
    for error in await asyncio.gather(inside, outside, return_exceptions=True):
        if isinstance(error, WardenError):
            raise error
        if isinstance(error, ContainerError | OSError | tarfile.TarError):
            raise WardenError(f"copy: {error}") from error
        if isinstance(error, BaseException):
            raise error


def _extract_from(fd: int, target: Path, skipped: int, rename: str | None) -> None:
    with os.fdopen(fd, "rb") as file:
        root = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            extract(file, root, skipped=skipped, rename=rename)
        finally:
            os.close(root)
