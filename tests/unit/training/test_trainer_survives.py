"""Memory that runs out and signals that come in the middle of a step."""

import os
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from selfalign.config import Train
from selfalign.errors import TrainingError
from selfalign.models.packing import packed_tokens
from selfalign.training.group import Group
from selfalign.training.sft import sft_objective
from selfalign.training.trainer import LogRow

SFT = sft_objective()
STEPS = Train(learning_rate=1e-3, batch_size=6, epochs=2, micro_batch_tokens=100_000, checkpoint_every=100)


def short_of_memory(most: int, error: Exception) -> Any:
    """An objective that runs out of memory with more than so many sequences in a forward pass."""

    def loss(logps: torch.Tensor, items: Any) -> Any:
        if len(items) > most:
            raise error
        return SFT.loss(logps, items)

    return replace(SFT, loss=loss)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_out_of_memory_goes_on_in_smaller_passes_with_the_same_result(
    fresh: Any, run: Any, sequences_of: Any, weights: Any, tmp_path: Path, error: Exception
):
    items, warnings = sequences_of(12), []
    model, plain = fresh(), fresh()
    settings = STEPS.model_copy(update={"micro_batch_tokens": packed_tokens(items)})
    log = run(
        model, items, tmp_path / "short", settings, short_of_memory(2, error), on_warning=warnings.append
    )
    expected = run(plain, items, tmp_path / "plain", settings)
    torch.testing.assert_close(weights(model), weights(plain), rtol=0, atol=1e-6)
    assert [row["tokens"] for row in log] == [row["tokens"] for row in expected]
    assert warnings
    assert all("out of memory at step 1" in warning for warning in warnings)


def test_one_item_that_does_not_fit_is_an_error_with_a_way_out(
    fresh: Any, run: Any, sequences_of: Any, tmp_path: Path
):
    objective = short_of_memory(0, torch.OutOfMemoryError("no room"))
    with pytest.raises(TrainingError, match=r"one item at a time \(no room\).*gradient_checkpointing"):
        run(fresh(), sequences_of(12), tmp_path / "c", STEPS, objective, on_warning=lambda _: None)


def test_another_error_is_not_taken_for_memory(fresh: Any, run: Any, sequences_of: Any, tmp_path: Path):
    objective = short_of_memory(0, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        run(fresh(), sequences_of(12), tmp_path / "c", STEPS, objective)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_a_step_lets_it_finish_saves_and_goes_on_from_there(
    fresh: Any, run: Any, sequences_of: Any, weights: Any, tmp_path: Path, number: signal.Signals
):
    class StoppedError(Exception):
        pass

    def stop(*_: Any) -> None:
        raise StoppedError

    calls: list[int] = []

    def loss(logps: torch.Tensor, items: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), number)
        return SFT.loss(logps, items)

    items, before = sequences_of(12), signal.signal(number, stop)
    try:
        with pytest.raises(StoppedError):
            run(fresh(), items, tmp_path / "a", STEPS, replace(SFT, loss=loss))
        assert signal.getsignal(number) is stop
    finally:
        signal.signal(number, before)
    assert [folder.name for folder in (tmp_path / "a").iterdir()] == ["step-00000002"]

    done: list[int] = []
    model, plain = fresh(), fresh()
    run(model, items, tmp_path / "a", STEPS, on_step=lambda step, _: done.append(step))
    run(plain, items, tmp_path / "b", STEPS)
    assert done == [2, 3, 4]
    assert torch.equal(weights(model), weights(plain))


def test_a_signal_between_two_steps_is_held_until_the_next_is_saved(
    fresh: Any, run: Any, sequences_of: Any, tmp_path: Path
):
    class StoppedError(Exception):
        pass

    def stop(*_: Any) -> None:
        raise StoppedError

    class LateSignal(Group):
        def any(self, flag: bool) -> bool:
            if len(rows) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return flag

    rows: list[LogRow] = []
    before = signal.signal(signal.SIGTERM, stop)
    try:
        with pytest.raises(StoppedError):
            run(fresh(), sequences_of(12), tmp_path / "a", STEPS, on_row=rows.append, group=LateSignal())
    finally:
        signal.signal(signal.SIGTERM, before)
    assert [folder.name for folder in (tmp_path / "a").iterdir()] == ["step-00000003"]


def test_a_second_signal_is_not_held_back(fresh: Any, run: Any, sequences_of: Any, tmp_path: Path):
    class StoppedError(Exception):
        pass

    def stop(*_: Any) -> None:
        raise StoppedError

    def loss(logps: torch.Tensor, items: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("the second one came through")
        return SFT.loss(logps, items)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with pytest.raises(StoppedError):
            run(fresh(), sequences_of(6), tmp_path / "a", STEPS, replace(SFT, loss=loss))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not list((tmp_path / "a").iterdir())


def test_training_works_outside_the_main_thread(fresh: Any, run: Any, sequences_of: Any, tmp_path: Path):
    logs: list[list[LogRow]] = []
    thread = threading.Thread(
        target=lambda: logs.append(run(fresh(), sequences_of(6), tmp_path / "a", STEPS))
    )
    thread.start()
    thread.join()
    assert [row["step"] for row in logs[0]] == [1, 2]
