"""The agent's log: one event a line with fields, JSON for machines, readable for a terminal; secrets never.

structlog's native path (no stdlib in between). A value is masked by its key, and a URL loses its user information.
"""

from __future__ import annotations

import logging
import re
import sys
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


def configure(settings: LoggingSettings) -> Log:
    """Set up the process's logger and return it. OSError: the file cannot be opened."""
    stream = settings.file.open("ab", buffering=0) if settings.file is not None else sys.stderr.buffer
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
        shared += [_one_line, structlog.dev.ConsoleRenderer()]
        factory = structlog.PrintLoggerFactory(sys.stderr)
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
