"""A configuration file as text: where each key stands, keys that stand there twice, and what has a wrong type.

Nothing here prints a secret: a value is shown only where it is a plain one of a key that holds none.
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
_WORDS = {"object": "mapping", "array": "list"}  # msgspec's, and YAML's


@dataclass(frozen=True, slots=True)
class ConfigError:
    """``line`` is 0 where there is none (a missing key)."""

    key_path: str
    message: str
    line: int = 0


class UnreadableConfig(Exception):
    """No YAML, or none that can be read."""

    def __init__(self, message: str, line: int = 0) -> None:
        super().__init__(message)
        self.line = line


@dataclass(frozen=True, slots=True)
class Text:
    """A file's values, the line of each key path, and what stands there twice."""

    values: dict[Any, Any]
    lines: Mapping[str, int]
    doubled: tuple[ConfigError, ...]

    def place(self, error: ConfigError) -> ConfigError:
        """The error with its line: that of its key, or of the nearest above."""
        if error.line:
            return error
        path = error.key_path
        while path and path not in self.lines:
            path = re.sub(r"(\.[^.\[]*|\[[^\[]*|^[^.\[]*)$", "", path)
        return ConfigError(error.key_path, error.message, self.lines.get(path, 0))


def parse(text: str) -> Text:
    """Unreadable: why. The text of a value is in no message: YAML takes `*secret` for an alias, `!secret` for a tag."""
    try:
        node = yaml.compose(text, Loader=yaml.CSafeLoader)
        values = yaml.load(text, Loader=yaml.CSafeLoader)
        lines: dict[str, int] = {}
        doubled = tuple(_walk(node, "", lines))
    except yaml.constructor.ConstructorError as e:
        raise UnreadableConfig(
            "a value that YAML cannot make (a tag, or a key that is none)", _line(e)
        ) from None
    except yaml.YAMLError as e:
        problem = re.sub(r"(alias|anchor|tag) .*", r"\1", str(getattr(e, "problem", None) or "unreadable"))
        raise UnreadableConfig(f"no YAML: {problem}", _line(e)) from None
    except RecursionError:
        raise UnreadableConfig("nested too deep, or into itself") from None
    except (ValueError, OverflowError):
        raise UnreadableConfig("a value that YAML takes for a date or a number, and that is none") from None
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
                yield ConfigError(below, f"stands there twice, first in line {seen[name]}", line)
            seen.setdefault(name, line)
            lines[below] = line
            yield from _walk(value, below, lines)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            lines[f"{path}[{number}]"] = value.start_mark.line + 1
            yield from _walk(value, f"{path}[{number}]", lines)


# -- keys ------------------------------------------------------------------------------------------------------------


def section_of(kind: Any) -> type[Struct] | None:
    """The section that a field's type holds, also within a tuple or an optional."""
    for one in (kind, *get_args(kind)):
        if isinstance(one, type) and issubclass(one, Struct):
            return one
    return None


def unknown_keys(
    section: type[Struct], values: dict[Any, Any], reasons: Mapping[str, str], path: str = ""
) -> Iterator[ConfigError]:
    """Keys that no section has, but for those of ``reasons``; each with the nearest right name."""
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
    """msgspec names one wrong value; the others show once that one is taken out."""
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
    """What msgspec says, in our words: `intervals.heartbeat: expected float, got '10s'`."""
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
    """The words that the type at a path allows."""
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
    """A value as a message may have it: not where a secret may be in it."""
    kinds: dict[type, str] = {bool: "a truth value", int: "a number", float: "a number", str: "a text"}
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
    """Quoted, a URL without its user part, and not all of what is long."""
    scheme, mark, rest = text.partition("://")
    if mark and "@" in rest:
        text = f"{scheme}://***@{rest.rpartition('@')[2]}"
    elif "@" in text:
        text = f"***@{text.rpartition('@')[2]}"
    return repr(text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…")


def _take_out(values: Any, parts: tuple[str | int, ...]) -> bool:
    """False: it was needed, or its place in a list matters."""
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
