"""What parsing our Snakefile adds to what Snakemake needs for an empty one: CPU seconds, interleaved runs, medians.

python benchmarks/parse.py [RUNS]
"""

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
EMPTY = 'rule all:\n    shell:\n        "true"\n'
LIMIT_S = 1.0


def measure(folder: Path) -> float:
    """CPU seconds of one `snakemake --list-rules` in `folder`, its children included."""
    before = os.times()
    subprocess.run([sys.executable, "-m", "snakemake", "--list-rules"], cwd=folder, check=True, capture_output=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    """Print both medians, their difference and the limit."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    with tempfile.TemporaryDirectory() as name:
        empty = Path(name)
        (empty / "Snakefile").write_text(EMPTY)
        for folder in (empty, ROOT):
            measure(folder)  # warm the page cache
        pairs = [(measure(empty), measure(ROOT)) for _ in range(runs)]
    nothing, ours = (statistics.median(times) for times in zip(*pairs, strict=True))
    added = statistics.median(second - first for first, second in pairs)
    print(f"empty {nothing:.2f} s, ours {ours:.2f} s, added {added:.2f} s of at most {LIMIT_S:.1f} s (CPU, median of {runs} pairs)")


if __name__ == "__main__":
    main()
