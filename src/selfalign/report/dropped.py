"""Examples of what the filters of a run dropped, told by the filters themselves.

The stages count what they drop and keep no copy of it. What they read is still there, and their decisions are
pure functions of it, so examples are decided once more.
"""

from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from selfalign.judging import mean_rewards
from selfalign.pairs import Strategy, charge_length, make_pairs
from selfalign.prompting import extract_prompts, reject_reason
from selfalign.records import (
    Completion,
    Contrast,
    Judgment,
    Message,
    Messages,
    Prompt,
    Record,
    prompt_id_of,
)
from selfalign.report.problems import Problems
from selfalign.report.sample import EXAMPLES, SHOWN, fitting, keep_lowest, turns
from selfalign.report.text import short
from selfalign.rlcd import SIDES, completion_id, drop_reason

NEAR_DUPLICATE = "near_duplicate"


@dataclass(frozen=True)
class Example:
    """Something that a filter dropped."""

    messages: Messages
    texts: tuple[tuple[str, str], ...] = ()
    """What belongs to it, each with its label."""


@dataclass(frozen=True)
class Dropped:
    """What was dropped for one reason."""

    reason: str
    count: int
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class Filter:
    """A place where something is dropped, with its reasons, the most common first."""

    heading: str
    dropped: tuple[Dropped, ...]


class Generation(Record):
    """A reply of the prompt generator, as `generations.jsonl` has it."""

    key: str
    text: str | None
    truncated: bool


@dataclass(frozen=True)
class PairRules:
    """How the recipe pairs candidates."""

    strategy: Strategy
    min_margin: float
    keep_truncated: bool
    near_best: float
    length_cost: float
    seed: int


def filter_of(
    heading: str,
    counts: Mapping[str, int],
    examples: Mapping[str, Sequence[Example]],
    most_bytes: int,
) -> Filter:
    """Return counted reasons with their examples, as far as these fit; a reason may have none."""
    reasons = sorted((name for name, n in counts.items() if n), key=lambda name: (-counts[name], name))
    share = most_bytes // max(1, len(reasons))
    return Filter(
        heading,
        tuple(
            Dropped(name, counts[name], tuple(fitting(examples.get(name, ()), _texts, share)))
            for name in reasons
        ),
    )


def refused_prompts(
    generations: Path, accepted: Container[str], wanted: int, bounds: Mapping[str, int], problems: Problems
) -> dict[str, list[Example]]:
    """Return some of the generated prompts that were not accepted, by reason.

    Args:
        generations: The generator's replies, in order.
        accepted: Ids of the accepted prompts.
        wanted: How many these are; what came after the last of them may be left over, not refused.
        bounds: `min_words` and `max_words` of the recipe.
        problems: Told of damaged rows.
    """
    found: dict[str, list[Example]] = defaultdict(list)
    seen: set[str] = set()
    for reply in problems.rows(generations, Generation):
        for text in extract_prompts(reply.text or "", truncated=reply.truncated):
            message = (Message(role="user", content=text),)
            prompt_id = prompt_id_of(message)
            if prompt_id in accepted and prompt_id not in seen:
                seen.add(prompt_id)
                continue
            reason = reject_reason(text, **bounds)
            if reason is None and len(seen) == wanted:
                continue  # left over, or a duplicate of what is
            kept = found[reason or NEAR_DUPLICATE]
            if len(kept) < EXAMPLES:
                kept.append(Example((Message(role="user", content=short(text)),)))
    return found


def prompts_without(prompts: Path, paired: Container[str], problems: Problems) -> dict[str, Prompt]:
    """Draw up to `SHOWN` prompts that gave no pair, by id."""
    kept: list[Prompt] = []
    for prompt in problems.rows(prompts, Prompt):
        if prompt.prompt_id not in paired:
            keep_lowest(kept, prompt, lambda row: row.prompt_id)
    return {prompt.prompt_id: prompt for prompt in kept}


def unpaired(
    prompts: Iterable[Prompt],
    completions: Sequence[Completion],
    judgments: Mapping[str, Sequence[Judgment]],
    rules: PairRules,
) -> dict[str, list[Example]]:
    """Return why each prompt gave no pair: up to `EXAMPLES` of each reason, with candidates and rewards."""
    found: dict[str, list[Example]] = defaultdict(list)
    for prompt in prompts:
        own = sorted((c for c in completions if c.prompt_id == prompt.prompt_id), key=lambda row: row.sample)
        rewards = dict.fromkeys((c.completion_id for c in own), None) | mean_rewards(
            row for c in own for row in judgments.get(c.completion_id, ())
        )
        selection = make_pairs(
            [prompt],
            own,
            charge_length(rewards, own, rules.length_cost),
            strategy=rules.strategy,
            min_margin=rules.min_margin,
            keep_truncated=rules.keep_truncated,
            seed=rules.seed,
            near_best=rules.near_best,
        )
        for reason in selection.dropped:
            if len(found[reason]) < EXAMPLES:
                found[reason].append(Example(_short(prompt.messages), tuple(_candidates(own, rewards))))
    return found


def _candidates(
    completions: Iterable[Completion], rewards: Mapping[str, float | None]
) -> Iterator[tuple[str, str]]:
    for row in completions:
        reward = rewards[row.completion_id]
        said = "no reward" if reward is None else f"reward {reward:.2f}"
        cut = ", cut off" if row.finish_reason == "length" else ""
        yield f"{said}, {row.num_tokens:,} tokens{cut}", short(row.text or "(no text)")


def unscored(judgments: Mapping[str, Sequence[Judgment]]) -> dict[str, list[Example]]:
    """Return what a judge said where no score could be read, by reason."""
    return {
        reason: [Example((), (("judge", short(row.text or "(no text)")),)) for row in rows]
        for reason, rows in judgments.items()
    }


@dataclass(frozen=True)
class ContrastFilters:
    """How the recipe of RLCD filters pairs."""

    similarity: float
    keep_truncated: bool
    refusals: bool


def unpaired_contrasts(
    contrasts: Path, completions: Path, paired: Container[str], filters: ContrastFilters, problems: Problems
) -> dict[str, list[Example]]:
    """Return some contrasts without a pair, by reason, with what both sides of the first sample said.

    Args:
        contrasts: All of them, held-out ones included.
        completions: Theirs.
        paired: Ids of the contrasts that have a pair.
        filters: Of the recipe. A pair that passes them was put the other way round by a judge.
        problems: Told of damaged rows.
    """
    drawn: list[Contrast] = []
    for row in problems.rows(contrasts, Contrast):
        if row.contrast_id not in paired:
            keep_lowest(drawn, row, lambda contrast: contrast.contrast_id, SHOWN)
    sides = {row.contrast_id: [completion_id(row, side, 0) for side in SIDES] for row in drawn}
    wanted = {name for its in sides.values() for name in its}
    said = {c.completion_id: c for c in problems.rows(completions, Completion) if c.completion_id in wanted}
    found: dict[str, list[Example]] = defaultdict(list)
    for row in drawn:
        pair = [said[name] for name in sides[row.contrast_id] if name in said]
        if len(pair) < 2:
            continue
        reason = drop_reason(*pair, **vars(filters)) or "judge_inverted"
        if len(found[reason]) < EXAMPLES:
            texts = [(side, short(c.text or "(no text)")) for side, c in zip(SIDES, pair, strict=True)]
            found[reason].append(Example(_short(row.messages), tuple(texts)))
    return found


def _short(messages: Iterable[Message]) -> Messages:
    return tuple(message.model_copy(update={"content": short(message.content)}) for message in messages)


def _texts(example: Example) -> Iterator[str]:
    yield from turns(example.messages)
    yield from (text for _, text in example.texts)
