"""Checks whether this host can have a depot at all. Done once, when the depot is opened."""

from __future__ import annotations

import errno
import re
from pathlib import Path
from typing import Final

from container.errors import ContainerError

#: The first kernel whose overlay takes idmapped layers (mount_setattr(2)).
MINIMUM_KERNEL: Final = (5, 19)


class HostUnfit(ContainerError, RuntimeError):
    """This host, or its configuration, does not permit a depot; the text says why."""


def kernel_version(release: str) -> tuple[int, int]:
    """The first two numbers of uname's release; (0, 0) if it has none."""
    match = re.match(r"(\d+)\.(\d+)", release)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def check_kernel(release: str) -> None:
    """HostUnfit: the kernel is too old."""
    if kernel_version(release) < MINIMUM_KERNEL:
        needed = ".".join(map(str, MINIMUM_KERNEL))
        raise HostUnfit(
            f"kernel {release} cannot mount overlay over idmapped layers: {needed} or later is needed"
        )


def refuse_if_short(error: BaseException) -> None:
    """HostUnfit: the error means that descriptors or memory ran out, so its container is not at fault."""
    for one in (error, error.__cause__):
        if isinstance(one, OSError) and one.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise HostUnfit(f"recover: descriptors or memory ran out: {one}") from error


def text_of(path: str) -> str:
    """The text of a file; empty if it cannot be read."""
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
