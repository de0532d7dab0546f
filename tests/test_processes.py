"""The helper that starts and ends child processes."""

import contextlib
import signal
import subprocess
import sys

import pytest

from tests import processes

SHOW = """
import signal
print(signal.getsignal(signal.SIGINT) is signal.default_int_handler, signal.getsignal(signal.SIGHUP))
"""
WAIT = "import time; time.sleep(60)"
IGNORE = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ignored", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("disposition", [signal.SIG_DFL, signal.SIG_IGN])
def test_default_signals(disposition: signal.Handlers) -> None:
    """A child process has the default dispositions, whatever its parent ignores."""
    before = {number: signal.signal(number, disposition) for number in (signal.SIGINT, signal.SIGHUP)}
    try:
        shown = processes.run([sys.executable, "-c", SHOW])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert (shown.stdout, shown.returncode) == (f"True {signal.SIG_DFL}\n", 0)


def test_end() -> None:
    """A process that ignores SIGTERM is killed, and its pipes are closed, whatever the block raises."""
    with contextlib.suppress(ZeroDivisionError):
        with processes.running([sys.executable, "-c", IGNORE], stdout=subprocess.PIPE) as process:
            assert process.stdout.readline() == b"ignored\n"
            assert process.pid in processes.children()
            processes.end(process, 0.1)
        with processes.running([sys.executable, "-c", WAIT]) as waiting:
            raise ZeroDivisionError
    assert (process.returncode, waiting.returncode) == (-signal.SIGKILL, -signal.SIGTERM)
    assert process.stdout.closed
    assert processes.ended(process.pid)
    assert not {process.pid, waiting.pid} & processes.children().keys()
