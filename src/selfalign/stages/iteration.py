"""The rows of an iteration: made by the run, or read from elsewhere where the recipe says so."""

from collections.abc import Sequence

from selfalign.config import SelfRewardingRecipe
from selfalign.runs import Artifact, Run
from selfalign.stages import candidates as own_candidates
from selfalign.stages import imports, judge
from selfalign.stages import prompts as own_prompts
from selfalign.stages.data import DataSets


def new_prompts(
    run: Run[SelfRewardingRecipe],
    iteration: int,
    generator: Artifact,
    data: DataSets,
    earlier: Sequence[Artifact],
) -> Artifact:
    """Return the prompts of an iteration: generated, read, or those of candidates that are read."""
    sources = run.recipe.imports
    location = sources.of("prompts", iteration) or sources.of("candidates", iteration)
    if location is not None:
        return imports.import_prompts(run, iteration, location, data)
    return own_prompts.new_prompts(run, iteration, generator, data, earlier)


def sample_candidates(
    run: Run[SelfRewardingRecipe], iteration: int, policy: Artifact, prompts: Artifact
) -> Artifact:
    """Return the candidates of an iteration: sampled from the policy, or read."""
    location = run.recipe.imports.of("candidates", iteration)
    if location is not None:
        return imports.import_candidates(run, iteration, location, prompts)
    return own_candidates.sample_candidates(run, iteration, policy, prompts)


def judge_candidates(
    run: Run[SelfRewardingRecipe], iteration: int, policy: Artifact, prompts: Artifact, candidates: Artifact
) -> Artifact:
    """Return the judgments of an iteration's candidates: the judge's, or read."""
    location = run.recipe.imports.of("judgments", iteration)
    if location is not None:
        return imports.import_judgments(run, iteration, location, prompts, candidates)
    return judge.judge_candidates(run, iteration, policy, prompts, candidates)
