"""Units of size."""

from __future__ import annotations

from typing import Final

MIB: Final = 1 << 20
"""Bytes of a mebibyte, which is what the platform's messages mean by MB."""
