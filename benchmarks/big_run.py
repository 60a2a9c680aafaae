"""Make up the run directory of a big self-rewarding run, as the stages would have left it.

Texts and scores are drawn; what follows from them, pairs and figures, is computed by the functions that the
stages use.
"""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from selfalign.config import SelfRewardingRecipe
from selfalign.evaluation.judge_quality import judge_quality, length_baseline
from selfalign.judging import health_of_prompts, mean_rewards
from selfalign.pairs import PairFigures, make_pairs
from selfalign.records import (
    Completion,
    Judgment,
    Message,
    PreferencePair,
    Prompt,
    RankedPrompt,
    RankedReply,
    content_id,
)
from selfalign.runs.files import write_json, write_rows

ITERATIONS = 2
CANDIDATES = 4
"""Of each prompt."""
SAMPLES = 3
"""Judgments of each candidate."""
RANKED = 500
STEPS = 2000
"""Of each training."""
UNSCORED = 0.03
VOCABULARY = (
    "the of and to in is that for it as with on be by this are from or an which at can one if will other "
    "about each how their many some would these more time way people number water part sound work place "
    "year because different through sentence great where help answer question reason example language"
)
PROMPT_WORDS, CANDIDATE_WORDS, RATIONALE_WORDS = (15, 90), (20, 130), (30, 120)
FINISHED = "2026-01-01T00:00:00+00:00"


@dataclass
class Texts:
    """Draws texts and scores, the same ones for the same seed."""

    draw: random.Random
    said: Sequence[str]

    @classmethod
    def of(cls, seed: int) -> "Texts":
        """Return texts of a seed."""
        draw = random.Random(seed)  # noqa: S311 -- reproducible texts, no secret
        return cls(draw, draw.choices(VOCABULARY.split(), k=200_000))

    def text(self, bounds: tuple[int, int]) -> str:
        """Return words, so many as lie within the bounds."""
        length = self.draw.randint(*bounds)
        begin = self.draw.randrange(len(self.said) - length)
        return " ".join(self.said[begin : begin + length])

    def judgment(self, completion_id: str, prompt_id: str, sample: int) -> Judgment:
        """Return a judgment, some of them without a score."""
        score = None if self.draw.random() < UNSCORED else float(self.draw.randint(0, 5))
        said = self.text(RATIONALE_WORDS)
        return Judgment(
            judgment_id=content_id(completion_id, str(sample)), completion_id=completion_id,
            prompt_id=prompt_id, sample=sample, score=score,
            reason="no_score" if score is None else None,
            text=said if score is None else f"{said}\nScore: {score:g}", attempts=1,
        )  # fmt: skip


def make_big_run(root: Path, candidates: int, seed: int = 0) -> None:
    """Write a finished run of `ITERATIONS` iterations with so many candidates together."""
    texts = Texts.of(seed)
    recipe = SelfRewardingRecipe(num_iterations=ITERATIONS)
    write_json(root / "recipe.resolved.json", recipe.model_dump(mode="json"))
    write_json(root / "manifest.json", _manifest())
    ranked = [_ranked(texts, number) for number in range(RANKED)]
    write_rows(root / "data" / "held_out.jsonl", ranked)
    size = {"rows": RANKED, "replies": 4 * RANKED, "tokens": 1}
    read = {"rows": 3200, "dropped": {}, "ranked": size, "held_out": size, "ranked_dropped": {}}
    _finish(root, "data/read", read, [])
    for where in ("sft", "eft"):
        _trained(root, where, texts, ranked)
    for number in range(1, ITERATIONS + 1):
        where = f"iteration-{number}"
        _iteration(root, where, texts, candidates // ITERATIONS // CANDIDATES)
        _trained(root, where, texts, ranked)


def _manifest() -> dict[str, Any]:
    return {
        "method": "self_rewarding", "seed": 0, "chat_template": None,
        "model": {"name": "made", "fingerprint": "made"},
        "data": {"ift": {"path": "made"}, "ranked": {"paths": ["made"]}},
        "invocations": [{"started": FINISHED, "selfalign": "made", "platform": "made"}],
    }  # fmt: skip


def _finish(root: Path, stage: str, figures: dict[str, Any], outputs: Sequence[str]) -> None:
    directory, _, name = stage.rpartition("/")
    manifest = {
        "stage": stage, "fingerprint": "made", "figures": figures, "warnings": [], "seconds": 1.0,
        "parts": {"prompts.per_iteration": figures["rows"]} if name == "prompts" else {},
        "outputs": {file: {"size": (root / directory / file).stat().st_size} for file in outputs},
        "finished": FINISHED,
    }  # fmt: skip
    write_json(root / directory / "manifests" / f"{name}.json", manifest)


def _ranked(texts: Texts, number: int) -> RankedPrompt:
    replies = tuple(
        RankedReply(reply_id=content_id(str(number), str(rank)), text=texts.text(CANDIDATE_WORDS), rank=rank)
        for rank in range(4)
    )
    message = Message(role="user", content=f"Question {number}: {texts.text(PROMPT_WORDS)}?")
    return RankedPrompt(prompt_id=f"ranked-{number}", messages=(message,), replies=replies, source="made")


def _trained(root: Path, where: str, texts: Texts, ranked: Sequence[RankedPrompt]) -> None:
    """Leave a training log and the model's quality as a judge."""
    rows = [
        {"step": step, "loss": 0.7 * 0.999**step, "rewards/margins": step / STEPS} for step in range(1, STEPS)
    ]
    log = root / where / "training.jsonl"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    _finish(root, f"{where}/train", {"steps": STEPS, "loss_first": 0.7, "loss_last": 0.1}, ["training.jsonl"])
    judgments = [
        texts.judgment(reply.reply_id, prompt.prompt_id, sample)
        for prompt in ranked
        for reply in prompt.replies
        for sample in range(SAMPLES)
    ]
    write_rows(root / where / "held_out_judgments.jsonl", judgments)
    quality = {
        "judge": judge_quality(ranked, mean_rewards(judgments), parse_rate=1 - UNSCORED, bootstrap=100),
        "length": length_baseline(ranked, bootstrap=100),
    }
    write_json(root / where / "judge_quality.json", quality)
    _finish(root, f"{where}/evaluate", {"rows": len(judgments)}, ["held_out_judgments.jsonl"])


def _iteration(root: Path, where: str, texts: Texts, prompts: int) -> None:
    """Leave prompts, candidates, judgments and pairs."""
    directory = root / where
    asked = [
        Prompt.of([Message(role="user", content=f"{where} {n}: {texts.text(PROMPT_WORDS)}?")], source="made")
        for n in range(prompts)
    ]
    write_rows(directory / "prompts.jsonl", asked)
    generations = [
        {"key": f"0:{n}", "text": p.messages[0].content, "truncated": False} for n, p in enumerate(asked)
    ]
    (directory / "generations.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in generations), encoding="utf-8"
    )
    _finish(root, f"{where}/prompts", {"rows": prompts, "dropped": {"near_duplicate": 9}}, ["prompts.jsonl"])

    health: list[list[tuple[int, list[Judgment]]]] = []
    figures = PairFigures()
    tokens = 0

    def groups() -> Iterator[tuple[list[Completion], list[Judgment], list[PreferencePair]]]:
        nonlocal tokens
        for prompt in asked:
            own = [_completion(texts, prompt, sample) for sample in range(CANDIDATES)]
            judged = [[texts.judgment(c.completion_id, c.prompt_id, k) for k in range(SAMPLES)] for c in own]
            tokens += sum(c.num_tokens for c in own)
            flat = [row for rows in judged for row in rows]
            health.append([(c.num_tokens, [row.model_copy(update={"text": None}) for row in rows])
                           for c, rows in zip(own, judged, strict=True)])  # fmt: skip
            made = make_pairs(
                [prompt], own, mean_rewards(flat),
                strategy="best_worst", min_margin=0.5, keep_truncated=False, seed=0,
            )  # fmt: skip
            figures.add(made)
            yield own, flat, made.pairs

    rest = groups()
    names = ("candidates", "judgments", "pairs")
    files = [(directory / f"{name}.jsonl").open("w", encoding="utf-8") for name in names]
    while shard := list(islice(rest, 1000)):
        for place, file in enumerate(files):
            file.writelines(row.model_dump_json() + "\n" for group in shard for row in group[place])
    for file in files:
        file.close()
    rows = prompts * CANDIDATES
    counted = {
        "rows": rows, "tokens": tokens, "mean_tokens": tokens / rows, "finish_reasons": {"stop": rows},
        "prompts_with_identical_candidates": 0,
    }  # fmt: skip
    _finish(root, f"{where}/candidates", counted, ["candidates.jsonl"])
    _finish(
        root, f"{where}/judgments", {"rows": rows * SAMPLES, **health_of_prompts(health)}, ["judgments.jsonl"]
    )
    _finish(root, f"{where}/pairs", {"rows": figures.pairs, **figures.health()}, ["pairs.jsonl"])


def _completion(texts: Texts, prompt: Prompt, sample: int) -> Completion:
    answer = texts.text(CANDIDATE_WORDS)
    return Completion(
        completion_id=content_id(prompt.prompt_id, str(sample)), prompt_id=prompt.prompt_id, sample=sample,
        text=answer, finish_reason="stop", num_tokens=answer.count(" ") + 1,
    )  # fmt: skip
