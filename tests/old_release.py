"""The program as it was at commit f8113c7, from tests/fixtures/upgrade: what it left must be taken up by every later version.

Its sources are unpacked and its wshd is built; the interpreter and the libraries are those of the tests.
"""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path

FIXTURES = Path(__file__).with_name("fixtures") / "upgrade"


def unpack(directory: Path) -> Path:
    """The tree of the old release, with a wshd that was built from its own sources."""
    with tarfile.open(FIXTURES / "f8113c7.tar.xz") as archive:
        for member in archive:  # no filter argument: Debian 12's 3.11.2 does not know it; the archive is ours
            archive.extract(member, directory)
    subprocess.run(["make", "-C", directory / "wsh", "all"], check=True, capture_output=True)
    return directory
