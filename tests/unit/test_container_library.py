"""`container/` as a library for strangers: what it exports, what an import costs, and that everything says what it is."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import container
from container import JobSpec, SpecError, User

pytestmark = pytest.mark.unit
ROOM = Path(container.__file__).parent
EXPORTED = {name: getattr(container, name) for name in container.__all__}


def test_an_import_loads_nothing_that_is_dear() -> None:
    """Netlink, decoders and the event loop come with the first name that needs them."""
    program = "import sys, container; print(*sorted({'asyncio', 'pyroute2', 'msgspec', 'ctypes'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_a_value_type_loads_no_netlink() -> None:
    """A controller's tools build specs and start no container."""
    program = (
        "import sys\nfrom container import ContainerSpec, EgressRule, JobSpec, Limits\n"
        "print(*sorted({'asyncio', 'pyroute2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_type_checkers_see_the_names_that_there_are() -> None:
    """The imports for them, and the table by which names are found."""
    tree = ast.parse((ROOM / "__init__.py").read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.asname: one.module
        for one in block.body
        if isinstance(one, ast.ImportFrom)
        for alias in one.names
    }
    assert seen == {name: f"container.{module}" for name, module in container._MODULE_OF.items()}


def test_an_unknown_name_is_an_attribute_error() -> None:
    """As of any other module."""
    with pytest.raises(AttributeError, match="no attribute 'Warden'"):
        container.Warden  # noqa: B018  the access is what is tested


def _public(name: str, thing: object) -> list[tuple[str, object]]:
    """The thing, and what it has that a caller may use."""
    found = [(name, thing)]
    if inspect.isclass(thing):
        for member, value in vars(thing).items():
            if member.startswith("_"):
                continue
            if isinstance(value, property | classmethod | staticmethod) or inspect.isfunction(value):
                found.append((f"{name}.{member}", value))
    return found


@pytest.mark.parametrize("name", sorted(EXPORTED))
def test_every_public_name_says_what_it_is(name: str) -> None:
    """Classes, functions, methods and properties."""
    for place, thing in _public(name, EXPORTED[name]):
        doc = vars(thing).get("__doc__") if inspect.isclass(thing) else thing.__doc__
        assert doc, f"{place} has no docstring"
        assert not doc.startswith(f"{name}("), f"{place} has only what dataclass made"


def test_it_does_not_speak_of_its_callers() -> None:
    """Another program than the agent may use it: no word of apps, droplets, instances or the bus."""
    word = re.compile(
        r"\b(apps?|droplets?|instances?|stagings?|dea|NATS|bus|buildpacks?|agents?)\b", re.IGNORECASE
    )
    # `instance-ID` is the name that Warden gives a cgroup
    allowed = re.compile(r"inotify instances?|_instance\b|\binstance-")
    found = []
    for path in sorted(ROOM.rglob("*.py")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if word.search(allowed.sub("", line)):
                found.append(f"{path.relative_to(ROOM)}:{number}: {line.strip()}")
    assert found == []


def test_a_job_may_run_as_any_user_and_has_a_path() -> None:
    """Names are for the two that every stack has."""
    assert JobSpec(("id",), user=1234).user == 1234
    assert JobSpec(("id",)).user == User.VCAP
    assert JobSpec(("id",), env=("A=b",)).environment == (
        "A=b",
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    )
    assert JobSpec(("id",), env=("PATH=/bin",)).environment == ("PATH=/bin",)


@pytest.mark.parametrize("number", [-1, 65534, 65535])
def test_a_user_outside_of_the_range_is_refused(number: int) -> None:
    """The last id of a container is wshd's own."""
    with pytest.raises(SpecError, match="user: expected 0 to 65533"):
        JobSpec(("id",), user=number)
