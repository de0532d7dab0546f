"""What the machine says: CPU time and memory of a process, its cores, and what to write beside a table."""

import os
import platform
import shutil
import subprocess
import tempfile
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["SERVER_CORE", "built", "cpu_seconds", "describe", "keep_off_server_core", "memory", "pin_to_server_core"]

# Servers have this core to themselves; the clients, Redis and the driver share the others.
SERVER_CORE = 0

_PACKAGES = ("litestar", "uvicorn", "uvloop", "redis", "websockets", "fastapi", "python-socketio")


def cpu_seconds(pid: int) -> float:
    """CPU time, user and system, that all threads of a process have used so far."""
    with suppress(FileNotFoundError, IndexError):  # nanoseconds, where the kernel keeps them
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> int:
    """Bytes of memory that a process occupies (RSS)."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def pin_to_server_core(pid: int) -> None:
    """Let a server run on its core alone, where there is more than one."""
    if hasattr(os, "sched_setaffinity") and (os.cpu_count() or 1) > 1:
        os.sched_setaffinity(pid, {SERVER_CORE})


def keep_off_server_core() -> None:
    """Leave the servers' core to them; what this process starts does so too."""
    if hasattr(os, "sched_setaffinity") and (os.cpu_count() or 1) > 1:
        os.sched_setaffinity(0, set(range(os.cpu_count() or 1)) - {SERVER_CORE})


@cache
def built(source: Path) -> Path | None:
    """The program made from a C file, or None if there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    program = Path(tempfile.mkdtemp(prefix="bench-broadcaster-")) / source.stem
    subprocess.run([compiler, "-O2", "-o", program, source], check=True)
    return program


def describe(redis: str) -> dict[str, object]:
    """The machine, the versions and the date; `redis` is the server's own word for its version."""
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{platform.machine()}, {_processor()}, {os.cpu_count()} cores, Linux {platform.release()}",
        "versions": {
            "python": platform.python_version(),
            "redis server": redis,
            **{name: found for name in _PACKAGES if (found := _installed(name))},
        },
        "load": os.getloadavg()[0],
    }


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"


def _installed(name: str) -> str | None:
    with suppress(PackageNotFoundError):
        return version(name)
    return None
