"""The kinds of numbers that protobuf tells apart and Python does not."""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated


class NumberKind(IntEnum):
    """The values are those of protobuf's FieldDescriptorProto.Type."""

    INT32 = 5
    UINT32 = 13
    UINT64 = 4


INT32, UINT32, UINT64 = NumberKind.INT32, NumberKind.UINT32, NumberKind.UINT64

#: A number that may be absent.
Number = Annotated[int | None, UINT64]
