"""Share of a finished sweep's seconds in the stages of each part of a cell, such as `over_refusal_answers`.

Run: python tests/benchmarks/stage_seconds.py STORE [PART_PREFIX]; the ratio is of all stages to those of other parts.
"""

import sys
from collections import defaultdict
from pathlib import Path

from harness.engine.lookup import resolve_sweep
from harness.engine.store import Store

store = Store(Path(sys.argv[1]))
prefix = sys.argv[2] if len(sys.argv) > 2 else "over_refusal"
keys: defaultdict[str, set[str]] = defaultdict(set)
for cell in store.read_sweep(resolve_sweep(store, None))["cells"]:
    for part, key in cell["keys"].items():
        keys[part].add(key)
seconds = {part: sum(store.manifest(key).seconds for key in found) for part, found in keys.items()}
for part, spent in seconds.items():
    print(f"{part:30} {len(keys[part]):4} stages {spent:8.1f} s")
total = sum(seconds.values())
chosen = sum(spent for part, spent in seconds.items() if part.removeprefix("aligned_").startswith(prefix))
print(f"all stages relative to those without `{prefix}`: {total / (total - chosen):.3f} x")
