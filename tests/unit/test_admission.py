"""What may begin on a host, what waits, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent.admission import Admission
from agent.bus import messages as m
from agent.config import ResourceSettings
from agent.instances.instance import Instance, State
from agent.instances.registry import Registry
from agent.resources import Claim, Short

pytestmark = pytest.mark.unit
START = Path(__file__).parents[1] / "fixtures" / "dea.start.json"


class Scene:
    """A host of 100 MB memory and 1,000 MB disk."""

    def __init__(self, base: Path) -> None:
        self.registry = Registry()
        self.probe: Any = SimpleNamespace(is_writable=True)  # of WriteProbe the part that is asked
        resources = ResourceSettings(memory_mb=100, disk_mb=1000, low_water_mb=0)
        settings: Any = SimpleNamespace(resources=resources, base_dir=base)
        self.resources = resources
        probe: Any = self.probe
        self.admission = Admission(settings, self.registry, probe, host_memory_mb=0)

    def instance(self, app: str, memory_mb: int, state: State = State.RUNNING) -> Instance:
        body = json.loads(START.read_bytes())
        body |= {"droplet": app, "limits": {"mem": memory_mb, "disk": 10, "fds": 16}}
        message = m.convert(m.StartMessage, body)
        name = f"{app}-{len(self.registry)}"
        one = Instance(name, "p", message, "v", (), state=state)
        self.registry.add(one)
        return one

    def end(self, instance: Instance) -> None:
        self.registry.remove(instance)
        self.admission.stop_waiting(instance)
        self.admission.admit_waiting()


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_instances_and_stagings_are_added_up(scene: Scene) -> None:
    """A claim fits into what is left, to the last megabyte."""
    scene.instance("shop", 60)
    scene.admission.hold("staging", Claim(30, 0))

    assert scene.admission.lacks(Claim(10, 0)) is None
    assert scene.admission.lacks(Claim(11, 0)) is Short.MEMORY
    assert scene.admission.left().memory_mb == 10

    scene.admission.release("staging")
    scene.admission.release("staging")
    assert scene.admission.lacks(Claim(40, 0)) is None


def test_nothing_begins_while_the_disk_cannot_be_written(scene: Scene) -> None:
    """Nor with a stopping predecessor: its end gives no disk back that could be written."""
    scene.instance("shop", 60, State.STOPPING)
    scene.probe.is_writable = False

    assert scene.admission.takes_nothing()
    assert scene.admission.lacks(Claim(0, 0)) is Short.DISK
    assert not scene.admission.fits_later(scene.instance("shop", 10, State.BORN))


def test_nothing_begins_at_the_low_water_mark(tmp_path: Path) -> None:
    """The disk of the host itself, whatever has been promised of it."""
    scene = Scene(tmp_path)
    low: Any = SimpleNamespace(
        resources=ResourceSettings(memory_mb=100, disk_mb=1000, low_water_mb=1 << 40), base_dir=tmp_path
    )
    admission = Admission(low, scene.registry, scene.probe, host_memory_mb=0)

    assert admission.is_low()
    assert admission.lacks(Claim(1, 1)) is Short.DISK


def test_only_a_stopping_instance_of_the_same_app_makes_a_start_wait(scene: Scene) -> None:
    """Another app's end gives memory too, but nobody promised it to this one."""
    scene.instance("other", 90, State.STOPPING)
    newcomer = scene.instance("shop", 60, State.BORN)
    assert not scene.admission.fits_later(newcomer)


def test_starts_that_wait_are_admitted_in_the_order_in_which_they_came(scene: Scene) -> None:
    """With memory for one, the first goes on and the second waits for it to end."""
    old = scene.instance("shop", 90, State.STOPPING)
    first, second = (Instance(name, "p", old.message, "v", ()) for name in ("first", "second"))
    assert scene.admission.fits_later(first)
    for one in (first, second):
        scene.registry.add(one)
        scene.admission.wait(one)
    assert not scene.admission.admitted(first).is_set()
    waiting = scene.admission.admitted(first), scene.admission.admitted(second)

    scene.end(old)
    assert [event.is_set() for event in waiting] == [True, False]

    scene.end(first)
    assert waiting[1].is_set()


def test_a_start_that_never_waited_is_admitted(scene: Scene) -> None:
    """So is one that is being stopped: its life task sees the stop first."""
    one = scene.instance("shop", 10, State.BORN)
    assert scene.admission.admitted(one).is_set()
    scene.admission.wait(one)
    scene.admission.stop_waiting(one)
    assert scene.admission.admitted(one).is_set()
