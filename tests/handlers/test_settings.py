"""The settings, each with its default and its range."""

import re

import pytest

from handlers.settings import Settings, SettingsError, settings_help

DEFAULTS = {
    "HOST": "127.0.0.1",
    "PORT": 8000,
    "INTERNAL_PORT": None,
    "REDIS_URL": None,
    "REDIS_EVENT_CHANNEL": "security_events",
    "HISTORY_SIZE": 10000,
    "EVENT_MAX_BYTES": 65536,
    "MESSAGE_BUFFER_SIZE": 100,
    "API_KEYS": (),
    "WEBSOCKET_TOKEN": "",
    "API_KEYS_FILE": "",
    "JWT_SECRET": "",
    "JWT_JWKS_FILE": "",
    "TRUSTED_PROXIES": (),
    "INTERNAL_TOKEN": "",
    "ALLOWED_ORIGINS": (),
    "CONSOLE": "on",
    "TRACE_URL": "",
    "ROOT_PATH": "",
    "WEBSOCKET_PING_INTERVAL_SECONDS": 30.0,
    "WEBSOCKET_IDLE_TIMEOUT_SECONDS": 300.0,
    "WEBSOCKET_MAX_MESSAGE_SIZE": 65536,
    "WEBSOCKET_MAX_MESSAGES_PER_SECOND": 50,
    "WEBSOCKET_NUMBER_FIELD": "sequence",
    "WEBSOCKET_MAX_CONNECTIONS": 0,
    "WEBSOCKET_COMPRESSION_THRESHOLD": 1024,
    "WEBSOCKET_COMPRESSION_LEVEL": 6,
    "WEBSOCKET_SEND_BUFFER_BYTES": 1048576,
    "WEBSOCKET_MAX_AGE_SECONDS": 0.0,
    "HTTP_MAX_BODY_BYTES": 1048576,
    "HTTP_KEEP_ALIVE_SECONDS": 75.0,
    "HTTP_REQUEST_SECONDS": 30.0,
    "BROADCAST_MAX_RETRIES": 3,
    "BROADCAST_BASE_DELAY_SECONDS": 1.0,
    "BROADCAST_MAX_DELAY_SECONDS": 30.0,
    "CIRCUIT_FAILURE_THRESHOLD": 5,
    "CIRCUIT_RECOVERY_SECONDS": 30.0,
    "SUPERVISION_INTERVAL_SECONDS": 30.0,
    "POSITION_CHECK_SECONDS": 5.0,
    "DRAIN_SECONDS": 10.0,
    "LOG_LEVEL": "INFO",
    "LOG_FORMAT": "text",
}
NUMBERS = [name for name, default in DEFAULTS.items() if isinstance(default, int | float)]
SECONDS = [name for name in NUMBERS if name.endswith("_SECONDS")]
INTEGERS = [name for name in NUMBERS if name not in SECONDS]
ZERO_SECONDS = [
    "DRAIN_SECONDS",
    "WEBSOCKET_MAX_AGE_SECONDS",
    "BROADCAST_BASE_DELAY_SECONDS",
    "BROADCAST_MAX_DELAY_SECONDS",
]
LOWEST = {
    "HISTORY_SIZE": 1,
    "MESSAGE_BUFFER_SIZE": 1,
    "CIRCUIT_FAILURE_THRESHOLD": 1,
    "WEBSOCKET_MAX_MESSAGE_SIZE": 1024,
    "WEBSOCKET_SEND_BUFFER_BYTES": 1024,
    "WEBSOCKET_COMPRESSION_LEVEL": 1,
}
HIGHEST = {"PORT": 65535, "WEBSOCKET_COMPRESSION_LEVEL": 9, "WEBSOCKET_SEND_BUFFER_BYTES": 2**31 - 1}
SECRETS = ["API_KEYS", "WEBSOCKET_TOKEN", "JWT_SECRET", "INTERNAL_TOKEN"]


def read(**environ: str) -> Settings:
    """Return the settings that these variables alone give."""
    return Settings.from_environment(environ)


def value(name: str, text: str) -> object:
    """Return the value of one setting."""
    return getattr(read(**{name: text}), name.lower())


def refusal(name: str, text: str) -> str:
    """Return the error text of a setting that must be refused."""
    with pytest.raises(SettingsError) as caught:
        read(**{name: text})
    return str(caught.value)


def test_defaults() -> None:
    """An empty environment gives the documented defaults, and there are no other settings."""
    assert Settings.__struct_fields__ == tuple(name.lower() for name in DEFAULTS)
    settings = read()
    assert {name: getattr(settings, name.lower()) for name in DEFAULTS} == DEFAULTS


def test_empty_is_unset() -> None:
    """An empty or blank variable counts as unset, and unknown variables are ignored."""
    assert read(**dict.fromkeys(DEFAULTS, "")) == read(**dict.fromkeys(DEFAULTS, " \n"), PATH="/bin") == read()


@pytest.mark.parametrize("name", INTEGERS)
def test_integer_range(name: str) -> None:
    """Sizes, counts, the port and the compression level accept exactly the integers of their range."""
    low = LOWEST.get(name, 0)
    assert value(name, str(low)) == low
    assert value(name, f" {low + 1} ") == low + 1
    high = HIGHEST.get(name, 10**18 - 1)
    assert value(name, str(high)) == high
    allowed = f"an integer from {low} to {high}"
    for bad in (str(high + 1), str(low - 1), "many", "1.5", "2_000", "0x800", "٣", "9" * 5000):
        assert refusal(name, bad) == f"{name}={bad}: must be {allowed}"


@pytest.mark.parametrize("name", SECONDS)
def test_seconds_range(name: str) -> None:
    """Seconds are decimal numbers above 0, some of them also 0; NaN and infinity are refused."""
    assert value(name, "0.25") == 0.25
    assert value(name, "7") == 7.0
    assert value(name, ".5") == 0.5
    allowed = "a number of at least 0" if name in ZERO_SECONDS else "a number greater than 0"
    if name in ZERO_SECONDS:
        assert value(name, "0") == 0.0
    else:
        assert refusal(name, "0") == f"{name}=0: must be {allowed}"
    for bad in ("-1", "nan", "inf", "1e999", "1_0", "1..2", "5s", "."):
        assert refusal(name, bad) == f"{name}={bad}: must be {allowed}"


def test_port_text() -> None:
    """The error is one line with the variable, the value and the range."""
    assert refusal("PORT", "70000") == "PORT=70000: must be an integer from 0 to 65535"
    assert refusal("PORT", "80\n81") == r"PORT='80\n81': must be an integer from 0 to 65535"


def test_internal_port() -> None:
    """INTERNAL_PORT is empty or a port other than PORT; 0 stands for a free port, as PORT=0 does for another one."""
    assert value("INTERNAL_PORT", "8081") == 8081
    assert (read(PORT="0", INTERNAL_PORT="0").internal_port, value("INTERNAL_PORT", "0")) == (0, 0)
    for bad in ("65536", "-1", "http", "8081.0"):
        assert refusal("INTERNAL_PORT", bad) == f"INTERNAL_PORT={bad}: must be an integer from 0 to 65535"
    assert refusal("INTERNAL_PORT", "8000").startswith("INTERNAL_PORT=8000: must not be PORT; leave it empty")
    assert "INTERNAL_PORT=" in read().describe().split()
    assert "INTERNAL_PORT=8081" in read(INTERNAL_PORT="8081").describe().split()


@pytest.mark.parametrize("name", ["API_KEYS", "TRUSTED_PROXIES"])
def test_lists(name: str) -> None:
    """Comma-separated lists are stripped, and empty items are dropped."""
    assert value(name, " one, two ,,three,") == ("one", "two", "three")
    assert value(name, ",") == ()


def test_allowed_origins() -> None:
    """ALLOWED_ORIGINS takes origins of any scheme, wildcards for subdomains, null and *, in one form for equal ones."""
    text = (
        "https://A.example:443, http://b:80,http://b:8080 ,app://shell,https://*.Example.org:443,NULL,http://[::1]:1,*,"
    )
    assert value("ALLOWED_ORIGINS", text) == (
        *("https://a.example", "http://b", "http://b:8080", "app://shell", "https://*.example.org", "null"),
        *("http://[::1]:1", "*"),
    )
    assert value("ALLOWED_ORIGINS", ",") == ()


@pytest.mark.parametrize(
    "text",
    [
        "example.org",
        "https://example.org/",
        "https://example.org/page",
        "https://user@example.org",
        "https://example.org:port",
        "https://example.org:70000",
        "https://",
        "https://*",
        "https://a.*.example.org",
        "*.example.org",
        "https://good.example https://b.example",
        "https://good.example,file:",
    ],
)
def test_allowed_origins_refused(text: str) -> None:
    """Anything else stops the start, with what is allowed."""
    assert refusal("ALLOWED_ORIGINS", text).startswith(
        f"ALLOWED_ORIGINS={text}: must be comma-separated origins, each "
    )


def test_root_path() -> None:
    """ROOT_PATH is a path; a slash at its end is dropped."""
    assert value("ROOT_PATH", "/x") == "/x"
    assert value("ROOT_PATH", "/a/b-c/") == "/a/b-c"
    assert value("ROOT_PATH", "/") == ""
    for bad in ("x", "https://h/x", "/x?y", "/a b", "//h", '/"x', "/x/../y", "/./x"):
        assert refusal("ROOT_PATH", bad).startswith(f"ROOT_PATH={bad}: must be a path like /events")


def test_choices() -> None:
    """The log level and format are accepted in any letter case; other values are refused."""
    assert value("LOG_LEVEL", "debug") == "DEBUG"
    assert value("LOG_FORMAT", "JSON") == "json"
    assert refusal("LOG_FORMAT", "xml") == "LOG_FORMAT=xml: must be one of json, text"
    assert refusal("LOG_LEVEL", "loud").startswith("LOG_LEVEL=loud: must be one of CRITICAL, DEBUG, ERROR")


@pytest.mark.parametrize(
    "url",
    ["redis://h", "redis://u:p@h:1/0", "rediss://:p@h:6379", "redis://[::1]:6379/1", "unix:///a/b", "unix://u@/a?db=1"],
)
def test_redis_url(url: str) -> None:
    """REDIS_URL accepts redis://, rediss:// and unix://, and is passed on unchanged."""
    assert value("REDIS_URL", url) == url


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("localhost:6379", "localhost:6379"),
        ("http://h", "http://h"),
        ("redis:/h", "redis:***"),
        ("REDIS://h", "REDIS://h"),
        ("unix://", "unix://"),
        ("redis://h:port", "redis://h:***"),
        ("redis://:hunter2", "redis://:***"),
        ("redis://u:hunter2@h:port", "redis://***@h:***"),
        ("redis://u:hunt?er2@h:x", "redis://***@h:***"),
        ("http://:hunter2@h/0", "http://***@h/0"),
        ("u:hunter2@h", "***@h"),
        ("u:hunter2", "u:***"),
        ("tcp://h?password=hunter2", "tcp://h?***"),
        ("redis://[h", "redis://[h"),
    ],
)
def test_redis_url_refused(url: str, shown: str) -> None:
    """An invalid REDIS_URL is refused, and its credentials are in no error text."""
    assert refusal("REDIS_URL", url).startswith(f"REDIS_URL={shown}: must be a URL like redis://")


def test_describe_masks() -> None:
    """The settings that are logged at the start are one line without credentials."""
    environ = dict.fromkeys(SECRETS, "hunter2,x")
    settings = read(**environ, REDIS_URL="rediss://u:hunt@er2@h:6379/0?password=hunter2", HOST="a\nb")
    text = settings.describe()
    assert "hunt" not in text + repr(settings)
    assert "\n" not in text
    for part in ("PORT=8000", "REDIS_URL=rediss://***@h:6379/0?***", *(f"{name}=***" for name in SECRETS)):
        assert part in text.split()
    assert "REDIS_URL=redis://[::1]:6379/1" in read(REDIS_URL="redis://[::1]:6379/1").describe().split()


def test_describe_embedded() -> None:
    """Without REDIS_URL the logged settings say that the embedded server is used."""
    assert {"REDIS_URL=embedded", "API_KEYS="} <= set(read().describe().split(" "))


def test_help_is_complete() -> None:
    """The help lists every setting that has an effect, with its default."""
    rows = {name: default for name, default, _ in settings_help()}
    reserved = {"API_KEYS_FILE", "JWT_SECRET", "JWT_JWKS_FILE", "TRUSTED_PROXIES", "INTERNAL_TOKEN"}
    assert set(rows) == set(DEFAULTS) - reserved
    assert rows["PORT"] == "8000"
    assert all(re.fullmatch(r"\S.*\S", meaning) for _, _, meaning in settings_help())


def test_settings_without_effect() -> None:
    """Settings that have no effect yet are listed if they are set."""
    set_ = {"JWT_SECRET": "hidden", "TRUSTED_PROXIES": "10.0.0.1", "API_KEYS": "used"}
    assert Settings.from_environment(set_).without_effect() == ["JWT_SECRET", "TRUSTED_PROXIES"]
    assert Settings().without_effect() == []
