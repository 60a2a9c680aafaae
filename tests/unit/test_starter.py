"""The starter data keep what their datasheet promises."""

import json
import re
from collections import Counter
from importlib.resources import files
from itertools import combinations
from typing import Any

import pytest
from rapidfuzz.distance import LCSseq
from scipy.stats import spearmanr

from selfalign.records import Message, Prompt, RankedPrompt, RankedReply, content_id

STARTER = files("selfalign") / "starter"
CJK = "\u4e00-\u9fff"
PUNCTUATION_AT_END = tuple('.?!"。？！”')


def lines(name: str) -> list[str]:
    return (STARTER / name).read_text(encoding="utf-8").splitlines()


def ranked_prompt(row: dict[str, Any]) -> RankedPrompt:
    assert row.keys() == {"messages", "replies"}
    prompt = Prompt.of([Message.model_validate(message) for message in row["messages"]], "ranked.jsonl")
    replies = tuple(
        RankedReply.model_validate(
            {"reply_id": content_id(prompt.prompt_id, reply["text"]), **reply}, strict=True
        )
        for reply in row["replies"]
    )
    return RankedPrompt(
        prompt_id=prompt.prompt_id, messages=prompt.messages, replies=replies, source="ranked.jsonl"
    )


IFT_ROWS = [json.loads(line) for line in lines("ift.jsonl")]
IFT = [tuple(Message.model_validate(message) for message in row["messages"]) for row in IFT_ROWS]
RANKED = [ranked_prompt(json.loads(line)) for line in lines("ranked.jsonl")]
CONVERSATIONS = [*IFT, *(ranked.messages for ranked in RANKED)]
USER_TURNS = [turn.content for turns in CONVERSATIONS for turn in turns if turn.role == "user"]
COMPLETIONS = [turn.content for turns in IFT for turn in turns if turn.role == "assistant"]
REPLIES = [reply.text for ranked in RANKED for reply in ranked.replies]
TEXTS = [*USER_TURNS, *COMPLETIONS, *REPLIES]


def words(text: str) -> list[str]:
    return re.findall(rf"[{CJK}]|[^\W_{CJK}]+", text.lower())


def language(messages: tuple[Message, ...]) -> str:
    first_letter = re.search(rf"[A-Za-z{CJK}]", messages[0].content)
    assert first_letter is not None
    return "en" if first_letter[0].isascii() else "zh"


def in_language(wanted: str) -> list[RankedPrompt]:
    return [ranked for ranked in RANKED if wanted in ("all", language(ranked.messages))]


def rouge_l(first: list[str], second: list[str]) -> float:
    return 2 * LCSseq.similarity(first, second) / (len(first) + len(second))


@pytest.mark.parametrize("name", ["ift.jsonl", "ranked.jsonl"])
def test_files_are_json_lines_with_unescaped_text(name: str) -> None:
    assert [json.dumps(json.loads(line), ensure_ascii=False) for line in lines(name)] == lines(name)
    assert (STARTER / name).read_bytes().endswith(b"}\n")


def test_ift_rows_hold_messages_that_alternate_and_end_with_a_completion() -> None:
    assert all(row.keys() == {"messages"} for row in IFT_ROWS)
    shapes = Counter(tuple(turn.role for turn in turns) for turns in IFT)
    assert shapes == {("user", "assistant"): 69, ("user", "assistant") * 2: 3}


def test_ranked_rows_hold_one_user_turn_and_three_or_four_replies() -> None:
    assert all([turn.role for turn in ranked.messages] == ["user"] for ranked in RANKED)
    assert Counter(len(ranked.replies) for ranked in RANKED) == {3: 28, 4: 28}


def test_languages_are_english_and_chinese_in_the_stated_numbers() -> None:
    assert Counter(map(language, IFT)) == {"en": 60, "zh": 12}
    assert Counter(language(ranked.messages) for ranked in RANKED) == {"en": 46, "zh": 10}


def test_english_rows_are_free_of_chinese_and_chinese_ones_are_simplified() -> None:
    pairs = [(language(turns), turn.content) for turns in IFT for turn in turns]
    pairs += [(language(row.messages), text.text) for row in RANKED for text in row.replies]
    assert not [text for lang, text in pairs if lang == "en" and re.search(f"[{CJK}]", text)]
    chinese = [text for lang, text in pairs if lang == "zh"]
    assert all(re.search(f"[{CJK}]", text) for text in chinese)
    for text in chinese:
        text.encode("gb2312")  # has no traditional forms, so they would raise


def test_texts_are_trimmed_and_free_of_control_tokens() -> None:
    assert [text for text in TEXTS if text != text.strip() or "<|" in text or "</s>" in text] == []


def test_prompts_have_4_to_60_words_and_end_with_punctuation() -> None:
    assert [text for text in USER_TURNS if not 4 <= len(words(text)) <= 60] == []
    assert [text for text in USER_TURNS if not text.endswith(PUNCTUATION_AT_END)] == []


def test_completions_have_15_to_90_words_and_most_of_them_25_to_60() -> None:
    counts = [len(words(text)) for text in COMPLETIONS]
    assert min(counts) >= 15
    assert max(counts) <= 90
    assert sum(25 <= count <= 60 for count in counts) > 0.75 * len(counts)


def test_replies_have_8_to_80_words() -> None:
    assert [text for text in REPLIES if not 8 <= len(words(text)) <= 80] == []


def test_no_two_prompts_of_either_file_are_near_duplicates() -> None:
    turns = [words(text) for text in USER_TURNS]
    near = [(a, b) for a, b in combinations(turns, 2) if rouge_l(a, b) >= 0.7]
    assert near == []


def test_no_completion_or_reply_occurs_twice() -> None:
    assert len(set(COMPLETIONS + REPLIES)) == len(COMPLETIONS + REPLIES)


def test_ranks_count_up_from_zero_without_ties() -> None:
    for ranked in RANKED:
        assert sorted(reply.rank for reply in ranked.replies) == list(range(len(ranked.replies)))


def test_the_order_of_replies_does_not_give_away_the_rank() -> None:
    places = [(place, reply.rank) for ranked in RANKED for place, reply in enumerate(ranked.replies)]
    assert abs(spearmanr(places).statistic) <= 0.1
    best_places = Counter(place for place, rank in places if rank == 0)
    assert set(best_places) == {0, 1, 2, 3}
    assert max(best_places.values()) <= 0.4 * len(RANKED)


@pytest.mark.parametrize(("lang", "bound"), [("all", 0.1), ("en", 0.25), ("zh", 0.25)])
def test_length_is_independent_of_rank(lang: str, bound: float) -> None:
    points = [(reply.rank, len(reply.text)) for ranked in in_language(lang) for reply in ranked.replies]
    assert abs(spearmanr(points).statistic) <= bound


def test_the_better_reply_of_a_pair_is_the_longer_one_about_half_of_the_time() -> None:
    longer = []
    for ranked in RANKED:
        ordered = sorted(ranked.replies, key=lambda reply: reply.rank)
        lengths = [len(reply.text) for reply in ordered]
        assert len(set(lengths)) == len(lengths)  # else "not longer" would not mean "shorter"
        longer += [better > worse for better, worse in combinations(lengths, 2)]
    assert len(longer) == 252
    assert 0.45 <= sum(longer) / len(longer) <= 0.55


def test_the_datasheet_states_the_true_counts() -> None:
    sheet = (STARTER / "DATASHEET.md").read_text(encoding="utf-8")
    ift = Counter(map(language, IFT))
    ranked = Counter(language(row.messages) for row in RANKED)
    completion_words = [len(words(text)) for text in COMPLETIONS]
    reply_words = [len(words(text)) for text in REPLIES]
    turns, sizes = Counter(map(len, IFT)), Counter(len(row.replies) for row in RANKED)
    pairs = sum(len(row.replies) * (len(row.replies) - 1) // 2 for row in RANKED)
    claims = [
        f"| `ift.jsonl` | {len(IFT)} | {ift['en']} | {ift['zh']} | {len(COMPLETIONS)} |",
        f"| `ranked.jsonl` | {len(RANKED)} | {ranked['en']} | {ranked['zh']} | {len(REPLIES)} |",
        f"{turns[2]} rows have one exchange, {turns[4]} have two",
        f"{len(COMPLETIONS)} completions have {min(completion_words)} to {max(completion_words)} words",
        f"{sizes[3]} rows have three replies and {sizes[4]} have four, which makes {pairs} pairs",
        f"replies have {min(reply_words)} to {max(reply_words)} words",
        "Apache-2.0",
    ]
    assert [claim for claim in claims if claim not in " ".join(sheet.split())] == []
