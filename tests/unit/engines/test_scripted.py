from pathlib import Path

import pytest

from selfalign.config import Sampling
from selfalign.engines.protocol import Generation, GenerationRequest
from selfalign.engines.scripted import ScriptedEngine
from selfalign.errors import RecipeError
from selfalign.judging import load_rubric
from selfalign.records import Message

RULES = """
vocabulary = "sea hill wind"

[[rules]]
match = "(?i)echo"
reply = "You said: {{ prompt }}"

[[rules]]
match = "number"
reply = "{{ number(1, 6) }} {{ choice(['a', 'b']) }}"

[[rules]]
match = ""
reply = "{{ words(5) }}"
"""
PLENTY = Sampling(max_new_tokens=100)


def script_of(tmp_path: Path, text: str = RULES) -> str:
    file = tmp_path / "script.toml"
    file.write_text(text, encoding="utf-8")
    return str(file)


def reply(engine: ScriptedEngine, text: str, seed: int = 0, sampling: Sampling = PLENTY) -> Generation:
    messages = (Message(role="system", content="echo"), Message(role="user", content=text))
    [generation] = engine.generate([GenerationRequest("key", messages, seed)], sampling)
    return generation


def test_the_first_rule_found_in_the_last_message_answers(tmp_path: Path):
    engine = ScriptedEngine(script_of(tmp_path))
    assert reply(engine, "Echo a number") == Generation("key", "You said: Echo a number", "stop", 5)
    assert set((reply(engine, "hello").text or "").split()) <= {"sea", "hill", "wind"}


def test_all_draws_come_from_the_seed(tmp_path: Path):
    first, second = (ScriptedEngine(script_of(tmp_path)) for _ in range(2))
    texts = [reply(first, "a number", seed).text for seed in range(50)]
    assert texts == [reply(second, "a number", seed).text for seed in range(50)]
    assert set(texts) == {f"{number} {letter}" for number in range(1, 7) for letter in "ab"}


@pytest.mark.parametrize(
    ("limit", "text", "reason"), [(4, "You said: echo   one\n", "length"), (5, None, "stop")]
)
def test_a_reply_is_cut_after_so_many_words(tmp_path: Path, limit: int, text: str | None, reason: str):
    whole = "You said: echo   one\ntwo"
    engine = ScriptedEngine(script_of(tmp_path))
    cut = reply(engine, "echo   one\ntwo", sampling=Sampling(max_new_tokens=limit))
    assert cut == Generation("key", text or whole, reason, limit)  # type: ignore[arg-type]


def test_a_prompt_can_not_reach_into_the_template(tmp_path: Path):
    text = "echo {{ 6 * 7 }} {{ prompt.__class__.__mro__ }}"
    assert reply(ScriptedEngine(script_of(tmp_path)), text).text == f"You said: {text}"


def test_the_shipped_script_judges_writes_prompts_and_answers():
    engine = ScriptedEngine(None)
    rubric = load_rubric("additive")
    judged = [reply(engine, rubric, seed).text or "" for seed in range(60)]
    scored = [text for text in judged if "Score: " in text]
    assert {text[-1] for text in scored} == set("012345")
    assert 0 < len(judged) - len(scored) < 20
    assert (reply(engine, "1. one\n2. two\n3.").text or "").startswith("Explain how")
    assert len({reply(engine, "hello", seed).text for seed in range(20)}) == 20


CATCH_ALL = '[[rules]]\nmatch = ""\nreply = "x"\n'


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('vocabulary = "a', "script.toml"),
        (CATCH_ALL, "'vocabulary'"),
        ('vocabulary = "a"\n', "'rules'"),
        ('vocabulary = "a"\nrules = []\n', "the last rule must match everything"),
        ('vocabulary = "a"\n[[rules]]\nmatch = "a"\nreply = "x"\n', "the last rule must match everything"),
        ('vocabulary = "a"\n[[rules]]\nmatch = "^$"\nreply = "x"\n', "the last rule must match everything"),
        ('vocabulary = "a"\n[[rules]]\nmatch = "("\nreply = "x"\n' + CATCH_ALL, "unterminated"),
        ('vocabulary = "a"\n[[rules]]\nmatch = ""\nreply = "{{ words( }}"\n', "unexpected"),
        ('vocabulary = "a"\n[[rules]]\nmatch = ""\n', "'reply'"),
        ('vocabulary = ["a"]\n' + CATCH_ALL, "a text `vocabulary`"),
        ('vocabulary = "a"\nrules = "x"\n', "`[[rules]]` with `match` and `reply`"),
    ],
)
def test_a_broken_script_is_refused(tmp_path: Path, text: str, problem: str):
    with pytest.raises(RecipeError, match=r"engine\.script: .*script\.toml") as refusal:
        ScriptedEngine(script_of(tmp_path, text))
    assert problem in str(refusal.value)


def test_a_missing_script_is_refused():
    with pytest.raises(RecipeError, match=r"engine\.script: /nowhere/script\.toml: no such file"):
        ScriptedEngine("/nowhere/script.toml")


def test_a_reply_that_can_not_be_made_is_refused(tmp_path: Path):
    engine = ScriptedEngine(script_of(tmp_path, RULES.replace("{{ prompt }}", "{{ promt }}")))
    with pytest.raises(RecipeError, match=r"engine\.script: .*promt"):
        reply(engine, "echo")
