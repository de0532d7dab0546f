"""Names the failures of Redis: one line for each error of redis-py, with its class, what is wrong and what to do.

How a line is found. An error has one of two origins. If Redis answered with an error, the code of the answer (`MOVED`)
decides, or for the general code `ERR` its text. If there was no answer, the innermost error that redis-py has wrapped
decides: that of TLS, of the name service, or of the socket, by its number (`ECONNREFUSED`); if it wraps none, its own
class. An error that the tables do not have is named by its class, or by the number's text.

To name a failure of another topology, add a row to the table of its origin.

No line quotes an argument, a payload or a credential. Of what Redis answers only the name of a command is repeated, and
of an unknown answer the words before the first quotation mark, digit or bracket.
"""

import errno
import os
import re
import socket
import ssl
from typing import Final, NamedTuple

from redis.exceptions import RedisError, ResponseError

from kernel.errors import TransportError, TransportUnavailable, WriteRefused

__all__ = ["deadline_missed", "describe", "is_read_only", "response_code", "transport_error"]


class _Failure(NamedTuple):
    """The name of an error, and its advice: what is wrong and what to do."""

    name: str
    advice: str

    def __str__(self) -> str:
        return f"{self.name}: {self.advice}" if self.advice else self.name


_CLUSTER: Final = "this is a cluster, use redis+cluster:// (not supported yet; until then, a single primary)"
_MIND_THE_SCHEME: Final = "check the port, and whether it takes TLS (rediss://) or not (redis://)"
_SILENT: Final = "check host and port, and whether it takes TLS; check the network and its policies"
_CLOSED: Final = "Redis or a proxy closed the connection; if none ever worked, check the port and whether it takes TLS"
_UNAUTHENTICATED: Final = _Failure("AuthenticationError", "Redis asks for a password; add it to REDIS_URL")

# Errors that Redis answers, by their code.
_CODES: Final = {
    "MOVED": _Failure("MovedError", _CLUSTER),
    "ASK": _Failure("AskError", _CLUSTER),
    "CLUSTERDOWN": _Failure("ClusterDownError", _CLUSTER),
    "CROSSSLOT": _Failure("ClusterCrossSlotError", _CLUSTER),
    "TRYAGAIN": _Failure("TryAgainError", _CLUSTER),
    "NOAUTH": _UNAUTHENTICATED,
    "WRONGPASS": _Failure("AuthenticationError", "Redis refused the user or the password; correct them in REDIS_URL"),
    "READONLY": _Failure("ReadOnlyError", "this is a replica; use the address of the primary"),
    "MASTERDOWN": _Failure("MasterDownError", "this is a replica without its primary; use the address of the primary"),
    "OOM": _Failure("OutOfMemoryError", "Redis has reached its maxmemory; raise it, or free memory"),
    "MISCONF": _Failure("MISCONF", "Redis cannot save to its disk; look into its log"),
    "NOREPLICAS": _Failure("NOREPLICAS", "Redis has fewer replicas than min-replicas-to-write; look at them"),
    "NOSCRIPT": _Failure(
        "NoScriptError", "Redis does not keep the scripts that it is given; use Redis ≥ 6.2 or Valkey"
    ),
    "LOADING": _Failure("BusyLoadingError", "Redis is loading its data; wait until it has finished"),
    "BUSY": _Failure("BUSY", "a script of another client blocks Redis; end it with SCRIPT KILL"),
}

# Codes of a Redis that answers reads, but takes no writes.
_WRITES: Final = ("READONLY", "OOM", "MISCONF", "NOREPLICAS")

# Errors that Redis answers, by the beginning of their text. The groups of the expression are put into the advice.
_TEXTS: Final = (
    (r"DB index is out of range", _Failure("ResponseError", "no such database; use a lower number in REDIS_URL")),
    (r"SELECT is not allowed in cluster mode", _Failure("ResponseError", _CLUSTER)),
    (
        r"unknown command '([A-Za-z|]{1,20})'",
        _Failure(
            "ResponseError",
            "unknown command {0}; this is a Sentinel, or the command was renamed away. Use the address of a Redis that "
            "has it",
        ),
    ),
    (
        r"Unknown Redis command called from script|Invalid command passed to redis",
        _Failure("ResponseError", "a command that the scripts call was renamed away; use a Redis that has them all"),
    ),
    (r"Protocol error: unauthenticated", _UNAUTHENTICATED),
    (
        r"AUTH <password> called without any password|Client sent AUTH, but no password is set",
        _Failure("AuthenticationError", "Redis has no password; remove it from REDIS_URL, or set one in Redis"),
    ),
    (r"max number of clients", _Failure("ConnectionError", "Redis has too many clients; raise its maxclients")),
)

# What Redis denies to its user, by the end of the text.
_DENIED: Final = (
    (r"'([a-z|]{1,30})' command", "this user may not run {0}; add +{0} to its ACL"),
    (r"channel", "this user may not use the channel; add &REDIS_EVENT_CHANNEL to its ACL"),
    (r"key", "this user may not use the keys; add ~{REDIS_EVENT_CHANNEL}:* with its braces to its ACL"),
    (r"", "this user may not run a command of the scripts; see the ACL in kernel/README.md"),
)

# Errors of sockets, by their number.
_ERRNOS: Final = {
    errno.ECONNREFUSED: "nothing listens at this address; check host and port, and whether Redis runs",
    errno.ECONNRESET: _CLOSED,
    errno.EPIPE: _CLOSED,
    errno.ENOENT: "no such file; check the path of the socket or of the certificates in REDIS_URL",
    errno.EACCES: "no permission; let this process's user use the socket or read the certificates",
    errno.EHOSTUNREACH: "no way to this host; check the host, the network and its policies",
    errno.ENETUNREACH: "no way to this network; check the host, the network and its policies",
    errno.ETIMEDOUT: "no answer from this host; check host and port, the network and its policies",
    errno.EMFILE: "this process has too many open files; raise its limit",
}

_NAME_SERVICE: Final = {
    socket.EAI_NONAME: "unknown host; check the host in REDIS_URL",
    socket.EAI_NODATA: "unknown host; check the host in REDIS_URL",
    socket.EAI_AGAIN: "the name service does not answer; check the DNS of this machine",
}

# Errors of redis-py itself, by their class.
_CLASSES: Final = {
    "ConnectionError": _CLOSED,
    "TimeoutError": f"no answer in time; {_SILENT}",
    "InvalidResponse": f"the other side does not speak the protocol of Redis; {_MIND_THE_SCHEME}",
}


def describe(error: BaseException) -> str:
    """Return one line: the class of the error or the name of its number, what is wrong, and what to do."""
    return str(_failure(error))


def is_read_only(error: BaseException) -> bool:
    """Return True if Redis refused a write because it is a replica."""
    return isinstance(error, ResponseError) and _code(error) == "READONLY"


def response_code(error: BaseException) -> str | None:
    """Return the code with which Redis answered a command (`NOREPLICAS`, `ERR`), None if it gave no answer.

    A code has at most 20 letters; none of the text after it is returned.
    """
    inner: BaseException | None = error
    while inner is not None:
        if (answer := _answer(inner)) is not None:
            # redis-py leaves a code that it does not know at the beginning of the text.
            unknown = re.match(r"[A-Z]{2,20}(?= )", str(answer)) if answer.status_code is None else None
            return _code(answer) or (unknown[0] if unknown else "ERR")
        inner = inner.__cause__
    return None


def transport_error(error: BaseException) -> TransportError:
    """Return the kernel's error for one of redis-py's."""
    failure = _failure(error)
    if not isinstance(error, ResponseError) or failure is _UNAUTHENTICATED:
        return TransportUnavailable(f"Redis cannot be reached: {failure}")
    what = "writes" if _code(error) in _WRITES else "the command"
    return WriteRefused(f"Redis refuses {what}: {failure}")


def deadline_missed(seconds: float) -> TransportUnavailable:
    """Return the kernel's error for a call that Redis did not answer within its deadline."""
    failure = _Failure("TimeoutError", f"no answer within {seconds:.3g} s; {_SILENT}")
    return TransportUnavailable(f"Redis cannot be reached: {failure}")


def _failure(error: BaseException) -> _Failure:
    inner: BaseException | None = error
    while inner is not None:
        if (answer := _answer(inner)) is not None:
            return _answered(answer)
        # A TimeoutError without a number is that of a deadline, and says no more than the class of the outer one.
        if isinstance(inner, OSError) and inner.args and not (isinstance(inner, TimeoutError) and inner.errno is None):
            return _unanswered(inner)
        inner = inner.__cause__ or inner.__context__
    return _Failure(type(error).__name__, _CLASSES.get(type(error).__name__, ""))


def _answer(error: BaseException) -> RedisError | None:
    """Return the error if Redis answered it."""
    if isinstance(error, RedisError) and (isinstance(error, ResponseError) or error.status_code is not None):
        return error
    return None


def _answered(error: RedisError) -> _Failure:
    """Name an error that Redis answered."""
    code, text = _code(error), str(error)
    if code == "NOPERM":
        found_advice = ((re.search(pattern, text), advice) for pattern, advice in _DENIED)
        return next(_Failure("NoPermissionError", _filled(advice, found)) for found, advice in found_advice if found)
    if code in _CODES:
        return _CODES[code]
    for pattern, failure in _TEXTS:
        if found := re.match(pattern, text):
            return failure if failure is _UNAUTHENTICATED else _Failure(failure.name, _filled(failure.advice, found))
    words = re.split(r"[^A-Za-z ,-]", text, maxsplit=1)[0]
    return _Failure(type(error).__name__, words[:60].strip())


def _filled(advice: str, found: re.Match[str]) -> str:
    return advice.replace("{0}", found[1].upper()) if found.re.groups else advice


def _code(error: RedisError) -> str:
    """Return the code of an answer; redis-py cuts those that it knows off the text.

    For an error inside a script, Redis 6.2 puts "ERR Error running script" before the code.
    """
    if error.status_code not in (None, "ERR"):
        return str(error.status_code)
    found = re.search(rf"(?:^|-)({'|'.join((*_CODES, 'NOPERM'))}) ", str(error))
    return found[1] if found else ""


def _unanswered(error: OSError) -> _Failure:
    """Name an error of TLS, of the name service or of the socket."""
    name = type(error).__name__
    if isinstance(error, ssl.SSLCertVerificationError):
        return _Failure(
            name, f"{error.verify_message.rstrip('.')}; set ssl_ca_certs in REDIS_URL, and a host that it names"
        )
    if isinstance(error, ssl.SSLError):
        reason = getattr(error, "reason", None) or "TLS failed"  # OpenSSL's errors have one
        if "CERTIFICATE_REQUIRED" in reason or "HANDSHAKE_FAILURE" in reason:
            return _Failure(name, f"{reason}; set ssl_certfile and ssl_keyfile in REDIS_URL")
        return _Failure(name, f"{reason}; {_MIND_THE_SCHEME}")
    if isinstance(error, socket.gaierror):
        return _Failure(name, _NAME_SERVICE.get(error.errno or 0, "the host cannot be resolved; check REDIS_URL"))
    # The error for several addresses of one host has no number, but lists those of each address.
    listed = re.search(r"\[Errno (\d+)\]", str(error))
    number = error.errno or (int(listed[1]) if listed else 0)
    if not number and isinstance(error, ConnectionError):  # asyncio's for a connection that is lost already
        number = errno.ECONNRESET
    return _Failure(errno.errorcode.get(number, name), _ERRNOS.get(number, os.strerror(number) if number else ""))
