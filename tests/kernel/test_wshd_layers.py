"""The root of a container: many layers, and files written over those of the stack."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from wshd_driver import Box, LaunchError, make_upper

pytestmark = pytest.mark.kernel


def test_a_file_replaces_a_link_of_the_stack(tmp_path: Path) -> None:
    """A resolv.conf that is a link is replaced, and nothing is written through it."""
    box = Box.prepare(tmp_path, "static")
    (box.stack / "etc/resolv.conf").symlink_to("/etc/lower")
    try:
        box.launch("file", "/etc/resolv.conf", "644", "nameserver 192.0.2.1\n")
        assert box.shell("job", "cat /etc/resolv.conf /etc/lower") == "nameserver 192.0.2.1\nfrom the stack\n"
    finally:
        box.kill()


def test_fifteen_layers(tmp_path: Path) -> None:
    """Fifteen lowers fit, the topmost first; a sixteenth is refused by name."""
    box = Box.prepare(tmp_path, "static")
    layers = []
    for number in range(14):
        layer = tmp_path / f"{'a-long-name-' * 15}{number}"
        (layer / "layers").mkdir(parents=True)
        (layer / "layers" / str(number)).touch()
        (layer / "top").write_text(str(number))
        layers += ["layer", str(layer)]
    try:
        box.launch(*layers)
        assert box.shell("job", "ls /layers | wc -l; cat /top").split() == ["14", "0"]
    finally:
        box.kill()
    shutil.rmtree(tmp_path / "disk")
    make_upper(tmp_path / "disk")
    with pytest.raises(LaunchError, match="layer"):
        box.launch(*layers, *layers[:2])
