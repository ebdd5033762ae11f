"""The agent's log: one event a line with fields, JSON for machines, readable for a terminal; secrets never.

structlog's native path (no stdlib in between). A value is masked by its key, and a URL loses its user information.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import stat
import sys
from pathlib import Path
from typing import Any, BinaryIO, cast

import msgspec
import structlog

from agent.config import LoggingSettings

_SECRET_KEYS = re.compile(r"pass(word)?$|secret|token|credential|nkey|authorization|\bseed\b", re.IGNORECASE)
#: Up to the last @: a password may hold one, or a slash that nobody has encoded.
_URL_USER = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^\s\"'<>]*@", re.IGNORECASE)
MASK = "***"

Log = structlog.typing.FilteringBoundLogger


def mask(value: Any) -> Any:
    """A value without secrets; what is no text, mapping or list stays."""
    if isinstance(value, str):
        return _URL_USER.sub(rf"\1{MASK}@", value)
    if isinstance(value, dict):
        return {key: MASK if _SECRET_KEYS.search(str(key)) else mask(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [mask(one) for one in value]
    return value


def _mask_event(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    for key, value in event.items():
        event[key] = MASK if _SECRET_KEYS.search(key) else mask(value)
    return event


def _one_line(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """For a terminal: an app's name must not draw there, nor make a line of its own. JSON escapes by itself."""
    for key, value in event.items():
        if isinstance(value, str) and key != "exception" and not value.isprintable():
            event[key] = value.encode("unicode_escape").decode()
    return event


def _json(_: Any, __: str, event: structlog.typing.EventDict) -> bytes:
    return msgspec.json.encode(event, enc_hook=str)


def _open(path: Path) -> int:
    """0600 when it is made here; of one that is there, others than its owner and group lose their access: names of apps,
    addresses and errors are nobody else's. OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    seen = os.fstat(fd).st_mode
    if stat.S_ISREG(seen) and seen & stat.S_IRWXO:
        with contextlib.suppress(PermissionError):  # another owner's file that we may only append to
            os.fchmod(fd, stat.S_IMODE(seen) & ~stat.S_IRWXO)
    return fd


class LogFile:
    """The log's file, which may be opened anew under its name: every logger keeps its descriptor's number."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stream = os.fdopen(_open(path), "ab", buffering=0)

    def reopen(self) -> None:
        """After a rotation. OSError: the old file stays in use."""
        new = _open(self.path)
        try:
            os.dup2(new, self.stream.fileno(), inheritable=False)
        finally:
            os.close(new)


def configure(settings: LoggingSettings, file: LogFile | None = None) -> Log:
    """Set up the process's logger and return it. ``file``: that of the settings, opened already. OSError: it cannot be opened."""
    if file is None and settings.file is not None:
        file = LogFile(settings.file)
    stream = file.stream if file is not None else sys.stderr.buffer
    console = settings.format == "console" or (settings.format == "auto" and stream.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        # before masking, and never with the frames' variables, which hold whole messages
        structlog.processors.format_exc_info,
        _mask_event,
    ]
    factory: Any
    if console:
        shared += [_one_line, structlog.dev.ConsoleRenderer(colors=stream.isatty())]
        factory = structlog.PrintLoggerFactory(
            io.TextIOWrapper(cast(BinaryIO, stream), write_through=True) if file is not None else sys.stderr
        )
    else:
        shared += [_json]
        factory = structlog.BytesLoggerFactory(cast(BinaryIO, stream))
    structlog.configure(
        processors=shared,
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[settings.level.upper()]
        ),
        logger_factory=factory,
        cache_logger_on_first_use=False,
    )
    logger: Log = structlog.get_logger()
    return logger


def reopen(file: LogFile | None, log: Log) -> None:
    """For a log that has been rotated. Never raises: a rotation that went wrong does not make the agent mute."""
    if file is None:
        log.info("hang_up_ignored", why="the log has no file")
        return
    log.info("log_reopening", file=str(file.path))
    try:
        file.reopen()
    except OSError as e:
        log.error("log_not_reopened_going_on_with_the_old_file", error=str(e))
    else:
        log.info("log_reopened", file=str(file.path))
