"""The rules for origins and hosts."""

import pytest

from handlers.origins import Access, OriginRules, host_of, normalized, only_loopback

REFUSED, SERVED, READABLE = Access


def rules(*allowed: str, credentials: bool = False, loopback: bool = True) -> OriginRules:
    """Return the rules for these items of ALLOWED_ORIGINS."""
    return OriginRules(allowed, credentials=credentials, loopback=loopback)


@pytest.mark.parametrize(
    ("origin", "access"),
    [
        ("https://panel.example", READABLE),
        ("https://PANEL.example:443", READABLE),
        ("http://panel.example", REFUSED),
        ("https://panel.example:8443", REFUSED),
        ("https://panel.example.evil.example", REFUSED),
        ("https://a.example.org", READABLE),
        ("https://b.a.example.org:443", READABLE),
        ("https://example.org", REFUSED),
        ("https://.example.org", REFUSED),
        ("https://*.example.org", REFUSED),
        ("https://evilexample.org", REFUSED),
        ("http://a.example.org", REFUSED),
        ("https://a.example.org:8443", REFUSED),
        ("http://dev.example:3000", READABLE),
        ("http://dev.example", REFUSED),
        ("app://shell", READABLE),
        ("null", REFUSED),
        ("", REFUSED),
        ("nonsense", REFUSED),
        ("https://panel.example, https://evil.example", REFUSED),
        ("https://panel.example/", REFUSED),
        ("https://" + "a." * 200 + "example.org", REFUSED),
        ("http://localhost", REFUSED),
    ],
)
@pytest.mark.parametrize("credentials", [False, True])
def test_listed(origin: str, access: Access, credentials: bool) -> None:
    """With a list, exactly its origins and the subdomains of its wildcards are allowed, on any host."""
    listed = rules(
        *("https://panel.example", "https://*.example.org:443", "http://dev.example:3000", "app://shell"),
        credentials=credentials,
    )
    assert listed.access(origin, "localhost") is access


def test_no_name_is_longer_than_a_domain_name() -> None:
    """A longer one is not valid, so that no log line or answer repeats it."""
    assert host_of("a" * 254) == "a" * 254
    assert host_of("a" * 255) is None
    for origin in (f"{'a' * 33}://b", f"a://{'b' * 255}"):
        with pytest.raises(ValueError, match="must be"):
            normalized(origin)


def test_null() -> None:
    """`null` allows pages without an origin, and them alone."""
    assert rules("null").access("null", "h") is READABLE
    assert rules("null").access("https://a", "h") is REFUSED


@pytest.mark.parametrize("origin", ["https://a", "null", "nonsense"])
def test_any(origin: str) -> None:
    """`*` allows all, also beside other items."""
    assert rules("*").access(origin, "h") is READABLE
    assert rules("https://b", "*", credentials=True).access(origin, None) is READABLE


def test_default_with_credentials() -> None:
    """Without ALLOWED_ORIGINS but with credentials, every origin is served, without CORS headers."""
    assert rules(credentials=True).access("https://a", "h") is SERVED
    assert rules(credentials=True).access("https://h", "h") is SERVED


@pytest.mark.parametrize(
    ("origin", "host", "access"),
    [
        ("https://h.example", "h.example", READABLE),
        ("http://H.example:3000", "h.EXAMPLE:8000", READABLE),
        ("http://h.example.", "h.example", READABLE),
        ("http://a.h.example", "h.example", REFUSED),
        ("null", "h.example", REFUSED),
        ("http://localhost:3000", "127.0.0.1:8000", READABLE),
        ("http://127.0.0.1:3000", "[::1]:8000", READABLE),
        ("http://app.localhost", "localhost", READABLE),
        ("http://localhost", "h.example", REFUSED),
        ("http://h.example", "localhost", REFUSED),
        ("http://127.0.0.1.evil.example", "127.0.0.1", REFUSED),
        ("http://notlocalhost", "localhost", REFUSED),
        ("http://h.example", None, REFUSED),
        ("http://h.example", "h.example@evil", REFUSED),
    ],
)
@pytest.mark.parametrize("loopback", [False, True])
def test_default(origin: str, host: str | None, access: Access, loopback: bool) -> None:
    """Without ALLOWED_ORIGINS and credentials, the page's host must be the service's, or both loopback."""
    assert rules(loopback=loopback).access(origin, host) is access


HOSTS = [
    ("localhost", True),
    ("LOCALHOST:8000", True),
    ("localhost.", True),
    ("app.localhost:1", True),
    ("127.0.0.1:8000", True),
    ("127.9.9.9", True),
    ("[::1]:8000", True),
    ("good.example:8000", True),
    ("a.wild.example", True),
    (None, True),  # HTTP/1.0
    ("wild.example", False),
    ("evil.example", False),
    ("localhost.evil.example", False),
    ("notlocalhost", False),
    ("127.0.0.1.evil.example", False),
    ("128.0.0.1", False),
    ("0.0.0.0", False),
    ("[::2]", False),
    ("", False),
    ("localhost@evil.example", False),
    ("localhost, evil.example", False),
    ("localhost:80x", False),
    ("a." * 200 + "wild.example", False),
]


@pytest.mark.parametrize(("host", "answered"), HOSTS)
def test_host(host: str | None, answered: bool) -> None:
    """On loopback without credentials, only loopback names and the hosts of ALLOWED_ORIGINS are answered."""
    listed = rules("https://good.example", "https://*.wild.example", "null")
    assert listed.refuses_host(host) is not answered
    assert listed.refuses_host(host) is not answered  # the same host once more
    assert not listed.refuses_host("localhost")
    assert listed.refuses_host(host) is not answered


@pytest.mark.parametrize(
    "open_rules", [rules(loopback=False), rules(credentials=True), rules("*"), rules("https://b.example", "*")]
)
def test_host_is_not_checked(open_rules: OriginRules) -> None:
    """The host is not checked beyond loopback, with credentials, or if any origin is allowed."""
    assert not open_rules.refuses_host("evil.example")


@pytest.mark.parametrize(
    ("host", "only"),
    [
        ("127.0.0.1", True),
        ("127.0.0.2", True),
        ("localhost", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.0.2.1", False),
        ("no such host", False),
    ],
)
def test_only_loopback(host: str, only: bool) -> None:
    """A service listens on loopback only if every address of its HOST is a loopback address."""
    assert only_loopback(host) is only
