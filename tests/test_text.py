"""The text of the project: plain English, documents that stand alone, and a short README."""

import ast
import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = ("kernel", "handlers", "telemetry", "tests")
MODULES = sorted(
    path for folder in SOURCES for path in (ROOT / folder).rglob("*.py") if "__pycache__" not in path.parts
)
DOCUMENTS = sorted(path for path in ROOT.rglob("*.md") if not path.relative_to(ROOT).parts[0].startswith("."))
LONGEST_README = 130
LONGEST_SUBJECT = 72
# The commits from here on have short subjects.
FIRST_COMMIT = "45c1f88"

# Words that have to be decoded, and the better ones.
BANNED = {
    r"\banew\b": "again, or a verb with re-",
    r"\b(who|whom|whoever)\b": "a noun: a client that, a caller that",
    r"\b(some|every|any)body\b": "the actor: a client, a producer, another program",
    r"\bso many\b": "the name of the number",
    r"\bas ever\b": "unchanged",
    r"\bof ours\b": "valid, invalid, this service's",
    r"\b(hears?|heard|ears?)\b": "receives, is notified",
    r"\bow(e|es|ed)\b": "must get, outstanding",
    r"\b(befalls?|midst|fate|house|guests?|wishes|wanderers?|demons?|strangers?)\b": "what it is",
    r"\bwithout a word\b": "without notice",
    r"(?<!RFC \d{4} )(?<!RFC \d{4}, )\bsections? \d": "the behaviour itself, or a document of this repository",
    r"\bthe contract\b": "the protocol document of this repository",
}
# Files that list such words, or have them in the data of their examples.
QUOTING = {"tests/test_text.py", "handlers/openapi/examples.py", "handlers/cli/demo_story.py"}

# First words of docstrings that say neither what a thing is nor what it does.
RIDDLES = ("Whether ", "Give ", "Gives ", "Tell ", "Tells ", "What ", "How ", "Where ", "Why ", "Who ")


def test_readme_is_short() -> None:
    """The README is short enough to be read in two minutes."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= LONGEST_README


def test_no_banned_words() -> None:
    """Docstrings, comments, strings and documents have no words that a reader has to decode."""
    found = []
    for path in [*MODULES, *DOCUMENTS]:
        name = str(path.relative_to(ROOT))
        prose = _prose(path, path.read_text())
        for word, better in BANNED.items() if name not in QUOTING else ():
            for match in re.finditer(word, prose, re.IGNORECASE):
                line = prose.count("\n", 0, match.start()) + 1
                found.append(f"{name}:{line}: {match[0]!r}; better: {better}")
    assert not found, "\n".join(found)


def test_first_lines() -> None:
    """The first line of a docstring says what a thing is or does: an imperative or a noun phrase."""
    found = [
        f"{path.relative_to(ROOT)}: {line}"
        for path in MODULES
        for line in _first_lines(path)
        if line.startswith(RIDDLES)
    ]
    assert not found, "\n".join(found)


def test_citations() -> None:
    """A docstring that cites the protocol, "(protocol: replay)", names a heading of its document."""
    headings = _headings(ROOT / "handlers" / "README.md")
    wrong = [
        f"{path.relative_to(ROOT)}: {cited}"
        for path in MODULES
        if str(path.relative_to(ROOT)) not in QUOTING
        for cited in re.findall(r"\(protocol: ([^)]+)\)", _prose(path, path.read_text()))
        if cited.replace(" ", "-") not in headings
    ]
    assert not wrong, "\n".join(wrong)


def test_documents_stand_alone() -> None:
    """Links and paths in documents lead to files of the repository, and section links to headings."""
    wrong = []
    for document in DOCUMENTS:
        text = document.read_text()
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            path, _, heading = target.partition("#")
            if "://" in path:
                continue
            other = (document.parent / path).resolve() if path else document
            if not other.is_file():
                wrong.append(f"{document.name}: {target}")
            elif heading and heading not in _headings(other):
                wrong.append(f"{document.name}: {target} has no such heading")
        named = re.findall(r"`((?:kernel|handlers|telemetry|tests|k8s)/[\w/.-]+\.\w+)`", text)
        wrong += [f"{document.name}: {path}" for path in named if not (ROOT / path).is_file()]
    assert not wrong, "\n".join(wrong)


def test_guarantees_have_proofs() -> None:
    """Each row of the table of guarantees names a test."""
    text = (ROOT / "kernel" / "README.md").read_text()
    [table] = re.findall(r"\| promise \| how \| proof \|\n\|[-|]+\|\n((?:\|.*\n)+)", text)
    for promise in table.splitlines():
        assert re.search(r"`tests/[\w/]+/test_\w+\.py`[^|]*\|$", promise), promise


def test_commit_subjects() -> None:
    """Subjects of commits are at most 72 characters long."""
    command = ["git", "-c", "safe.directory=*", "log", "--no-merges", "--format=%s", f"{FIRST_COMMIT}..HEAD"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("no clone with this history")
    assert [subject for subject in done.stdout.splitlines() if len(subject) > LONGEST_SUBJECT] == []


def test_reasons_for_exceptions() -> None:
    """Each `type: ignore`, each `noqa` and each rule that ruff ignores has its reason in the same line."""
    wrong = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in MODULES
        if path.is_relative_to(ROOT / "kernel") or path.parts[len(ROOT.parts)] in ("handlers", "telemetry")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"# (type: ignore\[[\w, -]+\]|noqa: [A-Z]+\d+(, [A-Z]+\d+)*)$", line)
    ]
    assert not wrong, "\n".join(wrong)
    [ignored] = re.findall(r"^ignore = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    assert all(re.search(r'^ *"[A-Z0-9]+", +# \S', line) for line in ignored.splitlines()), ignored


def _prose(path: Path, text: str) -> str:
    """Return the text with everything that is neither comment nor string blanked out, its lines kept."""
    if path.suffix != ".py":
        return text
    lines = [""] * (text.count("\n") + 2)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING) or tokenize.tok_name[token.type] == "FSTRING_MIDDLE":
            for offset, line in enumerate(token.string.split("\n")):
                lines[token.start[0] - 1 + offset] += " " + line
    return "\n".join(lines)


def _first_lines(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring:
                yield docstring.partition("\n")[0]


def _headings(document: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
