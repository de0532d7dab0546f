"""Validates messages that were built in Python, because structs accept values of any type.

Each message is encoded as JSON and decoded again, so that the same rules and error texts apply as for a request.

Not here: the rules (data.py, messages.py), and the decoding and location of errors (decoding.py).
"""

import math
from collections.abc import Sequence
from dataclasses import is_dataclass
from typing import Final, get_args

import msgspec
from msgspec import UNSET, Struct

from kernel.errors import FieldError, MessageInvalid
from kernel.messages.decoding import MAX_BATCH, decode_batch, decode_message
from kernel.messages.messages import CameraStatusMessage, Message, WorkerStatusMessage, wire_type_of

__all__ = ["check_batch", "check_message"]

_FREE_OBJECTS: Final[dict[type, str]] = {CameraStatusMessage: "details", WorkerStatusMessage: "metadata"}
_NOT_FINITE: Final = "must not have numbers that are NaN or infinite"


def check_message(message: Message, max_bytes: int | None = None) -> Message:
    """Validate a message by the rules of its family.

    Returns the message as decoded from its JSON, with enums in lower case. Raises MessageInvalid with every invalid
    field, and EventTooLarge as `decode_message` does.
    """
    checked = decode_message(wire_type_of(message), _written(message, ""), max_bytes)
    _check_finite(message, checked, "data")
    return checked


def check_batch(messages: Sequence[Message], max_bytes: int | None = None) -> list[Message]:
    """Validate 1 to MAX_BATCH messages, and return them as `check_message` does.

    Raises MessageInvalid with every invalid field of the first invalid message, such as `[3].data.risk_score`.
    """
    if not 1 <= len(messages) <= MAX_BATCH:
        raise MessageInvalid([FieldError("", f"must be 1 to {MAX_BATCH:,} messages")])
    for index, message in enumerate(messages):
        if not isinstance(message, get_args(Message)):
            raise MessageInvalid([FieldError(f"[{index}]", "must be a message, as EventMessage(data=…) is one")])
    written = [_written(message, f"[{index}]") for index, message in enumerate(messages)]
    checked = decode_batch(b"[%b]" % b",".join(written), max_bytes)
    for index, pair in enumerate(zip(messages, checked, strict=True)):
        _check_finite(*pair, f"[{index}].data")
    return checked


def _written(message: Message, path: str) -> bytes:
    try:
        return msgspec.json.encode(message)
    except RecursionError as error:
        raise MessageInvalid([FieldError(path, "must not be nested so deeply")]) from error
    except (TypeError, ValueError) as error:
        raise MessageInvalid(_unwritable(message, path)) from error


def _check_finite(message: Message, checked: Message, path: str) -> None:
    """Raise MessageInvalid if a free object that was built in Python has NaN or infinity: msgspec writes them as null.

    `checked` is the message as decoded from its JSON, so its free object is nested at most MAX_NESTING levels deep.
    """
    name = _FREE_OBJECTS.get(type(checked))
    if name is not None:
        free = getattr(message.data, name)
        if isinstance(free, dict) and b"null" in bytes(getattr(checked.data, name)) and not _finite(free):
            raise MessageInvalid([FieldError(f"{path}.{name}", _NOT_FINITE)])


def _finite(value: object) -> bool:
    """Return True if no number in a value that can be encoded as JSON is NaN or infinite."""
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, float):
            if not math.isfinite(item):
                return False
        elif isinstance(item, dict):
            left += item.values()
        elif isinstance(item, (list, tuple, set, frozenset)):
            left += item
        elif isinstance(item, Struct) or is_dataclass(item):
            left.append(msgspec.to_builtins(item))
    return True


def _unwritable(value: object, path: str) -> list[FieldError]:
    """Return an error for each field that cannot be encoded as JSON."""
    if isinstance(value, Struct):
        places = {name: f"{path}.{name}".lstrip(".") for name in value.__struct_fields__}
        return [fault for name, place in places.items() for fault in _unwritable(getattr(value, name), place)]
    try:
        msgspec.json.encode([] if value is UNSET else value)
    except (TypeError, ValueError) as error:
        return [FieldError(path, f"cannot be written as JSON: {error}")]
    return []
