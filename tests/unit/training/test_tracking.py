import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from selfalign.config import Policy, Train
from selfalign.records import Message, SFTExample
from selfalign.runs import Work
from selfalign.runs.events import EventLog
from selfalign.runs.files import write_rows
from selfalign.training.job import TrainingJob
from selfalign.training.launch import train_job


@pytest.mark.parametrize("processes", [1, 2])
def test_every_step_is_reported_once(tiny_model: Path, tiny_policy: Policy, tmp_path: Path, processes: int):
    examples = [
        SFTExample(
            example_id=name,
            prompt_id=name,
            messages=(Message(role="user", content=name),),
            completion=name * 2,
            kind="ift",
            source="test",
        )
        for name in ("one", "two", "three", "four")
    ]
    write_rows(tmp_path / "examples.jsonl", examples)
    job = TrainingJob(
        start=tiny_model,
        policy=tiny_policy.model_copy(update={"num_processes": processes}),
        settings=Train(batch_size=2, epochs=2),
        dpo=None,
        data=(tmp_path / "examples.jsonl",),
        reference=None,
        learning_rate=1e-4,
        seed=0,
        report_to=("tensorboard",),
    )
    directory = tmp_path / "run" / "sft"
    directory.mkdir(parents=True)
    train_job(job, Work("sft/train", directory, "train", EventLog(directory / "events.jsonl")))
    log = [json.loads(line) for line in (directory / "training.jsonl").read_text().splitlines()]
    reported = EventAccumulator(str(tmp_path / "run" / "tracking" / "sft" / "train")).Reload()
    for name in log[0].keys() - {"step"}:
        scalars = [(scalar.step, scalar.value) for scalar in reported.Scalars(name)]
        assert scalars == [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in log], name
