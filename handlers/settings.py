"""The settings of the service: read from the environment once, checked, and never changed afterwards.

The struct `Settings` is the table of all settings: name, type, range, default and description. Reading, error texts,
`describe()` and `serve --help` are derived from it.
"""

import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, Final, Literal, Self, cast

import msgspec
from msgspec import Meta, inspect

from handlers.origins import normalized
from handlers.redis_url import check_redis_url, mask_redis_url

__all__ = ["Settings", "SettingsError", "settings_help"]

_SECRETS: Final = frozenset({"api_keys", "websocket_token", "jwt_secret", "internal_token"})
_MASK: Final = "***"
_RESERVED: Final = "reserved"
_UNSET: Final = {"redis_url": "embedded", "internal_port": ""}  # how `describe()` shows None
_LARGEST: Final = 10**18 - 1  # of any size or count; fits in 64 bits


class SettingsError(Exception):
    """An invalid setting; the text is one line: the variable, its value (secrets are masked) and what is allowed."""


def _positive(description: str) -> Meta:
    return Meta(gt=0, description=description)


def _at_least(low: int, description: str) -> Meta:
    return Meta(ge=low, description=description)


def _integer(low: int, description: str, high: int = _LARGEST) -> Meta:
    return Meta(ge=low, le=high, description=description)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All settings; each is named like its environment variable, in lower case.

    Sizes are in bytes, `*_seconds` in seconds. `redis_url` is None for the embedded server. Other texts are empty if
    the setting is off.
    """

    host: Annotated[str, Meta(description="address to listen on")] = "127.0.0.1"
    port: Annotated[int, _integer(0, "port to listen on; 0: any free port", 65535)] = 8000
    internal_port: Annotated[
        Annotated[int, Meta(ge=0, le=65535)] | None,
        Meta(description="port that alone serves /metrics and /health; 0: any free port; empty: the same port"),
    ] = None
    redis_url: Annotated[
        str | None, Meta(description="redis://, rediss:// or unix:// URL; empty: embedded Valkey server")
    ] = None
    redis_event_channel: Annotated[str, Meta(description="Redis channel, and prefix of the Redis keys")] = (
        "security_events"
    )
    history_size: Annotated[int, _integer(1, "number of newest events kept in Redis")] = 10000
    event_max_bytes: Annotated[int, _integer(0, "largest data of one event, as compact JSON")] = 65536
    message_buffer_size: Annotated[int, _integer(1, "number of newest events kept in memory")] = 100
    api_keys: Annotated[tuple[str, ...], Meta(description="comma-separated API keys; empty: no key needed")] = ()
    websocket_token: Annotated[str, Meta(description="token for WebSocket clients; empty: no token needed")] = ""
    api_keys_file: Annotated[str, Meta(description=_RESERVED)] = ""
    jwt_secret: Annotated[str, Meta(description=_RESERVED)] = ""
    jwt_jwks_file: Annotated[str, Meta(description=_RESERVED)] = ""
    trusted_proxies: Annotated[tuple[str, ...], Meta(description=_RESERVED)] = ()
    internal_token: Annotated[str, Meta(description=_RESERVED)] = ""
    allowed_origins: Annotated[
        tuple[str, ...],
        Meta(description="comma-separated origins of pages, * for any; empty: own host, or any if keys are set"),
    ] = ()
    console: Annotated[Literal["on", "off"], Meta(description="serve the page /console, on or off")] = "on"
    trace_url: Annotated[
        str, Meta(description="URL of a trace for the console, with {trace_id} in it; empty: no links")
    ] = ""
    root_path: Annotated[str, Meta(description="path prefix that a proxy strips, such as /events; empty: none")] = ""
    websocket_ping_interval_seconds: Annotated[float, _positive("seconds between heartbeats")] = 30.0
    websocket_idle_timeout_seconds: Annotated[
        float, _positive("seconds without a message until a client is closed")
    ] = 300.0
    websocket_max_message_size: Annotated[int, _integer(1024, "largest message that a client may send")] = 65536
    websocket_max_messages_per_second: Annotated[
        int, _integer(0, "messages read from a client per second, acks and pongs 20 times as many; 0: no limit")
    ] = 50
    websocket_number_field: Annotated[
        Literal["sequence", "seq"], Meta(description="name of an event's number in frames, sequence or seq")
    ] = "sequence"
    websocket_max_connections: Annotated[int, _integer(0, "largest number of connections; 0: no limit")] = 0
    websocket_compression_threshold: Annotated[int, _integer(0, "smallest message compressed by format=zlib")] = 1024
    websocket_compression_level: Annotated[int, _integer(1, "zlib compression level", 9)] = 6
    # uvloop stores this limit in a C int.
    websocket_send_buffer_bytes: Annotated[
        int, _integer(1024, "unsent bytes from which a client counts as slow", 2**31 - 1)
    ] = 1048576
    websocket_max_age_seconds: Annotated[float, _at_least(0, "seconds until a connection is closed; 0: no limit")] = 0.0
    http_max_body_bytes: Annotated[int, _integer(0, "largest request body")] = 1048576
    http_keep_alive_seconds: Annotated[float, _positive("seconds until an idle HTTP connection is closed")] = 75.0
    http_request_seconds: Annotated[float, _positive("seconds within which a request must be complete")] = 30.0
    broadcast_max_retries: Annotated[int, _integer(0, "largest number of retries of a publish")] = 3
    broadcast_base_delay_seconds: Annotated[float, _at_least(0, "seconds before the first retry")] = 1.0
    broadcast_max_delay_seconds: Annotated[float, _at_least(0, "longest delay before a retry, in seconds")] = 30.0
    circuit_failure_threshold: Annotated[int, _integer(1, "consecutive failures that open the circuit")] = 5
    circuit_recovery_seconds: Annotated[float, _positive("seconds until an open circuit is tried again")] = 30.0
    supervision_interval_seconds: Annotated[float, _positive("seconds between checks of the listener")] = 30.0
    position_check_seconds: Annotated[float, _positive("seconds between comparisons of position with Redis")] = 5.0
    drain_seconds: Annotated[float, _at_least(0, "seconds over which clients are closed at shutdown")] = 10.0
    log_level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], Meta(description="lowest level that is logged")
    ] = "INFO"
    log_format: Annotated[Literal["text", "json"], Meta(description="format of the log, text or json")] = "text"

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Self:
        """Read all settings; a variable that is absent, empty or blank gets its default.

        Raises SettingsError for the first value that is invalid or out of range, and if both ports are the same.
        """
        values: dict[str, Any] = {}
        for field in _fields():
            text = environ.get(field.name.upper(), "").strip()
            if text:
                try:
                    values[field.name] = _SPECIAL.get(field.name, partial(_parse, field.type))(text)
                except ValueError as error:
                    raise SettingsError(f"{field.name.upper()}={_visible(field.name, text)}: {error}") from None
        settings = cls(**values)
        if settings.internal_port == settings.port and settings.port:
            same = f"INTERNAL_PORT={settings.internal_port}: must not be PORT; leave it empty to serve all on one port"
            raise SettingsError(same)
        return settings

    def describe(self) -> str:
        """Return all settings as `NAME=value` on one line; secrets are masked."""
        shown = []
        for name in self.__struct_fields__:
            value = getattr(self, name)
            text = ",".join(value) if isinstance(value, tuple) else _UNSET[name] if value is None else str(value)
            shown.append(f"{name.upper()}={text and _visible(name, text)}")
        return " ".join(shown)

    @property
    def asks_for_credentials(self) -> bool:
        """True if any credential is configured."""
        return bool(self.api_keys or self.websocket_token)

    def without_effect(self) -> list[str]:
        """Return the variables that are set although they have no effect in this version."""
        reserved = (field.name for field in _fields() if _meaning(field) == _RESERVED)
        return [name.upper() for name in reserved if getattr(self, name)]

    def __repr__(self) -> str:
        """Like `describe()`, so that a traceback reveals no secrets."""
        return f"Settings({self.describe()})"


def settings_help() -> list[tuple[str, str, str]]:
    """Return name, default and description of every setting that has an effect, in the order of `Settings`."""
    rows = []
    for field in _fields():
        meaning = _meaning(field)
        if meaning != _RESERVED:
            default = "" if field.default in (None, "", ()) else f"{field.default}"
            rows.append((field.name.upper(), default, meaning))
    return rows


def _fields() -> tuple[inspect.Field, ...]:
    return cast(inspect.StructType, inspect.type_info(Settings)).fields


def _meaning(field: inspect.Field) -> str:
    meaning: str = (cast(inspect.Metadata, field.type).extra_json_schema or {})["description"]
    return meaning


def _visible(name: str, text: str) -> str:
    """Return a value on one line, with secrets masked: in a URL, the credentials and the query."""
    if name in _SECRETS:
        return _MASK
    if name == "redis_url":
        text = mask_redis_url(text)
    return text if text.isprintable() else repr(text)


def _parse(kind: inspect.Type, text: str) -> object:
    """Convert the text of a variable to the field's type; raise ValueError with what is allowed."""
    if isinstance(kind, inspect.Metadata):
        kind = kind.type
    match kind:
        case inspect.UnionType(types=(inspect.IntType() as integer, inspect.NoneType())):
            return _parse(integer, text)
        case inspect.IntType(ge=low, le=high):
            # int() alone would also accept 1_000 and the digits of other scripts.
            value = int(text) if re.fullmatch(r"[+-]?[0-9]{1,100}", text) else -1
            if not cast(int, low) <= value <= cast(int, high):
                raise ValueError(f"must be an integer from {low} to {high}")
            return value
        case inspect.FloatType(gt=above):
            number = float(text) if re.fullmatch(r"\+?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", text) else math.nan
            if not math.isfinite(number) or (above is not None and number <= above):
                raise ValueError(f"must be a number {'of at least 0' if above is None else 'greater than 0'}")
            return number
        case inspect.VarTupleType():
            return _items(text)
        case inspect.LiteralType(values=allowed):
            for choice in allowed:
                if str(choice).casefold() == text.casefold():
                    return choice
            raise ValueError(f"must be one of {', '.join(map(str, allowed))}")
        case _:
            return text


def _items(text: str) -> tuple[str, ...]:
    return tuple(filter(None, (item.strip() for item in text.split(","))))


def _origins(text: str) -> tuple[str, ...]:
    return tuple(normalized(item) for item in _items(text))


def _root_path(text: str) -> str:
    path = text.rstrip("/")
    if path and not re.fullmatch(r"(/(?!\.{1,2}(/|$))[A-Za-z0-9._~!$&'()*+,;=:@%-]+)+", path):
        raise ValueError("must be a path like /events, as it stands in a URL")
    return path


def _trace_url(text: str) -> str:
    if not re.fullmatch(r"https?://[!-~]+", text) or "{trace_id}" not in text:
        raise ValueError("must be an http or https URL that contains {trace_id}")
    return text


_SPECIAL: Final[Mapping[str, Callable[[str], object]]] = {
    "redis_url": check_redis_url,
    "allowed_origins": _origins,
    "root_path": _root_path,
    "trace_url": _trace_url,
}
"""The settings whose texts have a form of their own."""
