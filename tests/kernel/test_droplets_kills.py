"""An agent that is killed while it makes a layer leaves a complete layer or none."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from pathlib import Path

import pytest
from archive_kit import END, file, packed, tree_of
from depot_kit import SCALE
from droplets_kit import MIB, WAIT_S, layers_in, peer, sha1, until

pytestmark = [pytest.mark.kernel, pytest.mark.soak]

PROGRAM = Path(__file__).with_name("droplets_agent.py")
KILLS = 10 * SCALE
DROPLETS = 6


def a_droplet(number: int) -> bytes:
    """Some hundred files in many directories, and a large one: time enough to be killed in."""
    members = [file(b"%d/%d/f" % (n % 20, n), b"%d-%d" % (number, n)) for n in range(400)]
    return packed(b"".join(members) + file(b"large", random.Random(number).randbytes(2 * MIB)) + END)


async def test_kills_at_random_moments_leave_no_partial_layer(base_dir: Path) -> None:
    """After each: what stands under a checksum is that droplet, and the next agent finds it or has it fetched anew."""
    dice = random.Random(7)
    droplets = [a_droplet(number) for number in range(DROPLETS)]
    whole: dict[str, dict[str, str]] = {}
    found_after = []
    async with peer() as controller:
        addresses = ["=".join(controller.serve(data)) for data in droplets]
        async with layers_in(base_dir / "reference") as (layers, _):
            for data, address in zip(droplets, addresses, strict=True):
                layer = await layers.ensure(sha1(data), address.split("=")[1], 1 << 30)
                whole[layer.sha1] = tree_of(layer.path)

        for _ in range(KILLS):
            base = base_dir / "killed"
            process = await asyncio.create_subprocess_exec(
                sys.executable, str(PROGRAM), str(base), *addresses, stdout=asyncio.subprocess.PIPE
            )
            assert process.stdout is not None
            async with asyncio.timeout(WAIT_S):
                assert await process.stdout.readline() == b"ready\n"
            await asyncio.sleep(dice.random() * 0.8)  # the moment is the test's input, it waits for nothing
            if process.returncode is None:
                process.kill()
            await process.wait()

            async with layers_in(base) as (layers, _):
                there = {name for name in os.listdir(base / "layers") if len(name) == 40}
                found_after.append(len(there))
                assert {name: tree_of(base / "layers" / name) for name in there} == {
                    name: whole[name] for name in there
                }
                assert all(layers.known(name) for name in there)
                await layers.sweep(keep=())
            await until(lambda: os.listdir(base / "layers") == [])  # noqa: B023  (awaited in its turn)

    assert len(set(found_after)) > 1, f"always the same moment: {found_after}"
