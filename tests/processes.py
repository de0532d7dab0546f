"""Child processes of the tests: started with default signal dispositions, and always ended.

Scripts, `nohup` and some CI systems start programs with SIGINT or SIGHUP ignored, and a child process inherits that. A
program under test would then ignore the signals that the test sends, as it should in such an environment.
"""

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

__all__ = ["children", "end", "ended", "run", "running", "start"]

# Resets every ignored signal, then becomes the program; the process id stays. A program of its own, not a preexec_fn,
# because after a fork in a process with threads nothing but exec is safe.
_LAUNCHER: Final = """
import os, signal, sys
for number in signal.valid_signals():
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)
os.execvp(sys.argv[1], sys.argv[1:])
"""

# Python itself ignores these, and subprocess resets them.
_RESET_ANYWAY: Final = {signal.SIGPIPE, signal.SIGXFSZ}


def start(command: Sequence[str | Path], **options: Any) -> "subprocess.Popen[Any]":
    """Start a process; the caller must `end` it, whatever happens. `options` are those of `subprocess.Popen`."""
    return subprocess.Popen(_with_default_signals(command), **options)


def end(process: "subprocess.Popen[Any]", seconds: float = 5.0) -> None:
    """End a process, unless it has ended, with SIGTERM or `seconds` later with SIGKILL, and close its pipes."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


@contextlib.contextmanager
def running(command: Sequence[str | Path], **options: Any) -> Iterator["subprocess.Popen[Any]"]:
    """Run a process for the length of a block, and `end` it."""
    process = start(command, **options)
    try:
        yield process
    finally:
        end(process)


def run(command: Sequence[str | Path], *, timeout: float = 60, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run a process to its end, capture its output, and kill it after `timeout` seconds."""
    return subprocess.run(
        _with_default_signals(command), capture_output=True, text=True, timeout=timeout, check=False, **options
    )


def ended(pid: int) -> bool:
    """True if no process has this id, or it has ended and its parent has not waited for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def children() -> dict[int, str]:
    """Return the child processes of this process that are running, as process id and command line (Linux only)."""
    lists = Path("/proc/self/task").glob("*/children")
    running = [int(pid) for each in lists for pid in each.read_text().split() if not ended(int(pid))]
    return {pid: Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid in running}


def _with_default_signals(command: Sequence[str | Path]) -> list[str]:
    arguments = [str(argument) for argument in command]
    ignored = {number for number in signal.valid_signals() if signal.getsignal(number) is signal.SIG_IGN}
    if ignored <= _RESET_ANYWAY:
        return arguments
    return [sys.executable, "-I", "-S", "-c", _LAUNCHER, *arguments]
