"""RLCD by system message, top to bottom. Source: RLCD, arXiv 2307.12950, and its form in AutoAlign.

Where we depart, and why:

* Prompts are held out before anything is drawn, so that what training did is measured on other prompts.
* Whether the model follows the system messages at all is measured, by group, before training on it.
* Every dropped pair is counted with its reason; pairs in + drops = contrasts.
"""

from selfalign import stages
from selfalign.config import RLCDRecipe
from selfalign.runs import Run


def rlcd(run: Run[RLCDRecipe]) -> None:
    """Distil the contrast between two system messages into the weights of a model."""
    recipe = run.recipe
    base = stages.base_model(run)
    prompts = stages.read_prompts(run)
    contrasts = stages.draw_principles(run, prompts)
    completions = stages.complete_contrasts(run, base, contrasts)
    judgments = stages.judge_contrasts(run, base, contrasts, completions)
    pairs, held_out = stages.make_contrast_pairs(run, prompts, contrasts, completions, judgments)
    stages.measure_strength(run, base, contrasts, pairs)
    policy = stages.train_dpo(run, "rlcd", base, pairs, recipe.dpo, recipe.dpo.train.learning_rate)
    stages.evaluate_preference(run, base, policy, held_out)
    stages.compare_outputs(run, base, policy, prompts.held_out)
