"""YAML that strangers wrote: a droplet's staging_info.yml, a Procfile, what a buildpack prints.

Plain data only: no tags that make objects, no merge keys (nested, a page of them becomes billions of entries), and
one error for whatever the parser or a scalar's conversion objects to. The size is bounded: a parser takes seconds for
a few megabytes, and a person writes kilobytes.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, TypeVar

import msgspec
import yaml

T = TypeVar("T")
#: Of any document. The three kinds that are read hold a few lines each.
LIMIT_BYTES: Final = 64 << 10
#: Keys, values, lists and maps together: the parser holds Python's lock until it has read all of them.
LIMIT_NODES: Final = 4096
_MERGE = "tag:yaml.org,2002:merge"


#: What the null of YAML is written as; nothing at all is one too.
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})


class YamlError(ValueError):
    """The text is not what was expected; says where and why, and repeats nothing of it."""


class _Loader(yaml.CSafeLoader):
    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        for key, _ in node.value:
            if key.tag == _MERGE:
                raise yaml.constructor.ConstructorError(
                    problem="merge keys are not taken", problem_mark=key.start_mark
                )


def _check_nodes(text: bytes) -> None:
    """Event by event, and no further than needed. YamlError, and what the parser raises."""
    nodes = 0
    for event in yaml.parse(text, Loader=_Loader):
        nodes += isinstance(event, yaml.NodeEvent)
        if nodes > LIMIT_NODES:
            raise YamlError(f"more than {LIMIT_NODES} values")


def load(text: bytes, kind: type[T]) -> T:
    """The document as ``kind``; an empty one as an empty mapping. YamlError. Takes tens of milliseconds at most, see `load_aside`."""
    try:
        return msgspec.convert(_read(text, _Loader) or {}, kind)
    except msgspec.ValidationError as e:
        raise YamlError(str(e)) from e


def load_map(text: bytes) -> dict[str, Any]:
    """A map whose scalars are the words that stand there, `yes`, `0x1f` and a date too; a null is empty. Of doubled keys the
    last counts, as in YAML 1.1's readers. YamlError: the document is no map.
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
        return yaml.load(text, Loader=loader)  # noqa: S506  (safe ones, made narrower)
    except YamlError:
        raise
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark is not None else ""
        raise YamlError(f"{where}{getattr(e, 'problem', None) or 'no YAML'}") from e
    except (
        ValueError,
        OverflowError,
        RecursionError,
    ) as e:  # a date of month 13, a number without end, depth
        raise YamlError(f"{type(e).__name__}: a value that cannot be taken") from e


async def load_aside(text: bytes, kind: type[T]) -> T:
    """`load` in a thread, so that the event loop turns meanwhile. YamlError."""
    return await asyncio.to_thread(load, text, kind)
