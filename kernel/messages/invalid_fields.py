"""Finds and words the errors of a body that could not be decoded.

Each field is validated again by msgspec to locate the error and word it. The values of other fields are not decoded.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import msgspec
from msgspec import UNSET, DecodeError, Raw, Struct, ValidationError, inspect

from kernel.errors import FieldError, MessageInvalid
from kernel.messages.forms import DECODED, FORMS, is_envelope, read_shape
from kernel.messages.free_objects import fault_in
from kernel.messages.raw_fields import MAX_ELEMENTS, raw_elements, raw_fields

__all__ = [
    "INSPECTED_BYTES",
    "MAX_BATCH",
    "REFUSED",
    "batch_faults",
    "free_object_words",
    "invalid",
    "join",
    "message_faults",
]

MAX_BATCH = 1000
"""Maximum number of messages in one batch."""

SHOWN_CHARACTERS = 50
"""Maximum number of characters of an invalid value that an error repeats."""

REFUSED = (DecodeError, UnicodeDecodeError, RecursionError)
"""The errors with which msgspec refuses a body."""

INSPECTED_BYTES = 64 * 1024
"""Maximum size of a free object whose errors are looked for when other fields are invalid too."""

_PLAIN_WORDS: dict[type[inspect.Type], str] = {
    inspect.StrType: "a string",
    inspect.NoneType: "null",
    inspect.ListType: "a list",
    inspect.StructType: "an object",
    inspect.RawType: "an object or null",
}

_type_info = cache(inspect.type_info)
_struct_fields = cache(msgspec.structs.fields)


def free_object_words(text: bytes) -> str | None:
    """Return what is wrong with a free object or null, in words, or None."""
    if text == b"null":
        return None
    if not text.startswith(b"{"):
        return f"must be an object or null, not {_shown(text)}"
    return fault_in(text)


def invalid(
    error: Exception, body: bytes, explain: Callable[[ValidationError, bytes], list[FieldError]]
) -> MessageInvalid:
    """Return the error in words. The JSON may turn out to be malformed after the field that failed first."""
    if isinstance(error, ValidationError):
        try:
            return MessageInvalid(explain(error, bytes(msgspec.json.decode(body, type=Raw))))
        except REFUSED as further:
            error = further
    match error:
        case _ if not body.strip():
            words = "must be JSON; it is empty"
        case UnicodeDecodeError():
            words = f"must be UTF-8; byte {error.start} is not"
        case RecursionError():
            words = "must not be nested so deeply"
        case _ if "truncated" in str(error):
            words = "must be JSON; it ends too early"
        case _:
            words = f"must be JSON; {str(error).removeprefix('JSON is malformed: ')}"
    return MessageInvalid([_fault("", words)])


def _fault(path: str, words: str) -> FieldError:
    return FieldError(path, words if path else f"the body {words}")


def message_faults(wire_type: str, text: bytes) -> list[FieldError]:
    """Return the errors of the body of a single message."""
    form = FORMS[wire_type]
    if text.startswith(b"{") and is_envelope(form, text):
        return _envelope_faults([wire_type], text, "")
    return _faults(form.data, text, "")


def batch_faults(error: ValidationError, text: bytes) -> list[FieldError]:
    """Return the errors of a batch, for which msgspec raised `error`."""
    items = raw_elements(text) if text.startswith(b"[") else []
    if not 1 <= len(items) <= MAX_BATCH:
        return [_fault("", f"must be an array of 1 to {MAX_BATCH:,} envelopes")]
    index = _element(error)
    return _envelope_faults(list(DECODED), bytes(items[index]), f"[{index}]")


def _envelope_faults(wire_types: list[str], text: bytes, path: str) -> list[FieldError]:
    """Return the errors of an envelope of one of these types; `type` may be absent if only one is allowed."""
    if not text.startswith(b"{"):
        return [_fault(path, f"must be an object, not {_shown(text)}")]
    allowed: Any = Literal[tuple(wire_types)]
    sent = read_shape(text).type
    if sent is not UNSET:
        if faults := _faults(allowed, bytes(sent), join(path, "type")):
            return faults
        wire_types = [msgspec.json.decode(sent, type=str)]
    elif len(wire_types) > 1:
        return [_missing(allowed, join(path, "type"))]
    return _faults(DECODED[wire_types[0]], text, path)


def _faults(kind: object, text: bytes, path: str) -> list[FieldError]:
    """Return the errors of a JSON value that should be of that type, down to the innermost fields."""
    if isinstance(_alternatives(_type_info(kind))[0], inspect.RawType):
        words = free_object_words(text) if len(text) <= INSPECTED_BYTES else None
        return [_fault(path, words)] if words else []
    try:
        msgspec.json.decode(text, type=kind)
    except ValidationError as error:
        for expected in _alternatives(_type_info(kind)):
            match expected, text[:1]:
                case inspect.StructType(cls=struct), b"{":
                    return _struct_faults(error, struct, raw_fields(struct, text), path)
                case inspect.ListType(item_type=item), b"[":
                    index = _element(error)
                    words = f"must be {_describe(item)}"
                    if index < MAX_ELEMENTS:
                        words += f", not {_shown(bytes(raw_elements(text)[index]))}"
                    return [_fault(f"{path}[{index}]", words)]
        return [_fault(path, f"must be {_describe(_type_info(kind))}, not {_shown(text)}")]
    return []


def _struct_faults(error: ValidationError, struct: type[Struct], sent: dict[str, Raw], path: str) -> list[FieldError]:
    faults: list[FieldError] = []
    for field in _struct_fields(struct):
        place = join(path, field.name)
        if field.name in sent:
            faults += _faults(field.type, bytes(sent[field.name]), place)
        elif field.required:
            faults.append(_missing(field.type, place))
    if faults:
        return faults
    # Every field is valid by itself. Either the struct's __post_init__ failed, which names the field, or an invalid
    # field is hidden by a later valid one of the same name.
    name, _, words = str(error).partition(": ")
    if name in struct.__struct_fields__:
        return [_fault(join(path, name), words)]
    return [_fault(path, "must not have a field twice")]


def _missing(kind: object, path: str) -> FieldError:
    return _fault(path, f"is required: {_describe(_type_info(kind))}")


def join(path: str, name: str) -> str:
    """Return the path of a field within the value at `path`."""
    return f"{path}.{name}" if path else name


def _element(error: ValidationError) -> int:
    """Return the index of the invalid list element: the first index of the path at the end of msgspec's message."""
    return int(str(error).rpartition(" - at `$[")[2].partition("]")[0])


def _alternatives(kind: inspect.Type) -> tuple[inspect.Type, ...]:
    """Return the types of a union, or the type itself, without `Meta`."""
    if isinstance(kind, inspect.Metadata):
        return _alternatives(kind.type)
    if isinstance(kind, inspect.UnionType):
        return tuple(inner for each in kind.types for inner in _alternatives(each))
    return (kind,)


def _describe(kind: inspect.Type) -> str:
    """Describe the allowed values, to follow "must be"."""
    return " or ".join(_words(each) for each in _alternatives(kind))


def _words(kind: inspect.Type) -> str:
    match kind:
        case inspect.EnumType(cls=enum):
            return f"one of {', '.join(member.value for member in enum)}"
        case inspect.LiteralType(values=values):
            return f"{'one of ' if len(values) > 1 else ''}{', '.join(map(str, values))}"
        case inspect.IntType(ge=low, le=high):
            return f"an integer{_range(low, high)}"
        case inspect.FloatType(ge=low, le=high):
            return f"a number{_range(low, high)}"
        case _:
            return _PLAIN_WORDS[type(kind)]


def _range(low: float | None, high: float | None) -> str:
    if high is not None:
        return f" from {low} to {high}"
    return "" if low is None else f" of at least {low}"


def _shown(text: bytes) -> str:
    """Return an invalid value as it was sent, cut after SHOWN_CHARACTERS."""
    shown = text.decode()
    return shown if len(shown) <= SHOWN_CHARACTERS else f"{shown[:SHOWN_CHARACTERS]}…"
