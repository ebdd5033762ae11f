"""libc, and errno as an exception."""

from __future__ import annotations

import ctypes
import os
from typing import Final

libc: Final = ctypes.CDLL(None, use_errno=True)


def oserror(what: str) -> OSError:
    """The error of this thread's last call. ``what`` becomes the file name of the OSError."""
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), what)


def checked(result: int, what: str) -> int:
    """Returns the result of a call. OSError: the result is negative."""
    if result < 0:
        raise oserror(what)
    return result
