"""CPU time and memory of a process, pinning to cores, and a description of the machine."""

import os
import platform
import re
import resource
import shutil
import subprocess
import tempfile
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = [
    "SERVER_CORE",
    "built",
    "cpu_seconds",
    "describe",
    "keep_off_server_core",
    "memory",
    "most_descriptors",
    "peak",
    "pin_to_server_core",
    "restart_peak",
]

# Servers run alone on this core; load clients, Redis and the driver share the others.
SERVER_CORE = 0

_PACKAGES = ("litestar", "uvicorn", "uvloop", "redis", "websockets", "fastapi", "python-socketio")


def cpu_seconds(pid: int) -> float:
    """Return the CPU time, user and system, of all threads of a process, in seconds."""
    with suppress(FileNotFoundError, IndexError):  # in nanoseconds, if the kernel provides them
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> int:
    """Return the resident memory of a process, in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def restart_peak(pid: int) -> int:
    """Reset the `peak` of a process, and return its resident memory, in bytes."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # proc(5)
    return memory(pid)


def peak(pid: int) -> int:
    """Return the most memory of a process, in bytes, that was resident since `restart_peak`."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) * 1024 if found else 0


def most_descriptors() -> int:
    """Return how many files a process may have open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def pin_to_server_core(pid: int) -> None:
    """Pin a process to the servers' core, if there is more than one core."""
    if hasattr(os, "sched_setaffinity") and (os.cpu_count() or 1) > 1:
        os.sched_setaffinity(pid, {SERVER_CORE})


def keep_off_server_core() -> None:
    """Keep this process and its children off the servers' core."""
    if hasattr(os, "sched_setaffinity") and (os.cpu_count() or 1) > 1:
        os.sched_setaffinity(0, set(range(os.cpu_count() or 1)) - {SERVER_CORE})


@cache
def built(source: Path) -> Path | None:
    """Compile a C file and return the program, or None if there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    program = Path(tempfile.mkdtemp(prefix="bench-broadcaster-")) / source.stem
    subprocess.run([compiler, "-O2", "-o", program, source], check=True)
    return program


def describe(redis: str) -> dict[str, object]:
    """Return the machine, versions and date; `redis` is the version that the server reports."""
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
