from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from selfalign.config import Policy, Train
from selfalign.models.load import load_model
from selfalign.models.logps import CompletionLogps
from selfalign.models.packing import TokenSequence
from selfalign.training.sft import sft_objective
from selfalign.training.trainer import LogRow, Objective, train


@pytest.fixture(scope="session")
def sequences_of() -> Callable[[int], list[TokenSequence]]:
    """Make random sequences of unequal lengths; the same ones every time."""

    def make(count: int) -> list[TokenSequence]:
        draw = np.random.default_rng(0)

        def ids(most: int) -> tuple[int, ...]:
            return tuple(draw.integers(259, size=draw.integers(1, most + 1)).tolist())

        return [TokenSequence(ids(12), ids(8)) for _ in range(count)]

    return make


@pytest.fixture
def fresh(tiny_model: Path, tiny_policy: Policy) -> Callable[..., CompletionLogps]:
    """Load the tiny model anew."""

    def load(dropout: float = 0.0) -> CompletionLogps:
        return CompletionLogps(load_model(tiny_model, tiny_policy, torch.float32, dropout=dropout))

    return load


@pytest.fixture(scope="session")
def weights() -> Callable[[Any], torch.Tensor]:
    """All weights of a model in one vector."""
    return lambda model: torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.fixture(scope="session")
def run() -> Callable[..., list[LogRow]]:
    """Train on the processor in float32; a warning nobody waits for is a failure."""

    def run_training(
        model: CompletionLogps,
        items: Sequence[Any],
        scratch: Path,
        settings: Train,
        objective: Objective[Any] | None = None,
        *,
        seed: int = 0,
        on_warning: Callable[[str], None] = pytest.fail,
        **told: Any,
    ) -> list[LogRow]:
        scratch.mkdir(exist_ok=True)
        return train(
            model,
            items,
            objective or sft_objective(),
            settings,
            learning_rate=settings.learning_rate,
            autocast=torch.float32,
            seed=seed,
            scratch=scratch,
            on_warning=on_warning,
            **told,
        )

    return run_training
