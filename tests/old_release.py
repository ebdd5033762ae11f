"""Makes an old release runnable: commit f8113c7, from tests/fixtures/upgrade. Every later version must take up what it leaves.

Its sources are unpacked and its wshd is built. It runs with the interpreter and the libraries of the tests.
"""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path

FIXTURES = Path(__file__).with_name("fixtures") / "upgrade"


def unpack(directory: Path) -> Path:
    """Unpack the old release into ``directory``, and build its wshd. Returns ``directory``."""
    with tarfile.open(FIXTURES / "f8113c7.tar.xz") as archive:
        for (
            member
        ) in archive:  # without `filter`, which Debian 12's Python 3.11.2 lacks; the archive is trusted
            archive.extract(member, directory)
    subprocess.run(["make", "-C", directory / "wsh", "all"], check=True, capture_output=True)
    return directory
