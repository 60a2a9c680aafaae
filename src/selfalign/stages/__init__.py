"""The stages of the methods, one file each; only they read and write the run's data."""

from selfalign.stages.attacks import attack_judge
from selfalign.stages.base import base_model
from selfalign.stages.benchmarks import JUDGED, announce, answer, grade, measure, problems
from selfalign.stages.contrast import (
    complete_contrasts,
    draw_principles,
    judge_contrasts,
    make_contrast_pairs,
)
from selfalign.stages.data import read_data
from selfalign.stages.dpo import train_dpo
from selfalign.stages.eft import build_eft, judge_ranked
from selfalign.stages.evaluate import evaluate_judge
from selfalign.stages.gate import accepted
from selfalign.stages.import_pairs import import_pairs
from selfalign.stages.iteration import judge_candidates, new_prompts, sample_candidates
from selfalign.stages.models import models_to_measure
from selfalign.stages.pairs import make_pairs
from selfalign.stages.preference import compare_outputs, evaluate_preference
from selfalign.stages.prompt_data import read_prompts
from selfalign.stages.ranking import build_rankings, train_ranking
from selfalign.stages.sft import train_sft
from selfalign.stages.strength import measure_strength

__all__ = [
    "JUDGED",
    "accepted",
    "announce",
    "answer",
    "attack_judge",
    "base_model",
    "build_eft",
    "build_rankings",
    "compare_outputs",
    "complete_contrasts",
    "draw_principles",
    "evaluate_judge",
    "evaluate_preference",
    "grade",
    "import_pairs",
    "judge_candidates",
    "judge_contrasts",
    "judge_ranked",
    "make_contrast_pairs",
    "make_pairs",
    "measure",
    "measure_strength",
    "models_to_measure",
    "new_prompts",
    "problems",
    "read_data",
    "read_prompts",
    "sample_candidates",
    "train_dpo",
    "train_ranking",
    "train_sft",
]
