"""The base of every error that this library raises on purpose.

A caller for which every failure is the same catches `ContainerError`. Each subclass stands for one decision that a caller
may take; most also derive from the built-in class that fits (ValueError, LookupError, OSError). If the kernel refuses a
call, the caller gets a plain OSError.
"""

from __future__ import annotations


class ContainerError(Exception):
    """Base class; never raised itself."""
