"""The recipe: every setting of a run, strictly typed, with the numbers' sources.

A key that no model here knows is refused. No model or tensor library is imported here.
"""

from selfalign.config.common import (
    DPO,
    BaseRecipe,
    Endpoint,
    EngineSettings,
    Judge,
    Lora,
    Policy,
    Requests,
    Sampling,
    Section,
    Serve,
    Tracker,
    Train,
    Validation,
)
from selfalign.config.evaluation import BenchmarkJudge, EvaluationRecipe
from selfalign.config.rlcd import RLCDRecipe
from selfalign.config.self_rewarding import Ranking, SelfRewardingRecipe

Recipe = SelfRewardingRecipe | RLCDRecipe | EvaluationRecipe

__all__ = [
    "DPO",
    "BaseRecipe",
    "BenchmarkJudge",
    "Endpoint",
    "EngineSettings",
    "EvaluationRecipe",
    "Judge",
    "Lora",
    "Policy",
    "RLCDRecipe",
    "Ranking",
    "Recipe",
    "Requests",
    "Sampling",
    "Section",
    "SelfRewardingRecipe",
    "Serve",
    "Tracker",
    "Train",
    "Validation",
]
