"""Decodes the bodies of publish requests into messages, or into a list of errors.

A valid body is decoded in one pass, plus one pass for a single message to tell an envelope from bare data. On failure,
each field is validated again by msgspec to locate the error and word it.

Not here: the rules (data.py, messages.py), and HTTP statuses and problem documents (handlers).
"""

from codecs import BOM_UTF8
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_type_hints

import msgspec
from msgspec import UNSET, DecodeError, Meta, Raw, Struct, UnsetType, ValidationError, inspect

from kernel.errors import FieldError, MessageInvalid
from kernel.messages.messages import MESSAGE_TYPES, Message
from kernel.messages.surrogates import replace_lone_surrogates

__all__ = ["MAX_BATCH", "decode_batch", "decode_message"]

MAX_BATCH = 1000
"""Maximum number of messages in one batch."""

SHOWN_CHARACTERS = 50
"""Maximum number of characters of an invalid value that an error repeats."""

_PLAIN_WORDS: dict[type[inspect.Type], str] = {
    inspect.StrType: "a string",
    inspect.NoneType: "null",
    inspect.ListType: "a list",
    inspect.DictType: "an object",
    inspect.StructType: "an object",
}

_T = TypeVar("_T")
_REFUSED = (DecodeError, UnicodeDecodeError, RecursionError)


class _Shape(Struct, gc=False):
    """The fields of a body that tell an envelope from bare data."""

    type: Raw | UnsetType = UNSET
    data: Raw | UnsetType = UNSET


class _Form(NamedTuple):
    """The decoders and fields of one wire type."""

    message: Callable[[Any], Message]
    data: Any
    fields: frozenset[str]
    read_envelope: Callable[[bytes], Message]
    read_data: Callable[[bytes], Any]


def _form(message: type[Message]) -> _Form:
    data = get_type_hints(message)["data"]
    return _Form(
        message,
        data,
        frozenset(data.__struct_fields__),
        msgspec.json.Decoder(message).decode,
        msgspec.json.Decoder(data).decode,
    )


_FORMS = {wire_type: _form(message) for wire_type, message in MESSAGE_TYPES.items()}
_type_info = cache(inspect.type_info)
_struct_fields = cache(msgspec.structs.fields)
_read_shape = msgspec.json.Decoder(_Shape).decode
_read_batch: Callable[[bytes], list[Message]] = msgspec.json.Decoder(
    Annotated[list[Message], Meta(min_length=1, max_length=MAX_BATCH)]
).decode


def decode_message(wire_type: str, body: bytes) -> Message:
    """Decode the message in a JSON body that is either bare data or an envelope.

    `wire_type` is a key of MESSAGE_TYPES. Raises MessageInvalid with every invalid field; in a list, only the first
    invalid element is named.
    """
    form = _FORMS[wire_type]

    def read(text: bytes) -> Message:
        if _is_envelope(form, text):
            return form.read_envelope(text)
        return form.message(form.read_data(text))

    return _read(body, read, lambda _, text: _message_faults(wire_type, text))


def decode_batch(body: bytes) -> list[Message]:
    """Decode the messages in a JSON array of 1 to MAX_BATCH envelopes.

    Raises MessageInvalid with every invalid field of the first invalid message, such as `[3].data.risk_score`.
    """
    return _read(body, _read_batch, _batch_faults)


def _read(
    body: bytes, read: Callable[[bytes], _T], explain: Callable[[ValidationError, bytes], list[FieldError]]
) -> _T:
    """Read a body; a leading byte order mark is ignored, and an escape of a lone surrogate stands for U+FFFD."""
    body = body.removeprefix(BOM_UTF8)
    try:
        _check_utf8(body)
        return read(body)
    except _REFUSED as error:
        repaired = replace_lone_surrogates(body)
        if repaired == body:
            raise _invalid(error, body, explain) from error
    try:
        return read(repaired)
    except _REFUSED as error:
        raise _invalid(error, repaired, explain) from error


def _check_utf8(body: bytes) -> None:
    """Raise UnicodeDecodeError unless the whole body is UTF-8; msgspec does not check the fields that it drops."""
    if not body.isascii():
        body.decode()


def _is_envelope(form: _Form, body: bytes) -> bool:
    """Return True if the body has a `type`, or has `data` and no field of the bare data."""
    shape = _read_shape(body)
    if shape.type is not UNSET or shape.data is UNSET:
        return shape.type is not UNSET
    return form.fields.isdisjoint(_fields(body))


def _fields(text: bytes) -> dict[str, bytes]:
    """Split a JSON object into its fields; their values stay JSON."""
    return {name: bytes(raw) for name, raw in msgspec.json.decode(text, type=dict[str, Raw]).items()}


def _invalid(
    error: Exception, body: bytes, explain: Callable[[ValidationError, bytes], list[FieldError]]
) -> MessageInvalid:
    """Return the error in words. The JSON may turn out to be malformed after the field that failed first."""
    if isinstance(error, ValidationError):
        try:
            return MessageInvalid(explain(error, bytes(msgspec.json.decode(body, type=Raw))))
        except _REFUSED as further:
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


def _message_faults(wire_type: str, text: bytes) -> list[FieldError]:
    form = _FORMS[wire_type]
    if text.startswith(b"{") and _is_envelope(form, text):
        return _envelope_faults([wire_type], text, "")
    return _faults(form.data, text, "")


def _batch_faults(error: ValidationError, text: bytes) -> list[FieldError]:
    items = msgspec.json.decode(text, type=list[Raw]) if text.startswith(b"[") else []
    if not 1 <= len(items) <= MAX_BATCH:
        return [_fault("", f"must be an array of 1 to {MAX_BATCH:,} envelopes")]
    index = _element(error)
    return _envelope_faults(list(MESSAGE_TYPES), bytes(items[index]), f"[{index}]")


def _envelope_faults(wire_types: list[str], text: bytes, path: str) -> list[FieldError]:
    """Return the errors of an envelope of one of these types; `type` may be absent if only one is allowed."""
    if not text.startswith(b"{"):
        return [_fault(path, f"must be an object, not {_shown(text)}")]
    allowed: Any = Literal[tuple(wire_types)]
    sent = _fields(text).get("type")
    if sent is not None:
        if faults := _faults(allowed, sent, _join(path, "type")):
            return faults
        wire_types = [msgspec.json.decode(sent, type=str)]
    elif len(wire_types) > 1:
        return [_missing(allowed, _join(path, "type"))]
    return _faults(MESSAGE_TYPES[wire_types[0]], text, path)


def _faults(kind: object, text: bytes, path: str) -> list[FieldError]:
    """Return the errors of a JSON value that should be of that type, down to the innermost fields."""
    try:
        msgspec.json.decode(text, type=kind)
    except ValidationError as error:
        for expected in _alternatives(_type_info(kind)):
            match expected, text[:1]:
                case inspect.StructType(cls=struct), b"{":
                    return _struct_faults(error, struct, _fields(text), path)
                case inspect.ListType(item_type=item), b"[":
                    index = _element(error)
                    element = bytes(msgspec.json.decode(text, type=list[Raw])[index])
                    return [_fault(f"{path}[{index}]", f"must be {_describe(item)}, not {_shown(element)}")]
                case inspect.DictType(), b"{":
                    return [_fault(path, "must not have numbers beyond the range of a 64-bit float")]
        return [_fault(path, f"must be {_describe(_type_info(kind))}, not {_shown(text)}")]
    return []


def _struct_faults(error: ValidationError, struct: type[Struct], sent: dict[str, bytes], path: str) -> list[FieldError]:
    faults: list[FieldError] = []
    for field in _struct_fields(struct):
        place = _join(path, field.name)
        if field.name in sent:
            faults += _faults(field.type, sent[field.name], place)
        elif field.required:
            faults.append(_missing(field.type, place))
    if faults:
        return faults
    # Every field is valid by itself. Either the struct's __post_init__ failed, which names the field, or an invalid
    # field is hidden by a later valid one of the same name.
    name, _, words = str(error).partition(": ")
    if name in struct.__struct_fields__:
        return [_fault(_join(path, name), words)]
    return [_fault(path, "must not have a field twice")]


def _missing(kind: object, path: str) -> FieldError:
    return _fault(path, f"is required: {_describe(_type_info(kind))}")


def _join(path: str, name: str) -> str:
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
