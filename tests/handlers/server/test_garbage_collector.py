"""The garbage collector looks at few objects at a time, however many new ones stay."""

import json
import subprocess
import sys

# Runs in a process of its own, because the collector is one for the whole process.
SCRIPT = """
import gc, json
from handlers.server.garbage_collector import tune_garbage_collector

def look(phase, info):
    if phase == "start":
        seen.append([info["generation"], sum(len(gc.get_objects(n)) for n in range(info["generation"] + 1))])

seen = []
tune_garbage_collector()
gc.callbacks.append(look)
kept = [[] for _ in range(500_000)]
print(json.dumps(seen))
"""


def test_each_collection_looks_at_few_objects() -> None:
    """While half a million objects are created that stay, no collection looks at more than 20,000 of them."""
    output = subprocess.check_output([sys.executable, "-c", SCRIPT])
    seen = json.loads(output)
    assert {generation for generation, _ in seen} == {0, 1}
    assert max(objects for _, objects in seen) < 20_000
