"""Commands: what a message that a client sends means, and how it is answered; without I/O.

`interpret` reads one message and returns a `Decision`. It changes nothing; the hub acts on the decision. Bad input
never closes the connection: each message that cannot be used is answered by one `Error`.

Only the fields that a command uses are decoded. Everything else in a message is checked against JSON's grammar and
skipped, so no message takes more than about a millisecond per 64 KB. Decoding it all could take a hundred times as
long: msgspec needs 10 µs for each `1e308`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from kernel.clients.patterns import Patterns
from kernel.clients.replay import Resume
from kernel.messages.control import Control, Error, Pong, Subscribed, Unsubscribed
from kernel.messages.surrogates import replace_lone_surrogates

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

    @property
    def light(self) -> bool:
        """True for an ack and for a pong, which change next to nothing and are not answered."""
        return self.reply is None and self.patterns is None and self.resume is None


class Refused(Exception):
    """The content of a command, or of a query parameter, breaks a rule; the text says which."""


_ABSENT = msgspec.Raw(b"")


class _Fields(msgspec.Struct):
    """The fields that commands use, not decoded; they may stand at top level and in `data`. Others are skipped."""

    type: msgspec.Raw = _ABSENT
    action: msgspec.Raw = _ABSENT
    data: msgspec.Raw = _ABSENT
    events: msgspec.Raw = _ABSENT
    channels: msgspec.Raw = _ABSENT
    channel: msgspec.Raw = _ABSENT
    epoch: msgspec.Raw = _ABSENT
    last_sequence: msgspec.Raw = _ABSENT
    sequence: msgspec.Raw = _ABSENT
    seq: msgspec.Raw = _ABSENT


class _Command(NamedTuple):
    """A message whose form is correct; `outer` are the fields at top level, `inner` those in `data`."""

    outer: _Fields
    inner: _Fields

    def field(self, *names: str) -> bytes:
        """Return the JSON of the first of these fields that is given and not null, otherwise b"".

        Fields in `data` take precedence over those at top level.
        """
        for fields in (self.inner, self.outer):
            for name in names:
                value = bytes(getattr(fields, name))
                if value and value != _NULL:
                    return value
        return b""

    def given(self, *names: str) -> bytes:
        """Return the JSON of the first of these fields that is given, even if it is null, otherwise b""."""
        for fields in (self.inner, self.outer):
            for name in names:
                if value := bytes(getattr(fields, name)):
                    return value
        return b""


_NULL = b"null"
_read_fields = msgspec.json.Decoder(_Fields).decode
_check_grammar = msgspec.json.Decoder(msgspec.Raw).decode
_read_string = msgspec.json.Decoder(str).decode
_read_strings = msgspec.json.Decoder(list[str]).decode


def interpret(message: str | bytes, patterns: Patterns) -> Decision:
    """Decide about a client's message; `patterns` are those that the client has."""
    if isinstance(message, bytes):
        return _malformed(["binary messages are not supported, send JSON as text"])
    text = message.removeprefix("\ufeff")
    if text == "ping":
        return Decision(Pong())
    try:
        outer = _read(text)
    except (ValueError, RecursionError):
        preview = message[:_PREVIEW].encode("utf-8", "replace").decode() or None
        return Decision(Error("invalid_json", "The message is not valid JSON", {"raw_data_preview": preview}))
    if outer is None:
        return _malformed(["the message must be a JSON object"])
    problems = []
    given = bytes(outer.type)
    if given in (b"", _NULL):
        given = bytes(outer.action)
    kind = _read_string(given) if given.startswith(b'"') else ""
    if not 1 <= len(kind) <= _LONGEST_TYPE:
        problems.append(f"type: must be a string of 1 to {_LONGEST_TYPE} characters")
    data = bytes(outer.data)
    if data not in (b"", _NULL) and not data.startswith(b"{"):
        problems.append("data: must be an object or null")
    if problems:
        return _malformed(problems)
    decide = _COMMANDS.get(kind.lower())
    if decide is None:
        reason = f"Unknown message type: {kind}"
        return Decision(Error("unknown_message_type", reason, {"supported_types": list(_COMMANDS)}))
    try:
        inner = _read_fields(data) if data.startswith(b"{") else _Fields()
        return decide(_Command(outer, inner), patterns)
    except Refused as refused:
        details: dict[str, Any] = {"reason": str(refused)}
        if decide in (_subscribe, _unsubscribe):
            details["example"] = {"type": kind.lower(), "data": {"events": ["alert.*", "camera_status"]}}
        return Decision(Error("validation_error", f"Invalid {kind.lower()}: {refused}", details))


def _read(text: str) -> _Fields | None:
    """Return the fields of an object, or None if the text is other JSON.

    Raises ValueError if it is not JSON, and RecursionError if it is nested too deeply.
    """
    try:
        return _read_fields(text)
    except msgspec.ValidationError:
        _check_grammar(text)
        return None
    except msgspec.DecodeError:
        encoded = text.encode()
        replaced = replace_lone_surrogates(encoded)
        if replaced == encoded:
            raise
        return _read(replaced.decode())


def _integer(value: bytes) -> int | None:
    """Return the integer that a JSON number is; None for other values, and for more digits than any sequence has."""
    if len(value) <= _LONGEST_NUMBER and value.removeprefix(b"-").isdigit():
        return int(value)
    return None


def patterns_from(given: object, present: Patterns) -> list[str]:
    """Return the patterns of a list, in lower case and each once; `present` are those that the client has.

    Raises `Refused` if it is not a list of patterns, or if they are too many or too long.
    """
    if not isinstance(given, list) or not given:
        raise Refused("events must be a list of at least one pattern")
    globs: dict[str, None] = {}
    for glob in dict.fromkeys(given):  # equal ones are looked at once
        if not isinstance(glob, str) or not 1 <= len(glob) <= LONGEST_PATTERN:
            raise Refused(f"a pattern must be a string of 1 to {LONGEST_PATTERN} characters")
        globs[glob.lower()] = None
        if len(globs) > MOST_PATTERNS:
            break
    if len(globs.keys() | (present.globs or ())) > MOST_PATTERNS:
        raise Refused(f"a connection may have at most {MOST_PATTERNS} patterns")
    return list(globs)


def sequence_from(given: object, name: str, least: int) -> int:
    """Return a sequence number; raises `Refused` if it is not an integer of at least `least`."""
    if type(given) is not int or given < least:
        raise Refused(f"{name} must be an integer of at least {least}")
    return given


def _malformed(problems: list[str]) -> Decision:
    text = "The message does not have the expected form"
    return Decision(Error("invalid_message_format", text, {"validation_errors": problems}))


def _ping(command: _Command, patterns: Patterns) -> Decision:
    return Decision(Pong())


def _pong(command: _Command, patterns: Patterns) -> Decision:
    return Decision()


def _subscribe(command: _Command, patterns: Patterns) -> Decision:
    globs = patterns_from(_events(command), patterns)
    return Decision(Subscribed(globs), patterns.with_added(globs))


def _unsubscribe(command: _Command, patterns: Patterns) -> Decision:
    given = _events(command)
    # only the form of the patterns is checked: they are removed, so the limit on their number does not apply
    globs = None if given in (None, []) else patterns_from(given, Patterns.of(()))
    left, removed = patterns.with_removed(globs)
    return Decision(Unsubscribed(removed), left)


def _events(command: _Command) -> object:
    """Return the list of strings that was given, None if there is none, and `[None]` if it has other members."""
    value = command.field("events", "channels")
    if not value:
        return None
    if not value.startswith(b"["):
        return value
    try:
        return _read_strings(value)
    except msgspec.ValidationError:
        return [None]


def _resync(command: _Command, patterns: Patterns) -> Decision:
    channel, epoch = _text(command, "channel"), _text(command, "epoch")
    last = command.given("last_sequence")
    sequence = sequence_from(_integer(last) if last else 0, "last_sequence", 0)
    return Decision(resume=Resume("unknown" if channel is None else channel, sequence, epoch or None))


def _text(command: _Command, name: str) -> str | None:
    value = command.given(name)
    if value in (b"", _NULL):
        return None
    text = _read_string(value) if value.startswith(b'"') else None
    if text is None or len(text) > _LONGEST_TEXT:
        raise Refused(f"{name} must be a string of at most {_LONGEST_TEXT} characters")
    return text


def _ack(command: _Command, patterns: Patterns) -> Decision:
    number = _integer(command.given("sequence", "seq"))
    return Decision(ack=sequence_from(number, "sequence", 1))


_COMMANDS: dict[str, Callable[[_Command, Patterns], Decision]] = {
    "ping": _ping,
    "pong": _pong,
    "subscribe": _subscribe,
    "unsubscribe": _unsubscribe,
    "resync": _resync,
    "ack": _ack,
}
