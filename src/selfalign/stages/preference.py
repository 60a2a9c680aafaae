"""What distillation did: measured on held-out prompts, without any system message."""

from collections.abc import Iterator, Sequence
from typing import Any

from selfalign.config import RLCDRecipe, Sampling
from selfalign.engines import close_engine
from selfalign.evaluation.bootstrap import mean_interval
from selfalign.records import Completion, PreferencePair, Prompt, Record, content_id
from selfalign.rlcd import neutral
from selfalign.runs import Artifact, Run, Stage, Work
from selfalign.runs.files import read_rows, write_json
from selfalign.seeds import derive_seed
from selfalign.stages.common import generation_settings
from selfalign.stages.complete import Ask, complete

VERSION = 1


class PairScore(Record):
    """Summed log-probabilities of a held-out pair's completions, before and after training."""

    pair_id: str
    prompt_id: str
    chosen_tokens: int
    rejected_tokens: int
    base_chosen: float
    base_rejected: float
    policy_chosen: float
    policy_rejected: float


def evaluate_preference(run: Run[RLCDRecipe], base: Artifact, policy: Artifact, pairs: Artifact) -> Artifact:
    """Ask whether the tuned policy prefers the positive completion of held-out pairs.

    The implicit reward of a completion is how much the policy raised its log-probability over the base
    (2305.18290, section 4); before training all are equal, so its accuracy starts from one half. By itself
    a model prefers the completion with the higher mean log-probability a token.

    Reads:
        contrast/held_out_pairs.jsonl
    Writes:
        rlcd/preference.json, rlcd/held_out_scores.jsonl
    """
    recipe = run.recipe
    stage = Stage(
        name="rlcd/preference",
        version=2,
        outputs=("preference.json", "held_out_scores.jsonl"),
        settings={
            "precision": recipe.policy.precision,
            "chat_template": recipe.policy.chat_template,
            "seed": recipe.seed,
        },
        inputs={"base": base, "policy": policy, "pairs": pairs},
        expected={"rows": pairs.rows},
    )

    def body(work: Work) -> dict[str, Any]:
        from selfalign.training.scoring import Scorer

        close_engine()
        rows = list(read_rows(pairs.path, PreferencePair))
        budget = recipe.dpo.train.micro_batch_tokens
        before, after = (Scorer(model.path, recipe.policy, budget) for model in (base, policy))

        def score(shard: Sequence[PreferencePair]) -> Iterator[PairScore]:
            sides = [(pair.messages, text) for pair in shard for text in (pair.chosen, pair.rejected)]
            base_scores, policy_scores = before.score(sides), after.score(sides)
            for number, pair in enumerate(shard):
                chosen, rejected = 2 * number, 2 * number + 1
                yield PairScore(
                    pair_id=pair.pair_id,
                    prompt_id=pair.prompt_id,
                    chosen_tokens=base_scores[chosen].tokens,
                    rejected_tokens=base_scores[rejected].tokens,
                    base_chosen=base_scores[chosen].logp,
                    base_rejected=base_scores[rejected].logp,
                    policy_chosen=policy_scores[chosen].logp,
                    policy_rejected=policy_scores[rejected].logp,
                )

        work.map_rows(
            "held_out_scores.jsonl",
            rows,
            score,
            key=lambda pair: pair.pair_id,
            record=PairScore,
            row_key=lambda row: row.pair_id,
        )
        scores = list(read_rows(work.output("held_out_scores.jsonl"), PairScore))
        measures = preference_measures(scores, seed=derive_seed(recipe.seed, "bootstrap"))
        write_json(work.output("preference.json"), measures)
        accuracy = measures["implicit_reward_accuracy"]["value"]
        return {"rows": len(rows), "implicit_reward_accuracy": accuracy}

    return run.do(stage, body)


def preference_measures(scores: Sequence[PairScore], *, seed: int) -> dict[str, Any]:
    """Return the held-out measures, each with a 95 % interval over prompts; ties count one half."""
    reward = [(s.policy_chosen - s.base_chosen) - (s.policy_rejected - s.base_rejected) for s in scores]
    base = [_won(s.base_chosen / s.chosen_tokens - s.base_rejected / s.rejected_tokens) for s in scores]
    policy = [_won(s.policy_chosen / s.chosen_tokens - s.policy_rejected / s.rejected_tokens) for s in scores]
    values = {
        "implicit_reward_accuracy": [_won(margin) for margin in reward],
        "implicit_reward_margin": reward,
        "prefers_positive_before": base,
        "prefers_positive_after": policy,
        "prefers_positive_change": [after - before for before, after in zip(base, policy, strict=True)],
    }
    prompts = [s.prompt_id for s in scores]
    return {name: mean_interval(found, seed=seed, clusters=prompts) for name, found in values.items()}


def _won(margin: float) -> float:
    return 1.0 if margin > 0 else 0.5 if margin == 0 else 0.0


def compare_outputs(run: Run[RLCDRecipe], base: Artifact, policy: Artifact, prompts: Artifact) -> Artifact:
    """Answer the held-out prompts greedily with both models and count what changed.

    Reads:
        data/held_out.jsonl
    Writes:
        rlcd/outputs.json, rlcd/base_outputs.jsonl, rlcd/policy_outputs.jsonl
    """
    recipe = run.recipe
    settings = recipe.evaluation
    sampling = Sampling(temperature=0.0, max_new_tokens=settings.max_new_tokens)
    calls = 2 * prompts.rows
    stage = Stage(
        name="rlcd/outputs",
        version=VERSION,
        outputs=("outputs.json", "base_outputs.jsonl", "policy_outputs.jsonl"),
        settings={"max_new_tokens": settings.max_new_tokens, **generation_settings(recipe)},
        inputs={"base": base, "policy": policy, "prompts": prompts},
        expected={"generations": calls, "new_tokens": calls * settings.max_new_tokens},
    )

    def body(work: Work) -> dict[str, Any]:
        def answer(model: Artifact, file: str) -> dict[str, Completion]:
            asks = [
                Ask(
                    content_id(file, prompt.prompt_id),
                    prompt.prompt_id,
                    neutral(prompt.messages, recipe.contrast.own_system),
                    sample=0,
                    seed=0,
                )
                for prompt in read_rows(prompts.path, Prompt)
            ]
            complete(run, work, model, asks, file, sampling)
            return {row.prompt_id: row for row in read_rows(work.output(file), Completion)}

        before, after = answer(base, "base_outputs.jsonl"), answer(policy, "policy_outputs.jsonl")
        seed = derive_seed(recipe.seed, "bootstrap")
        texts = [(before[key], after[key]) for key in before]
        both = [(b, a) for b, a in texts if b.text is not None and a.text is not None]
        measures = {
            "changed": mean_interval([float(b.text != a.text) for b, a in both], seed=seed),
            "tokens_before": mean_interval([b.num_tokens for b, _ in both], seed=seed),
            "tokens_after": mean_interval([a.num_tokens for _, a in both], seed=seed),
            "tokens_change": mean_interval([a.num_tokens - b.num_tokens for b, a in both], seed=seed),
        }
        write_json(work.output("outputs.json"), measures)
        return {
            "rows": len(both),
            "too_long": len(texts) - len(both),
            "changed": measures["changed"]["value"],
        }

    return run.do(stage, body)
