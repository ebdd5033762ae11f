"""The base of every error that this library raises on purpose.

A caller that decides nothing more than "it did not work" catches `ContainerError`. Each subclass stands for one
decision that a caller may take; most are also of the built-in kind that fits (ValueError, LookupError, OSError).
What the kernel refuses reaches the caller as an OSError of its own.
"""

from __future__ import annotations


class ContainerError(Exception):
    """Base class; never raised itself."""
