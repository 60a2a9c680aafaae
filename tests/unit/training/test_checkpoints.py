import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from selfalign.config import Train, Validation

LONG = Train(learning_rate=1e-3, batch_size=2, epochs=3, checkpoint_every=2, warmup_ratio=0.2)
VALIDATED = LONG.model_copy(update={"validation": Validation(fraction=0.3, every=3, patience=9)})
Run = Callable[..., Any]
Fresh = Callable[..., Any]


class KilledError(Exception):
    pass


def kill_at(step: int) -> Callable[[int, int], None]:
    def on_step(done: int, total: int) -> None:
        if done == step:
            raise KilledError

    return on_step


@pytest.fixture
def train_in(run: Run, fresh: Fresh, sequences_of: Any, weights: Any) -> Run:
    """Train with dropout in a directory, from its checkpoints if there are any, to the end or a kill.

    Returns (log, weights, step it started at, warnings).
    """

    def train(scratch: Path, settings: Train = LONG, killed_at: int | None = None) -> Any:
        model, done, warnings = fresh(0.2), [], []
        if killed_at is not None:
            with pytest.raises(KilledError):
                run(model, sequences_of(10), scratch, settings, on_step=kill_at(killed_at))
            return None
        log = run(
            model,
            sequences_of(10),
            scratch,
            settings,
            on_step=lambda step, _: done.append(step),
            on_warning=warnings.append,
        )
        return log, weights(model), done[0], warnings

    return train


@pytest.fixture
def killed(train_in: Run, tmp_path: Path) -> Path:
    """Checkpoints of a training of 15 steps that was killed after the seventh."""
    train_in(tmp_path / "killed", killed_at=7)
    return tmp_path / "killed"


@pytest.mark.parametrize("settings", [LONG, VALIDATED], ids=["plain", "validated"])
@pytest.mark.parametrize("step", [1, 7, 10])
def test_a_killed_training_goes_on_and_ends_where_it_would_have_ended(
    train_in: Run, tmp_path: Path, settings: Train, step: int
):
    expected, unbroken, _, _ = train_in(tmp_path / "unbroken", settings)
    train_in(tmp_path / "broken", settings, killed_at=step)
    log, ended, started, warnings = train_in(tmp_path / "broken", settings)
    assert started == (step - 1) // 2 * 2
    assert warnings == []
    assert log == expected
    assert torch.equal(ended, unbroken)


def test_only_the_newest_two_checkpoints_are_kept(killed: Path):
    assert sorted(path.name for path in killed.iterdir()) == ["step-00000004", "step-00000006"]


def test_a_checkpoint_is_json_and_safetensors(killed: Path):
    newest = killed / "step-00000006"
    assert {path.suffix for path in newest.iterdir()} == {".json", ".safetensors"}
    assert json.loads((newest / "state.json").read_text())["step"] == 6


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("weights.safetensors", truncate),
        ("weights.safetensors", flip_a_bit),
        ("optimizer.safetensors", truncate),
        ("optimizer.safetensors", Path.unlink),
        ("state.json", truncate),
        ("state.json", Path.unlink),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    train_in: Run, killed: Path, tmp_path: Path, name: str, damage: Callable[[Path], Any]
):
    damage(killed / "step-00000006" / name)
    log, ended, started, warnings = train_in(killed)
    expected, unbroken, _, _ = train_in(tmp_path / "unbroken")
    assert started == 4
    assert len(warnings) == 1
    assert "step-00000006 is damaged" in warnings[0]
    assert log == expected
    assert torch.equal(ended, unbroken)


def test_without_a_whole_checkpoint_training_starts_anew_with_warnings(
    train_in: Run, killed: Path, tmp_path: Path
):
    for checkpoint in killed.iterdir():
        truncate(checkpoint / "weights.safetensors")
    log, ended, started, warnings = train_in(killed)
    expected, unbroken, _, _ = train_in(tmp_path / "unbroken")
    assert started == 0
    assert [warning.split()[0] for warning in warnings] == ["step-00000006", "step-00000004"]
    assert not any("before" in warning for warning in warnings)
    assert log == expected
    assert torch.equal(ended, unbroken)


def test_a_checkpoint_half_written_is_no_checkpoint(train_in: Run, killed: Path):
    (killed / "step-00000006").rename(killed / ".step-00000006.123.tmp")
    _, _, started, warnings = train_in(killed)
    assert (started, warnings) == (4, [])
