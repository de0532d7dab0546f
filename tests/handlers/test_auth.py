"""Authentication over REST and over the WebSocket."""

import json
from typing import Any

import pytest

from handlers.auth import listener_credentials
from handlers.openapi.examples import EXAMPLES
from handlers.settings import Settings

PATH = "/broadcast/event"
BODY = json.dumps(EXAMPLES["event"]).encode()
JSON_TYPE = {"content-type": "application/json"}
KEYS = ("first-key", "second-key", "schlüssel")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Authorization", "Bearer first-key"),
        ("Authorization", "bearer second-key"),
        ("Authorization", "BEARER   second-key "),
        ("X-API-Key", "second-key"),
        ("X-API-Key", "schlüssel"),
    ],
)
async def test_a_good_key_publishes(make_app: Any, exchange: Any, name: str, value: str) -> None:
    """Any of API_KEYS is accepted as a bearer, in any letter case of the scheme, or as X-API-Key."""
    answer = await exchange(make_app(api_keys=KEYS), PATH, [BODY], JSON_TYPE | {name: value})

    assert answer.status == 202


async def test_one_good_key_is_enough(make_app: Any, exchange: Any) -> None:
    """A wrong key in one header does not invalidate the right key in another."""
    headers = JSON_TYPE | {"authorization": "Bearer wrong", "x-api-key": "first-key"}

    answer = await exchange(make_app(api_keys=KEYS), PATH, [BODY], headers)

    assert answer.status == 202


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "first-key"},
        {"authorization": "Basic first-key"},
        {"authorization": "Bearer"},
        {"authorization": "Bearer wrong"},
        {"authorization": "Bearer first-key, Bearer second-key"},
        {"authorization": "Bearer clé"},
        {"x-api-key": ""},
        {"x-api-key": "First-Key"},
        {"x-api-key": "first-key,second-key"},
        {"x-api-key": b"\xff\xfe"},
    ],
)
async def test_a_missing_or_wrong_key_is_refused(
    make_app: Any, exchange: Any, broadcaster: Any, headers: dict[str, str | bytes]
) -> None:
    """A missing or wrong key is answered 401 with WWW-Authenticate; no body is read and nothing is published."""
    answer = await exchange(make_app(api_keys=KEYS), PATH, [BODY], JSON_TYPE | headers)

    assert (answer.status, answer.pieces_read) == (401, 0)
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["content-type"] == "application/problem+json"
    assert "X-API-Key" in json.loads(answer.body)["detail"]
    assert broadcaster.calls == []


async def test_every_publish_route_asks_for_the_key(make_app: Any, exchange: Any) -> None:
    """If API_KEYS is set, every publish route requires a key."""
    app = make_app(api_keys=KEYS)
    paths = [route.path for route in app.routes if route.path.startswith("/broadcast")]

    answers = {path: (await exchange(app, path, [BODY], JSON_TYPE)).status for path in paths}

    assert len(answers) == 16
    assert set(answers.values()) == {401}


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready", "/schema", "/schema/openapi.json"])
async def test_health_and_schema_ask_for_no_key(make_app: Any, exchange: Any, path: str) -> None:
    """The health routes and /schema need no key."""
    answer = await exchange(make_app(api_keys=KEYS), path, [b""], {}, method="GET")

    assert answer.status == 200


BOTH = Settings(api_keys=KEYS, websocket_token="token")
ONLY_KEYS = Settings(api_keys=KEYS)
ONLY_TOKEN = Settings(websocket_token="token")


def verdict(settings: Settings, query: str = "", bearer: str = "", key: str = "", protocol: str = "") -> bool:
    """Judge an upgrade; `query` is `name=value` pairs separated by &."""
    headers = [(b"host", b"localhost")]
    headers += [(b"authorization", f"Bearer {bearer}".encode())] if bearer else []
    headers += [(b"x-api-key", key.encode())] if key else []
    return listener_credentials(
        settings,
        query=dict(pair.split("=") for pair in query.split("&") if pair),
        headers=headers,
        subprotocols=[protocol] if protocol else [],
    ).allowed


@pytest.mark.parametrize(
    "credentials",
    [
        {"query": "api_key=second-key"},
        {"query": "api_key=schlüssel"},
        {"bearer": "first-key"},
        {"key": "first-key"},
        {"protocol": "api-key.first-key"},
        {"protocol": "api-key-b64.Zmlyc3Qta2V5"},
        {"protocol": "api-key-b64.c2NobMO8c3NlbA"},
        {"query": "api_key=wrong", "key": "first-key"},
    ],
)
def test_a_websocket_key_may_come_in_several_ways(credentials: dict[str, str]) -> None:
    """A WebSocket client may send its API key as query parameter, bearer, X-API-Key or subprotocol."""
    assert verdict(ONLY_KEYS, **credentials)


@pytest.mark.parametrize("credentials", [{"query": "token=token"}, {"bearer": "token"}])
def test_a_websocket_token_may_come_in_two_ways(credentials: dict[str, str]) -> None:
    """A WebSocket client may send the token as query parameter or bearer."""
    assert verdict(ONLY_TOKEN, **credentials)


@pytest.mark.parametrize(
    ("settings", "credentials"),
    [
        (ONLY_KEYS, {}),
        (ONLY_KEYS, {"query": "api_key="}),
        (ONLY_KEYS, {"query": "token=first-key"}),
        (ONLY_KEYS, {"protocol": "first-key"}),
        (ONLY_KEYS, {"protocol": "api-key.clé"}),
        (ONLY_KEYS, {"protocol": "api-key-b64."}),
        (ONLY_KEYS, {"protocol": "api-key-b64.first-key"}),
        (ONLY_KEYS, {"protocol": "api-key-b64.Zmlyc3Qta2V5A"}),
        (ONLY_KEYS, {"protocol": "api-key-b64.c2NobMO8c3NlbA=="}),
        (ONLY_KEYS, {"protocol": "api-key-b64.schlüssel"}),
        (ONLY_TOKEN, {}),
        (ONLY_TOKEN, {"query": "token=Token"}),
        (ONLY_TOKEN, {"query": "api_key=token"}),
        (ONLY_TOKEN, {"protocol": "api-key.token"}),
        (ONLY_TOKEN, {"key": "token"}),
    ],
)
def test_wrong_websocket_credentials(settings: Settings, credentials: dict[str, str]) -> None:
    """Missing or wrong WebSocket credentials, and right ones in the wrong place, are refused."""
    assert not verdict(settings, **credentials)


@pytest.mark.parametrize(
    ("credentials", "allowed"),
    [
        ({"query": "token=token&api_key=first-key"}, True),
        ({"query": "token=token", "bearer": "first-key"}, True),
        ({"query": "api_key=first-key", "bearer": "token"}, True),
        ({"query": "token=token", "protocol": "api-key.first-key"}, True),
        ({"query": "token=token"}, False),
        ({"query": "api_key=first-key"}, False),
        ({"bearer": "token"}, False),
    ],
)
def test_with_both_set_a_client_needs_both(credentials: dict[str, str], allowed: bool) -> None:
    """If API_KEYS and WEBSOCKET_TOKEN are set, a client needs both; the bearer may be either."""
    assert verdict(BOTH, **credentials) is allowed


def test_nothing_set_lets_everyone_in() -> None:
    """If neither API_KEYS nor WEBSOCKET_TOKEN is set, no credentials are needed."""
    assert verdict(Settings())


@pytest.mark.parametrize(
    ("settings", "offered", "echo"),
    [
        (ONLY_KEYS, ["api-key.first-key"], "api-key.first-key"),
        (ONLY_KEYS, ["chat", "api-key.wrong"], "api-key.wrong"),
        (Settings(), ["api-key.any"], "api-key.any"),
        (ONLY_KEYS, ["json", "api-key-b64.Zmlyc3Qta2V5"], "api-key-b64.Zmlyc3Qta2V5"),
        (ONLY_KEYS, ["chat"], None),
        (ONLY_KEYS, [], None),
    ],
)
def test_the_subprotocol_is_echoed(settings: Settings, offered: list[str], echo: str | None) -> None:
    """The subprotocol `api-key.KEY` is echoed even for a wrong key, so that a browser can read the close code."""
    assert listener_credentials(settings, query={}, headers=[], subprotocols=offered).subprotocol == echo
