"""Reads YAML from untrusted sources: a droplet's staging_info.yml, a Procfile, the output of a buildpack.

Only plain data is accepted: no tags that create objects, and no merge keys, since a page of nested ones expands to billions
of entries. Every error of the parser or of a conversion becomes `YamlError`, whose text repeats nothing of the document. Size
and number of values are limited, since PyYAML needs seconds for a few megabytes and blocks all threads meanwhile.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, TypeVar

import msgspec
import yaml

T = TypeVar("T")
#: The size limit of a document. The documents that are read usually have a few lines.
LIMIT_BYTES: Final = 64 << 10
#: The limit for keys, values, lists and maps together. The parser holds Python's lock until it has read all of them.
LIMIT_NODES: Final = 4096
_MERGE = "tag:yaml.org,2002:merge"
#: The ways to write null in YAML.
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})


class YamlError(ValueError):
    """The document is invalid, too large, or of another type than expected. The text gives the line where it is known."""


class _Loader(yaml.CSafeLoader):
    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        for key, _ in node.value:
            if key.tag == _MERGE:
                raise yaml.constructor.ConstructorError(
                    problem="merge keys are not supported", problem_mark=key.start_mark
                )


def _check_nodes(text: bytes) -> None:
    """Count the values without building them. YamlError: there are more than `LIMIT_NODES`. yaml.YAMLError: invalid YAML."""
    nodes = 0
    for event in yaml.parse(text, Loader=_Loader):
        nodes += isinstance(event, yaml.NodeEvent)
        if nodes > LIMIT_NODES:
            raise YamlError(f"more than {LIMIT_NODES} values")


def load(text: bytes, kind: type[T]) -> T:
    """The document as ``kind``; an empty document as an empty mapping. YamlError: it is invalid, or not a ``kind``.

    It takes tens of milliseconds at most; on the event loop use `load_aside`.
    """
    try:
        return msgspec.convert(_read(text, _Loader) or {}, kind)
    except msgspec.ValidationError as e:
        raise YamlError(str(e)) from e


def load_map(text: bytes) -> dict[str, Any]:
    """The document as a map in which every scalar is its text, also `yes`, `0x1f` or a date; null is the empty text.

    The last of duplicate keys counts, as in other readers of YAML 1.1. YamlError: the document is not a map.
    """
    found = _read(text, yaml.CBaseLoader)
    if found is None or found == "":
        return {}
    if not isinstance(found, dict):
        raise YamlError(f"expected a map, got a {'list' if isinstance(found, list) else 'text'}")
    return {key: "" if isinstance(value, str) and value in _NULLS else value for key, value in found.items()}


def _read(text: bytes, loader: Any) -> Any:
    if len(text) > LIMIT_BYTES:
        raise YamlError(f"more than {LIMIT_BYTES} bytes")
    try:
        _check_nodes(text)
        return yaml.load(text, Loader=loader)  # noqa: S506  (subclasses of the safe loaders)
    except YamlError:
        raise
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark is not None else ""
        raise YamlError(f"{where}{getattr(e, 'problem', None) or 'invalid YAML'}") from e
    # a date with month 13, a number with too many digits, too many levels
    except (ValueError, OverflowError, RecursionError) as e:
        raise YamlError(f"{type(e).__name__}: a value cannot be converted") from e


async def load_aside(text: bytes, kind: type[T]) -> T:
    """`load` in a thread, so that the event loop keeps running. YamlError: as `load`."""
    return await asyncio.to_thread(load, text, kind)
