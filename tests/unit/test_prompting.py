import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfalign.dedup import NearDuplicates
from selfalign.prompting import (
    accept,
    extract_prompts,
    few_shot,
    new_prompt_messages,
    reject_reason,
    showable,
)
from selfalign.records import Message, Prompt

SEED_TASKS = (
    Path(__file__).resolve().parents[2].parent / "shared" / "data" / "self_instruct" / "seed_tasks.jsonl"
)


def prompt(text: str, source: str = "test") -> Prompt:
    return Prompt.of([Message(role="user", content=text)], source)


IFT = [prompt(f"ift {i}", "ift") for i in range(40)]
GENERATED = [prompt(f"generated {i}", "generated") for i in range(20)]


def sources(examples: tuple[Prompt, ...]) -> Counter[str]:
    return Counter(example.source for example in examples)


@given(st.integers(0, 2**32))
def test_six_examples_are_ift_prompts_and_two_generated_ones(seed: int) -> None:
    examples = few_shot(IFT, GENERATED, seed=seed)
    assert sources(examples) == {"ift": 6, "generated": 2}
    assert len({example.prompt_id for example in examples}) == 8


@pytest.mark.parametrize(
    ("ift", "generated", "expected"),
    [
        (40, 0, {"ift": 8}),
        (40, 1, {"ift": 7, "generated": 1}),
        (3, 20, {"ift": 3, "generated": 5}),
        (3, 1, {"ift": 3, "generated": 1}),
        (0, 0, {}),
    ],
)
def test_where_one_kind_has_too_few_the_other_fills_up(
    ift: int, generated: int, expected: dict[str, int]
) -> None:
    assert sources(few_shot(IFT[:ift], GENERATED[:generated], seed=1)) == expected


def test_examples_are_fixed_by_the_seed_and_change_with_it() -> None:
    assert few_shot(IFT, GENERATED, seed=7) == few_shot(IFT, GENERATED, seed=7)
    assert len({few_shot(IFT, GENERATED, seed=seed) for seed in range(10)}) == 10


def test_generated_examples_come_at_any_place() -> None:
    places = {
        place
        for seed in range(60)
        for place, example in enumerate(few_shot(IFT, GENERATED, seed=seed))
        if example.source == "generated"
    }
    assert places == set(range(8))


def test_a_prompt_that_is_there_twice_is_drawn_once() -> None:
    examples = few_shot(IFT[:4] * 5, IFT[:5], seed=3)
    assert sorted(example.prompt_id for example in examples) == sorted(p.prompt_id for p in IFT[:5])


def test_the_message_lists_the_last_user_turns_by_number() -> None:
    talk = Prompt.of(
        [
            Message(role="user", content="Hidden"),
            Message(role="assistant", content="Hidden too"),
            Message(role="user", content="Now in Dutch,\nplease.\n"),
        ],
        "test",
    )
    (message,) = new_prompt_messages([prompt("Write {{ a }} haiku."), talk])
    assert message.role == "user"
    assert "\n\n1. Write {{ a }} haiku.\n\n2. Now in Dutch,\nplease.\n\nWrite one new task" in message.content
    assert "Hidden" not in message.content
    assert message.content == message.content.strip()


def test_the_request_for_a_new_task_is_short() -> None:
    (message,) = new_prompt_messages([prompt("x")])
    assert len(message.content.split()) < 90


def test_a_new_prompt_needs_examples() -> None:
    with pytest.raises(ValueError, match="at least one example"):
        new_prompt_messages([])


@pytest.mark.parametrize(
    ("reply", "tasks"),
    [
        ("Write a poem about iPhones.", ["Write a poem about iPhones."]),
        ("  Write a poem.\n\nUse two verses.\n", ["Write a poem.\n\nUse two verses."]),
        ("9. Write a poem.", ["Write a poem."]),
        ("9) Write a poem.", ["Write a poem."]),
        ("(9) Write a poem.", ["Write a poem."]),
        ("**9.** Write a poem.", ["Write a poem."]),
        ("Task 9: Write a poem.", ["Write a poem."]),
        ("**Task 9:** Write a poem.", ["Write a poem."]),
        ("Task: Write a poem.", ["Write a poem."]),
        ("New task:\nWrite a poem.", ["Write a poem."]),
        ("Sure! Here is a new task:\n\nWrite a poem.", ["Write a poem."]),
        ("- Write a poem.", ["Write a poem."]),
        ("- bread\n- milk", ["- bread\n- milk"]),
        (f"Task {'9' * 5000}: sing", [f"Task {'9' * 5000}: sing"]),
        ('"Write a poem."', ["Write a poem."]),
        ("“Write a poem.”", ["Write a poem."]),
        ('Task 9: "Write a poem."', ["Write a poem."]),
        ('"9. Write a poem."', ["Write a poem."]),
        ("Here are two new tasks:\n9. Sing.\n10. Dance.", ["Sing.", "Dance."]),
        ('**"Write a poem."**', ["Write a poem."]),
        ("任务9：写一首诗。", ["写一首诗。"]),
        ("9、写一首诗。", ["写一首诗。"]),
        ("9.写一首诗。", ["写一首诗。"]),
        ("新任务：「写一首诗。」", ["写一首诗。"]),
        ('"Yes" or "no": which is shorter?', ['"Yes" or "no": which is shorter?']),
        ("'Write a poem.'", ["Write a poem."]),
        ("'Yes' or 'no'", ["'Yes' or 'no'"]),
        ("3.5 percent of 80 is what?", ["3.5 percent of 80 is what?"]),
        ("10:30 is when I wake. Plan my day.", ["10:30 is when I wake. Plan my day."]),
        ("Complete this task: a, b, ...", ["Complete this task: a, b, ..."]),
        ("Question: when did it end?\nAnswer:", ["Question: when did it end?\nAnswer:"]),
        (
            "9. One task.\n10. Another,\nof two lines.\n\n11. Third.",
            ["One task.", "Another,\nof two lines.", "Third."],
        ),
        ("任务9：写诗。\n任务10：写信。", ["写诗。", "写信。"]),
        ("Sort the steps:\n1. boil\n2. cut", ["Sort the steps:\n1. boil\n2. cut"]),
        ("9. Sort the steps:\n1. boil\n2. cut\n10. Sing.", ["Sort the steps:\n1. boil\n2. cut", "Sing."]),
        ("9.\n\n10. Sing.", ["Sing."]),
        ("9. ", []),
        ('""', []),
        ("", []),
    ],
)
def test_tasks_are_taken_out_of_a_reply(reply: str, tasks: list[str]) -> None:
    assert extract_prompts(reply, truncated=False) == tasks


def test_the_last_task_of_a_truncated_reply_is_left_out() -> None:
    assert extract_prompts("9. One task.\n10. Another ta", truncated=True) == ["One task."]
    assert extract_prompts("Write a po", truncated=True) == []
    assert extract_prompts("", truncated=True) == []


@given(st.text(), st.booleans())
def test_any_reply_gives_tasks_that_are_not_blank(reply: str, truncated: bool) -> None:
    assert all(task.strip() for task in extract_prompts(reply, truncated=truncated))


@pytest.mark.parametrize(
    "text",
    [
        "Write a poem about spring.",
        "Summarise this paragraph about cartography and filename mapping.",
        "Who was the best mapmaker and photographer?",
        "What is the withdrawal limit of videogames? Let's go together.",
        '"To be or not to be": who said that?',
        "(In French) say hello to me",
        "¿Cuál es la capital de Perú?",
        "«Война и мир»: о чём роман?",
        "「春」という字で俳句を作って",
        "🎉 Plan a party for ten.",
        "写一首关于春天的诗",
        "这部动画一般什么时候播出？",
        "請幫我計畫一趟旅行",
        "เขียนบทกวีเกี่ยวกับฤดูใบไม้ผลิ",
        "اكتب قصيدة عن الربيع",
        "वसंत पर एक कविता लिखो",
    ],
)
def test_a_usable_prompt_of_any_language_stays(text: str) -> None:
    assert reject_reason(text) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("Tell a joke", "too_short"),
        ("写首诗", "too_short"),
        ("🎉🎉🎉🎉🎉", "too_short"),
        ("word " * 151, "too_long"),
        ("诗" * 151, "too_long"),
        ("Describe the Image in detail.", "keyword"),
        ("Explain what these GRAPHS show us.", "keyword"),
        ("Go  to the shop and buy milk.", "keyword"),
        ("Sort the rows of this file: a, b", "keyword"),
        ("给我生成一张image吧", "keyword"),
        ("请描述这张图片的内容", "keyword"),
        ("请为我画一只猫", "keyword"),
        ("把这个文件翻译成英文", "keyword"),
        ("請為我畫一隻貓", "keyword"),
        ("- list three red fruits", "punctuation"),
        (", and then what happened next?", "punctuation"),
        ("。请写一首关于春天的诗", "punctuation"),
        ("?", "punctuation"),
    ],
)
def test_an_unusable_prompt_is_rejected_with_its_reason(text: str, reason: str) -> None:
    assert reject_reason(text) == reason


@pytest.mark.parametrize(("words", "reason"), [(1, "too_short"), (2, None), (3, None), (4, "too_long")])
def test_the_bounds_belong_to_what_may_stay(words: int, reason: str | None) -> None:
    assert reject_reason("sing " * words, min_words=2, max_words=3) == reason


def test_accept_keeps_order_case_and_source_and_counts_the_rest() -> None:
    seen = NearDuplicates()
    seen.add("Name three fruits that are red.")
    prompts, rejected = accept(
        [
            ("g0", "Explain how NASA's iPad app works."),
            ("g1", "Name three fruits that are green."),
            ("g2", "Sing"),
            ("g3", "Explain how NASA's iPad app works!"),
            ("g4", "写一首关于春天的诗"),
            ("g5", "Describe this picture to me."),
        ],
        seen,
    )
    assert [(p.source, p.messages[0].content) for p in prompts] == [
        ("g0", "Explain how NASA's iPad app works."),
        ("g4", "写一首关于春天的诗"),
    ]
    assert all(p == prompt(p.messages[0].content, p.source) for p in prompts)
    assert rejected == {"near_duplicate": 2, "too_short": 1, "keyword": 1}


def test_accept_adds_only_what_it_keeps_to_the_seen_prompts() -> None:
    seen = NearDuplicates()
    accept([("g0", "Write a poem about spring."), ("g1", "Sing")], seen)
    assert seen.find("Write a poem about spring.") is not None
    assert seen.find("Sing") is None
    assert accept([("g2", "Write a poem about spring.")], seen) == ([], {"near_duplicate": 1})


def test_accept_passes_the_bounds_on() -> None:
    prompts, rejected = accept(
        [("g0", "Sing"), ("g1", "Sing me a song")], NearDuplicates(), min_words=1, max_words=3
    )
    assert [p.source for p in prompts] == ["g0"]
    assert rejected == {"too_long": 1}


def test_most_real_seed_tasks_pass_the_filters() -> None:
    if not SEED_TASKS.exists():
        pytest.skip("the Self-Instruct seed tasks are not here")
    with SEED_TASKS.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    prompts, rejected = accept(((row["id"], row["instruction"]) for row in rows), NearDuplicates())
    assert len(prompts) + rejected.total() == 175
    assert len(prompts) > 160
    assert set(rejected) <= {"too_short", "keyword", "near_duplicate"}


def test_examples_to_show_are_no_longer_than_what_is_asked_for() -> None:
    short = prompt("Name three rivers of Europe.")
    long = prompt("word " * 151)
    assert showable([short, long], max_words=150) == [short]
    assert showable([long], max_words=150) == [long]
