"""The example program in docs/containers.md runs unchanged."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from depot_kit import stack as stack

pytestmark = pytest.mark.kernel
DOCUMENT = Path(__file__).parents[2] / "docs/containers.md"


async def test_the_first_program_of_the_document(tmp_path: Path, stack: Path) -> None:
    """Only its paths and its cgroup are changed; it leaves nothing on the host."""
    found = re.search(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert found is not None
    program = found[1]
    assert len(program.splitlines()) <= 25
    for here, there in {
        "/var/lib/example": str(tmp_path),
        "/srv/stacks/busybox": str(stack),
        '"example"': f'"garrison-test-{os.getpid()}"',
    }.items():
        assert here in program
        program = program.replace(here, there)

    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )

    assert done.stderr == ""
    assert re.fullmatch(r"0 hello from [0-9a-v]{11}\n", done.stdout)
    assert list((tmp_path / "depot").iterdir()) == []
