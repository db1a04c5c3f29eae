"""What a report of 1,000 cells costs beside reading its files: `python tests/benchmarks/report.py`.

Fabricates a store (Booster over 13 lambdas and 5 alphas, Vaccine and plain training, five ratios, three seeds), writes
the report in all formats, and prints seconds, their ratio to parsing the same JSON files and nothing else, and the size
of the page.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))

from fabricated import Fabricator

from harness.report import write


def main() -> None:
    """Fabricate, read, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=1000, help="graded for the harmful score, in each cell")
    parser.add_argument("--answers", type=int, default=872, help="graded for the accuracy, in each cell")
    parser.add_argument("--lambdas", type=int, default=13)
    parser.add_argument("--alphas", type=int, default=5)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "store"
        lambs, alphas = range(1, 1 + chosen.lambdas), [0.01 * 2**power for power in range(chosen.alphas)]
        maker = Fabricator(root, prompts=chosen.prompts, answers=chosen.answers)
        cells = len(maker.grid(list(lambs), alphas, [0.0, 0.05, 0.1, 0.15, 0.2], 3)["cells"])
        start = time.perf_counter()
        size = _read(root)
        plain = time.perf_counter() - start
        start, busy = time.perf_counter(), time.process_time()
        written = write(root, None, Path(folder) / "out").files
        seconds, busy = time.perf_counter() - start, time.process_time() - busy
        page = next(path for path in written if path.suffix == ".html").stat().st_size
    print(f"{cells} cells, {size / 1e6:.0f} MB of JSON; {len(written)} files, the page {page / 1e6:.2f} MB")
    print(f"{seconds:.1f} s (processor {busy:.1f} s), {seconds / plain:.2f} x parsing the JSON ({plain:.1f} s)")


def _read(root: Path) -> int:
    size = 0
    for path in root.rglob("*.json*"):
        text = path.read_bytes()
        size += len(text)
        for line in text.splitlines() if path.suffix == ".jsonl" else [text]:
            json.loads(line)
    return size


if __name__ == "__main__":
    main()
