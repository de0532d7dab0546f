"""The structs as which messages are decoded, and the two forms of a body: an envelope, or its data alone.

A struct here differs from the message only in its free object, which is not decoded (free_objects.py).
"""

from collections.abc import Callable
from typing import Any, NamedTuple, get_type_hints

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from kernel.messages.messages import MESSAGE_TYPES, CameraStatusData, WorkerStatusData
from kernel.messages.raw_fields import raw_fields

__all__ = ["ABSENT", "DECODED", "FORMS", "Form", "RawCameraStatus", "RawWorkerStatus", "is_envelope", "read_shape"]


class _Shape(Struct, gc=False):
    """The fields of a body that tell an envelope from bare data."""

    type: Raw | UnsetType = UNSET
    data: Raw | UnsetType = UNSET


ABSENT = Raw(b"null")


class RawCameraStatusData(CameraStatusData, frozen=True, kw_only=True, gc=False):
    """The data of a camera status, whose `details` are not decoded."""

    details: Raw = ABSENT


class RawCameraStatus(Struct, frozen=True, gc=False, tag="camera_status"):
    """A camera status, whose `details` are not decoded."""

    data: RawCameraStatusData


class RawWorkerStatusData(WorkerStatusData, frozen=True, kw_only=True, gc=False):
    """The data of a worker status, whose `metadata` are not decoded."""

    metadata: Raw = ABSENT


class RawWorkerStatus(Struct, frozen=True, gc=False, tag="worker_status"):
    """A worker status, whose `metadata` are not decoded."""

    data: RawWorkerStatusData
    timestamp: str | None = None


class Form(NamedTuple):
    """The decoders and fields of one wire type."""

    message: type[Any]
    data: type[Struct]
    read_envelope: Callable[[bytes], Any]
    read_data: Callable[[bytes], Any]


def _form(message: type[Struct]) -> Form:
    data = get_type_hints(message)["data"]
    return Form(
        message,
        data,
        msgspec.json.Decoder(message).decode,
        msgspec.json.Decoder(data).decode,
    )


DECODED: dict[str, type[Struct]] = {
    **MESSAGE_TYPES,
    "camera_status": RawCameraStatus,
    "worker_status": RawWorkerStatus,
}
"""The struct as which a message of each wire type is decoded."""

FORMS = {wire_type: _form(struct) for wire_type, struct in DECODED.items()}
read_shape = msgspec.json.Decoder(_Shape).decode


def is_envelope(form: Form, body: bytes) -> bool:
    """Return True if the body has a `type`, or has `data` and no field of the bare data."""
    shape = read_shape(body)
    if shape.type is not UNSET or shape.data is UNSET:
        return shape.type is not UNSET
    return not raw_fields(form.data, body)
