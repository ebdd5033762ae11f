"""The agent's log: one event a line, with fields; as JSON, or as text for a terminal.

No secret is logged: a value is masked if its key is named like a secret (`_SECRET_KEYS`), and in every text the user part of
URLs is. structlog writes to the file itself, without Python's `logging`; HUP replaces the file under all loggers (`LogFile`).
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
#: The user part is taken to end at the last @, since a password may contain an unencoded @ or slash.
_URL_USER = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^\s\"'<>]*@", re.IGNORECASE)
MASK = "***"

Log = structlog.typing.FilteringBoundLogger


def mask(value: Any) -> Any:
    """``value`` without secrets, also inside mappings and lists. Values of other types are returned as they are."""
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
    """Escape control characters for a terminal: an app's name must neither move the cursor nor begin a line. JSON needs no
    such step, since it escapes them itself."""
    for key, value in event.items():
        if isinstance(value, str) and key != "exception" and not value.isprintable():
            event[key] = value.encode("unicode_escape").decode()
    return event


def _json(_: Any, __: str, event: structlog.typing.EventDict) -> bytes:
    return msgspec.json.encode(event, enc_hook=str)


def _open(path: Path) -> int:
    """Open the file for appending, and create it with mode 0600 if it is missing.

    An existing file loses all access of others than its owner and group, since the log has names of apps, addresses and
    errors. OSError: it cannot be opened.
    """
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    seen = os.fstat(fd).st_mode
    if stat.S_ISREG(seen) and seen & stat.S_IRWXO:
        with contextlib.suppress(PermissionError):  # another user's file, to which the agent may only append
            os.fchmod(fd, stat.S_IMODE(seen) & ~stat.S_IRWXO)
    return fd


class LogFile:
    """The log file. `reopen` puts a new file under the same descriptor number, so every logger keeps its stream."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stream = os.fdopen(_open(path), "ab", buffering=0)

    def reopen(self) -> None:
        """Open the file's path again, after a rotation has renamed the file. OSError: the old file stays in use."""
        new = _open(self.path)
        try:
            os.dup2(new, self.stream.fileno(), inheritable=False)
        finally:
            os.close(new)


def configure(settings: LoggingSettings, file: LogFile | None = None) -> Log:
    """Set up the process's logger and return it. ``file``: the settings' file, if it is open already. OSError: the file
    cannot be opened."""
    if file is None and settings.file is not None:
        file = LogFile(settings.file)
    stream = file.stream if file is not None else sys.stderr.buffer
    console = settings.format == "console" or (settings.format == "auto" and stream.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        # before masking, since a traceback may contain URLs; never with local variables, which contain whole messages
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
    """Reopen the log file on HUP. Never raises: if the new file cannot be opened, the agent keeps logging to the old one."""
    if file is None:
        log.info("hup_ignored", because="the log goes to stderr")
        return
    log.info("log_reopening", file=str(file.path))
    try:
        file.reopen()
    except OSError as e:
        log.error(
            "log_not_reopened", file=str(file.path), error=str(e), consequence="the old file stays in use"
        )
    else:
        log.info("log_reopened", file=str(file.path))
