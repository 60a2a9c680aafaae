"""The measured process of the memory benchmark: judges the stored candidates of a run and pairs them.

Started by `bench_memory.py` with a job as JSON and the file to write the measurement to.
"""

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from selfalign.config import SelfRewardingRecipe
from selfalign.runs import Artifact, Run
from selfalign.runs.events import EventLog
from selfalign.stages import judge_candidates, make_pairs


@dataclass(frozen=True)
class Job:
    """What to judge and pair."""

    root: str
    """A run directory with the prompts and candidates of its first iteration."""
    prompts: int
    candidates: int
    samples: int
    """Judgments of each candidate."""


@dataclass(frozen=True)
class Measurement:
    """What was measured; memory in bytes that were resident."""

    memory_before: int
    """With everything imported."""
    judging_peak: int
    """Until the end of judging."""
    peak: int
    """Until the end of pairing."""
    judging_seconds: float
    pairing_seconds: float


def measure(job: Job) -> Measurement:
    """Do both stages, one after the other."""
    recipe = SelfRewardingRecipe.model_validate(
        {"engine": {"kind": "scripted"}, "judge": {"samples": job.samples}}
    )
    root = Path(job.root)
    run = Run(root, recipe, EventLog(root / "events.jsonl"))
    directory = root / "iteration-1"
    policy = Artifact(root / "policy", "none: the engine is scripted")
    prompts = Artifact(directory / "prompts.jsonl", "made", {"rows": job.prompts})
    candidates = Artifact(directory / "candidates.jsonl", "made", {"rows": job.candidates})
    before = _resident_bytes("VmRSS")
    begin = time.perf_counter()
    judgments = judge_candidates(run, 1, policy, prompts, candidates)
    judged, judging_peak = time.perf_counter(), _resident_bytes("VmHWM")
    make_pairs(run, 1, prompts, candidates, judgments)
    return Measurement(
        memory_before=before,
        judging_peak=judging_peak,
        peak=_resident_bytes("VmHWM"),
        judging_seconds=judged - begin,
        pairing_seconds=time.perf_counter() - judged,
    )


def _resident_bytes(kind: Literal["VmRSS", "VmHWM"]) -> int:
    """Return the resident memory of this process, now or at its peak; needs Linux."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(f"{kind}:")).split()[1]) * 1024


if __name__ == "__main__":
    found = measure(Job(**json.loads(sys.argv[1])))
    Path(sys.argv[2]).write_text(json.dumps(asdict(found)), encoding="utf-8")
