"""Parses a configuration file: its values, the line of each key, duplicate keys, unknown keys, values of a wrong type.

No message contains a secret. A value is shown only if it is a scalar and its key is not named like a secret (`SECRETS`). A
parser's message is cut before any text of the file.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import msgspec
import yaml
from msgspec import Struct

T = TypeVar("T", bound=Struct)
SECRETS = ("password", "token", "secret", "nkey", "seed")
_SHOWN_CHARACTERS = 80
_WORDS = {"object": "mapping", "array": "list"}  # msgspec's names of types, and YAML's


@dataclass(frozen=True, slots=True)
class ConfigError:
    """``line`` counts from 1; 0: the error belongs to no line, such as a missing key."""

    key_path: str
    message: str
    line: int = 0


class UnreadableConfig(Exception):
    """The text is not YAML, or YAML that is not supported."""

    def __init__(self, message: str, line: int = 0) -> None:
        super().__init__(message)
        self.line = line


@dataclass(frozen=True, slots=True)
class Text:
    """The values of a file, the line of each key path, and an error for each duplicate key."""

    values: dict[Any, Any]
    lines: Mapping[str, int]
    doubled: tuple[ConfigError, ...]

    def place(self, error: ConfigError) -> ConfigError:
        """The error with the line of its key, or of the nearest enclosing key that the file has."""
        if error.line:
            return error
        path = error.key_path
        while path and path not in self.lines:
            path = re.sub(r"(\.[^.\[]*|\[[^\[]*|^[^.\[]*)$", "", path)
        return ConfigError(error.key_path, error.message, self.lines.get(path, 0))


def parse(text: str) -> Text:
    """UnreadableConfig: the reason, without any text of the file. YAML reads a password that begins with `*` or `!` as an
    alias or a tag, and the parser's own message would repeat it."""
    try:
        node = yaml.compose(text, Loader=yaml.CSafeLoader)
        values = yaml.load(text, Loader=yaml.CSafeLoader)
        lines: dict[str, int] = {}
        doubled = tuple(_walk(node, "", lines))
    except yaml.constructor.ConstructorError as e:
        raise UnreadableConfig(
            "expected plain values, got a tag, or a key that is a list or a mapping", _line(e)
        ) from None
    except yaml.YAMLError as e:
        problem = re.sub(r"(alias|anchor|tag) .*", r"\1", str(getattr(e, "problem", None) or "unreadable"))
        raise UnreadableConfig(f"invalid YAML: {problem}", _line(e)) from None
    except RecursionError:
        raise UnreadableConfig("nested too deeply, or an alias contains itself") from None
    except (ValueError, OverflowError):
        raise UnreadableConfig(
            "a value looks like a date or a number and is not a valid one; put a text into quotes"
        ) from None
    if not isinstance(values, dict):
        raise UnreadableConfig("expected a mapping of sections")
    return Text(values, lines, doubled)


def _line(error: yaml.YAMLError) -> int:
    mark = getattr(error, "problem_mark", None)
    return mark.line + 1 if mark else 0


def _walk(node: Any, path: str, lines: dict[str, int]) -> Iterator[ConfigError]:
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            below = f"{path}.{name}" if path else name
            if name in seen:
                yield ConfigError(below, f"duplicate key, first in line {seen[name]}", line)
            seen.setdefault(name, line)
            lines[below] = line
            yield from _walk(value, below, lines)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            lines[f"{path}[{number}]"] = value.start_mark.line + 1
            yield from _walk(value, f"{path}[{number}]", lines)


# -- keys ------------------------------------------------------------------------------------------------------------


def section_of(kind: Any) -> type[Struct] | None:
    """The section class of a field's type, also inside a tuple or an optional. None: the field is not a section."""
    for one in (kind, *get_args(kind)):
        if isinstance(one, type) and issubclass(one, Struct):
            return one
    return None


def unknown_keys(
    section: type[Struct], values: dict[Any, Any], reasons: Mapping[str, str], path: str = ""
) -> Iterator[ConfigError]:
    """An error for each key that no section has, with the most similar known name. Key paths in ``reasons`` are skipped."""
    known = {one.name: one for one in msgspec.structs.fields(section)}
    for key, value in values.items():
        at = f"{path}.{key}" if path else str(key)
        if at in reasons:
            continue
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {f'{path}.' if path else ''}{near[0]}?" if near else ""
            yield ConfigError(at, f"unknown key{hint}")
            continue
        below = section_of(known[key].type)
        if below is not None:
            for number, one in enumerate(value if isinstance(value, list) else [value]):
                if isinstance(one, dict):
                    where = f"{at}[{number}]" if isinstance(value, list) else at
                    yield from unknown_keys(below, one, reasons, where)


# -- values ----------------------------------------------------------------------------------------------------------


def convert(values: dict[Any, Any], kind: type[T]) -> tuple[T | None, list[ConfigError]]:
    """The settings, or None and all errors.

    msgspec reports only the first wrong value. So that value is removed, which leaves its default, and the rest is converted
    again until nothing is wrong.
    """
    errors: list[ConfigError] = []
    left = copy.deepcopy(values)
    while True:
        try:
            settings = msgspec.convert(left, kind, dec_hook=_path)
        except msgspec.ValidationError as e:
            error, parts = _first_wrong(str(e), left, kind)
            errors.append(error)
            if not parts or not _take_out(left, parts):
                return None, errors
        else:
            return (None if errors else settings), errors


def _first_wrong(text: str, values: Any, kind: Any) -> tuple[ConfigError, tuple[str | int, ...]]:
    """msgspec's error with the value added, `intervals.heartbeat: expected float, got '10s'`, and its path in ``values``."""
    message, _, where = text.partition(" - at `$")
    key_path = where.rstrip("`").lstrip(".")
    parts = tuple(int(word) if word.isdigit() else word for word in re.findall(r"[^.\[\]]+", key_path))
    if message.startswith("Object missing"):
        return ConfigError(
            key_path, message.replace("`", "").replace("Object missing required field", "missing:")
        ), parts
    found: Any = values
    for part in parts:
        found = found[part]
    if message.startswith("Invalid enum value"):
        allowed = _choices(kind, parts)
        near = difflib.get_close_matches(str(found).lower(), allowed, n=1)
        message = f"expected one of {', '.join(allowed)}{f' (did you mean {near[0]}?)' if near else ''}"
    wanted = message.partition(", got ")[0].replace("`", "")
    wanted = re.sub(r"\b(object|array)\b", lambda match: _WORDS[match[0]], wanted)
    wanted = wanted[:1].lower() + wanted[1:]
    return ConfigError(key_path, f"{wanted}, got {_shown(found, parts, wanted)}"), parts


def _choices(kind: Any, parts: tuple[str | int, ...]) -> tuple[str, ...]:
    """The values that the type at a path allows, if it is a `Literal`."""
    for part in parts:
        if isinstance(part, str):
            section = section_of(kind)
            assert section is not None
            kind = next(one.type for one in msgspec.structs.fields(section) if one.name == part)
        else:
            kind = get_args(kind)[0]
    for one in (kind, *get_args(kind)):
        if get_origin(one) is Literal:
            return get_args(one)
    return ()


def _shown(value: Any, parts: tuple[str | int, ...], wanted: str) -> str:
    """The value for a message; only its kind if it could be or contain a secret."""
    kinds: dict[type, str] = {bool: "a boolean", int: "a number", float: "a number", str: "a text"}
    kind = next((word for one, word in kinds.items() if isinstance(value, one)), f"a {_kind_of(value)}")
    key = next((part for part in reversed(parts) if isinstance(part, str)), "")
    is_plain = value is None or isinstance(value, bool | int | float | str)
    if not is_plain or any(word in key for word in SECRETS) or re.search(r"\b(mapping|list)\b", wanted):
        return "nothing" if value is None else kind
    return masked(value) if isinstance(value, str) else repr(value)


def _kind_of(value: Any) -> str:
    return (
        "mapping" if isinstance(value, dict) else "list" if isinstance(value, list) else type(value).__name__
    )


def masked(text: str) -> str:
    """``text`` in quotes, without the user part of a URL, cut to `_SHOWN_CHARACTERS`."""
    scheme, mark, rest = text.partition("://")
    if mark and "@" in rest:
        text = f"{scheme}://***@{rest.rpartition('@')[2]}"
    elif "@" in text:
        text = f"***@{text.rpartition('@')[2]}"
    return repr(text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…")


def _take_out(values: Any, parts: tuple[str | int, ...]) -> bool:
    """Remove a value, so that its default applies. False: it has no default, or others of its list would move."""
    *above, last = parts
    for part in above:
        values = values[part]
    if isinstance(values, list) or "base_dir" in parts:
        return False
    del values[last]
    return True


def _path(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str) and value and "\0" not in value:
        return Path(value)
    raise ValueError("expected a path")
