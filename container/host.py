"""Can this host have a depot at all? Asked once, when it is opened."""

from __future__ import annotations

import errno
import re
from pathlib import Path
from typing import Final

from container.errors import ContainerError

#: The first kernel whose overlay takes idmapped layers (mount_setattr(2)).
MINIMUM_KERNEL: Final = (5, 19)


class HostUnfit(ContainerError, RuntimeError):
    """This host, as it is or as it is configured, cannot have a depot; the text says why."""


def kernel_version(release: str) -> tuple[int, int]:
    """Of uname's release; (0, 0) where there is no number."""
    match = re.match(r"(\d+)\.(\d+)", release)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def check_kernel(release: str) -> None:
    """Raises HostUnfit."""
    if kernel_version(release) < MINIMUM_KERNEL:
        needed = ".".join(map(str, MINIMUM_KERNEL))
        raise HostUnfit(
            f"kernel {release} cannot mount overlay over idmapped layers: {needed} or later is needed"
        )


def refuse_if_short(error: BaseException) -> None:
    """HostUnfit where an error is a want of descriptors or memory: the container that met it is not at fault."""
    for one in (error, error.__cause__):
        if isinstance(one, OSError) and one.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise HostUnfit(f"recover: {one}") from error


def text_of(path: str) -> str:
    """Empty: it cannot be read."""
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
