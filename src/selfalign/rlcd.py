"""RLCD by system message: principles, the contrasts they make of a prompt, and the pairs that are left.

Source: RLCD, arXiv 2307.12950, section 3, with system messages in place of affixes. Where we depart: a
pair whose sides do not differ teaches nothing and is dropped, and every drop is counted by group.
"""

import random
import re
import tomllib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

from selfalign.dedup import rouge_l, words
from selfalign.errors import DataError
from selfalign.records import (
    Completion,
    Contrast,
    Message,
    Messages,
    PreferencePair,
    Prompt,
    content_id,
)

OwnSystem = Literal["append", "replace", "skip"]
SIDES = ("positive", "negative")


@dataclass(frozen=True)
class Principle:
    """A system message that asks for better behaviour and one that asks for worse."""

    group: str
    positive: str
    negative: str


@dataclass(frozen=True)
class Principles:
    """The principles of one language."""

    language: str
    script: str
    """First word of the Unicode names of the language's letters, such as `LATIN` or `CJK`."""
    groups: Mapping[str, tuple[Principle, ...]]


def load_principles(path: str | None = None) -> list[Principles]:
    """Read principle files: the shipped ones, or a file or a directory of TOML files of your own.

    Raises:
        DataError: A file is missing or no TOML, a side is missing, both sides are the same, or a pair
            appears twice; names the file, the group and the number of the pair.
    """
    if path is None:
        folder = resources.files("selfalign") / "prompts" / "principles"
        files = sorted(Path(str(entry)) for entry in folder.iterdir() if entry.name.endswith(".toml"))
    else:
        own = Path(path)
        files = sorted(own.glob("*.toml")) if own.is_dir() else [own]
    if not files:
        raise DataError("no principle file (*.toml) here", path=path)
    loaded = [_read(file) for file in files]
    languages = [principles.language for principles in loaded]
    repeated = next((name for name in languages if languages.count(name) > 1), None)
    if repeated is not None:
        raise DataError(f"two files are for language {repeated!r}; merge them", path=path)
    return loaded


def _read(path: Path) -> Principles:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError("no such file", path=path) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"not a TOML file: {error}", path=path) from None
    for key in ("language", "script"):
        if not isinstance(content.get(key), str):
            raise DataError(f'{key} is missing; write it at the top, as in {key} = "..."', path=path)
    groups: dict[str, tuple[Principle, ...]] = {}
    seen: set[str] = set()
    for group, entries in content.items():
        if group in ("language", "script"):
            continue
        if not isinstance(entries, list) or not entries:
            raise DataError(f"{group}: expected [[{group}]] tables", path=path)
        groups[group] = tuple(
            _principle(path, group, number, entry, seen) for number, entry in enumerate(entries, start=1)
        )
    if not groups:
        raise DataError("no principles; add [[helpful]] tables with positive and negative", path=path)
    return Principles(content["language"], content["script"].upper(), groups)


def _principle(path: Path, group: str, number: int, entry: object, seen: set[str]) -> Principle:
    where = f"{group} pair {number}"
    if not isinstance(entry, dict) or set(entry) - {"positive", "negative"}:
        raise DataError(f"{where}: expected the keys positive and negative alone", path=path)
    sides: dict[str, str] = {}
    for side in ("positive", "negative"):
        text = entry.get(side)
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{where}: {side} is missing", path=path)
        sides[side] = text
        key = _plain(text)
        if key in seen:
            raise DataError(f"{where}: {side} repeats an earlier side: {text[:60]!r}", path=path)
        seen.add(key)
    return Principle(group, sides["positive"], sides["negative"])


def language_of(messages: Messages, known: Sequence[Principles]) -> Principles | None:
    """Return the principles for a prompt: the script of the first letter of its last user turn decides.

    Letters of scripts without principles are passed over. `None` if no letter has any.
    """
    text = next((m.content for m in reversed(messages) if m.role == "user"), "")
    scripts = {principles.script: principles for principles in known}
    for letter in text:
        if letter.isalpha():
            found = scripts.get(unicodedata.name(letter, "").split(" ")[0].split("-")[0])
            if found is not None:
                return found
    return None


def draw_contrasts(
    prompts: Iterable[Prompt],
    known: Sequence[Principles],
    *,
    per_prompt: int,
    own_system: OwnSystem,
    language: str | None,
    seed: int,
) -> tuple[list[Contrast], Counter[str]]:
    """Draw principle pairs for every prompt: a group evenly, then a pair of it evenly.

    Args:
        prompts: Prompts, with or without a system turn of their own.
        known: Principles by language.
        per_prompt: Principle pairs for each prompt, no two the same; all there are where these are fewer.
        own_system: A prompt's own system message is kept with the principle after it (`append`), replaced,
            or the prompt is skipped.
        language: Forces a language; `None` goes by the script of each prompt.
        seed: Of the draws; each prompt's depends on its id alone.

    Returns:
        The contrasts in the order of the prompts, and prompts dropped by reason: `own_system`,
        `no_principles`.

    Raises:
        DataError: The forced language has no principles, or none is forced and two share a script.
    """
    by_language = {principles.language: principles for principles in known}
    if language is not None and language not in by_language:
        raise DataError(
            f"no principles for language {language!r}; there are: {', '.join(sorted(by_language))}"
        )
    scripts = [principles.script for principles in known]
    if language is None and len(set(scripts)) < len(scripts):
        raise DataError(
            "principles of two languages share a script, which can't tell their prompts apart; force one of "
            f"them with contrast.language: {', '.join(sorted(by_language))}"
        )
    contrasts: list[Contrast] = []
    dropped: Counter[str] = Counter()
    for prompt in prompts:
        if own_system == "skip" and prompt.messages[0].role == "system":
            dropped["own_system"] += 1
            continue
        found = by_language[language] if language else language_of(prompt.messages, known)
        if found is None:
            dropped["no_principles"] += 1
            continue
        draw = random.Random(f"{seed} {prompt.prompt_id}")  # noqa: S311 -- a reproducible draw, no secret
        contrasts += [
            Contrast(
                contrast_id=content_id(prompt.prompt_id, principle.positive, principle.negative),
                prompt_id=prompt.prompt_id,
                messages=prompt.messages,
                language=found.language,
                group=principle.group,
                positive=principle.positive,
                negative=principle.negative,
            )
            for principle in _draw(found, per_prompt, draw)
        ]
    return contrasts, dropped


def _draw(principles: Principles, count: int, draw: random.Random) -> list[Principle]:
    left = {group: list(pairs) for group, pairs in sorted(principles.groups.items())}
    chosen: list[Principle] = []
    while left and len(chosen) < count:
        group = draw.choice(list(left))
        chosen.append(left[group].pop(draw.randrange(len(left[group]))))
        if not left[group]:
            del left[group]
    return chosen


def under_principle(messages: Messages, principle: str, own_system: OwnSystem) -> Messages:
    """Return the prompt with the principle as its system message."""
    own = messages[0].content if messages[0].role == "system" else None
    rest = messages if own is None else messages[1:]
    text = f"{own}\n\n{principle}" if own is not None and own_system == "append" else principle
    return (Message(role="system", content=text), *rest)


def neutral(messages: Messages, own_system: OwnSystem) -> Messages:
    """Return the prompt to train on: without the principle; its own system message only if appended to."""
    if messages[0].role == "system" and own_system != "append":
        return messages[1:]
    return messages


_REFUSAL = re.compile(
    r"\b(i['’]?m sorry|i am sorry|i can(?:no|['’])t|i am unable|i['’]m unable|as an ai)\b"
    r"|抱歉|对不起|我不能|我无法|作为一个人工智能",
    re.IGNORECASE,
)


def completion_id(contrast: Contrast, side: str, sample: int) -> str:
    """Return the id of a contrast's completion."""
    return content_id(contrast.contrast_id, side, str(sample))


def drop_reason(
    positive: Completion, negative: Completion, *, similarity: float, keep_truncated: bool, refusals: bool
) -> str | None:
    """Return why a pair of completions is no pair, or `None` if it is one.

    Args:
        positive: Completion under the positive principle.
        negative: Completion under the negative one.
        similarity: A ROUGE-L F1 above this is `near_identical`; 1 keeps all that differ.
        keep_truncated: Admit completions cut off by the token limit.
        refusals: Drop pairs whose positive side opens with a refusal.

    Returns:
        `prompt_too_long`, `empty`, `identical` (after normalising white space), `truncated`, `refusal` or
        `near_identical`; the first that applies.
    """
    if positive.text is None or negative.text is None:
        return "prompt_too_long"
    if not positive.text.strip() or not negative.text.strip():
        return "empty"
    if positive.text.split() == negative.text.split():
        return "identical"
    if not keep_truncated and "length" in (positive.finish_reason, negative.finish_reason):
        return "truncated"
    if refusals and _REFUSAL.search(positive.text[:200]):
        return "refusal"
    if similarity < 1 and rouge_l(words(positive.text), words(negative.text)) > similarity:
        return "near_identical"
    return None


def inverted(reward_positive: float | None, reward_negative: float | None) -> bool:
    """Say whether the judge puts the negative side first; a tie or a missing reward inverts nothing."""
    return reward_positive is not None and reward_negative is not None and reward_positive < reward_negative


def contrast_pair(
    contrast: Contrast,
    messages: Messages,
    positive: Completion,
    negative: Completion,
    reward_positive: float | None = None,
    reward_negative: float | None = None,
) -> PreferencePair:
    """Return the preference pair of a contrast: the positive side chosen.

    Rewards are those of a judge, or `None` where none was asked; the margin is `None` unless both are
    known, and never says which side is chosen.

    Raises:
        ValueError: A completion has no text, or belongs to another prompt.
    """
    if positive.text is None or negative.text is None:
        raise ValueError(f"contrast {contrast.contrast_id}: a completion has no text")
    if not positive.prompt_id == negative.prompt_id == contrast.prompt_id:
        raise ValueError(f"contrast {contrast.contrast_id}: a completion belongs to another prompt")
    margin = None
    if reward_positive is not None and reward_negative is not None:
        margin = reward_positive - reward_negative
    return PreferencePair(
        pair_id=content_id(positive.completion_id, negative.completion_id),
        prompt_id=contrast.prompt_id,
        messages=messages,
        chosen_id=positive.completion_id,
        rejected_id=negative.completion_id,
        chosen=positive.text,
        rejected=negative.text,
        reward_chosen=reward_positive,
        reward_rejected=reward_negative,
        margin=margin,
        chosen_tokens=positive.num_tokens,
        rejected_tokens=negative.num_tokens,
        contrast_id=contrast.contrast_id,
    )


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
