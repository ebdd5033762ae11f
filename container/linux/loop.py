"""Loop devices (drivers/block/loop.c). Each device detaches itself when its last user closes it."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_LOOP_CTL_GET_FREE: Final = 0x4C82
_LOOP_CONFIGURE: Final = 0x4C0A
_LO_FLAGS_AUTOCLEAR: Final = 4
_LOOP_MAJOR: Final = 7
_ATTEMPTS: Final = 1000


@contextmanager
def loop_device(image: Path) -> Iterator[str]:
    """Attaches ``image`` to a free loop device and yields its path. Mount it inside the block: unused, it detaches itself.

    Another process may take or remove the device between the two calls; then the next one is tried. OSError: no device
    was free.
    """
    backing = os.open(image, os.O_RDWR | os.O_CLOEXEC)
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    device = -1
    try:
        for attempt in range(_ATTEMPTS):
            path = _ensure_node(fcntl.ioctl(control, _LOOP_CTL_GET_FREE))
            try:
                device = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                fcntl.ioctl(device, _LOOP_CONFIGURE, _config(backing))
                break
            except OSError as e:
                if device >= 0:
                    os.close(device)
                    device = -1
                if e.errno not in (errno.EBUSY, errno.ENXIO, errno.ENODEV) or attempt + 1 == _ATTEMPTS:
                    raise OSError(e.errno, e.strerror, f"attach {image} to {path}") from e
        yield path
    finally:
        for fd in (device, control, backing):
            if fd >= 0:
                os.close(fd)


def _ensure_node(number: int) -> str:
    """The path /dev/loopN. Without devtmpfs the node does not exist and is made here."""
    path = f"/dev/loop{number}"
    if not Path(path).exists():
        with suppress(FileExistsError):  # another process needs it as well
            os.mknod(path, 0o60660, os.makedev(_LOOP_MAJOR, number))
    return path


def _config(backing_fd: int) -> bytes:
    """struct loop_config: fd, block_size, struct loop_info64 (its flags at 52), reserved."""
    config = bytearray(304)
    struct.pack_into("=II", config, 0, backing_fd, 0)
    struct.pack_into("=I", config, 8 + 52, _LO_FLAGS_AUTOCLEAR)
    return bytes(config)
