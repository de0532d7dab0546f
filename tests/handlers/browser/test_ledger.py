"""The console's ledger, in Node.js: what it says of sequences that were written by hand."""

import json
import os
import shutil
from typing import Any

import pytest

from tests import processes
from tests.system.replica import ROOT

MODULE = (ROOT / "handlers" / "browser" / "console" / "ledger.js").as_uri()
NODE = next((each for each in (str(ROOT / ".generators/bin/node"), "node") if shutil.which(each)), None)

# Applies the calls, and prints the counts that are not 0 and one letter for each number.
PROGRAM = """
const { readFileSync } = await import("node:fs");
const { Ledger } = await import(process.argv[1]);
const ledger = new Ledger();
for (const [name, ...values] of JSON.parse(readFileSync(0))) {
  if (name === "filtered") ledger.filtered = values[0];
  else ledger[name](...values);
}
const letters = [];
for (let n = ledger.first; n !== null && n <= ledger.newest; n += 1) letters.push("-lrxLm"[ledger.at(n)]);
const counts = Object.fromEntries(Object.entries(ledger.counts).filter(([, count]) => count));
console.log(JSON.stringify({ strip: letters.slice(-20).join(""), counts, complete: ledger.complete }));
"""

START = [["enter", "a"], ["start", 10]]


def live(*numbers: int) -> list[list[Any]]:
    """Events that arrive as they are published."""
    return [["event", number, False] for number in numbers]


def replayed(*numbers: int) -> list[list[Any]]:
    """Events of a replay."""
    return [["event", number, True] for number in numbers]


CASES: dict[str, tuple[list[list[Any]], str, dict[str, int], bool]] = {
    "nothing has arrived": ([], "", {}, True),
    "events in order": (START + live(11, 12, 13), "lll", {"live": 3}, True),
    "a hole without patterns is a loss": (START + live(11, 14), "lLLl", {"live": 2, "lost": 2}, False),
    "a hole with patterns is excluded": (
        [*START, ["filtered", True], *live(11, 14)],
        "lxxl",
        {"live": 2, "excluded": 2},
        True,
    ),
    "a heartbeat with patterns excludes what has not arrived": (
        [*START, ["filtered", True], *live(11), ["passed", 13]],
        "lxx",
        {"live": 1, "excluded": 2},
        True,
    ),
    "a heartbeat without patterns shows a loss": (
        [*START, *live(11), ["passed", 12]],
        "lL",
        {"live": 1, "lost": 1},
        False,
    ),
    "events are on their way": ([*START, *live(11), ["expect", 14]], "lmmm", {"live": 1, "missing": 3}, True),
    "nothing is on its way once all has arrived": (
        [*START, *live(11), ["expect", 14], *replayed(12, 13), *live(14)],
        "lrrl",
        {"live": 2, "replayed": 2},
        True,
    ),
    "100,000 events on their way arrive": (
        [*START, ["expect", 100_010], *replayed(*range(11, 100_011))],
        "r" * 20,
        {"replayed": 100_000},
        True,
    ),
    "100,000 events on their way are excluded": (
        [*START, ["filtered", True], ["expect", 100_010], ["passed", 100_010]],
        "x" * 20,
        {"excluded": 100_000},
        True,
    ),
    "a gap": ([*START, *live(11), ["gap", 12, 14], *live(15)], "lLLLl", {"live": 2, "lost": 3}, False),
    "a gap after excluded numbers": (
        [*START, ["filtered", True], ["gap", 13, 14], *live(15)],
        "xxLLl",
        {"live": 1, "excluded": 2, "lost": 2},
        False,
    ),
    "a gap that is told after the replay": (
        [*START, ["filtered", True], *live(11), *replayed(15, 17), ["gap", 12, 14]],
        "lLLLrxr",
        {"live": 1, "replayed": 2, "lost": 3, "excluded": 1},
        False,
    ),
    "a replay that repeats": (
        START + live(11, 12) + replayed(11, 12, 13),
        "llr",
        {"live": 2, "replayed": 1, "repeated": 2},
        False,
    ),
    "events in the wrong order": (START + live(12, 11), "Ll", {"live": 1, "lost": 1, "repeated": 1}, False),
    "an epoch starts at 1": (
        [*START, *live(11), ["expect", 20], ["enter", "b"], *live(1, 2)],
        "ll",
        {"live": 3, "epochs": 1},
        False,
    ),
    "the start of an epoch is lost": (
        [*START, ["enter", "b"], *replayed(3)],
        "LLr",
        {"replayed": 1, "lost": 2, "epochs": 1},
        False,
    ),
    "the same epoch again": ([*START, ["enter", "a"], ["enter", ""], *live(11)], "l", {"live": 1}, True),
    "resuming from an earlier number": (
        [*START, *live(11, 14), ["reset", 11], *replayed(12, 13)],
        "rrm",
        {"replayed": 2, "missing": 1},
        True,
    ),
    "resuming from a number beyond the newest": (
        [*START, *live(11), ["reset", 99], ["reset", 11], ["passed", 11], *live(12)],
        "l",
        {"live": 1},
        True,
    ),
    "an event before any position": (live(7, 8), "ll", {"live": 2}, True),
}


@pytest.mark.parametrize("name", CASES)
def test_ledger(name: str) -> None:
    """The counts, the state of each number, and whether everything is complete."""
    if NODE is None:
        (pytest.fail if "ALL_TESTS" in os.environ else pytest.skip)("no Node.js")
    calls, strip, counts, complete = CASES[name]
    done = processes.run([NODE, "--input-type=module", "-e", PROGRAM, MODULE], input=json.dumps(calls))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["strip"], found["counts"], found["complete"]) == (strip, counts, complete)
