"""REDIS_URL: every part of it is understood, or it is refused with what is allowed and without its credentials."""

from pathlib import Path

import pytest

from handlers.redis_url import check_redis_url, mask_redis_url

EXAMPLES = "must be a URL like redis://host:6379/0, rediss://host:6379/0 or unix:///path/to/socket"
ENCODED = "; write the characters # / ? @ and % of a user or password as %23 %2F %3F %40 and %25"
PLAIN = "allowed after ? are db, username, password"


@pytest.mark.parametrize(
    "url",
    [
        "redis://h",
        "redis://h/",
        "redis://h:6379/15",
        "redis://h?db=2",
        "redis://[::1]:1/0",
        "redis://u:p%23%40%2F@h/0",
        "redis://u:50%@h",
        "redis://h/0?username=u&password=p%40p",
        "rediss://h/0?ssl_cert_reqs=none",
        "rediss://h/0?ssl_cert_reqs=required&ssl_check_hostname=False",
        "unix:///a/b",
        "unix://u:p@/a/b@c?db=1",
    ],
)
def test_understood(url: str) -> None:
    """Hosts, ports, databases, credentials and the options of TLS are passed on unchanged."""
    assert check_redis_url(url) == url


def test_files(tmp_path: Path) -> None:
    """The files of TLS must be there; an encoded path is decoded."""
    file = tmp_path / "a b.pem"
    query = f"?ssl_ca_certs={tmp_path}/a%20b.pem"
    with pytest.raises(ValueError, match=r"^the option ssl_ca_certs must be the path of a file that can be read$"):
        check_redis_url(f"rediss://h{query}")
    file.touch()
    assert check_redis_url(f"rediss://h{query}")
    for name in ("ssl_certfile", "ssl_keyfile"):
        assert check_redis_url(f"rediss://h?{name}={file}")
        with pytest.raises(ValueError, match=name):
            check_redis_url(f"rediss://h?{name}={tmp_path}")


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("redis://h?foo=bar", f"the option foo is not understood; {PLAIN}"),
        ("redis://h?decode_responses=True", f"the option decode_responses is not understood; {PLAIN}"),
        ("redis://h?socket_timeout", f"the option socket_timeout is not understood; {PLAIN}"),
        ("redis://h?<b>=1", f"an option is not understood; {PLAIN}"),
        (
            "redis://h?ssl_cert_reqs=none",
            f"the option ssl_cert_reqs is not understood; only rediss:// takes it; {PLAIN}",
        ),
        ("unix:///a?ssl_keyfile=x", f"the option ssl_keyfile is not understood; only rediss:// takes it; {PLAIN}"),
        ("rediss://h?ssl_cert_reqs=CERT_NONE", "the option ssl_cert_reqs must be one of required, none"),
        ("rediss://h?ssl_check_hostname=2", "the option ssl_check_hostname must be one of true, false, True, False"),
        ("redis://h?db=x", "the option db must be a number"),
        ("redis://h?db=", "the option db must be a number"),
        ("redis://h?db=1&db=1", "db is given twice"),
        ("redis://h/1?db=1", "db is given twice"),
        ("redis://h/cache", "the database must be a number, as in redis://host:6379/0"),
        ("rediss://h/0/1", "the database must be a number, as in rediss://host:6379/0"),
        ("redis://h/-1", "the database must be a number, as in redis://host:6379/0"),
        ("redis://:12/sesame@h", f"the database must be a number, as in redis://host:6379/0{ENCODED}"),
        ("redis://:ses#ame@h/0", EXAMPLES + ENCODED),
        ("redis://:1#sesame@h/0", EXAMPLES + ENCODED),
        ("redis://:1?sesame@h/0", EXAMPLES + ENCODED),
        ("redis://:ses/ame@h/0", EXAMPLES + ENCODED),
        ("redis://h#", EXAMPLES),
        ("redis://h:0", EXAMPLES),
        ("redis://h1,h2:1", EXAMPLES),
        ("redis://h 1/0", EXAMPLES),
        ("redis://h\n/0", EXAMPLES),
        ("unix://h/a", EXAMPLES),
        ("unix://:1/a", EXAMPLES),
        ("unix:///", EXAMPLES),
        ("redis+sentinel://h:26379,i:26379/main", EXAMPLES),
        ("redis+cluster://:sesame@h", EXAMPLES + ENCODED),
    ],
)
def test_refused(url: str, text: str) -> None:
    """A part that is not understood is refused, with what is allowed."""
    with pytest.raises(ValueError, match=r".") as caught:
        check_redis_url(url)
    assert str(caught.value) == text
    assert "sesame" not in text + mask_redis_url(url)


def test_masks() -> None:
    """The scheme and the host stay visible, the credentials and the options do not."""
    assert mask_redis_url("rediss+sentinel://u:sesame@h:1/main?x=y") == "rediss+sentinel://***@h:1/main?***"
    assert mask_redis_url("redis://:sesame") == "redis://:***"
