"""The language of the conversations (tests/fixtures/sequences): tags, variables, and the comparison of messages. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


class Unknown(LookupError):
    """A variable that has no value yet: an instance that has not been seen."""


#: `$A.id`, `$A/0.instance`, `$A/0.2.route`, `$dea`
VARIABLE = re.compile(r"\$([A-Z](?:/\d+(?:\.\d+)?)?\.(?:id|v1|v2|instance|route)|[a-z_]\w*)")
Lookup = Callable[[str], Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """`!str`, `!int`, `!num`: any value of that type."""

    types: tuple[type, ...]

    def accepts(self, value: Any) -> bool:
        return isinstance(value, self.types) and not isinstance(value, bool)


@dataclass(frozen=True, slots=True)
class Absent:
    """`!absent`"""


@dataclass(frozen=True, slots=True)
class Near:
    """`!near T`: within two seconds of a noted time."""

    note: str


@dataclass(frozen=True, slots=True)
class Has:
    """`!has [...]`: for each of these an element that matches it."""

    elements: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Distinct:
    """`!distinct KEY`: elements whose KEY differ."""

    key: str


class _Loader(yaml.SafeLoader):
    """Reads `on` as a key and not as true (as in YAML 1.2)."""

    yaml_implicit_resolvers = {  # noqa: RUF012  (as its base has it)
        letter: [
            (tag, pattern)
            for tag, pattern in resolvers
            if tag != "tag:yaml.org,2002:bool" or letter in "tTfF"
        ]
        for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _scalar(kind: Callable[[str], Any]) -> Callable[[yaml.SafeLoader, Any], Any]:
    return lambda loader, node: kind(loader.construct_scalar(node))


for tag, make in {
    "!str": lambda _: Kind((str,)),
    "!int": lambda _: Kind((int,)),
    "!num": lambda _: Kind((int, float)),
    "!absent": lambda _: Absent(),
    "!near": Near,
    "!distinct": Distinct,
}.items():
    _Loader.add_constructor(tag, _scalar(make))
_Loader.add_constructor(
    "!has",
    lambda loader, node: Has(tuple(_Loader.construct_sequence(loader, node, deep=True))),  # type: ignore[arg-type]
)


def load(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.load(path.read_text(), Loader=_Loader)
    return found


def fill(value: Any, lookup: Lookup) -> Any:
    """Replaces variables, in keys too. Unknown: one has no value yet."""
    if isinstance(value, str):
        if (whole := VARIABLE.fullmatch(value)) is not None:
            return lookup(whole[1])
        return VARIABLE.sub(lambda found: str(lookup(found[1])), value)
    if isinstance(value, Mapping):
        return {fill(key, lookup): fill(one, lookup) for key, one in value.items()}
    if isinstance(value, list):
        return [fill(one, lookup) for one in value]
    if isinstance(value, Has):
        return Has(tuple(fill(one, lookup) for one in value.elements))
    return value


def matches(wanted: Any, got: Any, lookup: Lookup) -> bool:
    """Fields that ``expected`` does not name may have any value, at every depth. Lists and plain values must be equal."""
    try:
        return _matches(fill(wanted, lookup), got, lookup)
    except Unknown:
        return False


def _matches(wanted: Any, got: Any, lookup: Lookup) -> bool:
    match wanted:
        case Kind():
            return wanted.accepts(got)
        case Near(note):
            return isinstance(got, int | float) and abs(got - lookup(note)) <= 2
        case Has(elements):
            return isinstance(got, list) and all(
                any(_matches(one, element, lookup) for element in got) for one in elements
            )
        case Distinct(key):
            return len({element[key] for element in got}) == len(got)
        case Mapping():
            return isinstance(got, Mapping) and all(
                key not in got
                if isinstance(value, Absent)
                else key in got and _matches(value, got[key], lookup)
                for key, value in wanted.items()
            )
    return bool(wanted == got)
