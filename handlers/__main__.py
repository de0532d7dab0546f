"""The command line: `event-broadcaster serve | tail | demo`, also as `python -m handlers`.

Only arguments, exit statuses and the order of starting and stopping live here. A command imports what it needs when it
is run: `tail` and `demo` load no server.
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
from importlib.metadata import PackageNotFoundError, version
from typing import NoReturn
from urllib.parse import urlsplit

from handlers.settings import Settings, SettingsError, settings_help

__all__ = ["main"]

_USAGE_ERROR = 2
_SHOWN = 50  # characters of an argument that is refused
_API_KEY = """
credentials, where the service asks for them:
  EVENT_BROADCASTER_API_KEY   one of the service's API_KEYS; or --api-key"""
_FOR_WEBSOCKETS = """
  EVENT_BROADCASTER_TOKEN     the service's WEBSOCKET_TOKEN; or --token"""
_BETTER = """
  The environment is the better place: arguments can be read by everyone on the machine.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; 2 is a wrong argument or setting."""
    options = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that is not UTF-8 ends no tail
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except KeyboardInterrupt:
        return 0


def _serve(options: argparse.Namespace) -> int:
    environ = dict(os.environ)
    environ |= {name: value for name, value in (("HOST", options.host), ("PORT", options.port)) if value is not None}
    try:
        settings = Settings.from_environment(environ)
    except SettingsError as error:
        return _complain(error)

    # Until the server has its own handlers, SIGTERM shall take the way through `finally` as Ctrl-C does.
    signal.signal(signal.SIGTERM, _leave)
    from handlers.server.embedded import EmbeddedUnavailable, EmbeddedValkey
    from handlers.server.server import run

    if settings.redis_url is not None:
        return run(settings, redis_url=settings.redis_url, embedded=None)
    embedded = EmbeddedValkey()
    try:
        return run(settings, redis_url=embedded.start(), embedded=embedded)
    except EmbeddedUnavailable as error:
        return _complain(error)
    finally:
        # Last, after the drain: until then the service publishes through it.
        embedded.stop()


def _tail(options: argparse.Namespace) -> int:
    from handlers.cli.tail import follow

    headers = [("X-API-Key", options.api_key)] if options.api_key else []
    headers += [("Authorization", f"Bearer {options.token}")] if options.token else []
    work = follow(
        options.url, patterns=options.pattern, since=options.since, headers=headers, raw=options.json, emit=_print
    )
    return asyncio.run(work)


def _demo(options: argparse.Namespace) -> int:
    from handlers.cli.demo import run

    return run(
        options.url, rate=options.rate, count=options.count, seed=options.seed, api_key=options.api_key, emit=_print
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="event-broadcaster", description="Events in over REST, out to every WebSocket client of every replica."
    )
    with contextlib.suppress(PackageNotFoundError):  # run from a checkout that is not installed
        parser.add_argument("--version", action="version", version=version("event-broadcaster"))
    commands = parser.add_subparsers(required=True, metavar="serve|tail|demo")

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str, more: str) -> argparse.ArgumentParser:
        raw = argparse.RawDescriptionHelpFormatter
        added = commands.add_parser(name, help=text, description=text, epilog=more, formatter_class=raw)
        added.set_defaults(command=run)
        return added

    serve = command("serve", _serve, "run the service", _serve_help())
    serve.add_argument("--host", help="address to listen on (instead of HOST; default 127.0.0.1)")
    serve.add_argument("--port", help="port to listen on, 0 for any free one (instead of PORT; default 8000)")

    tail = command("tail", _tail, "print events as they come, one line each; resumes by itself", _TAIL_HELP)
    tail.add_argument("pattern", nargs="*", metavar="PATTERN", help="glob on event names; none: everything")
    _add_url(tail, "ws://127.0.0.1:8000/ws/events", ("ws", "wss"))
    tail.add_argument("--since", type=_count, metavar="N", help="first replay what is kept after sequence N")
    tail.add_argument("--json", action="store_true", help="print all frames as they came, heartbeats too")
    _add_secret(tail, "--api-key", "EVENT_BROADCASTER_API_KEY")
    _add_secret(tail, "--token", "EVENT_BROADCASTER_TOKEN")

    demo = command("demo", _demo, "post a believable, repeatable stream of all message families", _DEMO_HELP)
    _add_url(demo, "http://127.0.0.1:8000", ("http", "https"))
    demo.add_argument("--rate", type=_rate, default=5.0, help="messages a second, 0 for all speed (default 5)")
    demo.add_argument("--count", type=_count, metavar="N", help="end after N messages; 200 cover all families")
    demo.add_argument("--seed", type=_seed, default=1, help="same seed, same types in the same order (default 1)")
    _add_secret(demo, "--api-key", "EVENT_BROADCASTER_API_KEY")
    return parser


def _add_url(parser: argparse.ArgumentParser, default: str, schemes: tuple[str, ...]) -> None:
    def url(text: str) -> str:
        with contextlib.suppress(ValueError):  # no URL, or a port that is none
            parts = urlsplit(text)
            if parts.scheme in schemes and parts.hostname and parts.port != 0:
                return text
        raise _unusable(text, f"must be a URL like {default}, or with {schemes[1]}://")

    parser.add_argument("--url", type=url, default=default, help=f"where the service is (default {default})")


def _add_secret(parser: argparse.ArgumentParser, option: str, variable: str) -> None:
    parser.add_argument(
        option, default=os.environ.get(variable, "").strip(), metavar="X", help=f"instead of {variable}"
    )


def _count(text: str) -> int:
    if not re.fullmatch("[0-9]{1,18}", text):
        raise _unusable(text, "must be an integer from 0 to 999999999999999999")
    return int(text)


def _seed(text: str) -> int:
    if not re.fullmatch("[+-]?[0-9]{1,18}", text):
        raise _unusable(text, "must be an integer of at most 18 digits")
    return int(text)


def _rate(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= (number := float(text)) < math.inf:
            return number
    raise _unusable(text, "must be a number of at least 0")


def _unusable(text: str, wanted: str) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"{text if len(text) <= _SHOWN else text[:_SHOWN] + '…'!r} {wanted}")


def _print(line: str) -> None:
    """Print at once; when nobody reads any more (`| head`) the command ends quietly."""
    try:
        print(line, flush=True)
    except OSError as error:  # not to be taken for a broken connection
        # Python flushes once more at its end, and would complain then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0 if isinstance(error, BrokenPipeError) else f"output: {error}") from None


def _complain(error: Exception) -> int:
    print(f"event-broadcaster: {error}", file=sys.stderr)
    return _USAGE_ERROR


def _leave(*_: object) -> NoReturn:
    raise SystemExit(0)


def _serve_help() -> str:
    rows = "\n".join(
        f"  {name:<33}{f'{meaning} (default {default})' if default else meaning}"
        for name, default, meaning in settings_help()
    )
    return f"""
examples:
  event-broadcaster serve                             with an embedded Valkey server
  REDIS_URL=redis://redis:6379/0 event-broadcaster serve --host 0.0.0.0
  API_KEYS=one,two LOG_FORMAT=json event-broadcaster serve --port 9000

settings (environment; empty means unset; sizes in bytes):
{rows}

Traces are set up by the standard OTEL_* variables. SIGTERM and Ctrl-C drain the clients, then end with status 0.
"""


_TAIL_HELP = f"""
examples:
  event-broadcaster tail
  event-broadcaster tail 'alert.*' camera.offline
  event-broadcaster tail --since 0 --json | jq -c 'select(.data) | .data'
  event-broadcaster tail --url wss://events.example.org/ws/events
{_API_KEY}{_FOR_WEBSOCKETS}{_BETTER}
Ctrl-C ends with status 0; refused credentials with status 1.
"""

_DEMO_HELP = f"""
examples:
  event-broadcaster demo
  event-broadcaster demo --rate 0 --count 200 --seed 7
  event-broadcaster demo --url https://events.example.org
{_API_KEY}{_BETTER}
Ctrl-C ends with status 0; the status is 1 if a message was refused or the service is not there.
"""


if __name__ == "__main__":
    sys.exit(main())
