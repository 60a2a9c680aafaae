"""A run may be killed at any moment; the same command goes on and ends with the same rows."""

import json
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from selfalign.runs.files import hash_file

KILLS = 20


def artifacts(run_dir: Path) -> dict[str, Path]:
    """Return the finished data files by name."""
    files = [*run_dir.glob("*/*.jsonl"), *run_dir.glob("*/judge_quality.json")]
    return {path.relative_to(run_dir).as_posix(): path for path in files}


def finished_rows(run_dir: Path) -> set[tuple[str, bytes]]:
    """Return every row that was finished so far, whether its file is whole or not."""
    rows = {
        (name, line)
        for name, path in artifacts(run_dir).items()
        for line in path.read_bytes().splitlines(True)
    }
    shards = [(path, path.parent) for path in run_dir.glob("*/partial/*.jsonl.shards/*.jsonl")]
    for path, unfinished in [*shards, *((path, path) for path in run_dir.glob("*/partial/*.jsonl"))]:
        file = unfinished.name.removesuffix(".shards").split(".", 2)[2]
        name = f"{unfinished.parent.parent.name}/{file}"
        rows |= {(name, line) for line in path.read_bytes().splitlines(True) if line.endswith(b"\n")}
    return rows


@pytest.mark.slow
def test_twenty_kills_change_nothing(command, finished_run: Path, tmp_path: Path):
    run_dir = tmp_path / "killed"
    draw = random.Random(7)  # noqa: S311 -- moments of death, no secret
    kept: set[tuple[str, bytes]] = set()
    kills = 0
    started = time.monotonic()
    subprocess.run(command(tmp_path / "timed"), check=True, capture_output=True)
    whole = time.monotonic() - started
    moments = []
    while kills < KILLS:
        process = subprocess.Popen(command(run_dir), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            process.wait(timeout=draw.uniform(0.3 * whole, 0.75 * whole))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            moments.append(sorted(path.name for path in run_dir.glob("*/partial/*")))
            rows = finished_rows(run_dir)
            assert kept <= rows, "a finished row was lost or changed"
            kept = rows
        else:
            assert process.returncode == 0, process.stdout.read().decode()
            run_dir = tmp_path / f"killed-{kills}"  # it finished before the moment came: begin another
            kept = set()
    subprocess.run(command(run_dir), check=True, capture_output=True)
    assert any(moments), "no kill fell into the middle of a stage"
    assert kept <= finished_rows(run_dir)
    expected, found = artifacts(finished_run), artifacts(run_dir)
    assert expected.keys() == found.keys()
    for name, path in expected.items():
        assert hash_file(path) == hash_file(found[name]), name
    for name in ("candidates", "judgments", "pairs"):
        ids = [json.loads(line)[f"{'completion' if name == 'candidates' else name[:-1]}_id"]
               for line in (run_dir / "iteration-2" / f"{name}.jsonl").read_text().splitlines()]  # fmt: skip
        assert len(ids) == len(set(ids)) > 0
