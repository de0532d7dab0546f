"""Decodes the bodies of publish requests into messages, or into a list of errors.

A valid body is decoded in one pass, plus one pass for a single message to tell an envelope from bare data. On failure,
each field is validated again by msgspec to locate the error and word it.

No body, valid or not, may hold the event loop for longer than its size justifies. Therefore nothing is decoded into
Python objects that the message does not have (raw_fields.py), free objects stay JSON (free_objects.py), and repeated
fields are first removed from a large body with suspiciously many fields or slow numbers.

Not here: the rules (data.py, messages.py), and HTTP statuses and problem documents (handlers).
"""

from codecs import BOM_UTF8
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, cast, get_type_hints

import msgspec
from msgspec import UNSET, DecodeError, Meta, Raw, Struct, UnsetType, ValidationError, inspect
from msgspec.structs import asdict

from kernel.errors import EventTooLarge, FieldError, MessageInvalid
from kernel.messages.free_objects import compact, fault_in
from kernel.messages.messages import (
    MESSAGE_TYPES,
    CameraStatusData,
    CameraStatusMessage,
    Message,
    WorkerStatusData,
    WorkerStatusMessage,
)
from kernel.messages.raw_fields import MAX_ELEMENTS, raw_elements, raw_fields, without_repeated_fields
from kernel.messages.surrogates import replace_lone_surrogates

__all__ = ["MAX_BATCH", "decode_batch", "decode_message"]

MAX_BATCH = 1000
"""Maximum number of messages in one batch."""

SHOWN_CHARACTERS = 50
"""Maximum number of characters of an invalid value that an error repeats."""

INSPECTED_BYTES = 64 * 1024
"""Maximum size of a free object whose errors are looked for when other fields are invalid too."""

# A body of this size may hold more fields, or more numbers such as 1e-308 (5 to 10 µs each), than any honest body does.
_SUSPECT_BYTES = 8 * 1024
_SUSPECT_FIELDS = 30_000
_SUSPECT_NUMBERS = 500

_PLAIN_WORDS: dict[type[inspect.Type], str] = {
    inspect.StrType: "a string",
    inspect.NoneType: "null",
    inspect.ListType: "a list",
    inspect.StructType: "an object",
    inspect.RawType: "an object or null",
}

_T = TypeVar("_T")
_REFUSED = (DecodeError, UnicodeDecodeError, RecursionError)


class _Shape(Struct, gc=False):
    """The fields of a body that tell an envelope from bare data."""

    type: Raw | UnsetType = UNSET
    data: Raw | UnsetType = UNSET


class _Typed(Struct, gc=False):
    """The field of an envelope that tells its wire type."""

    type: str


_NULL = Raw(b"null")


class _CameraStatusData(CameraStatusData, frozen=True, kw_only=True, gc=False):
    """The data of a camera status, whose `details` are not decoded."""

    details: Raw = _NULL


class _CameraStatus(Struct, frozen=True, gc=False, tag="camera_status"):
    """A camera status, whose `details` are not decoded."""

    data: _CameraStatusData


class _WorkerStatusData(WorkerStatusData, frozen=True, kw_only=True, gc=False):
    """The data of a worker status, whose `metadata` are not decoded."""

    metadata: Raw = _NULL


class _WorkerStatus(Struct, frozen=True, gc=False, tag="worker_status"):
    """A worker status, whose `metadata` are not decoded."""

    data: _WorkerStatusData
    timestamp: str | None = None


class _Form(NamedTuple):
    """The decoders and fields of one wire type."""

    message: type[Any]
    data: type[Struct]
    read_envelope: Callable[[bytes], Any]
    read_data: Callable[[bytes], Any]


def _form(message: type[Struct]) -> _Form:
    data = get_type_hints(message)["data"]
    return _Form(
        message,
        data,
        msgspec.json.Decoder(message).decode,
        msgspec.json.Decoder(data).decode,
    )


_DECODED: dict[str, type[Struct]] = {
    **MESSAGE_TYPES,
    "camera_status": _CameraStatus,
    "worker_status": _WorkerStatus,
}
"""The struct as which a message of each wire type is decoded."""

_UNFINISHED = frozenset((_CameraStatus, _WorkerStatus))

_FORMS = {wire_type: _form(struct) for wire_type, struct in _DECODED.items()}
_type_info = cache(inspect.type_info)
_struct_fields = cache(msgspec.structs.fields)
_read_shape = msgspec.json.Decoder(_Shape).decode
_read_type = msgspec.json.Decoder(_Typed).decode
_read_batch: Callable[[bytes], list[Any]] = msgspec.json.Decoder(
    Annotated[list[Union[tuple(_DECODED.values())]], Meta(min_length=1, max_length=MAX_BATCH)]  # type: ignore[misc]  # noqa: UP007
).decode


def decode_message(wire_type: str, body: bytes, max_bytes: int | None = None) -> Message:
    """Decode the message in a JSON body that is either bare data or an envelope.

    `wire_type` is a key of MESSAGE_TYPES. Raises MessageInvalid with every invalid field; in a list, only the first
    invalid element is named. Raises EventTooLarge for a free object of more than `max_bytes`; the size of the data as a
    whole is checked when it is published.
    """
    form = _FORMS[wire_type]

    def read(text: bytes) -> tuple[bool, Any]:
        if _is_envelope(form, text):
            return False, form.read_envelope(text)
        return True, form.message(form.read_data(text))

    bare, message = _read(
        body,
        read,
        lambda text: _without_repeated_fields(wire_type, text),
        lambda _, text: _message_faults(wire_type, text),
    )
    if type(message) in _UNFINISHED:
        return _finished(message, "" if bare else "data", max_bytes, None)
    return cast(Message, message)


def decode_batch(body: bytes, max_bytes: int | None = None) -> list[Message]:
    """Decode the messages in a JSON array of 1 to MAX_BATCH envelopes.

    Raises MessageInvalid with every invalid field of the first invalid message, such as `[3].data.risk_score`, and
    EventTooLarge as `decode_message` does.
    """
    messages = _read(body, _read_batch, _batch_without_repeated_fields, _batch_faults)
    for index, message in enumerate(messages):
        if type(message) in _UNFINISHED:
            messages[index] = _finished(message, f"[{index}].data", max_bytes, index)
    return messages


def _read(
    body: bytes,
    read: Callable[[bytes], _T],
    without_repeated: Callable[[bytes], bytes],
    explain: Callable[[ValidationError, bytes], list[FieldError]],
) -> _T:
    """Read a body; a leading byte order mark is ignored, and an escape of a lone surrogate stands for U+FFFD.

    `without_repeated` removes repeated fields from a suspect body. `explain` finds the invalid fields if `read` failed.
    """
    body = text = body.removeprefix(BOM_UTF8)
    try:
        _check_utf8(body)
        if _is_suspect(body):
            text = without_repeated(body)
        return read(text)
    except _REFUSED as error:
        repaired = replace_lone_surrogates(body)
        if repaired == body:
            raise _invalid(error, text, explain) from error
    text = repaired
    try:
        if _is_suspect(repaired):
            text = without_repeated(repaired)
        return read(text)
    except _REFUSED as error:
        raise _invalid(error, text, explain) from error


def _finished(
    decoded: _CameraStatus | _WorkerStatus, path: str, max_bytes: int | None, index: int | None
) -> CameraStatusMessage | WorkerStatusMessage:
    """Return the message that was decoded, with its free object validated and without whitespace."""
    data = decoded.data
    if isinstance(decoded, _CameraStatus):
        details = _free_object(decoded.data.details, _join(path, "details"), max_bytes, index)
        return CameraStatusMessage(CameraStatusData(**asdict(data) | {"details": details}))
    metadata = _free_object(decoded.data.metadata, _join(path, "metadata"), max_bytes, index)
    return WorkerStatusMessage(WorkerStatusData(**asdict(data) | {"metadata": metadata}), decoded.timestamp)


def _free_object(sent: Raw, path: str, max_bytes: int | None, index: int | None) -> Raw | None:
    if sent is _NULL:
        return None
    text = compact(bytes(sent))  # a copy, because a Raw keeps the whole body in memory
    if max_bytes is not None and len(text) > max_bytes:
        raise EventTooLarge(max_bytes, index)
    if words := _free_object_words(text):
        raise MessageInvalid([FieldError(path, words)])
    return None if text == b"null" else Raw(text)


def _free_object_words(text: bytes) -> str | None:
    """Return what is wrong with a free object or null, in words, or None."""
    if text == b"null":
        return None
    if not text.startswith(b"{"):
        return f"must be an object or null, not {_shown(text)}"
    return fault_in(text)


def _is_suspect(body: bytes) -> bool:
    """Return True for a body that may repeat fields in order to take long."""
    return len(body) > _SUSPECT_BYTES and (
        body.count(b":") > _SUSPECT_FIELDS or body.count(b"e-") + body.count(b"E-") > _SUSPECT_NUMBERS
    )


def _without_repeated_fields(wire_type: str, body: bytes) -> bytes:
    form = _FORMS[wire_type]
    return without_repeated_fields(form.message if _is_envelope(form, body) else form.data, body)


def _batch_without_repeated_fields(body: bytes) -> bytes:
    items = raw_elements(body)
    for index, item in enumerate(items[:MAX_BATCH]):
        text = bytes(item)
        if text.startswith(b"{") and (struct := _DECODED.get(_wire_type(text))):
            items[index] = Raw(without_repeated_fields(struct, text))
    return msgspec.json.encode(items)


def _wire_type(text: bytes) -> str:
    """Return the type of an envelope, or "" if it has none."""
    try:
        return _read_type(text).type
    except ValidationError:
        return ""


def _check_utf8(body: bytes) -> None:
    """Raise UnicodeDecodeError unless the whole body is UTF-8; msgspec does not check the fields that it drops."""
    if not body.isascii():
        body.decode()


def _is_envelope(form: _Form, body: bytes) -> bool:
    """Return True if the body has a `type`, or has `data` and no field of the bare data."""
    shape = _read_shape(body)
    if shape.type is not UNSET or shape.data is UNSET:
        return shape.type is not UNSET
    return not raw_fields(form.data, body)


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
    items = raw_elements(text) if text.startswith(b"[") else []
    if not 1 <= len(items) <= MAX_BATCH:
        return [_fault("", f"must be an array of 1 to {MAX_BATCH:,} envelopes")]
    index = _element(error)
    return _envelope_faults(list(MESSAGE_TYPES), bytes(items[index]), f"[{index}]")


def _envelope_faults(wire_types: list[str], text: bytes, path: str) -> list[FieldError]:
    """Return the errors of an envelope of one of these types; `type` may be absent if only one is allowed."""
    if not text.startswith(b"{"):
        return [_fault(path, f"must be an object, not {_shown(text)}")]
    allowed: Any = Literal[tuple(wire_types)]
    sent = _read_shape(text).type
    if sent is not UNSET:
        if faults := _faults(allowed, bytes(sent), _join(path, "type")):
            return faults
        wire_types = [msgspec.json.decode(sent, type=str)]
    elif len(wire_types) > 1:
        return [_missing(allowed, _join(path, "type"))]
    return _faults(_DECODED[wire_types[0]], text, path)


def _faults(kind: object, text: bytes, path: str) -> list[FieldError]:
    """Return the errors of a JSON value that should be of that type, down to the innermost fields."""
    if isinstance(_alternatives(_type_info(kind))[0], inspect.RawType):
        words = _free_object_words(text) if len(text) <= INSPECTED_BYTES else None
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
        place = _join(path, field.name)
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
