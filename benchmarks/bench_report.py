"""Measure the report of a big run: seconds, peak memory (needs Linux) and the size of the page."""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from big_run import CANDIDATES, ITERATIONS, SAMPLES, make_big_run
from rich.console import Console
from rich.table import Table

CANDIDATES_IN_ALL = 100_000
QUICK_CANDIDATES = 10_000
WORKER = """
import json, sys, time
from pathlib import Path
from selfalign.report import write_report
from selfalign.report.problems import Problems
root = Path(sys.argv[1])
problems = Problems(root)
begun = time.perf_counter()
path = write_report(root, problems)
seconds = time.perf_counter() - begun
lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
peak = int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024
size = path.stat().st_size
print(json.dumps({"seconds": seconds, "peak_bytes": peak, "page_bytes": size, "problems": list(problems)}))
"""


def measure(root: Path) -> dict[str, object]:
    """Make the report in a process of its own and return what it took.

    Raises:
        SystemExit: It failed, or something of the run could not be read.
    """
    command = [sys.executable, "-c", WORKER, str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 -- our own words
    if done.returncode:
        raise SystemExit(f"the report failed: {(done.stderr.strip().splitlines() or ['without a word'])[-1]}")
    found: dict[str, object] = json.loads(done.stdout)
    told = [problem for problem in found.pop("problems") if "made the run" not in problem]  # type: ignore[attr-defined]
    if told:
        raise SystemExit(f"the run could not be read: {told[0]}")
    return found


def main() -> None:
    """Make a run, make its report, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--candidates", type=int, help=f"of all iterations; {CANDIDATES_IN_ALL:,} if not given"
    )
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_CANDIDATES:,} candidates")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    given = parser.parse_args()
    candidates = given.candidates or (QUICK_CANDIDATES if given.quick else CANDIDATES_IN_ALL)
    with TemporaryDirectory() as folder:
        root = Path(folder) / "big"
        make_big_run(root, candidates)
        read = sum(path.stat().st_size for path in root.rglob("*.jsonl"))
        figures = {"candidates": candidates, "read_bytes": read, **measure(root)}
    table = Table(box=None, title="report of a big run", title_justify="left")
    for heading in ("candidates", "judgments", "read", "seconds", "peak memory", "page"):
        table.add_column(heading, justify="right")
    table.add_row(
        f"{candidates:,}", f"{SAMPLES * candidates:,}", _megabytes(read), f"{figures['seconds']:.1f}",
        _megabytes(figures["peak_bytes"]), _megabytes(figures["page_bytes"]),
    )  # fmt: skip
    console = Console(width=100)
    console.print(table)
    console.print(
        f"{ITERATIONS} iterations, {CANDIDATES} candidates a prompt, {SAMPLES} judgments each. "
        "Peak memory: what was resident at most in the process that made the report, with Python and its "
        "libraries."
    )
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def _megabytes(size: object) -> str:
    return f"{float(str(size)) / 1e6:,.1f} MB"


if __name__ == "__main__":
    main()
