"""Decodes the bodies of publish requests into messages, or into a list of errors.

A valid body is decoded in one pass, plus one pass for a single message to tell an envelope from bare data.

No body, valid or not, may hold the event loop for longer than its size justifies. Therefore nothing is decoded into
Python objects that the message does not have (raw_fields.py), free objects stay JSON (free_objects.py), and repeated
fields are first removed from a large body with suspiciously many fields or slow numbers.

Not here: the rules (data.py, messages.py), the errors of an invalid body (invalid_fields.py), and HTTP statuses and
problem documents (handlers).
"""

from codecs import BOM_UTF8
from collections.abc import Callable
from typing import Annotated, Any, TypeVar, Union, cast

import msgspec
from msgspec import Meta, Raw, Struct, ValidationError
from msgspec.structs import asdict

from kernel.errors import EventTooLarge, FieldError, MessageInvalid
from kernel.messages.forms import ABSENT, DECODED, FORMS, RawCameraStatus, RawWorkerStatus, is_envelope
from kernel.messages.free_objects import compact
from kernel.messages.invalid_fields import (
    MAX_BATCH,
    REFUSED,
    batch_faults,
    free_object_words,
    invalid,
    join,
    message_faults,
)
from kernel.messages.messages import (
    CameraStatusData,
    CameraStatusMessage,
    Message,
    WorkerStatusData,
    WorkerStatusMessage,
)
from kernel.messages.raw_fields import raw_elements, without_repeated_fields
from kernel.messages.surrogates import replace_lone_surrogates

__all__ = ["MAX_BATCH", "decode_batch", "decode_message"]

# A body of this size may hold more fields, or more numbers such as 1e-308 (5 to 10 µs each), than any honest body does.
_SUSPECT_BYTES = 8 * 1024
_SUSPECT_FIELDS = 30_000
_SUSPECT_NUMBERS = 500

_T = TypeVar("_T")

_UNFINISHED = frozenset((RawCameraStatus, RawWorkerStatus))


class _Typed(Struct, gc=False):
    """The field of an envelope that tells its wire type."""

    type: str


_read_type = msgspec.json.Decoder(_Typed).decode
_read_batch: Callable[[bytes], list[Any]] = msgspec.json.Decoder(
    Annotated[list[Union[tuple(DECODED.values())]], Meta(min_length=1, max_length=MAX_BATCH)]  # type: ignore[misc]  # noqa: UP007  built at run time
).decode


def decode_message(wire_type: str, body: bytes, max_bytes: int | None = None) -> Message:
    """Decode the message in a JSON body that is either bare data or an envelope.

    `wire_type` is a key of MESSAGE_TYPES. Raises MessageInvalid with every invalid field; in a list, only the first
    invalid element is named. Raises EventTooLarge for a free object of more than `max_bytes`; the size of the data as a
    whole is checked when it is published.
    """
    form = FORMS[wire_type]

    def read(text: bytes) -> tuple[bool, Any]:
        if is_envelope(form, text):
            return False, form.read_envelope(text)
        return True, form.message(form.read_data(text))

    bare, message = _read(
        body,
        read,
        lambda text: _without_repeated_fields(wire_type, text),
        lambda _, text: message_faults(wire_type, text),
    )
    if type(message) in _UNFINISHED:
        return _finished(message, "" if bare else "data", max_bytes, None)
    return cast(Message, message)


def decode_batch(body: bytes, max_bytes: int | None = None) -> list[Message]:
    """Decode the messages in a JSON array of 1 to MAX_BATCH envelopes.

    Raises MessageInvalid with every invalid field of the first invalid message, such as `[3].data.risk_score`, and
    EventTooLarge as `decode_message` does.
    """
    messages = _read(body, _read_batch, _batch_without_repeated_fields, batch_faults)
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
    except REFUSED as error:
        repaired = replace_lone_surrogates(body)
        if repaired == body:
            raise invalid(error, text, explain) from error
    text = repaired
    try:
        if _is_suspect(repaired):
            text = without_repeated(repaired)
        return read(text)
    except REFUSED as error:
        raise invalid(error, text, explain) from error


def _finished(
    decoded: RawCameraStatus | RawWorkerStatus, path: str, max_bytes: int | None, index: int | None
) -> CameraStatusMessage | WorkerStatusMessage:
    """Return the message that was decoded, with its free object validated and without whitespace."""
    data = decoded.data
    if isinstance(decoded, RawCameraStatus):
        details = _free_object(decoded.data.details, join(path, "details"), max_bytes, index)
        return CameraStatusMessage(CameraStatusData(**asdict(data) | {"details": details}))
    metadata = _free_object(decoded.data.metadata, join(path, "metadata"), max_bytes, index)
    return WorkerStatusMessage(WorkerStatusData(**asdict(data) | {"metadata": metadata}), decoded.timestamp)


def _free_object(sent: Raw, path: str, max_bytes: int | None, index: int | None) -> Raw | None:
    if sent is ABSENT:
        return None
    text = compact(bytes(sent))  # a copy, because a Raw keeps the whole body in memory
    if max_bytes is not None and len(text) > max_bytes:
        raise EventTooLarge(max_bytes, index)
    if words := free_object_words(text):
        raise MessageInvalid([FieldError(path, words)])
    return None if text == b"null" else Raw(text)


def _is_suspect(body: bytes) -> bool:
    """Return True for a body that may repeat fields in order to take long."""
    return len(body) > _SUSPECT_BYTES and (
        body.count(b":") > _SUSPECT_FIELDS or body.count(b"e-") + body.count(b"E-") > _SUSPECT_NUMBERS
    )


def _without_repeated_fields(wire_type: str, body: bytes) -> bytes:
    form = FORMS[wire_type]
    return without_repeated_fields(form.message if is_envelope(form, body) else form.data, body)


def _batch_without_repeated_fields(body: bytes) -> bytes:
    items = raw_elements(body)
    for index, item in enumerate(items[:MAX_BATCH]):
        text = bytes(item)
        if text.startswith(b"{") and (struct := DECODED.get(_wire_type(text))):
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
