"""Encodes and decodes the messages, with protobuf's own runtime.

The descriptors are made from the annotations of messages.py when this module is imported (4 ms), so no generated code is kept.
"""

from __future__ import annotations

from dataclasses import MISSING, Field, fields
from enum import IntEnum
from types import UnionType
from typing import Annotated, Any, Final, TypeVar, Union, get_args, get_origin, get_type_hints

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from container.errors import ContainerError
from container.warden import messages as m
from container.warden.kinds import NumberKind

T = TypeVar("T")

_PACKAGE: Final = "warden"
_Proto = descriptor_pb2.FieldDescriptorProto


class BadMessage(ContainerError, ValueError):
    """The bytes are not the message that they should be."""


class _Codec:
    """Of one class: how its values become messages of the runtime, and back."""

    def __init__(self, cls: type) -> None:
        self.cls = cls
        self.fields = {_name(one): (one, _Shape(hint)) for one, hint in _hinted(cls)}
        self.message: Any = None

    def descriptor(self) -> descriptor_pb2.DescriptorProto:
        made = descriptor_pb2.DescriptorProto(name=self.cls.__name__)
        for name, (one, shape) in self.fields.items():
            required = one.default is MISSING
            label = _Proto.LABEL_REQUIRED if required else _Proto.LABEL_OPTIONAL
            made.field.add(
                name=name,
                number=shape.number,
                label=_Proto.LABEL_REPEATED if shape.repeated else label,
                type=shape.kind,
                type_name=f".{_PACKAGE}.{shape.cls.__name__}" if shape.cls is not None else None,
            )
        return made

    def to_runtime(self, value: Any) -> Any:
        made = self.message()
        for name, (one, shape) in self.fields.items():
            item = getattr(value, one.name)
            if shape.repeated:
                getattr(made, name).extend(map(shape.to_runtime, item))
            elif item is not None and shape.is_message:
                getattr(made, name).CopyFrom(shape.to_runtime(item))
            elif item is not None:
                setattr(made, name, item)
        return made

    def from_runtime(self, made: Any) -> Any:
        values = {}
        for name, (one, shape) in self.fields.items():
            if shape.repeated:
                values[one.name] = tuple(map(shape.from_runtime, getattr(made, name)))
            elif made.HasField(name):
                values[one.name] = shape.from_runtime(getattr(made, name))
        return self.cls(**values)


class _Shape:
    """What an annotation says of a field."""

    def __init__(self, hint: Any) -> None:
        inner, numbers = _stripped(hint)
        self.number = next(one for one in numbers if not isinstance(one, NumberKind))
        given = next((one for one in numbers if isinstance(one, NumberKind)), None)
        self.repeated = get_origin(inner) is tuple
        base = get_args(inner)[0] if self.repeated else _without_none(inner)
        more, numbers = _stripped(base)
        base = _without_none(more)
        given = given or next((one for one in numbers if isinstance(one, NumberKind)), None)
        self.is_message = base in _CODECS
        self.cls = base if self.is_message or issubclass(base, IntEnum) else None
        if self.is_message:
            self.kind = _Proto.TYPE_MESSAGE
        elif self.cls is not None:
            self.kind = _Proto.TYPE_ENUM
        else:
            kinds = {bytes: _Proto.TYPE_BYTES, bool: _Proto.TYPE_BOOL}
            self.kind = kinds[base] if given is None else _Proto.Type.ValueType(given)

    def to_runtime(self, item: Any) -> Any:
        return _CODECS[self.cls].to_runtime(item) if self.is_message and self.cls is not None else item

    def from_runtime(self, item: Any) -> Any:
        if self.cls is None:
            return item
        return _CODECS[self.cls].from_runtime(item) if self.is_message else self.cls(item)


def _name(one: Field[Any]) -> str:
    return str(one.metadata.get("name", one.name))


def _hinted(cls: type) -> list[tuple[Field[Any], Any]]:
    hints = get_type_hints(cls, include_extras=True)
    return [(one, hints[one.name]) for one in fields(cls)]


def _stripped(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """The type, and what its annotation adds. Nested annotations are one."""
    if get_origin(hint) is Annotated:
        inner, *more = get_args(hint)
        return inner, tuple(more)
    return hint, ()


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in (Union, UnionType):
        (hint,) = (one for one in get_args(hint) if one is not type(None))
    return hint


_CODECS: Final[dict[type, _Codec]] = {}


def _build() -> None:
    nested = (m.BindMountRequest, m.MemoryStat, m.CpuStat, m.DiskStat, m.BandwidthStat, m.InfoResponse)
    pairs = [one for pair in m.CLASSES.values() for one in pair if one is not None]
    for cls in dict.fromkeys((*nested, m.ResourceLimits, m.Message, *pairs)):
        _CODECS[cls] = _Codec(cls)
    file = descriptor_pb2.FileDescriptorProto(name="warden.proto", package=_PACKAGE, syntax="proto2")
    for enum in (m.Type, m.BindMode, m.NetProtocol):
        made = file.enum_type.add(name=enum.__name__)
        for member in enum:
            made.value.add(name=f"{enum.__name__}_{member.name}", number=member.value)
    for codec in _CODECS.values():
        file.message_type.append(codec.descriptor())
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    for cls, codec in _CODECS.items():
        found = pool.FindMessageTypeByName(f"{_PACKAGE}.{cls.__name__}")
        codec.message = message_factory.GetMessageClass(found)


_build()


def encode(value: object) -> bytes:
    """The bytes of a message. ValueError: a number does not fit its field."""
    data: bytes = _CODECS[type(value)].to_runtime(value).SerializeToString()
    return data


def decode(cls: type[T], data: bytes) -> T:
    """A message of that class. Unknown fields are ignored. BadMessage: no protobuf, or a required field is missing."""
    codec = _CODECS[cls]
    made = codec.message()
    try:
        made.ParseFromString(data)
    except DecodeError as e:
        raise BadMessage(f"{cls.__name__}: {e}") from e
    if missing := made.FindInitializationErrors():
        raise BadMessage(f"{cls.__name__}: required field {', '.join(missing)} is missing")
    value: T = codec.from_runtime(made)
    return value
