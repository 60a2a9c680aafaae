import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from selfalign.config import Policy, Train
from selfalign.records import Message, SFTExample
from selfalign.runs import Work
from selfalign.runs.events import EventLog
from selfalign.runs.files import write_json, write_rows
from selfalign.training.job import TrainingJob
from selfalign.training.launch import train_job
from selfalign.training.tracking import track_figures


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


def test_figures_of_a_run_are_one_tracked_run_with_a_step_a_model(tmp_path: Path):
    metrics = {
        "sft": {"train": {"loss_last": 1.0}, "evaluate": {"pairwise_accuracy": 0.5}},
        "iteration-1": {
            "pairs": {"rows": 16, "mean_margin": None, "dropped": {"equal_rewards": 2}},
            "judgments": {"parse_rate": 0.75, "scores": {"0.5": 3}},
            "train": {"steps": 2},
            "evaluate": {"pairwise_accuracy": 0.6},
        },
    }
    for where, figures in metrics.items():
        write_json(tmp_path / where / "metrics.json", figures)
        for stage in figures:
            track_figures(["tensorboard"], f"{where}/{stage}", tmp_path)
    reported = EventAccumulator(str(tmp_path / "tracking" / "figures")).Reload()
    # A model has a file of its own; those of one second are read in no particular order.
    found = {
        name: sorted((s.step, s.value) for s in reported.Scalars(name)) for name in reported.Tags()["scalars"]
    }
    assert found == {
        "evaluate/pairwise_accuracy": [(0, 0.5), (2, pytest.approx(0.6))],
        "pairs/rows": [(2, 16)],
        "pairs/dropped/equal_rewards": [(2, 2)],
        "judgments/parse_rate": [(2, 0.75)],
        "judgments/scores/0.5": [(2, 3)],
    }


def test_the_figures_of_rlcd_are_those_of_its_contrasts_too(tmp_path: Path):
    write_json(tmp_path / "contrast" / "metrics.json", {"pairs": {"rows": 9}})
    write_json(tmp_path / "rlcd" / "metrics.json", {"outputs": {"changed": {"value": 0.25, "reason": None}}})
    track_figures(["tensorboard"], "contrast/pairs", tmp_path)
    track_figures(["tensorboard"], "rlcd/outputs", tmp_path)
    reported = EventAccumulator(str(tmp_path / "tracking" / "figures")).Reload()
    assert sorted(reported.Tags()["scalars"]) == ["outputs/changed/value", "pairs/rows"]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_other_trackers_take_figures_offline(tmp_path: Path, name: str):
    """In a process of its own, since these libraries read the environment when they are imported."""
    pytest.importorskip(name)
    for where in ("sft", "eft"):
        write_json(tmp_path / where / "metrics.json", {"evaluate": {"pairwise_accuracy": 0.5}})
    program = f"""
from pathlib import Path
from selfalign.training.tracking import track_figures
for where in ("sft", "eft"):
    track_figures([{name!r}], f"{{where}}/evaluate", Path({str(tmp_path)!r}))
"""
    own = {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "TRACKIO_DIR": str(tmp_path / "trackio")}
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | own, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    if name == "wandb":
        names = {path.name.rpartition("-")[2] for path in tmp_path.glob("wandb/offline-run-*")}
        assert len(names) == 1  # both are parts of one run
    else:
        with sqlite3.connect(next((tmp_path / "trackio").glob("*.db"))) as database:
            assert database.execute("SELECT step FROM metrics ORDER BY step").fetchall() == [(0,), (1,)]
