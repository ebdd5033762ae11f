"""A value that exists makes sense; a wrong one names its field."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from container.spec import (
    BindMount,
    ContainerSpec,
    EgressRule,
    JobSpec,
    Limits,
    PortMapping,
    PortRange,
    Protocol,
    SpecError,
)

pytestmark = pytest.mark.unit
S = (Path("/s"),)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: ContainerSpec(layers=()), "layers"),
        (lambda: ContainerSpec(layers=(Path("rel"),)), "layers"),
        (lambda: ContainerSpec(layers=S * 16), "layers"),
        (lambda: ContainerSpec(layers=S, home_layers=S * 15), "home_layers"),
        (lambda: ContainerSpec(layers=S, handle="../x"), "handle"),
        (lambda: ContainerSpec(layers=S, handle=".."), "handle"),
        (lambda: ContainerSpec(layers=S, handle="a/b"), "handle"),
        (lambda: ContainerSpec(layers=S, handle="x\n"), "handle"),
        (lambda: ContainerSpec(layers=S, hostname="a b"), "hostname"),
        (lambda: ContainerSpec(layers=S, network=False, ports=(PortMapping(),)), "network"),
        (lambda: BindMount(Path("rel"), "/x"), "binds.source"),
        (lambda: BindMount(Path("/a"), "x"), "binds.target"),
        (lambda: BindMount(Path("/a"), "/x/../../etc"), "binds.target"),
        (lambda: PortRange(5, 4), "ports"),
        (lambda: PortMapping(Protocol.ICMP), "protocol"),
        (lambda: PortMapping(host_port=70000), "host_port"),
        (lambda: EgressRule(Protocol.ICMP, ports=(PortRange(1, 2),)), "ports"),
        (lambda: EgressRule(Protocol.TCP, ("10.0.0.9-10.0.0.1",)), "networks"),
        (lambda: EgressRule(Protocol.TCP, ("example.org",)), "networks"),
        (lambda: Limits(memory_bytes=0), "limits.memory_bytes"),
        (lambda: JobSpec(()), "argv"),
        (lambda: JobSpec(("a\0b",)), "argv"),
        (lambda: JobSpec(("a",), env=("NOVALUE",)), "env"),
        (lambda: JobSpec(("a",), env=("=x",)), "env"),
        (lambda: JobSpec(("a",), cwd="home"), "cwd"),
        (lambda: JobSpec(("a",), job_id="a/b"), "job_id"),
    ],
)
def test_nonsense_is_refused_by_the_field_s_name(make: Callable[[], object], field: str) -> None:
    """Where, what was expected, what came."""
    with pytest.raises(SpecError) as refused:
        make()
    assert refused.value.field == field
    assert (
        "expected" in str(refused.value)
        or "only" in str(refused.value)
        or "need" in str(refused.value)
        or ("NUL" in str(refused.value))
    )
