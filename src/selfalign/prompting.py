"""New prompts: few-shot examples in, a model's reply out, and the filters in between.

Where we depart from Self-Instruct: one task a reply, letter case is kept, and every step works in any
language.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib import resources

import numpy as np
from jinja2 import StrictUndefined, Template

from selfalign.dedup import NearDuplicates, words
from selfalign.records import Message, Messages, Prompt


def few_shot(
    ift: Sequence[Prompt],
    generated: Sequence[Prompt],
    *,
    seed: int,
    shots: int = 8,
    generated_shots: int = 2,
) -> tuple[Prompt, ...]:
    """Draw the examples of one generation call, in random order, no prompt twice.

    `generated_shots` of them are generated prompts and the rest are IFT prompts; where one kind has too
    few, the other fills up. There are fewer than `shots` only if there aren't enough in all. The same
    seed and the same two sequences, in the same order, give the same examples.

    Source: Wang et al. 2022 (Self-Instruct, arXiv 2212.10560), section 2.2: 6 seed and 2 generated.
    """
    rng = np.random.default_rng(seed)
    chosen: dict[str, Prompt] = {}
    for pool, limit in ((generated, generated_shots), (ift, shots), (generated, shots)):
        for index in rng.permutation(len(pool)):
            if len(chosen) >= limit:
                break
            chosen.setdefault(pool[index].prompt_id, pool[index])
    examples = tuple(chosen.values())
    return tuple(examples[index] for index in rng.permutation(len(examples)))


def showable(prompts: Sequence[Prompt], *, max_words: int) -> list[Prompt]:
    """Return the prompts fit to be shown as examples: no longer than a new prompt may be.

    All are fit if none is that short.
    """
    return [p for p in prompts if len(words(p.messages[-1].content)) <= max_words] or list(prompts)


def new_prompt_messages(examples: Sequence[Prompt]) -> Messages:
    """Return the one user message that shows the examples and asks for one new task.

    Of an example with several turns only the last one, the user's, is shown.

    Raises:
        ValueError: There is no example.
    """
    if not examples:
        raise ValueError("a new prompt needs at least one example")
    source = resources.files("selfalign").joinpath("prompts", "new_prompts.jinja").read_text(encoding="utf-8")
    template = Template(source, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    shown = [example.messages[-1].content.strip() for example in examples]
    return (Message(role="user", content=template.render(examples=shown)),)


_TASK = r"(?:tasks?|prompts?|instructions?|任务|任務|指令|提示)"
# "9. ", "9) ", "(9) ", "9、", "Task 9:", "任务9：", also in bold. A number alone needs a gap after its dot,
# or "3.5 percent of ..." would be an item.
_MARKER = re.compile(
    rf"^[ \t]*\**(?:{_TASK}[ \t]*#?[ \t]*(?P<labelled>\d{{1,4}})\**[.):：、]"
    r"|\(?(?P<bare>\d{1,3})(?:[.):](?=[\s*]|[^\x00-\x7f]|\Z)|[．：、）]))\**[ \t]*",
    re.IGNORECASE | re.MULTILINE,
)
# "Task:", "New task:", "Here is a new task:" on a line of its own, and a bullet if it is the only one.
_LABEL = re.compile(
    rf"\A(?:\**(?:(?:new|next)[ ]|新的?)?{_TASK}\**[ \t]*[:：]\**"
    rf"|[^\n:：]{{0,60}}(?:\bnew[ ]|新的?){_TASK}[:：][ \t]*\n|[-•*][ \t](?![\s\S]*\n[-•*][ \t]))\s*",
    re.IGNORECASE,
)
_ENCLOSING = [pair.split() for pair in ("** **", '" "', "' '", "“ ”", "‘ ’", "„ “", "« »", "「 」", "『 』")]


def extract_prompts(text: str, *, truncated: bool) -> list[str]:
    """Return the tasks in a model's reply, in order.

    A reply that opens with a number is a list, whose items carry consecutive numbers; other numbered
    lines belong to the item they stand in. Any other reply is one task. List markers, labels such as
    "New task:" and quotation marks around the whole are removed; letter case and inner line breaks stay.

    Args:
        text: The reply.
        truncated: Whether the token limit ended the reply; the last task is then left out.
    """
    text = _bare(text)
    items: list[str] = []
    begin, expected = 0, None
    for marker in _MARKER.finditer(text):
        number = int(marker["labelled"] or marker["bare"])
        if expected is None and marker.start() > 0:
            break
        if expected is None or number == expected:
            items.append(text[begin : marker.start()])
            begin, expected = marker.end(), number + 1
    items.append(text[begin:])
    if truncated:
        items.pop()
    return [task for item in items if (task := _bare(item))]


def _bare(item: str) -> str:
    """Strip labels and quotation marks around the whole, however they are nested."""
    task, before = item.strip(), None
    while task != before:
        before = task
        task = _LABEL.sub("", task)
        for opening, closing in _ENCLOSING:
            inner = task[len(opening) : -len(closing)]
            encloses = task.startswith(opening) and task.endswith(closing)
            if encloses and opening not in inner and closing not in inner:
                task = inner.strip()
    return task


# Words as `dedup.words` splits them, so that "graph" is not found in "paragraph", nor "map" in "mapping",
# but "image" is found in Chinese text that has no space before it.
_KEYWORD = re.compile(
    r"(?<!\S)(?:images?|pictures?|photos?|photographs?|graphs?|charts?|diagrams?|flowcharts?|maps?|draw|drawings?"
    r"|plots?|videos?|audios?|files?|go to)(?!\S)"
)
# The lookbehind spares "动画一般" (animation), "計畫一下" (plan) and the like.
_CJK_KEYWORD = re.compile(
    r"图[片像表]|圖[片像表]|照片|[视視][频頻]|音[频頻]|地[图圖]|文件|[绘繪][制製图圖]"
    r"|(?<![动動漫油国國版计計企])[画畫][一个個张張幅出]"
)


def reject_reason(text: str, *, min_words: int = 4, max_words: int = 150) -> str | None:
    """Say why a new prompt is of no use; `None` if it may stay.

    Args:
        text: The prompt.
        min_words: Fewest words that may stay, as `dedup.words` counts them: a Han character is one.
        max_words: Most words that may stay.

    Returns:
        The first that applies: `empty`, `punctuation` (it starts with any but an opening mark), `too_short`,
        `too_long`, or `keyword` (English or Chinese words for what a text model can't be given or make).

    Source: Wang et al. 2022 (Self-Instruct, arXiv 2212.10560), section 2.2; the Chinese keywords are
        our choice.
    """
    text = text.strip()
    if not text:
        return "empty"
    kind = unicodedata.category(text[0])
    if kind.startswith("P") and kind not in {"Ps", "Pi", "Pf"} and text[0] not in "\"'¿¡":
        return "punctuation"
    tokens = words(text)
    if len(tokens) < min_words:
        return "too_short"
    if len(tokens) > max_words:
        return "too_long"
    if _KEYWORD.search(" ".join(tokens)) or _CJK_KEYWORD.search(text):
        return "keyword"
    return None


def accept(
    texts: Iterable[tuple[str, str]], seen: NearDuplicates, **bounds: int
) -> tuple[list[Prompt], Counter[str]]:
    """Keep the texts that pass the filters and are no near duplicate of an earlier one.

    The first of two like texts stays, so the order of the texts matters.

    Args:
        texts: Pairs of source and text.
        seen: All earlier prompts; the kept ones are added to it.
        **bounds: `min_words` and `max_words` of `reject_reason`.

    Returns:
        The kept texts as prompts of one user message, in order, and the number of the others by reason:
        those of `reject_reason` and `near_duplicate`.
    """
    prompts: list[Prompt] = []
    rejected: Counter[str] = Counter()
    for source, text in texts:
        reason = reject_reason(text, **bounds)
        if reason is None and seen.find(text) is not None:
            reason = "near_duplicate"
        if reason is not None:
            rejected[reason] += 1
            continue
        seen.add(text)
        prompts.append(Prompt.of([Message(role="user", content=text)], source))
    return prompts, rejected
