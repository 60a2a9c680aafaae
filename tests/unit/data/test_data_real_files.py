"""The readers on published data, against the counts that its description states."""

from collections import Counter
from pathlib import Path

import pytest

from selfalign.data import read_answers, read_ift, read_pairs, read_prompts, read_ranked, read_rows, recognise
from selfalign.errors import DataError

DATA = Path(__file__).resolve().parents[3] / ".." / "shared" / "data"
OASST1 = str(DATA / "oasst1_en_validation" / "en-validation.jsonl")
TREES = str(DATA / "oasst_trees_en_100" / "en_100_tree.jsonl")
FLAT = str(DATA / "oasst2_quality_flat" / "oasst2_evaluation_fine_tuning.jsonl")

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the shared data files are not here")


def ift(location, selection="paper"):
    return read_ift(location, selection=selection, language="en", limit=None)


def test_oasst1_counts_of_the_file_itself_are_as_described():
    rows = [row for _, row in read_rows(OASST1)]
    ranked = Counter(row["parent_id"] for row in rows if row["rank"] is not None)
    assert len(rows) == 2022
    assert sum(row["role"] == "assistant" for row in rows) == 1243
    assert sum(count >= 2 for count in ranked.values()) == 418
    assert sum(count >= 3 for count in ranked.values()) == 281


def test_oasst1_ranked_contexts_are_the_418_of_the_file_less_two_with_a_deleted_reply():
    """40 messages are deleted and 53 review-rejected, 7 of them both; the 13 without a review stay.

    The three replies whose parent is absent are among the rejected. Of the 418 contexts with two ranked
    replies, two lose one of their two to deletion. One more reply repeats another of its context.
    """
    prompts, dropped = read_ranked(OASST1, language="en")
    assert len(prompts) == 418 - 2
    assert dropped == {
        "deleted": 40,
        "review_rejected": 53 - 7,
        "no_rank": 55,
        "duplicate_reply": 1,
        "fewer_than_two_replies": 335,
    }
    for prompt in prompts:
        assert [reply.rank for reply in prompt.replies] == list(range(len(prompt.replies)))
        assert prompt.messages[-1].role == "user"
    assert any(reply.quality is None for prompt in prompts for reply in prompt.replies)


def test_oasst1_every_usable_message_is_accounted_for():
    prompts, _ = read_ranked(OASST1, language="en")
    _, dropped = read_ranked(OASST1, language="en")
    usable_prompts, _ = read_prompts(OASST1)
    assert len(prompts) + dropped["fewer_than_two_replies"] == len(usable_prompts)
    rows = [row for _, row in read_rows(OASST1)]
    fine = [row for row in rows if not row["deleted"] and row["review_result"] is not False]
    assert len(usable_prompts) == sum(row["role"] == "prompter" for row in fine)


def test_oasst1_selections():
    paper, _ = ift(OASST1)
    autoalign, dropped = ift(OASST1, "autoalign")
    every, _ = ift(OASST1, "all")
    assert (len(paper), len(autoalign), len(every)) == (186, 160, 418)
    assert all(len(example.messages) == 1 for example in paper)
    assert {example.example_id for example in paper} < {example.example_id for example in every}
    assert (dropped["low_quality"], dropped["no_quality"], dropped["short"]) == (248, 4, 6)


def test_trees_counts_of_the_file_itself_are_as_described():
    messages = []
    for _, row in read_rows(TREES):
        waiting = [row["prompt"]]
        while waiting:
            message = waiting.pop()
            messages.append(message)
            waiting += message["replies"]
    ranked = Counter(message["parent_id"] for message in messages if message.get("rank") is not None)
    assert len(messages) == 1167
    assert sum(message["role"] == "assistant" for message in messages) == 687
    assert sum(count >= 2 for count in ranked.values()) == 212
    assert sum(count >= 3 for count in ranked.values()) == 155


def test_trees_ranked_contexts_are_the_212_of_the_file_less_five_written_by_a_model():
    """Five synthetic prompts and their 17 ranked replies are dropped; one had two replies, four had more."""
    prompts, dropped = read_ranked(TREES, language="en")
    assert len(prompts) == 212 - 5
    assert dropped == {"synthetic": 5 + 17, "no_rank": 46, "fewer_than_two_replies": 268}
    assert sum(len(prompt.replies) >= 3 for prompt in prompts) == 155 - 4


def test_trees_have_no_quality_labels_for_autoalign():
    paper, _ = ift(TREES)
    autoalign, dropped = ift(TREES, "autoalign")
    assert (len(paper), len(autoalign)) == (94, 0)
    assert dropped["no_quality"] == 212 - 5


def test_flat_file_has_799_prompts_and_all_2844_responses_are_accounted_for():
    prompts, dropped = read_ranked(FLAT, language="en")
    assert len(prompts) == 799
    assert dropped == {"no_quality": 56, "duplicate_reply": 2}
    assert sum(len(prompt.replies) for prompt in prompts) == 2844 - 56 - 2
    assert any(len({reply.rank for reply in prompt.replies}) < len(prompt.replies) for prompt in prompts)
    assert len({reply.reply_id for prompt in prompts for reply in prompt.replies}) == 2844 - 56 - 2


def test_flat_file_counts_of_the_file_itself_are_as_described():
    responses = Counter(row["prompt_id"] for _, row in read_rows(FLAT))
    assert sum(responses.values()) == 2844
    assert sum(count >= 2 for count in responses.values()) == 799
    assert sum(count >= 3 for count in responses.values()) == 724


def test_contexts_that_two_files_share_have_the_same_ids_in_both():
    ids = [{prompt.prompt_id for prompt in read_ranked(file, language="en")[0]} for file in (OASST1, TREES)]
    assert 0 < len(ids[0] & ids[1]) < len(ids[1])
    assert len(ids[0] | ids[1]) == 615 - 2 - 5


def test_hh_transcripts_lose_only_rows_without_two_replies_to_one_prompt():
    """Four rows have an empty chosen reply, five part before the last turn, four of these with two
    assistant turns in a row; two rows repeat a prompt.
    """
    prompts, dropped = read_ranked(str(DATA / "hh_rlhf/harmless-base/test.jsonl.gz"), language=None)
    assert len(prompts) == 2312 - 4 - 5 - 2
    assert dropped == {"no_user_turn": 4, "empty": 4, "fewer_than_two_replies": 5, "duplicate_prompt": 2}


FILES = {
    "autoalign_samples/rm/rewardbench.jsonl": ("preference", 8),
    "autoalign_samples/rm/anthropic_helpful.jsonl": ("preference", 8),
    "autoalign_samples/ultra_binary.jsonl": ("preference", 8),
    "preference_demo/dpo_en_demo.json": ("sharegpt", 295),
    "hh_rlhf/harmless-base/test.jsonl.gz": ("preference", 2306),
    "alpaca/alpaca_en_demo.json": ("alpaca", 985),
    "alpaca_eval/results/vicuna-7b/model_outputs.json": ("alpaca", 805),
    "alpaca_eval/results/text_davinci_003/model_outputs.json": ("alpaca", 805),
    "self_instruct/seed_tasks.jsonl": ("alpaca", 175),
    "self_instruct/user_oriented_instructions.jsonl": ("alpaca", 252),
    "self_instruct/predictions/text-davinci-003_predictions.jsonl": ("prompts", 252),
    "arena_hard/question.jsonl": ("prompts", 500),
    "mt_bench/question.jsonl": ("prompts", 80),
    "ifeval/input_data.jsonl": ("prompts", 541),
    "humaneval/HumanEval.jsonl.gz": ("prompts", 164),
}


@pytest.mark.parametrize("name", FILES)
def test_other_files_are_recognised_and_read(name):
    format, count = FILES[name]
    location = str(DATA / name)
    assert recognise(next(read_rows(location))[1]) == format
    prompts, dropped = read_prompts(location)
    assert len(prompts) == count
    assert set(dropped) <= {"duplicate_prompt", "no_user_turn"}
    examples, _ = ift(location)
    ranked, _ = read_ranked(location, language="en")
    assert bool(examples) == (format != "prompts")
    assert bool(ranked) == (format in ("preference", "sharegpt"))


def test_questions_with_answers_are_refused_rather_than_misread():
    with pytest.raises(DataError, match=r"test\.jsonl, row 1: the fields question, answer fit no format"):
        read_prompts(str(DATA / "gsm8k" / "test.jsonl"))


PAIRS = {
    "preference_demo/dpo_en_demo.json": (295, {"duplicate_pair": 5}),
    "autoalign_samples/ultra_binary.jsonl": (8, {}),
    "autoalign_samples/rm/rewardbench.jsonl": (8, {}),
    "autoalign_samples/rm/anthropic_helpful.jsonl": (8, {}),
}


@pytest.mark.parametrize("name", PAIRS)
def test_every_published_pair_is_read_or_counted(name):
    dropped = Counter()
    pairs = list(read_pairs(str(DATA / name), len, dropped))
    assert (len(pairs), dropped) == PAIRS[name]
    scored = name.endswith("ultra_binary.jsonl")
    assert all((pair.margin is not None) == scored for pair in pairs)


def test_conversations_of_hh_rlhf_that_part_early_are_counted():
    location = str(DATA / "hh_rlhf" / "harmless-base" / "test.jsonl.gz")
    dropped = Counter()
    pairs = list(read_pairs(location, len, dropped))
    assert (len(pairs), dropped) == (2303, {"different_prompts": 5, "empty": 4})  # of 2312


def test_rated_replies_of_oasst_are_candidates_with_scores():
    dropped = Counter()
    answers = list(read_answers(FLAT, dropped))
    assert (len(answers), dropped) == (2844, {})
    assert sum(answer.score is None for answer in answers) == 56
