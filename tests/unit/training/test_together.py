"""Several processes that train one model together, over gloo on the processor."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from selfalign.config import DPO, Lora, Policy, Train, Validation
from selfalign.errors import TrainingError
from selfalign.records import Message, PreferencePair, SFTExample
from selfalign.runs import Work
from selfalign.runs.events import EventLog
from selfalign.runs.files import write_rows
from selfalign.training.dpo import ReferenceLogps
from selfalign.training.job import TrainingJob
from selfalign.training.launch import train_job

FULL = Train(learning_rate=1e-3, batch_size=5, epochs=2, micro_batch_tokens=60, checkpoint_every=2)

PAIR: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Name colours"}],
    "rejected": "none",
    **dict.fromkeys(["chosen_id", "rejected_id"], "c"),
    **dict.fromkeys(["reward_chosen", "reward_rejected", "margin"]),
    **dict.fromkeys(["chosen_tokens", "rejected_tokens"], 5),
}


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"]
    rows = [
        SFTExample(
            example_id=str(i),
            prompt_id=str(i),
            messages=(Message(role="user", content=" ".join(words[: i + 1])),),
            completion=" ".join(words[i:]),
            kind="ift",
            source="test",
        )
        for i in range(11)
    ]
    write_rows(tmp_path / "examples.jsonl", rows)
    return tmp_path / "examples.jsonl"


def trained(job: TrainingJob, directory: Path) -> tuple[dict[str, Any], list[Any], dict[str, Any], list[Any]]:
    """Do a job; its figures, log, weights and events."""
    directory.mkdir()
    events: list[Any] = []
    work = Work("sft/train", directory, "train", EventLog(directory / "events.jsonl", events.append))
    figures = train_job(job, work)
    log = [json.loads(line) for line in (directory / "training.jsonl").read_text().splitlines()]
    (weights,) = (directory / "model").glob("*.safetensors")
    return figures, log, load_file(weights), events


@pytest.fixture
def job_of(examples: Path, tiny_model: Path, tiny_policy: Policy) -> Callable[..., TrainingJob]:
    def job(processes: int, settings: Train = FULL, **other: Any) -> TrainingJob:
        return TrainingJob(
            start=tiny_model,
            policy=tiny_policy.model_copy(update={"num_processes": processes}),
            settings=settings,
            learning_rate=settings.learning_rate,
            seed=3,
            **{"dpo": None, "data": (examples,), "reference": None} | other,
        )

    return job


def assert_same_training(one: Any, two: Any) -> None:
    figures, log, weights, _ = one
    figures2, log2, weights2, _ = two
    for row, row2 in zip(log, log2, strict=True):
        assert row2.pop("computed_tokens") >= row.pop("computed_tokens") > 0
        assert row2 == pytest.approx(row, rel=1e-4, abs=1e-6)
    assert figures2 == pytest.approx(figures, rel=1e-4)
    assert weights2.keys() == weights.keys()
    for name in weights:
        torch.testing.assert_close(weights2[name], weights[name], rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    "settings",
    [
        FULL.model_copy(
            update={
                "gradient_checkpointing": True,
                "validation": Validation(fraction=0.3, every=2, patience=9),
            }
        ),
        FULL.model_copy(update={"lora": Lora(rank=4, alpha=8)}),
    ],
    ids=["all weights", "adapters"],
)
def test_two_processes_give_the_result_of_one(settings: Train, job_of: Any, tmp_path: Path):
    one, two = trained(job_of(1, settings), tmp_path / "one"), trained(job_of(2, settings), tmp_path / "two")
    assert_same_training(one, two)
    done = [[event["done"] for event in events if event["event"] == "progress"] for *_, events in (one, two)]
    assert done[0] == done[1]


def test_two_processes_give_the_preferences_of_one(job_of: Any, tmp_path: Path):
    words = ["red", "green", "blue", "white", "black"]
    pairs = [
        PreferencePair.model_validate(PAIR | {"pair_id": word, "prompt_id": word, "chosen": word * 2})
        for word in words
    ]
    write_rows(tmp_path / "pairs.jsonl", pairs)
    known = [ReferenceLogps(pair_id=word, chosen=-20.0, rejected=-30.0) for word in words]
    write_rows(tmp_path / "reference.jsonl", known)
    settings = DPO(train=FULL)
    files = {"data": (tmp_path / "pairs.jsonl",), "reference": tmp_path / "reference.jsonl"}
    jobs = [job_of(processes, FULL, dpo=settings, **files) for processes in (1, 2)]
    one, two = (trained(job, tmp_path / str(job.policy.num_processes)) for job in jobs)
    assert one[1][0]["rewards/margins"] != 0
    assert_same_training(one, two)


def test_processes_that_are_told_to_stop_save_and_go_on_from_there(job_of: Any, tmp_path: Path):
    class StoppedError(Exception):
        pass

    expected = trained(job_of(2), tmp_path / "unbroken")
    steps: list[int] = []
    broken = tmp_path / "broken"
    broken.mkdir()

    def listener(event: dict[str, Any]) -> None:
        if event["event"] == "progress":
            steps.append(event["done"])
            if steps == [0, 1, 2, 3]:
                raise StoppedError

    work = Work("sft/train", broken, "train", EventLog(broken / "events.jsonl", listener))
    with pytest.raises(StoppedError):
        train_job(job_of(2), work)
    (broken / "events.jsonl").unlink()
    figures = train_job(job_of(2), work)
    assert steps[4] >= 3  # a checkpoint is due after every second step
    assert figures == expected[0]
    assert (broken / "training.jsonl").read_bytes() == (tmp_path / "unbroken/training.jsonl").read_bytes()


def test_an_error_of_one_process_is_that_of_the_training(job_of: Any, tmp_path: Path):
    with pytest.raises(TrainingError, match="not finite at step 2"):
        trained(job_of(2, FULL.model_copy(update={"learning_rate": 1e30})), tmp_path / "run")


def test_processes_end_with_the_one_that_began_them(job_of: Any, tmp_path: Path):
    script = """
import sys
from pathlib import Path
from selfalign.runs import Work
from selfalign.runs.events import EventLog
from selfalign.training.dpo import ReferenceLogps
from selfalign.training.job import TrainingJob
from selfalign.training.launch import train_job
directory = Path(sys.argv[1])
events = EventLog(directory / "events.jsonl", lambda event: print("event", flush=True))
train_job(TrainingJob.model_validate_json(sys.argv[2]), Work("sft/train", directory, "train", events))
"""
    job = job_of(2, FULL.model_copy(update={"epochs": 1000}))
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path), job.model_dump_json()], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"event\n"
    assert len(workers_in(tmp_path)) == 2
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while workers_in(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert workers_in(tmp_path) == []


def workers_in(directory: Path) -> list[str]:
    """The processes that train in a directory."""
    command = ["ps", "-wweo", "args"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if "training.worker" in line and str(directory) in line]
