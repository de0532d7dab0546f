"""Control messages: their exact JSON."""

from typing import Any

import msgspec
import pytest

from kernel.messages.control import (
    Connected,
    Control,
    EpochChanged,
    Error,
    Gap,
    Ping,
    Pong,
    ResyncAck,
    ServiceNotice,
    Shutdown,
    Subscribed,
    Unsubscribed,
)


@pytest.mark.parametrize(
    ("control", "sent"),
    [
        pytest.param(
            Connected("ws-events-1a2b3c4d", "e1", 41),
            {
                "type": "connected",
                "message": "Connected to events channel",
                "connection_id": "ws-events-1a2b3c4d",
                "epoch": "e1",
                "lastSeq": 41,
            },
            id="connected",
        ),
        pytest.param(
            Connected("ws-events-1a2b3c4d", "e1", 41, 41),
            {
                "type": "connected",
                "message": "Connected to events channel",
                "connection_id": "ws-events-1a2b3c4d",
                "epoch": "e1",
                "lastSeq": 41,
                "seq": 41,
            },
            id="connected with seq",
        ),
        pytest.param(Ping(42, "e1"), {"type": "ping", "lastSeq": 42, "epoch": "e1"}, id="ping"),
        pytest.param(Pong(), {"type": "pong"}, id="pong"),
        pytest.param(Subscribed(["a"]), {"action": "subscribed", "events": ["a"]}, id="subscribed"),
        pytest.param(Unsubscribed([]), {"action": "unsubscribed", "events": []}, id="unsubscribed"),
        pytest.param(Gap(3, 5), {"type": "gap", "from": 3, "to": 5}, id="gap"),
        pytest.param(EpochChanged("e2"), {"type": "epoch_changed", "epoch": "e2"}, id="epoch_changed"),
        pytest.param(
            Error("invalid_json", "text", {"raw_data_preview": None}),
            {"type": "error", "error": "invalid_json", "message": "text", "details": {"raw_data_preview": None}},
            id="error",
        ),
        pytest.param(
            Shutdown.within(1500),
            {
                "type": "system.shutdown",
                "data": {"reason": "Server shutting down", "reconnect": True, "delay_ms": 1500},
            },
            id="shutdown",
        ),
    ],
)
def test_wire_form(control: Control, sent: dict[str, Any]) -> None:
    """Each control message has these fields and no others."""
    assert msgspec.json.decode(msgspec.json.encode(control)) == sent


@pytest.mark.parametrize(
    ("ack", "verdict"),
    [
        pytest.param(ResyncAck("events", "e1", 5, 3, True), {"recovered": True}, id="recovered"),
        pytest.param(
            ResyncAck("events", "e1", 5, 3, False, gap_too_old=True, oldest_available=9),
            {"recovered": False, "gap_too_old": True, "oldest_available": 9},
            id="too old",
        ),
        pytest.param(
            ResyncAck("events", "e1", 5, 3, False, epoch_changed=True),
            {"recovered": False, "epoch_changed": True},
            id="another epoch",
        ),
        pytest.param(ResyncAck("events", "e1", 5, 3, False), {"recovered": False}, id="beyond"),
    ],
)
def test_resync_ack(ack: ResyncAck, verdict: dict[str, Any]) -> None:
    """A resync_ack has five fields, and further ones only to tell why a replay did not recover everything."""
    assert msgspec.json.decode(msgspec.json.encode(ack)) == {
        "type": "resync_ack",
        "channel": "events",
        "epoch": "e1",
        "last_sequence": 5,
        "replayed_count": 3,
        **verdict,
    }


def test_notices() -> None:
    """The notices for entering and leaving degraded mode differ in `status` and `circuit_state`."""
    for notice, status, circuit in (
        (ServiceNotice.degraded("now"), "degraded", "open"),
        (ServiceNotice.healthy("now"), "healthy", "closed"),
    ):
        sent = msgspec.json.decode(msgspec.json.encode(notice))
        assert sent["data"].pop("message")
        assert sent == {
            "type": "service_status",
            "data": {"service": "event_broadcaster", "status": status, "circuit_state": circuit},
            "timestamp": "now",
        }
