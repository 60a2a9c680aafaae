"""Judging: the prompt that asks for a score, the score that is read from the reply, and what follows.

Where we depart from the paper: the request and the answer are fenced, so that an answer can't pose as
instructions; a reply without a sound score is unscored with a reason, never a number.
"""

import difflib
import math
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from itertools import count
from pathlib import Path
from statistics import fmean
from typing import TypedDict

import numpy as np
from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError
from jinja2.sandbox import SandboxedEnvironment
from scipy.stats import spearmanr

from selfalign.errors import RecipeError
from selfalign.records import Judgment, Message, Messages, content_id

MOST_OF_ONE_SCORE = 0.8
"""Share of the scores beyond which a single one says that the judge tells nothing apart."""
LEAST_MASS = 0.01
"""Probability that a judge has to put on scores for their mean to mean anything."""
SCORES = tuple(str(score) for score in range(6))
"""The scores of a rubric of five additive points."""
_LETTERS = str.maketrans("0123456789abcdef", "bcdfghjklmnpqrst")
_JINJA = SandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


@lru_cache(maxsize=8)
def _template(rubric: str) -> Template:
    return _JINJA.from_string(rubric)


def load_rubric(name_or_path: str) -> str:
    """Return the template text of a shipped rubric or of a user's own file.

    A shipped name wins over a file of that name. The template is rendered once on trial, so that a
    faulty one is refused before anything is generated.

    Raises:
        RecipeError: The rubric is neither shipped nor a readable file, fails to render, or doesn't show
            both `prompt` and `completion`.
    """
    folder = resources.files("selfalign").joinpath("prompts", "rubrics")
    shipped = sorted(file.name.removesuffix(".jinja") for file in folder.iterdir())
    if name_or_path in shipped:
        return folder.joinpath(f"{name_or_path}.jinja").read_text(encoding="utf-8")
    try:
        text = Path(name_or_path).read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        near = difflib.get_close_matches(name_or_path, shipped, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise RecipeError(
            f"rubric {name_or_path!r} is not a shipped one ({', '.join(shipped)}) and can't be read as a "
            f"file: {error}.{hint} Give one of those names or the path of a UTF-8 template."
        ) from error
    prompt, completion = "<<request>>", "<<answer>>"
    try:
        shown = _template(text).render(prompt=prompt, completion=completion)
    except (TemplateError, TypeError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, TemplateSyntaxError) else ""
        raise RecipeError(
            f"rubric {name_or_path}{line}: {error}. It is a jinja template with the two variables `prompt` "
            "and `completion`."
        ) from error
    for name, value in (("prompt", prompt), ("completion", completion)):
        if value not in shown:
            raise RecipeError(
                f"rubric {name_or_path}: the variable `{name}` is not shown. Add {{{{ {name} }}}}."
            )
    return text


def rendered(template: str, **values: str) -> str:
    """Return a template with its values; a name that it does not get is an error."""
    return _template(template).render(**values)


def conversation_of(messages: Messages) -> str:
    """Return a single user turn as it is, and otherwise every turn labelled with its role."""
    match messages:
        case (Message(role="user", content=content),):
            return content
        case _:
            return "\n\n".join(f"{turn.role.capitalize()}: {turn.content}" for turn in messages)


def fence(tag: str, content: str) -> str:
    """Put content between two tag lines that it can't contain: their code is derived from it.

    The code is letters alone: small models copied its digits as the score.
    """
    codes = (content_id(content, str(salt))[:6].translate(_LETTERS) for salt in count())
    code = next(code for code in codes if code not in content.lower())
    return f"<{tag} {code}>\n{content}\n</{tag} {code}>"


def judge_messages(rubric: str, messages: Messages, completion: str) -> Messages:
    """Return the one user message that asks a judge to score a completion.

    The template gets `prompt` and `completion` as fenced text. A single user turn is shown as it is;
    otherwise every turn is labelled with its role. The fence of the prompt depends on the prompt alone,
    so that the candidates of a prompt share everything before their own text and an engine can cache it.

    Args:
        rubric: Template text, as `load_rubric` returns it.
        messages: The prompt.
        completion: The answer to score; its text can't close its fence.

    Source: arXiv 2401.10020, figure 2; the fences are our choice, because a judge reads
        text that a model wrote to please it.
    """
    text = rendered(
        rubric, prompt=fence("request", conversation_of(messages)), completion=fence("answer", completion)
    )
    return (Message(role="user", content=text),)


@dataclass(frozen=True)
class ParsedScore:
    """A score, or the reason for having none."""

    score: float | None
    reason: str | None
    """`empty`, `no_score`, `truncated`, `ambiguous`, `wrong_scale` or `out_of_range`; `None` with a score."""


# Minus signs and dashes, line breaks, markdown emphasis.
_SPELLINGS = str.maketrans(
    dict.fromkeys("−–—", "-") | dict.fromkeys("\r\u2028", "\n") | dict.fromkeys("*_`#", "")
)
_LABEL = (
    r"(?:(?:the|final|total|overall)\s+){0,3}(?:score|rating|total)|(?:最终|总体|综合)?(?:[评得总]分|分数)"
)
_COLON = r"\s*(?:\([^)\n]*\))?\s*[:=]"
# A label opens a line, perhaps as a list item, or the last sentence of the reply. The value may stand on
# the next line if that has no label. Neither ">" nor a quotation mark may precede: it is not the judge's own.
_LABELLED = re.compile(
    r"(?:^[ \t]*(?:[-•+|]|\d+[.)])?|[.!?。](?=.*\Z))[ \t]*"
    rf"(?:{_LABEL}){_COLON}(?!\s*(?:{_LABEL}){_COLON})\s*(?P<value>.*)",
    re.IGNORECASE | re.MULTILINE,
)
_CUT_LABEL = re.compile(rf"(?:{_LABEL})\s*(?:[:=]|$)", re.IGNORECASE)
_LONE = re.compile(
    r"""(?:[\s\d.,/<>()\[\]"'~+-]|out\s+of|points?\b|or\b|to\b|[分或到至满为])+""", re.IGNORECASE
)
_VALUE = re.compile(
    r"""[<\[("'{\s]*(?P<number>[-+]?\d++(?:\.\d++)?+)(?!(?!points?\b|pts\b|out\b)[a-z])"""
    r"""[>\])"'}\s]*(?:分|points?\b|pts\b)?\s*"""
    r"(?:\(?(?:/|out\s+of|满分为?)\s*(?P<scale>\d+(?:\.\d+)?))?(?P<rest>.*)",
    re.IGNORECASE,
)
_SECOND_VALUE = re.compile(r"\s*(?:or\b|to\b|[或至到%])|.*\d", re.IGNORECASE)


def parse_score(reply: str, *, low: int = 0, high: int = 5, truncated: bool = False) -> ParsedScore:
    """Read the score that a judge's reply ends with.

    It comes from a labelled line ("Score: 4", "**Score:** 4/5", "评分：4分") or from a last line that is
    nothing but a score ("4", "4/5"); where there are several, the last counts. A number in prose never
    counts. Width, zero-width characters, case and markdown emphasis don't matter.

    In a truncated reply a line counts only if a line break follows it ("Score: 1" may be the start of
    "Score: 1.5"), and no line counts if the cut is within another score line.

    Args:
        reply: The judge's whole reply.
        low: Lowest valid score.
        high: Highest valid score, and the only denominator accepted in "4/5".
        truncated: Whether the token limit ended the reply.

    Returns:
        The score in [low, high], fractions included, or a reason: `empty` (blank reply), `no_score`,
        `truncated` (no score before the cut), `ambiguous` ("3-4", "4 or 5"), `wrong_scale` ("4/10") or
        `out_of_range`.

    Source: our choice, because every spelling here was seen in replies to such a rubric, and a score
        that is guessed becomes a preference.
    """
    text = _folded(reply)
    if not text.strip():
        return ParsedScore(None, "empty")
    whole, cut = text, ""
    if truncated:
        whole, _, cut = text.rpartition("\n")
        if _CUT_LABEL.search(cut):
            return ParsedScore(None, "truncated")
    whole = whole.rstrip()
    last_line = whole.rpartition("\n")[2]
    values = [match["value"] for match in _LABELLED.finditer(whole)]
    if _LONE.fullmatch(last_line) and not cut.strip():
        values.append(last_line)
    value = values[-1] if values else ""
    if not re.search(r"\d", value):
        return ParsedScore(None, "truncated" if truncated else "no_score")
    return _read_value(value, low, high)


def _folded(reply: str) -> str:
    """Return a reply without what makes no difference: width, invisible characters, markdown emphasis."""
    folded = unicodedata.normalize("NFKC", reply)
    return "".join(c for c in folded if unicodedata.category(c) != "Cf").translate(_SPELLINGS)


def _read_value(value: str, low: int, high: int) -> ParsedScore:
    found = _VALUE.match(value)
    if found is None or _SECOND_VALUE.match(found["rest"]):
        return ParsedScore(None, "ambiguous")
    if found["scale"] is not None and float(found["scale"]) != high:
        return ParsedScore(None, "wrong_scale")
    score = float(found["number"])
    return ParsedScore(score, None) if low <= score <= high else ParsedScore(None, "out_of_range")


def rationale_of(reply: str) -> str:
    """Return what a reply says before its last labelled score, without markdown emphasis."""
    text = _folded(reply)
    labels = [match.start() for match in _LABELLED.finditer(text)]
    return (text[: labels[-1]] if labels else text).strip()


def expected_score(probabilities: Sequence[float]) -> tuple[float | None, float]:
    """Return the mean of the scores 0, 1, 2, ... under the judge's probabilities of them, and their sum.

    The mean is over the scores alone: what the judge might say instead of a score doesn't pull it to 0. It is
    `None` where the probabilities add up to less than `LEAST_MASS`.

    Args:
        probabilities: Of each score among all that the judge could say.

    Source: our choice, because sampled scores of a small judge tie: it says 5 of nearly everything.
    """
    mass = sum(probabilities)
    if mass < LEAST_MASS:
        return None, mass
    return sum(score * probability for score, probability in enumerate(probabilities)) / mass, mass


def mean_rewards(judgments: Iterable[Judgment]) -> dict[str, float | None]:
    """Return the reward of every judged completion: the mean of its scored judgments, by completion_id.

    The reward is `None` where no judgment is scored; an unscored one weighs nothing. The values don't
    depend on the order of the judgments.

    Raises:
        ValueError: A completion has two judgments of the same sample number.

    Source: arXiv 2401.10020, section 3.1.3: the average of three sampled scores.
    """
    judged: set[tuple[str, int]] = set()
    scores: dict[str, list[float]] = {}
    for judgment in judgments:
        key = (judgment.completion_id, judgment.sample)
        if key in judged:
            raise ValueError(f"completion {key[0]} has two judgments of sample {key[1]}")
        judged.add(key)
        scored = scores.setdefault(judgment.completion_id, [])
        if judgment.score is not None:
            scored.append(judgment.score)
    return {completion_id: fmean(scored) if scored else None for completion_id, scored in scores.items()}


def representative(judgments: Sequence[Judgment]) -> Judgment | None:
    """Return the judgment of one completion whose score is nearest to the mean score.

    Of equally near ones it is that of the lowest sample; `None` where none is scored.

    Raises:
        ValueError: The judgments are of more than one completion.

    Source: our choice, because an evaluation example needs one rationale that fits the averaged score.
    """
    if len({judgment.completion_id for judgment in judgments}) > 1:
        raise ValueError("the judgments are of more than one completion")
    scored = [(judgment.score, judgment) for judgment in judgments if judgment.score is not None]
    if not scored:
        return None
    mean = fmean(score for score, _ in scored)
    return min(scored, key=lambda item: (abs(item[0] - mean), item[1].sample))[1]


class Health(TypedDict):
    """How a batch of judge calls went, ready for JSON."""

    judgments: int
    scored: int
    parse_rate: float | None
    """Share of the judgments that are scored; `None` without judgments."""
    unscored: dict[str, int]
    """Judgments by the reason for having no score."""
    scores: dict[str, int]
    """Judgments by score, rounded to the nearest half; ascending, empty buckets left out."""
    score_entropy: float | None
    """Of `scores`, in bits: 0 where all are one. `None` without scores."""
    mean_mass: float | None
    """Mean probability that the judge goes on with a score at all; `None` where scores were sampled."""
    agreement: float | None
    """Share of pairs of judgments of one completion that have the same score; `None` without such pairs."""
    tie_rate: float | None
    """Share of pairs of completions of one prompt that have the same reward; `None` without such pairs."""
    length_correlation: float | None
    """Spearman's correlation of a completion's reward with its length; `None` where one is constant."""
    mean_attempts: float | None
    """Judge calls a judgment took; `None` without judgments."""


def health(judgments: Iterable[Judgment], lengths: Mapping[str, int]) -> Health:
    """Measure how the judge behaved; the result doesn't depend on the order.

    Args:
        judgments: Of any completions.
        lengths: Length of every judged completion in any unit, by `completion_id`.
    """
    prompts: dict[str, dict[str, list[Judgment]]] = {}
    for row in judgments:
        prompts.setdefault(row.prompt_id, {}).setdefault(row.completion_id, []).append(row)
    return health_of_prompts(
        [(lengths[name], found) for name, found in own.items()] for own in prompts.values()
    )


def health_of_prompts(prompts: Iterable[Iterable[tuple[int, Sequence[Judgment]]]]) -> Health:
    """Measure the same, with one prompt at a time in memory and a few bytes of every completion.

    Args:
        prompts: Of each prompt, once, its completions: the length, in any unit, and the judgments of each.
    """
    attempts = 0
    counts, unscored = Counter[float](), Counter[str]()
    masses, rewards, lengths = array("d"), array("d"), array("d")
    same_score, same_reward = Counter[bool](), Counter[bool]()
    for texts in prompts:
        before = len(rewards)
        for length, judgments in texts:
            scores = [row.score for row in judgments if row.score is not None]
            attempts += sum(row.attempts for row in judgments)
            counts.update(round(score * 2) / 2 for score in scores)
            unscored.update(str(row.reason) for row in judgments if row.score is None)
            masses.extend(row.mass for row in judgments if row.mass is not None)
            _count_pairs(same_score, scores)
            if scores:
                rewards.append(fmean(scores))
                lengths.append(length)
        _count_pairs(same_reward, rewards[before:])
    buckets, scored = sorted(counts.items()), counts.total()
    number = scored + unscored.total()
    return Health(
        judgments=number,
        scored=scored,
        parse_rate=scored / number if number else None,
        unscored=dict(sorted(unscored.items())),
        scores={f"{score:g}": n for score, n in buckets},
        score_entropy=sum(n / scored * math.log2(scored / n) for _, n in buckets) if buckets else None,
        mean_mass=fmean(masses) if masses else None,
        agreement=_share(same_score),
        tie_rate=_share(same_reward),
        length_correlation=_spearman(rewards, lengths),
        mean_attempts=attempts / number if number else None,
    )


def one_score(scores: Mapping[str, int]) -> str | None:
    """Say which score nearly all judgments have; `None` if there is no such score.

    Source: the bound is our choice: a judge of one score leaves its pairs to chance.
    """
    if not scores:
        return None
    score, most = max(scores.items(), key=lambda item: item[1])
    part = most / sum(scores.values())
    return f"{part:.0%} of the scores are {score}" if part > MOST_OF_ONE_SCORE else None


def _count_pairs(counts: Counter[bool], group: Collection[float]) -> None:
    """Count the pairs within a group by whether their members are equal."""
    equal = sum(math.comb(n, 2) for n in Counter(group).values())
    counts.update({True: equal, False: math.comb(len(group), 2) - equal})


def _share(counts: Counter[bool]) -> float | None:
    return counts[True] / counts.total() if counts.total() else None


def _spearman(rewards: Sequence[float], lengths: Sequence[float]) -> float | None:
    if not rewards or min(rewards) == max(rewards) or min(lengths) == max(lengths):
        return None
    order = np.lexsort((lengths, rewards))  # so that rounding doesn't depend on the order
    return float(spearmanr(np.array(rewards)[order], np.array(lengths)[order]).statistic)
