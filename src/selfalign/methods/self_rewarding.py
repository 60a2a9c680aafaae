"""Self-rewarding, top to bottom. Source: Self-Rewarding Language Models, arXiv 2401.10020.

Where we depart from the paper, and why:

* A judgment that can't be parsed is unscored and never part of a mean; a tie never counts as agreement.
  A constant judge therefore yields no EFT data and no pairs, instead of arbitrary ones.
* Truncated candidates make no pairs unless the recipe says otherwise: half an answer is no evidence.
* New prompts may come from the policy itself; the paper uses a fixed larger model. The recipe chooses.
* Every model is measured as a judge on prompts held out from all training, beside plain length; a fixed
  judge, where the recipe names one, too.
* A gate, where the recipe has one, keeps a model that judges worse than the one before from taking its place.
* Candidates that try to talk the judge into a high score are tried in every iteration.
* Prompts, candidates, judgments or pairs may come from elsewhere: then the stage of that name reads them.
"""

from selfalign import stages
from selfalign.config import SelfRewardingRecipe
from selfalign.runs import Artifact, Run


def self_rewarding(run: Run[SelfRewardingRecipe]) -> None:
    """Take a base model M0 to M1 by SFT, then to M2, M3, ... by DPO on its own judgments."""
    recipe = run.recipe
    base = stages.base_model(run)
    fixed = None if recipe.prompts.generator == "policy" else stages.base_model(run, recipe.prompts.generator)
    data = stages.read_data(run)

    if recipe.judge.is_fixed:
        stages.evaluate_judge(run, "judge", None, data.held_out)
    if recipe.start == "M1":
        policy = base
    else:
        baseline = stages.train_sft(run, "sft", base, [data.ift], recipe.sft)
        stages.evaluate_judge(run, "sft", baseline, data.held_out)
        if recipe.eft.target == "ranking":
            rankings = stages.build_rankings(run, data.ranked)
            policy = stages.train_ranking(run, baseline, rankings)
        else:
            judgments = stages.judge_ranked(run, baseline, data.ranked)
            eft = stages.build_eft(run, data.ranked, judgments)
            start, examples = (base, [data.ift, eft]) if recipe.eft.training == "joint" else (baseline, [eft])
            policy = stages.train_sft(run, "eft", start, examples, recipe.eft.train)
    quality = stages.evaluate_judge(run, "eft", policy, data.held_out)  # M1

    earlier: list[Artifact] = []
    for iteration in range(1, recipe.num_iterations + 1):
        if recipe.imports.of("pairs", iteration):
            prompts, pairs = stages.import_pairs(run, iteration, data)
        else:
            prompts = stages.new_prompts(run, iteration, fixed or policy, data, earlier)
            candidates = stages.sample_candidates(run, iteration, policy, prompts)
            judgments = stages.judge_candidates(run, iteration, policy, prompts, candidates)
            stages.attack_judge(run, iteration, policy, prompts)
            pairs = stages.make_pairs(run, iteration, prompts, candidates, judgments)
        rate = recipe.dpo.learning_rate_of(iteration)
        where = f"iteration-{iteration}"
        trained = stages.train_dpo(run, where, policy, pairs, recipe.dpo, rate)  # M2, M3, ...
        measured = stages.evaluate_judge(run, where, trained, data.held_out)
        earlier.append(prompts)
        if stages.accepted(run, iteration, quality, measured):
            policy, quality = trained, measured
        elif recipe.gate is not None and recipe.gate.otherwise == "stop":
            break
