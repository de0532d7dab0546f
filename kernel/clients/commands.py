"""Commands: what a message that a client sends means, and how it is answered; without I/O.

`interpret` reads one message and returns a `Decision`. It changes nothing; the hub acts on the decision. Bad input
never closes the connection: each message that cannot be used is answered by one `Error`.
"""

import json
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import msgspec

from kernel.clients.patterns import Patterns
from kernel.clients.replay import Resume
from kernel.messages.control import Control, Error, Pong, Subscribed, Unsubscribed

__all__ = ["Decision", "Refused", "interpret", "patterns_from", "sequence_from"]

MOST_PATTERNS = 100
LONGEST_PATTERN = 256
_LONGEST_TYPE = 50
_LONGEST_TEXT = 256
_PREVIEW = 100
_LONGEST_NUMBER = 1000


class Decision(NamedTuple):
    """The hub's actions for a message: send a reply, replace the patterns, replay, count an ack, or none of these."""

    reply: Control | None = None
    patterns: Patterns | None = None
    resume: Resume | None = None
    ack: int | None = None


class Refused(Exception):
    """The content of a command, or of a query parameter, breaks a rule; the text says which."""


def interpret(message: str | bytes, patterns: Patterns) -> Decision:
    """Decide about a client's message; `patterns` are those that the client has."""
    if isinstance(message, bytes):
        return _malformed(["binary messages are not supported, send JSON as text"])
    if message == "ping":
        return Decision(Pong())
    try:
        command = _read(message)
    except (ValueError, RecursionError):
        preview = message[:_PREVIEW].encode("utf-8", "replace").decode() or None
        return Decision(Error("invalid_json", "The message is not valid JSON", {"raw_data_preview": preview}))
    if not isinstance(command, dict):
        return _malformed(["the message must be a JSON object"])
    problems = []
    given = command.get("type")
    kind = given if isinstance(given, str) else ""
    if not 1 <= len(kind) <= _LONGEST_TYPE:
        problems.append(f"type: must be a string of 1 to {_LONGEST_TYPE} characters")
    if not isinstance(command.get("data"), dict | None):
        problems.append("data: must be an object or null")
    if problems:
        return _malformed(problems)
    decide = _COMMANDS.get(kind.lower())
    if decide is None:
        text = f"Unknown message type: {kind}"
        return Decision(Error("unknown_message_type", text, {"supported_types": list(_COMMANDS)}))
    try:
        return decide(command, command.get("data") or {}, patterns)
    except Refused as refused:
        details: dict[str, Any] = {"reason": str(refused)}
        if decide in (_subscribe, _unsubscribe):
            details["example"] = {"type": kind.lower(), "data": {"events": ["alert.*", "camera_status"]}}
        return Decision(Error("validation_error", f"Invalid {kind.lower()}: {refused}", details))


def _read(message: str) -> object:
    """Decode JSON; raises ValueError if it is not valid, RecursionError if it is nested too deeply.

    JSON's grammar (RFC 8259) allows numbers and lone surrogates that msgspec refuses. Only then the message is decoded
    by `json`, with such a number as the largest float and a lone surrogate as "?".
    """
    try:
        return msgspec.json.decode(message)
    except msgspec.DecodeError:
        decoded = json.loads(message, parse_int=_number, parse_float=_number, parse_constant=_no_number)
        return msgspec.json.decode(json.dumps(decoded, ensure_ascii=False).encode("utf-8", "replace"))


def _number(text: str) -> int | float:
    if len(text) <= _LONGEST_NUMBER and text.removeprefix("-").isdigit():
        return int(text)
    return max(-sys.float_info.max, min(float(text), sys.float_info.max))


def _no_number(text: str) -> NoReturn:
    raise ValueError(text)


def patterns_from(given: object, present: Patterns) -> list[str]:
    """Return the patterns of a list, in lower case and each once; `present` are those that the client has.

    Raises `Refused` if it is not a list of patterns, or if they are too many or too long.
    """
    if not isinstance(given, list) or not given:
        raise Refused("events must be a list of at least one pattern")
    for glob in given:
        if not isinstance(glob, str) or not 1 <= len(glob) <= LONGEST_PATTERN:
            raise Refused(f"a pattern must be a string of 1 to {LONGEST_PATTERN} characters")
    globs = list(dict.fromkeys(glob.lower() for glob in given))
    if len(set(globs).union(present.globs or ())) > MOST_PATTERNS:
        raise Refused(f"a connection may have at most {MOST_PATTERNS} patterns")
    return globs


def sequence_from(given: object, name: str, least: int) -> int:
    """Return a sequence number; raises `Refused` if it is not an integer of at least `least`."""
    if type(given) is not int or given < least:
        raise Refused(f"{name} must be an integer of at least {least}")
    return given


def _malformed(problems: list[str]) -> Decision:
    text = "The message does not have the expected form"
    return Decision(Error("invalid_message_format", text, {"validation_errors": problems}))


def _ping(command: dict[str, Any], data: dict[str, Any], patterns: Patterns) -> Decision:
    return Decision(Pong())


def _pong(command: dict[str, Any], data: dict[str, Any], patterns: Patterns) -> Decision:
    return Decision()


def _subscribe(command: dict[str, Any], data: dict[str, Any], patterns: Patterns) -> Decision:
    globs = patterns_from(_events(data), patterns)
    return Decision(Subscribed(globs), patterns.with_added(globs))


def _unsubscribe(command: dict[str, Any], data: dict[str, Any], patterns: Patterns) -> Decision:
    given = _events(data)
    # only the form of the patterns is checked: they are removed, so the limit on their number does not apply
    left, removed = patterns.with_removed(None if given is None else patterns_from(given, Patterns.of(())))
    return Decision(Unsubscribed(removed), left)


def _events(data: dict[str, Any]) -> object:
    given = data.get("events")
    return data.get("channels") if given is None else given


def _resync(command: dict[str, Any], data: dict[str, Any], patterns: Patterns) -> Decision:
    fields = {**command, **data}
    channel, epoch = fields.get("channel"), fields.get("epoch")
    if channel is None:
        channel = "unknown"
    if not isinstance(channel, str) or len(channel) > _LONGEST_TEXT:
        raise Refused(f"channel must be a string of at most {_LONGEST_TEXT} characters")
    if not isinstance(epoch, str | None) or len(epoch or "") > _LONGEST_TEXT:
        raise Refused(f"epoch must be a string of at most {_LONGEST_TEXT} characters")
    last = sequence_from(fields.get("last_sequence", 0), "last_sequence", 0)
    return Decision(resume=Resume(channel, last, epoch or None))


def _ack(command: dict[str, Any], data: dict[str, Any], patterns: Patterns) -> Decision:
    return Decision(ack=sequence_from({**command, **data}.get("sequence"), "sequence", 1))


_COMMANDS: dict[str, Callable[[dict[str, Any], dict[str, Any], Patterns], Decision]] = {
    "ping": _ping,
    "pong": _pong,
    "subscribe": _subscribe,
    "unsubscribe": _unsubscribe,
    "resync": _resync,
    "ack": _ack,
}
