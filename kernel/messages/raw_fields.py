"""Splits JSON objects into the fields of a struct, without decoding the values.

The cost depends on the size of the text alone. Fields that the struct does not have are skipped, and of a field that
occurs several times the last one counts, as it does when msgspec decodes the struct. But then msgspec decodes every
occurrence: a body of 1 MiB that repeats `"similarity_score":1e-308` would stop the event loop for half a second.
"""

from functools import cache
from typing import Final

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType, inspect

__all__ = ["MAX_ELEMENTS", "raw_elements", "raw_fields", "without_repeated_fields"]

MAX_ELEMENTS: Final = 1001
"""The number of elements that `raw_elements` returns at most."""

_encode: Final = msgspec.json.Encoder().encode


def raw_fields(struct: type[Struct], text: bytes) -> dict[str, Raw]:
    """Return the fields of a JSON object that the struct has, in the order of the struct, by their names in JSON.

    Raises DecodeError, as msgspec does.
    """
    decoder, names = _decoder(struct)
    found = decoder.decode(text)
    return {name: raw for name in names if (raw := getattr(found, name)) is not UNSET}


def without_repeated_fields(struct: type[Struct], text: bytes) -> bytes:
    """Return a JSON object with each field of the struct at most once, also in structs within it."""
    fields = raw_fields(struct, text)
    for name, inner in _structs_within(struct).items():
        if name in fields and (value := bytes(fields[name])).startswith(b"{"):
            fields[name] = Raw(without_repeated_fields(inner, value))
    return _encode(fields)


def raw_elements(text: bytes) -> list[Raw]:
    """Return the first MAX_ELEMENTS elements of a JSON array; the others are skipped, which is much cheaper."""
    found = _elements.decode(text)
    return [raw for name in found.__struct_fields__ if (raw := getattr(found, name)) is not UNSET]


@cache
def _decoder(struct: type[Struct]) -> tuple[msgspec.json.Decoder[Struct], tuple[str, ...]]:
    tag = struct.__struct_config__.tag_field
    names = (*([tag] if tag else []), *struct.__struct_fields__)
    return msgspec.json.Decoder(_of_raws(struct.__name__, names)), names


@cache
def _structs_within(struct: type[Struct]) -> dict[str, type[Struct]]:
    """Return the fields of a struct that are structs themselves, with their types."""
    found = {}
    for field in msgspec.structs.fields(struct):
        kind = inspect.type_info(field.type)
        for each in kind.types if isinstance(kind, inspect.UnionType) else (kind,):
            if isinstance(each, inspect.StructType):
                found[field.name] = each.cls
    return found


def _of_raws(name: str, names: tuple[str, ...], *, array_like: bool = False) -> type[Struct]:
    fields = [(each, Raw | UnsetType, UNSET) for each in names]
    return msgspec.defstruct(name, fields, array_like=array_like, gc=False)


_elements: Final = msgspec.json.Decoder(
    _of_raws("Elements", tuple(f"element_{index}" for index in range(MAX_ELEMENTS)), array_like=True)
)
