"""The settings of the service: read from the environment once, checked, and never changed afterwards.

The struct is the table: name, type, range, default and the line of help of a setting stand in one place, and reading,
error texts, `describe()` and `serve --help` are derived from it. What a setting does is decided in other rooms.
"""

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self, cast
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, inspect

__all__ = ["Settings", "SettingsError", "settings_help"]

_SECRETS: Final = frozenset({"api_keys", "websocket_token", "jwt_secret", "internal_token"})
_REDIS_SCHEMES: Final = ("redis://", "rediss://", "unix://")
_MASK: Final = "***"
_RESERVED: Final = "reserved"
_MOST: Final = 10**18 - 1  # of any size or count; fits all that they are handed to


class SettingsError(Exception):
    """A setting that cannot be used; the text is one line: variable, value (never a secret's) and what is allowed."""


def _positive(description: str) -> Meta:
    return Meta(gt=0, description=description)


def _at_least(low: int, description: str) -> Meta:
    return Meta(ge=low, description=description)


def _integer(low: int, description: str, high: int = _MOST) -> Meta:
    return Meta(ge=low, le=high, description=description)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Every setting under its environment variable's name in lower case.

    Sizes are bytes, `*_seconds` are seconds. `redis_url` None means the embedded server; other texts are "" when off.
    """

    host: Annotated[str, Meta(description="address to listen on")] = "127.0.0.1"
    port: Annotated[int, _integer(0, "port to listen on; 0: any free one", 65535)] = 8000
    redis_url: Annotated[str | None, Meta(description="redis://, rediss:// or unix://; unset: embedded Valkey")] = None
    redis_event_channel: Annotated[str, Meta(description="Redis channel, and the prefix of its keys")] = (
        "security_events"
    )
    history_size: Annotated[int, _integer(1, "newest events kept in Redis")] = 10000
    message_buffer_size: Annotated[int, _integer(1, "newest events kept in memory")] = 100
    api_keys: Annotated[tuple[str, ...], Meta(description="comma-separated keys; empty: open")] = ()
    websocket_token: Annotated[str, Meta(description="token asked of WebSocket clients; empty: not asked")] = ""
    api_keys_file: Annotated[str, Meta(description=_RESERVED)] = ""
    jwt_secret: Annotated[str, Meta(description=_RESERVED)] = ""
    jwt_jwks_file: Annotated[str, Meta(description=_RESERVED)] = ""
    trusted_proxies: Annotated[tuple[str, ...], Meta(description=_RESERVED)] = ()
    internal_token: Annotated[str, Meta(description=_RESERVED)] = ""
    allowed_origins: Annotated[tuple[str, ...], Meta(description="comma-separated origins; empty: any")] = ()
    websocket_ping_interval_seconds: Annotated[float, _positive("time between heartbeats")] = 30.0
    websocket_idle_timeout_seconds: Annotated[float, _positive("silence after which a client is closed")] = 300.0
    websocket_max_message_size: Annotated[int, _integer(1024, "largest message a client may send")] = 65536
    websocket_max_connections: Annotated[int, _integer(0, "most connections at a time; 0: no cap")] = 0
    websocket_compression_threshold: Annotated[int, _integer(0, "format=zlib: compress from this size on")] = 1024
    websocket_compression_level: Annotated[int, _integer(1, "zlib level", 9)] = 6
    # uvloop holds the mark in an int
    websocket_send_buffer_bytes: Annotated[int, _integer(1024, "unsent bytes that make a client slow", 2**31 - 1)] = (
        1048576
    )
    websocket_max_age_seconds: Annotated[float, _at_least(0, "age at which a connection is closed; 0: none")] = 0.0
    http_max_body_bytes: Annotated[int, _integer(0, "largest request body")] = 1048576
    broadcast_max_retries: Annotated[int, _integer(0, "retries of a publish")] = 3
    broadcast_base_delay_seconds: Annotated[float, _at_least(0, "delay before the first retry")] = 1.0
    broadcast_max_delay_seconds: Annotated[float, _at_least(0, "longest delay before a retry")] = 30.0
    circuit_failure_threshold: Annotated[int, _integer(0, "failures in a row that open the circuit")] = 5
    circuit_recovery_seconds: Annotated[float, _positive("time until an open circuit is tried again")] = 30.0
    supervision_interval_seconds: Annotated[float, _positive("time between looks at the listener")] = 30.0
    position_check_seconds: Annotated[float, _positive("time between comparisons with Redis")] = 5.0
    drain_seconds: Annotated[float, _at_least(0, "time over which clients are sent away at the end")] = 10.0
    log_level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], Meta(description="least level that is logged")
    ] = "INFO"
    log_format: Annotated[Literal["text", "json"], Meta(description="text or json")] = "text"

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Self:
        """Read all settings; a variable that is absent, empty or blank takes its default.

        Raises SettingsError for the first value that is of the wrong kind or out of range.
        """
        values: dict[str, Any] = {}
        for field in _fields():
            text = environ.get(field.name.upper(), "").strip()
            if text:
                try:
                    values[field.name] = _redis_url(text) if field.name == "redis_url" else _parse(field.type, text)
                except ValueError as error:
                    raise SettingsError(f"{field.name.upper()}={_visible(field.name, text)}: {error}") from None
        return cls(**values)

    def describe(self) -> str:
        """All settings in force as `NAME=value` on one line, secrets masked."""
        shown = []
        for name in self.__struct_fields__:
            value = getattr(self, name)
            text = ",".join(value) if isinstance(value, tuple) else "embedded" if value is None else str(value)
            shown.append(f"{name.upper()}={text and _visible(name, text)}")
        return " ".join(shown)

    def without_effect(self) -> list[str]:
        """The variables that are set although this version does nothing with them."""
        reserved = (field.name for field in _fields() if _meaning(field) == _RESERVED)
        return [name.upper() for name in reserved if getattr(self, name)]

    def __repr__(self) -> str:
        """Like `describe()`: a settings object in a traceback gives no secret away."""
        return f"Settings({self.describe()})"


def settings_help() -> list[tuple[str, str, str]]:
    """Name, default and meaning of every setting that may be used today, in the order of the table."""
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
    """Give a value as it may be seen, on one line; of a URL all before the last @ and after the first ? is hidden."""
    if name in _SECRETS:
        return _MASK
    if name == "redis_url":
        # No URL parser here: a password with a stray / ? or # would come out in the wrong part, unmasked.
        scheme, mark, rest = text.partition("://") if re.match(r"[a-zA-Z]+://", text) else ("", "", text)
        credentials, at, rest = rest.rpartition("@")
        rest, query, _ = rest.partition("?")
        if not rest.startswith("["):  # an IPv6 address; otherwise only a port may follow a colon
            rest = re.sub(r":(?![0-9]+(/|$)).*", f":{_MASK}", rest, flags=re.DOTALL)
        text = scheme + mark + (_MASK if credentials else "") + at + rest + (query and query + _MASK)
    return text if text.isprintable() else repr(text)


def _parse(kind: inspect.Type, text: str) -> object:
    """Turn the text of one variable into a value of the field's type; ValueError says what is allowed."""
    if isinstance(kind, inspect.Metadata):
        kind = kind.type
    match kind:
        case inspect.IntType(ge=low, le=high):
            # int() alone would also take 1_000 and the digits of other scripts.
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
            return tuple(filter(None, (item.strip() for item in text.split(","))))
        case inspect.LiteralType(values=allowed):
            for choice in allowed:
                if str(choice).casefold() == text.casefold():
                    return choice
            raise ValueError(f"must be one of {', '.join(map(str, allowed))}")
        case _:
            return text


def _redis_url(text: str) -> str:
    """Check what can be checked without Redis: a known scheme, a port that is one, a path for a socket."""
    try:
        url = urlsplit(text)
        usable = text.startswith(_REDIS_SCHEMES) and (url.scheme != "unix" or url.path not in ("", "/"))
        _ = url.port
    except ValueError:  # its text may quote the password
        usable = False
    if not usable:
        raise ValueError("must be a URL like redis://host:6379/0, rediss://host:6379/0 or unix:///path/to/socket")
    return text
