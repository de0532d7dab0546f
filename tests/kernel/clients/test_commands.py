"""Commands: every message that a client may send, and every way to get it wrong."""

import json
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel.clients.commands import Decision, Refused, interpret, patterns_from, sequence_from
from kernel.clients.patterns import EVERYTHING, Patterns
from kernel.clients.replay import Resume
from kernel.messages.control import Error, Pong, Subscribed, Unsubscribed

KINDS = ["ping", "pong", "subscribe", "unsubscribe", "resync", "ack"]


def say(frame: object, patterns: Patterns = EVERYTHING) -> Decision:
    """Return the decision about this object, sent as JSON."""
    return interpret(json.dumps(frame), patterns)


def refusal(decision: Decision) -> Error:
    """Return the error with which a message is answered; nothing else may be decided."""
    assert isinstance(decision.reply, Error)
    assert decision == Decision(decision.reply)
    return decision.reply


def details(message: str | bytes, code: str, patterns: Patterns = EVERYTHING) -> dict[str, Any]:
    """Return the details of the error with which a message is answered; `code` is the error's."""
    error = refusal(interpret(message, patterns))
    sent = msgspec.json.decode(msgspec.json.encode(error))
    assert sent.keys() == {"type", "error", "message", "details"}
    assert (sent["type"], sent["error"]) == ("error", code)
    assert sent["message"]
    assert isinstance(sent["details"], dict)
    return sent["details"]


# -- ping, pong


@pytest.mark.parametrize("message", ["ping", '{"type":"ping"}', '{"type":"PING","data":null}', ' {"type":"Ping"} '])
def test_ping(message: str) -> None:
    """The text `ping`, or type ping in any letter case, is answered by pong."""
    assert interpret(message, EVERYTHING) == Decision(Pong())


def test_pong() -> None:
    """A pong is not answered."""
    assert say({"type": "pong"}) == Decision()
    assert say({"type": "PoNg", "data": {}}) == Decision()


# -- subscribe, unsubscribe


@pytest.mark.parametrize("field", ["events", "channels"])
def test_subscribe(field: str) -> None:
    """The reply to subscribe lists the patterns in lower case; `channels` is the old name of `events`."""
    decision = say({"type": "Subscribe", "data": {field: ["Alert.*", "camera_status"]}})
    assert decision == Decision(Subscribed(["alert.*", "camera_status"]), Patterns.of(["alert.*", "camera_status"]))


def test_patterns_add_up() -> None:
    """Patterns add up, and the reply lists those of this message, each once."""
    decision = say({"type": "subscribe", "data": {"events": ["B", "a", "A", "b"]}}, Patterns.of(["a", "c"]))
    assert decision == Decision(Subscribed(["b", "a"]), Patterns.of(["a", "b", "c"]))


def test_the_new_name_goes_before_the_old_one() -> None:
    """If both names are given, `events` counts."""
    decision = say({"type": "subscribe", "data": {"channels": ["old"], "events": ["new"]}})
    assert decision.patterns is Patterns.of(["new"])
    decision = say({"type": "subscribe", "data": {"channels": ["old"], "events": None}})
    assert decision.patterns is Patterns.of(["old"])
    decision = say({"type": "unsubscribe", "data": {"channels": ["a"], "events": None}}, Patterns.of(["a", "b"]))
    assert decision.patterns is Patterns.of(["b"])


@pytest.mark.parametrize("field", ["events", "channels"])
def test_unsubscribe_by_name(field: str) -> None:
    """The reply to unsubscribe lists the patterns that were removed."""
    decision = say({"type": "unsubscribe", "data": {field: ["A", "x"]}}, Patterns.of(["a", "b"]))
    assert decision == Decision(Unsubscribed(["a"]), Patterns.of(["b"]))


def test_unsubscribe_the_last_one() -> None:
    """A client whose last pattern is removed by name receives nothing."""
    decision = say({"type": "unsubscribe", "data": {"events": ["a"]}}, Patterns.of(["a"]))
    assert decision == Decision(Unsubscribed(["a"]), Patterns.of([]))


@pytest.mark.parametrize("data", [None, {}, {"events": None}, {"other": 1}, {"events": []}, {"channels": []}])
def test_unsubscribe_without_a_list(data: dict[str, Any] | None) -> None:
    """An unsubscribe without a list, or with an empty one, removes all patterns: the client receives everything."""
    decision = say({"type": "unsubscribe", "data": data}, Patterns.of(["b", "a"]))
    assert decision == Decision(Unsubscribed(["a", "b"]), EVERYTHING)
    assert say({"type": "unsubscribe"}, Patterns.of(["a"])) == Decision(Unsubscribed(["a"]), EVERYTHING)


def test_unsubscribe_of_one_who_never_subscribed() -> None:
    """A client that never subscribed has nothing to remove and continues to receive everything."""
    assert say({"type": "unsubscribe", "data": {"events": ["a"]}}) == Decision(Unsubscribed([]), EVERYTHING)


@pytest.mark.parametrize("kind", ["subscribe", "unsubscribe"])
@pytest.mark.parametrize(
    "events", ["alert.*", {}, 5, True, [""], [None], [5], [["a"]], ["a", "x" * 257]], ids=lambda e: repr(e)[:20]
)
def test_patterns_that_are_none(kind: str, events: object) -> None:
    """Missing or invalid patterns are a validation_error that says what is wrong, with an example."""
    told = details(json.dumps({"type": kind, "data": {"events": events}}), "validation_error")
    assert "pattern" in told["reason"]
    assert told["example"]["type"] == kind
    patterns = say(told["example"]).patterns
    assert patterns is not None


@pytest.mark.parametrize("data", [None, {}, {"events": None}, {"events": []}, {"channels": []}])
def test_subscribe_without_patterns(data: object) -> None:
    """A subscribe without patterns is a validation_error with an example."""
    told = details(json.dumps({"type": "SUBSCRIBE", "data": data}), "validation_error")
    assert told["example"] == {"type": "subscribe", "data": {"events": ["alert.*", "camera_status"]}}


def test_the_longest_pattern() -> None:
    """A pattern of 256 characters is allowed."""
    assert say({"type": "subscribe", "data": {"events": ["ä" * 256]}}).patterns is Patterns.of(["ä" * 256])


def test_a_hundred_patterns_a_connection() -> None:
    """A connection may have 100 patterns in all; repeated ones count once."""
    names = [f"p{n}" for n in range(100)]
    assert say({"type": "subscribe", "data": {"events": names + names}}).patterns is Patterns.of(names)
    half = Patterns.of(names[:50])
    assert say({"type": "subscribe", "data": {"events": names[25:]}}, half).patterns is Patterns.of(names)
    assert (
        "100"
        in details(json.dumps({"type": "subscribe", "data": {"events": [*names, "x"]}}), "validation_error")["reason"]
    )
    full = Patterns.of(names)
    assert refusal(say({"type": "subscribe", "data": {"events": ["one more"]}}, full)).error == "validation_error"
    assert say({"type": "subscribe", "data": {"events": ["P5"]}}, full).patterns is full


def test_a_full_connection_can_unsubscribe() -> None:
    """A client with 100 patterns can remove some."""
    names = [f"p{n}" for n in range(100)]
    decision = say({"type": "unsubscribe", "data": {"events": [*names[:99], "unknown"]}}, Patterns.of(names))
    assert decision == Decision(Unsubscribed(names[:99]), Patterns.of(["p99"]))


# -- resync


def test_resync() -> None:
    """Resync names channel, number and epoch."""
    frame = {"type": "resync", "data": {"channel": "events", "last_sequence": 5, "epoch": "e1"}}
    assert say(frame) == Decision(resume=Resume("events", 5, "e1"))


def test_resync_at_top_level() -> None:
    """The fields of a resync are also accepted at top level; those in `data` take precedence."""
    assert say({"type": "ReSync", "channel": "c", "last_sequence": 5, "epoch": "e1"}) == Decision(
        resume=Resume("c", 5, "e1")
    )
    mixed = {"type": "resync", "channel": "outer", "last_sequence": 5, "data": {"channel": "inner"}}
    assert say(mixed) == Decision(resume=Resume("inner", 5, None))


@pytest.mark.parametrize(
    "frame",
    [
        *({"type": "resync"}, {"type": "resync", "data": None}, {"type": "resync", "data": {}}),
        {"type": "resync", "data": {"channel": None}},
    ],
)
def test_resync_without_anything(frame: dict[str, Any]) -> None:
    """An absent or null channel is "unknown", an absent last_sequence 0, an absent epoch none."""
    assert say(frame) == Decision(resume=Resume("unknown", 0, None))


@pytest.mark.parametrize("epoch", [None, ""])
def test_resync_without_an_epoch(epoch: str | None) -> None:
    """A null epoch counts as absent, and so does the empty one of a first frame without Redis."""
    assert say({"type": "resync", "data": {"last_sequence": 1, "epoch": epoch}}).resume == Resume("unknown", 1, None)


@pytest.mark.parametrize("number", [-1, True, False, 5.0, 5.5, "5", None, [5], -(10**30)])
def test_resync_with_no_number(number: object) -> None:
    """A last_sequence that is not an int ≥ 0 is a validation_error; a bool or a float is not an int."""
    for frame in ({"type": "resync", "data": {"last_sequence": number}}, {"type": "resync", "last_sequence": number}):
        assert details(json.dumps(frame), "validation_error") == {
            "reason": "last_sequence must be an integer of at least 0"
        }


@pytest.mark.parametrize("fields", [{"channel": 5}, {"channel": "x" * 257}, {"epoch": 5}, {"epoch": "x" * 257}])
def test_resync_with_bad_texts(fields: dict[str, Any]) -> None:
    """A channel or epoch that is not a string, or is too long, is a validation_error."""
    told = details(json.dumps({"type": "resync", "data": fields}), "validation_error")
    assert told["reason"].startswith(next(iter(fields)))


# -- ack


@pytest.mark.parametrize("frame", [{"type": "ack", "data": {"sequence": 7}}, {"type": "ACK", "sequence": 7}])
def test_ack(frame: dict[str, Any]) -> None:
    """An ack has a number, in `data` or at top level, and is not answered."""
    assert say(frame) == Decision(ack=7)


@pytest.mark.parametrize("number", [0, -1, True, 1.0, "1", None, {}, [1]])
def test_ack_with_no_number(number: object) -> None:
    """An ack whose number is not an int ≥ 1 is a validation_error."""
    for frame in ({"type": "ack", "data": {"sequence": number}}, {"type": "ack", "sequence": number}):
        told = details(json.dumps(frame), "validation_error")
        assert told == {"reason": "sequence must be an integer of at least 1"}
    assert refusal(say({"type": "ack"})).error == "validation_error"


def test_huge_numbers() -> None:
    """Large integers are accepted; a number with over 1,000 digits is valid JSON, but does not count as an int."""
    assert say({"type": "ack", "sequence": 10**30}) == Decision(ack=10**30)
    assert say({"type": "resync", "last_sequence": 10**400}).resume == Resume("unknown", 10**400, None)
    for number in ("9" * 5000, "-" + "9" * 5000, "1e999", "-1e999"):
        details(f'{{"type":"ack","sequence":{number}}}', "validation_error")
        assert interpret(f'{{"type":"ping","x":[{number}]}}', EVERYTHING) == Decision(Pong())
        assert interpret(f'{{"type":"ack","sequence":7,"x":{number}}}', EVERYTHING) == Decision(ack=7)


def test_ack_by_its_old_name() -> None:
    """`seq` is an old name for `sequence`, which takes precedence."""
    assert say({"type": "ack", "data": {"seq": 7}}) == Decision(ack=7)
    assert say({"type": "ack", "seq": 7}) == Decision(ack=7)
    assert say({"type": "ack", "seq": 7, "sequence": 8}) == Decision(ack=8)
    assert say({"type": "ack", "sequence": 7, "data": {"seq": 8}}) == Decision(ack=8)
    assert refusal(say({"type": "ack", "seq": 0})).error == "validation_error"


def test_light_messages() -> None:
    """Acks and pongs are light: they are not answered and change next to nothing."""
    assert say({"type": "ack", "sequence": 7}).light
    assert say({"type": "pong"}).light
    for frame in ({"type": "ping"}, {"type": "unsubscribe"}, {"type": "resync"}, {"type": "ack"}, {}):
        assert not say(frame).light


# -- other forms of the same


@pytest.mark.parametrize("kind", KINDS)
def test_action_for_type(kind: str) -> None:
    """`action` is accepted for `type`; if both are given, `type` counts."""
    fields = {"data": {"events": ["a"], "sequence": 5}}
    assert say({"action": kind.upper(), **fields}) == say({"type": kind, **fields})
    assert say({"action": kind, "type": None, **fields}) == say({"type": kind, **fields})
    assert say({"action": "nonsense", "type": kind, **fields}) == say({"type": kind, **fields})
    assert refusal(say({"type": "nonsense", "action": kind})).error == "unknown_message_type"
    for wrong in ("", 5, None, "x" * 51):
        assert refusal(say({"action": wrong})).error == "invalid_message_format"


@pytest.mark.parametrize("field", ["events", "channels"])
@pytest.mark.parametrize("data", [{}, {"data": None}, {"data": {}}, {"data": {"events": None, "channels": None}}])
def test_patterns_at_top_level(field: str, data: dict[str, Any]) -> None:
    """Patterns are also accepted at top level; those in `data` take precedence."""
    decision = say({"type": "subscribe", field: ["A"], **data})
    assert decision == Decision(Subscribed(["a"]), Patterns.of(["a"]))
    decision = say({"action": "unsubscribe", field: ["A"], **data}, Patterns.of(["a", "b"]))
    assert decision == Decision(Unsubscribed(["a"]), Patterns.of(["b"]))
    inner = {"type": "subscribe", field: ["outer"], "data": {"channels": ["inner"]}}
    assert say(inner).patterns is Patterns.of(["inner"])


# -- what is no message


@pytest.mark.parametrize(
    "message",
    [
        "pong",
        "{",
        "{]",
        "{'type': 'ping'}",
        '{"type":"ping"}}',
        "NaN",
        '{"type":NaN}',
        '{"type":1e999}}',
        "\x00",
        "\ufeff",
        "\ufeff\ufeff{}",
    ],
)
def test_invalid_json(message: str) -> None:
    """A message that is not JSON is answered by invalid_json with its first characters."""
    assert details(message, "invalid_json") == {"raw_data_preview": message}


def test_the_preview_is_short() -> None:
    """The preview is the first 100 characters, not bytes."""
    message = "€" * 150
    assert details(message, "invalid_json") == {"raw_data_preview": "€" * 100}


def test_an_empty_message() -> None:
    """The preview of an empty message is null."""
    assert details("", "invalid_json") == {"raw_data_preview": None}


def test_lone_surrogates() -> None:
    """A lone surrogate is invalid_json with a preview that can be sent; an escaped one is read as U+FFFD."""
    assert details('{"type":"\ud800"}', "invalid_json") == {"raw_data_preview": '{"type":"?"}'}
    said = interpret('{"type":"resync","channel":"\\ud800 and more","last_sequence":5}', EVERYTHING)
    assert said == Decision(resume=Resume("\ufffd and more", 5, None))
    said = interpret('{"type":"subscribe","data":{"events":["\\udfff*"]}}', EVERYTHING)
    assert said == Decision(Subscribed(["\ufffd*"]), Patterns.of(["\ufffd*"]))
    assert interpret('{"type":"ping","skipped":"\\udfff"}', EVERYTHING) == Decision(Pong())
    details('{"type":"ping","skipped":"\\udfff"', "invalid_json")


@pytest.mark.parametrize("message", ['{"type":"ping"}', "ping"])
def test_byte_order_mark(message: str) -> None:
    """A byte order mark at the front is ignored."""
    assert interpret("\ufeff" + message, EVERYTHING) == Decision(Pong())


def test_deep_nesting() -> None:
    """JSON that is nested too deeply is invalid_json."""
    assert details("[" * 50_000, "invalid_json") == {"raw_data_preview": "[" * 100}
    details('{"type":"ping","data":' * 20_000, "invalid_json")


@pytest.mark.parametrize("message", ["[]", "5", '"ping"', "null", "true", '[{"type":"ping"}]'])
def test_no_object(message: str) -> None:
    """JSON that is not an object is invalid_message_format."""
    assert details(message, "invalid_message_format") == {"validation_errors": ["the message must be a JSON object"]}


@pytest.mark.parametrize(
    "frame", [{}, {"type": ""}, {"type": 5}, {"type": None}, {"type": ["ping"]}, {"type": "x" * 51}]
)
def test_no_type(frame: dict[str, Any]) -> None:
    """A type that is missing, empty, over 50 characters or not a string is a format error."""
    (error,) = details(json.dumps(frame), "invalid_message_format")["validation_errors"]
    assert error.startswith("type:")


@pytest.mark.parametrize("data", ["text", 5, True, []])
def test_data_that_is_no_object(data: object) -> None:
    """Data that is neither object nor null is a format error, also of an unknown type."""
    for kind in (*KINDS, "unknown"):
        (error,) = details(json.dumps({"type": kind, "data": data}), "invalid_message_format")["validation_errors"]
        assert error.startswith("data:")


def test_everything_wrong_at_once() -> None:
    """`validation_errors` lists everything that is wrong with the form."""
    assert len(details('{"type":5,"data":5}', "invalid_message_format")["validation_errors"]) == 2


@pytest.mark.parametrize("message", [b"", b"ping", b'{"type":"ping"}', b"\xff\xfe"])
def test_binary_frames(message: bytes) -> None:
    """A binary message is a format error, whatever is in it."""
    (error,) = details(message, "invalid_message_format")["validation_errors"]
    assert "binary" in error


@pytest.mark.parametrize("kind", ["hello", "x" * 50, " ping", "connected", "İ"])
def test_unknown_types(kind: str) -> None:
    """An unknown type is named in the message, and the known ones are listed."""
    error = refusal(say({"type": kind}))
    assert error.error == "unknown_message_type"
    assert kind in error.message
    assert error.details == {"supported_types": KINDS}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(KINDS),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["type", "data", "events", "channels", "channel", "last_sequence", "epoch", "sequence"])
            | st.text(max_size=5),
            inner,
            max_size=6,
        )
    ),
    max_leaves=12,
)


@given(
    message=st.text()
    | st.binary()
    | st.text(st.characters(categories=["Cs", "Lu"]))
    | JSON.map(json.dumps)
    | st.fixed_dictionaries({"type": st.sampled_from(KINDS), "data": JSON}).map(json.dumps),
    globs=st.none() | st.lists(st.text(max_size=5), max_size=3),
)
def test_bad_input_is_answered_whatever_it_is(message: str | bytes, globs: list[str] | None) -> None:
    """Whatever a client sends, the answer can be encoded, and an error has no other effect."""
    decision = interpret(message, Patterns.of(globs))
    if decision.reply is not None:
        msgspec.json.encode(decision.reply)
    if isinstance(decision.reply, Error):
        assert decision == Decision(decision.reply)


_TOKENS = [
    *'{}[]:,"x1.-+eE',
    '"type"',
    '"ping"',
    '"data"',
    "1e999",
    "null",
    "true",
    " ",
    "\\\\",
    "\\u0041",
    "\\q",
    "\t",
]


@given(st.lists(st.sampled_from(_TOKENS), max_size=12).map("".join) | JSON.map(json.dumps).map(lambda text: text[:-1]))
def test_grammar(text: str) -> None:
    """The grammar of skipped fields is checked as well: a message is refused if Python's decoder refuses it."""

    def not_a_number(text: str) -> None:
        raise ValueError(text)

    for message in (text, f'{{"type":"ping","skipped":{text}}}', f'{{"type":"ping","data":{{"skipped":{text}}}}}'):
        try:
            json.loads(message, parse_constant=not_a_number)
            valid = True
        except ValueError:
            valid = message == "ping"
        reply = interpret(message, EVERYTHING).reply
        assert (isinstance(reply, Error) and reply.error == "invalid_json") != valid


# -- what it costs

SIZE = 65_000


def _filled(unit: str, before: str = '{"type":"ping","x":[', after: str = "1]}") -> str:
    return before + unit * ((SIZE - len(before) - len(after)) // len(unit)) + after


HEAVY = {
    "floats": _filled("1e308,"),
    "floats too large": _filled("1e999,"),
    "integers": _filled("9" * 999 + ","),
    "one integer": _filled("9", '{"type":"ack","sequence":', "}"),
    "floats as patterns": _filled("1e308,", '{"type":"subscribe","data":{"events":[', "1]}}"),
    "floats as numbers": _filled("1e308,", '{"type":"ack","sequence":[', "1]}"),
    "floats as a type": _filled("1e308,", '{"type":[', "1]}"),
    "floats as data": _filled("1e308,", '{"type":"ping","data":[', "1]}"),
    "floats in a list": _filled("1e308,", "[", "1]"),
    "short patterns": '{"type":"subscribe","events":[' + ",".join(f'"{n:x}"' for n in range(9000)) + "]}",
    "equal patterns": _filled('"A",', '{"type":"subscribe","events":[', '"a"]}'),
    "keys": "{" + ",".join(f'"{n:x}":1' for n in range(7000)) + ',"type":"ping"}',
    "equal keys": _filled('"data":{},', "{", '"type":"ping"}'),
    "deep": "[" * SIZE,
    "deep in places": _filled("[" * 400 + "]" * 400 + ","),
    "deep objects": _filled('{"data":', ""),
    "surrogates": _filled("\\ud800", '{"type":"ping","x":"', '"}'),
    "high and low": _filled("\\ud800x\\udc00", '{"type":"ping","x":"', '"}'),
    "backslashes": _filled("\\\\", '{"type":"ping","x":"', '\\ud800"}'),
    "a long type": _filled("x", '{"type":"', '"}'),
    "a long channel": _filled("é", '{"type":"resync","channel":"', '"}'),
    "emoji": _filled("🚪", '{"type":"ping","x":"', '"}'),
}


@pytest.mark.parametrize("case", HEAVY)
def test_no_message_takes_long(case: str) -> None:
    """A message of the largest size takes about a millisecond to interpret, however it is made."""
    begin = time.process_time()
    for _ in range(5):
        interpret(HEAVY[case], EVERYTHING)
    assert (time.process_time() - begin) / 5 < 0.02


# -- shared with the query parameters


def test_patterns_from_a_query() -> None:
    """Patterns in a query obey the rules of subscribe."""
    assert patterns_from(["A", "b", "a"], EVERYTHING) == ["a", "b"]
    with pytest.raises(Refused, match="at most 100"):
        patterns_from([str(n) for n in range(101)], EVERYTHING)


def test_a_number_from_a_query() -> None:
    """A number in a query must be an int ≥ 0, and the refusal names the parameter."""
    assert sequence_from(0, "since", 0) == 0
    with pytest.raises(Refused, match="since must be an integer of at least 0"):
        sequence_from(None, "since", 0)
