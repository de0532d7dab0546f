"""The cases of the Autobahn test suite, which kosoku drives: what others expect of every WebSocket server."""

import gc
import os
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
from kosoku import FailureError, run_fuzzingclient

from tests.system.replica import Replica, ReplicaFactory

# Group 9 measures speed. Groups 12 and 13 try permessage-deflate with 18 sizes of messages for each setting, and 1,000
# messages each: the first size is tried here.
SAMPLE = [
    *(f"{group}.*" for group in (1, 2, 3, 4, 5, 6, 7, 10)),
    *(f"12.{corpus}.1" for corpus in range(1, 6)),
    *(f"13.{offer}.1" for offer in range(1, 8)),
]
CASES = os.environ.get("AUTOBAHN_CASES", " ".join(SAMPLE)).split()
PASSED = {"OK", "NON-STRICT", "INFORMATIONAL"}


@pytest.fixture(scope="module")
def server(start_for_module: ReplicaFactory, valkey: str) -> Replica:
    """The service, with an echo beside its routes."""
    return start_for_module(
        module="tests.system.websocket_echo serve",
        redis_url=valkey,
        redis_event_channel="autobahn",
        websocket_max_message_size=16 * 2**20,
        websocket_ping_interval_seconds=60,
    )


async def results(server: Replica, path: str, cases: Sequence[str]) -> list[Any]:
    """Run these cases, and return all results, whether they passed or not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the cases do not close the files that they read
        try:
            return await run_fuzzingclient(f"ws://127.0.0.1:{server.port}{path}", cases, concurrency=4)
        except FailureError as failure:
            return list(failure.results)
        finally:
            gc.collect()


async def test_echo(server: Replica) -> None:
    """The service's WebSocket protocol passes every case behind an echo, compression included.

    Cases 13.3 and 13.5 ask for a window of 512 bytes, smaller than the shared one, and so get no compression (protocol:
    websocket).
    """
    judged = await results(server, "/echo", CASES)
    assert judged
    failed = {}
    for case in judged:
        declined = {"UNIMPLEMENTED"} if case.case_id.startswith(("13.3.", "13.5.")) else set()
        if not {case.behavior.value, case.behavior_close.value} <= PASSED | declined:
            failed[case.case_id] = (case.behavior.value, case.result, case.result_close)
    assert failed == {}


async def test_events(server: Replica) -> None:
    """`/ws/events` passes every case that needs no echo: pings, violations of the protocol, closing handshakes.

    A case needs no echo if one of the sequences of events that it accepts contains no message. The messages of the
    service itself, which the suite does not know, are left out of what was received.
    """
    judged = await results(server, "/ws/events", ["2.*", "3.*", "4.*", "5.*", "6.3.*", "6.4.*", "7.*"])
    passed, failed = 0, {}
    for case in judged:
        accepted = [events for label, events in case.expected.items() if label in PASSED]
        if not any("message" not in {kind for kind, *_ in events} for events in accepted):
            continue
        received = [event for event in case.received if event[0] != "message"]
        if received in accepted and case.behavior_close.value in PASSED:
            passed += 1
        else:
            failed[case.case_id] = (received, accepted, case.result_close)
    assert failed == {}
    assert passed >= 80
