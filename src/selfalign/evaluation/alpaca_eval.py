"""AlpacaEval: how often a judge prefers a model's outputs to a baseline's, with and without length.

The instructions are those of the baseline's file. Lengths are in characters, as on the public board.

Source: Dubois et al. 2024 (arXiv 2404.04475); `length_controlled` says what differs from the public figure.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfalign.data import read_rows
from selfalign.data.fields import has, located, text
from selfalign.errors import DataError
from selfalign.evaluation.head_to_head import Outcome, head_to_head
from selfalign.evaluation.means import mean_measure
from selfalign.records import Message, Prompt


@dataclass(frozen=True)
class Output:
    """What a system answered to one instruction."""

    prompt: Prompt
    text: str | None
    """`None` where nothing could be generated."""
    dataset: str | None = None
    """The set that the instruction comes from."""


@dataclass(frozen=True)
class Outputs:
    """What one system answered to all instructions."""

    generator: str
    by_prompt: Mapping[str, Output]
    """By prompt_id, in file order."""


def read_outputs(path: Path) -> Outputs:
    """Read an outputs file in the layout of AlpacaEval: `instruction`, `output`, `generator`, `dataset`.

    An output may be empty; `dataset` may be missing.

    Raises:
        DataError: The file can't be read, or a row lacks a field, has an empty or repeated instruction or
            another generator than the first row.
    """
    by_prompt: dict[str, Output] = {}
    generator = None
    for number, row in read_rows(str(path)):
        with located(str(path), number):
            instruction, name = text(row, "instruction"), text(row, "generator")
            generator = generator or name
            prompt = Prompt.of([Message(role="user", content=instruction)], f"{path}, row {number}")
            if not instruction.strip():
                raise DataError('"instruction" is empty; remove the row')
            if prompt.prompt_id in by_prompt:
                raise DataError(
                    f"the instruction repeats that of {by_prompt[prompt.prompt_id].prompt.source}"
                )
            if name != generator:
                raise DataError(f'"generator" is {name!r} after {generator!r}; give one file a system')
            dataset = text(row, "dataset") if has(row, "dataset") else None
            by_prompt[prompt.prompt_id] = Output(prompt, text(row, "output"), dataset)
    return Outputs(str(generator), by_prompt)


@dataclass(frozen=True)
class Match:
    """Which instructions two systems share; the same instruction is the same text, to the last space."""

    shared: tuple[str, ...]
    """The prompt_ids of both, in the order of the baseline."""
    only_model: tuple[str, ...]
    """Instructions that only the model has."""
    only_baseline: tuple[str, ...]


def match(model: Outputs, baseline: Outputs) -> Match:
    """Find the instructions of two systems that are the same, and name the others."""
    own, other = model.by_prompt, baseline.by_prompt
    return Match(
        shared=tuple(prompt_id for prompt_id in other if prompt_id in own),
        only_model=tuple(own[key].prompt.messages[0].content for key in own if key not in other),
        only_baseline=tuple(other[key].prompt.messages[0].content for key in other if key not in own),
    )


def constant_share(texts: Collection[str]) -> float | None:
    """Return the share of the texts that are the most frequent one; `None` for fewer than two.

    A system that gives one answer to everything has 1, and its win rate means nothing: such answers are
    written to please the judge, and have won 86 % on the public board. An honest system is near 0.
    """
    return max(Counter(texts).values()) / len(texts) if len(texts) > 1 else None


def alpaca_eval(
    model: Outputs, baseline: Outputs, preferences: Mapping[str, float | None], *, seed: int = 0
) -> dict[str, Any]:
    """Return the win rates of a model against a baseline, JSON-ready.

    Args:
        model: To be measured.
        baseline: Reference outputs.
        preferences: How sure the judge is of the model, in [0, 1], by prompt_id: 0.5 is a tie, `None` no
            answer; see `preference_of` for two orders.
        seed: Of the resamples.

    Returns:
        All of `head_to_head` over the shared instructions, with the reasons `no_output`, `not_judged` (no
        entry in `preferences`) and `no_answer`; `datasets`: the win rate in each set; `only_model` and
        `only_baseline`: the instructions of just one; `constant_share` and `other_constant_share`.

    Raises:
        ValueError: A preference is of an instruction that the two don't share, or not in [0, 1].
    """
    found = match(model, baseline)
    if strangers := preferences.keys() - set(found.shared):
        raise ValueError(f"preferences of {len(strangers)} instructions that are not in both files")
    outcomes = {
        key: _outcome(model.by_prompt[key], baseline.by_prompt[key], preferences) for key in found.shared
    }
    by_dataset: dict[str, list[float]] = {}
    for key, outcome in outcomes.items():
        values = by_dataset.setdefault(baseline.by_prompt[key].dataset or "unnamed", [])
        if outcome.preference is not None:
            values.append(outcome.preference)
    return {
        **head_to_head(list(outcomes.values()), seed=seed),
        "datasets": {
            name: mean_measure(values, undefined="no prompt is decided", seed=seed)
            for name, values in sorted(by_dataset.items())
        },
        "only_model": list(found.only_model),
        "only_baseline": list(found.only_baseline),
        "constant_share": constant_share(_texts(model)),
        "other_constant_share": constant_share(_texts(baseline)),
    }


def _outcome(own: Output, other: Output, preferences: Mapping[str, float | None]) -> Outcome:
    prompt_id = own.prompt.prompt_id
    reason, preference = None, preferences.get(prompt_id)
    if own.text is None or other.text is None:
        reason, preference = "no_output", None
    elif preference is None:
        reason = "no_answer" if prompt_id in preferences else "not_judged"
    return Outcome(
        prompt_id=prompt_id,
        preference=preference,
        reason=reason,
        length=None if own.text is None else len(own.text),
        other_length=None if other.text is None else len(other.text),
    )


def _texts(outputs: Outputs) -> list[str]:
    return [output.text for output in outputs.by_prompt.values() if output.text is not None]
