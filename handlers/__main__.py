"""The command line: `event-broadcaster serve | tail | demo`, or `python -m handlers …`.

This module parses arguments, starts and stops things in order, and sets the exit status. Each command imports what it
needs when it runs, so that `tail` and `demo` do not load the server.
"""

import argparse
import asyncio
import contextlib
import io
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import NoReturn
from urllib.parse import urlsplit

from handlers.settings import Settings, SettingsError, settings_help

__all__ = ["main"]

_FAILED = 1
_USAGE_ERROR = 2
_SHOWN = 50  # characters of a refused argument, in the error
_API_KEY = """
credentials, if the service needs them:
  EVENT_BROADCASTER_API_KEY   one of the service's API_KEYS; or use --api-key"""
_PROXIES = (
    "Proxies are taken from http_proxy, https_proxy and all_proxy, but not for loopback or the hosts of no_proxy."
)
_FOR_WEBSOCKETS = """
  EVENT_BROADCASTER_TOKEN     the service's WEBSOCKET_TOKEN; or use --token"""
_PREFER_ENVIRONMENT = """
  Prefer the environment: every user of the machine can read the arguments of a process.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; 2 means an invalid argument or setting."""
    options = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # so that tail does not fail in a terminal that is not UTF-8
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except SettingsError as error:
        return _report(error)
    except KeyboardInterrupt:
        return 0


def _serve(options: argparse.Namespace) -> int:
    environ = dict(os.environ)
    environ |= {name: value for name, value in (("HOST", options.host), ("PORT", options.port)) if value is not None}
    settings = Settings.from_environment(environ)

    # Until the server installs its own handlers, SIGTERM runs the `finally` blocks, as Ctrl-C does.
    signal.signal(signal.SIGTERM, _exit)
    signal.signal(signal.SIGHUP, _exit if sys.stdin is not None and sys.stdin.isatty() else signal.SIG_IGN)
    from handlers.server.embedded import EmbeddedUnavailable, EmbeddedValkey
    from handlers.server.listening import AddressInUse, bind
    from handlers.server.server import run

    try:
        sockets = bind(settings.host, settings.port)
        apart = settings.internal_port
        internal = [] if apart is None else bind(settings.host, apart, "INTERNAL_PORT")
    except AddressInUse as error:
        _report(error)
        return _FAILED
    serve = partial(run, settings, sockets=sockets, internal=internal)
    if settings.redis_url is not None:
        return serve(redis_url=settings.redis_url, embedded=None)
    embedded = EmbeddedValkey()
    try:
        return serve(redis_url=embedded.start(), embedded=embedded)
    except EmbeddedUnavailable as error:
        return _report(error)
    finally:
        # After the drain: until then the service still needs it.
        embedded.stop()


def _tail(options: argparse.Namespace) -> int:
    from handlers.cli.proxy import proxy_for
    from handlers.cli.tail import follow

    headers = [("X-API-Key", options.api_key)] if options.api_key else []
    headers += [("Authorization", f"Bearer {options.token}")] if options.token else []
    work = follow(
        options.url,
        patterns=options.pattern,
        since=options.since,
        headers=headers,
        raw=options.json,
        stream=options.sse,
        proxy=proxy_for(options.url, os.environ),
        emit=_print,
    )
    return asyncio.run(work)


def _demo(options: argparse.Namespace) -> int:
    from handlers.cli.demo import run
    from handlers.cli.proxy import proxy_for

    return run(
        options.url,
        rate=options.rate,
        count=options.count,
        seed=options.seed,
        api_key=options.api_key,
        proxy=proxy_for(options.url, os.environ),
        emit=_print,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="event-broadcaster",
        description="Accepts events over REST and delivers them to the WebSocket clients of every replica.",
    )
    with contextlib.suppress(PackageNotFoundError):  # run from a source tree that is not installed
        parser.add_argument("--version", action="version", version=version("event-broadcaster"))
    commands = parser.add_subparsers(required=True, metavar="serve|tail|demo")

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str, epilog: str) -> argparse.ArgumentParser:
        raw = argparse.RawDescriptionHelpFormatter
        added = commands.add_parser(
            name, help=text, description=text.capitalize() + ".", epilog=epilog, formatter_class=raw
        )
        added.set_defaults(command=run)
        return added

    serve = command("serve", _serve, "run the service", _serve_help())
    serve.add_argument("--host", help="address to listen on (overrides HOST; default 127.0.0.1)")
    serve.add_argument("--port", help="port to listen on, 0 for any free port (overrides PORT; default 8000)")

    tail = command(
        "tail", _tail, "print events as they arrive, one line each, and resume after a lost connection", _TAIL_HELP
    )
    tail.add_argument(
        "pattern",
        nargs="*",
        metavar="PATTERN",
        help="pattern of event names, such as alert.*; without patterns, all events",
    )
    _add_url(tail, "ws://127.0.0.1:8000/ws/events", ("ws", "wss"))
    tail.add_argument("--since", type=_count, metavar="N", help="first print the stored events after sequence number N")
    tail.add_argument("--json", action="store_true", help="print every frame unchanged, including heartbeats")
    tail.add_argument("--sse", action="store_true", help="read server-sent events (/events) instead of the WebSocket")
    _add_secret(tail, "--api-key", "EVENT_BROADCASTER_API_KEY")
    _add_secret(tail, "--token", "EVENT_BROADCASTER_TOKEN")

    demo = command("demo", _demo, "publish a realistic, repeatable stream of messages of every type", _DEMO_HELP)
    _add_url(demo, "http://127.0.0.1:8000", ("http", "https"))
    demo.add_argument(
        "--rate", type=_rate, default=5.0, help="messages per second, 0 for as fast as possible (default 5)"
    )
    demo.add_argument("--count", type=_count, metavar="N", help="stop after N messages; 200 contain every type")
    demo.add_argument(
        "--seed", type=_seed, default=1, help="the same seed gives the same types in the same order (default 1)"
    )
    _add_secret(demo, "--api-key", "EVENT_BROADCASTER_API_KEY")
    return parser


def _add_url(parser: argparse.ArgumentParser, default: str, schemes: tuple[str, ...]) -> None:
    def url(text: str) -> str:
        with contextlib.suppress(ValueError):  # not a URL, or an invalid port
            parts = urlsplit(text)
            if parts.scheme in schemes and parts.hostname and parts.port != 0:
                return text
        raise _invalid(text, f"must be a URL like {default}, or with {schemes[1]}://")

    parser.add_argument("--url", type=url, default=default, help=f"URL of the service (default {default})")


def _add_secret(parser: argparse.ArgumentParser, option: str, variable: str) -> None:
    parser.add_argument(
        option,
        default=os.environ.get(variable, "").strip(),
        metavar=option.rpartition("-")[2].upper(),
        help=f"overrides {variable}",
    )


def _count(text: str) -> int:
    if not re.fullmatch("[0-9]{1,18}", text):
        raise _invalid(text, "must be an integer from 0 to 999999999999999999")
    return int(text)


def _seed(text: str) -> int:
    if not re.fullmatch("[+-]?[0-9]{1,18}", text):
        raise _invalid(text, "must be an integer of at most 18 digits")
    return int(text)


def _rate(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= (number := float(text)) < math.inf:
            return number
    raise _invalid(text, "must be a number of at least 0")


def _invalid(text: str, requirement: str) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"{text if len(text) <= _SHOWN else text[:_SHOWN] + '…'!r} {requirement}")


def _print(line: str) -> None:
    """Print at once; if the reader of the output has ended (`| head`), exit without an error."""
    try:
        print(line, flush=True)
    except OSError as error:  # exits here, so that no caller takes it for a lost connection
        # Python flushes stdout once more when it exits, and that would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0 if isinstance(error, BrokenPipeError) else f"cannot write the output: {error}") from None


def _report(error: Exception) -> int:
    print(f"event-broadcaster: {error}", file=sys.stderr)
    return _USAGE_ERROR


def _exit(*_: object) -> NoReturn:
    raise SystemExit(0)


def _serve_help() -> str:
    rows = "\n".join(
        f"  {name:<34}{f'{meaning} (default {default})' if default else meaning}"
        for name, default, meaning in settings_help()
    )
    return f"""
examples:
  event-broadcaster serve                       (with an embedded Valkey server)
  REDIS_URL=redis://redis:6379/0 event-broadcaster serve --host 0.0.0.0
  API_KEYS=one,two LOG_FORMAT=json event-broadcaster serve --port 9000

settings (environment variables; an empty one counts as unset; sizes in bytes):
{rows}

Traces are configured by the standard OTEL_* variables. On SIGTERM or Ctrl-C the service drains its clients, then exits
with status 0.
"""


_TAIL_HELP = f"""
examples:
  event-broadcaster tail
  event-broadcaster tail 'alert.*' camera.offline
  event-broadcaster tail --since 0 --json | jq -c 'select(.data) | .data'
  event-broadcaster tail --url wss://events.example.org/ws/events
{_API_KEY}{_FOR_WEBSOCKETS}{_PREFER_ENVIRONMENT}
{_PROXIES}
The exit status is 0 after Ctrl-C, and 1 if the service refused the credentials or the address.
"""

_DEMO_HELP = f"""
examples:
  event-broadcaster demo
  event-broadcaster demo --rate 0 --count 200 --seed 7
  event-broadcaster demo --url https://events.example.org
{_API_KEY}{_PREFER_ENVIRONMENT}
{_PROXIES}
The exit status is 0 after N messages or Ctrl-C, and 1 if a message was refused or the service did not answer.
"""


if __name__ == "__main__":
    sys.exit(main())
