"""Our engine behind lm-eval's interface, against lm-eval's own `hf` model in float32."""

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    StableLmConfig,
    StableLmForCausalLM,
)

from selfalign.config import Policy
from selfalign.engines.local import LocalEngine
from selfalign.errors import EvaluationError
from selfalign.harness.model import HarnessModel

POSITIONS = 96
SHAPE = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": 258,
    "pad_token_id": 256,
}
GPT2 = {
    "vocab_size": 259,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": POSITIONS,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": 258,
}
MODELS: dict[str, Callable[[], Any]] = {
    "rotary positions": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "absolute positions": lambda: GPT2LMHeadModel(GPT2Config(**GPT2)),
    "padded, not packed": lambda: StableLmForCausalLM(StableLmConfig(**SHAPE, num_key_value_heads=2)),
}
SHARED = "Q: What floats?\nA: wood\n\n"
LONG = "the sea and the hills, " * 5
PAIRS = [
    (SHARED + "Q: What sinks?\nA:", " a stone"),
    (SHARED + "Q: What sinks?\nA:", " a feather"),
    (SHARED + "Q: What flies?\nA:", " a bird"),
    ("Answer: ", "A"),
    ("Answer:  \n", "B"),
    ("", "alone"),
    ("x", "y"),
    (LONG, " cut"),
    (LONG[: POSITIONS - 3], "fit"),
    (LONG[: POSITIONS - 2], "fit"),
    (LONG[: POSITIONS - 1], "fit"),
]


def requests(kind: str, arguments: list[Any]) -> list[Instance]:
    return [
        Instance(request_type=kind, doc={}, arguments=pair, idx=0, metadata=("riddles", place, 1))
        for place, pair in enumerate(arguments)
    ]


@pytest.fixture(scope="module", params=MODELS)
def both(
    request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[LocalEngine, HFLM]:
    """The same random model as an engine of ours and as lm-eval's own."""
    directory = tmp_path_factory.mktemp("both") / "model"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODELS[request.param]()
    model.save_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.save_pretrained(directory)
    policy = Policy(model=str(directory), precision="float32", device="cpu")
    theirs = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return LocalEngine(directory, policy, 4), HFLM(pretrained=theirs, tokenizer=tokenizer, batch_size=2)


def test_log_probabilities_are_those_of_lm_eval_itself(both: tuple[LocalEngine, HFLM]):
    engine, theirs = both
    asked = requests("loglikelihood", PAIRS)
    ours = HarnessModel(engine, chat=False)
    found = ours.loglikelihood(asked)
    expected = theirs.loglikelihood(asked, disable_tqdm=True)
    assert [logp for logp, _ in found] == pytest.approx([logp for logp, _ in expected], rel=1e-5, abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert ours.cut_contexts == {("riddles", 7), ("riddles", 10)}


def test_greedy_continuations_are_recognised(both: tuple[LocalEngine, HFLM]):
    engine, theirs = both
    ids = engine.tokenizer("Once")["input_ids"]
    with torch.no_grad():
        for _ in range(3):
            ids.append(int(theirs.model(torch.tensor([ids])).logits[0, -1].argmax()))
    other = (ids[-1] + 1) % 256
    pairs = [(ids[:4], ids[4:]), (ids[:5], ids[5:]), (ids[:4], [*ids[4:-1], other])]
    scores = dict(engine.score(pairs))
    assert [scores[place][1] for place in range(3)] == [True, True, False]


@pytest.mark.parametrize("prompts", [["Once"], ["Once", "a much longer one, " * 2, "Q:"]])
def test_greedy_replies_are_those_of_lm_eval_itself(both: tuple[LocalEngine, HFLM], prompts: list[str]):
    engine, theirs = both
    alone = HFLM(pretrained=theirs.model, tokenizer=theirs.tokenizer, batch_size=1)
    ours = HarnessModel(engine, chat=False)
    limits = {"until": ["never said"], "max_gen_toks": 24}
    asked = requests("generate_until", [(prompt, limits) for prompt in prompts])
    whole = ours.generate_until(asked)
    assert whole == alone.generate_until(asked, disable_tqdm=True)
    assert all(whole)
    stops = [text[len(text) // 2 :][:2] for text in whole]
    asked = requests("generate_until", [(prompt, {**limits, "until": stops}) for prompt in prompts])
    stopped = ours.generate_until(asked)
    assert stopped == alone.generate_until(asked, disable_tqdm=True)
    assert all(len(short) < len(long) for short, long in zip(stopped, whole, strict=True))


def test_a_prompt_without_room_for_the_reply_loses_its_beginning_as_in_lm_eval_itself(
    both: tuple[LocalEngine, HFLM],
):
    engine, theirs = both
    ours = HarnessModel(engine, chat=False, max_new_tokens=16)
    asked = requests("generate_until", [(LONG, {"until": []}), ("short", {"until": []})])
    limited = requests("generate_until", [(LONG, {"until": [], "max_gen_toks": 16})])
    assert ours.generate_until(asked)[:1] == theirs.generate_until(limited, disable_tqdm=True)
    assert ours.cut_contexts == {("riddles", 0)}
    assert ours.cut_replies <= {("riddles", 0), ("riddles", 1)}


def only(answers: Any) -> Any:
    ((place, answer),) = answers
    assert place == 0
    return answer


def test_a_stop_text_ends_a_reply_across_tokens_and_characters(both: tuple[LocalEngine, HFLM]):
    engine, _ = both

    def without_control_tokens(start: str) -> bool:
        """Say whether every token of the reply is seen in it: a control token is not."""
        prompts = [engine.tokenizer(start)["input_ids"]]
        said = [
            only(engine.complete(prompts, stop=(), max_new_tokens=n, chat=False)).text for n in range(1, 25)
        ]
        return all(shorter != longer for shorter, longer in pairwise(said))

    words = ("Once", "Twice", "Thrice", "Never", "Always", "Here", "There")
    opening = next(word for word in words if without_control_tokens(word))
    prompt = engine.tokenizer(opening)["input_ids"]
    whole = only(engine.complete([prompt], stop=(), max_new_tokens=24, chat=False))
    assert whole.text
    for start in range(1, 12):
        stop = whole.text[start : start + 3]
        found = only(engine.complete([prompt], stop=("never said", stop), max_new_tokens=24, chat=False))
        assert found.text == whole.text.partition(stop)[0]
        assert found.finish_reason == "stop"
        assert found.num_tokens < 24


def test_in_a_chat_any_control_token_ends_the_reply_and_in_a_text_only_its_end(
    tiny_model: Path, tmp_path: Path
):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    opening = tokenizer.convert_tokens_to_ids("<|im_start|>")
    prompt = tokenizer("Once")["input_ids"]
    with torch.no_grad():
        last = model.model(torch.tensor([prompt])).last_hidden_state[0, -1]
        model.lm_head.weight[opening] = last * 100
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    policy = Policy(model=str(tmp_path / "model"), precision="float32", device="cpu")
    engine = LocalEngine(tmp_path / "model", policy, 4)
    chat = only(engine.complete([prompt], stop=(), max_new_tokens=8, chat=True))
    text = only(engine.complete([prompt], stop=(), max_new_tokens=8, chat=False))
    named = only(engine.complete([prompt], stop=("<|im_start|>",), max_new_tokens=8, chat=False))
    assert (chat.text, chat.finish_reason, chat.num_tokens) == ("", "stop", 0)
    assert text.num_tokens == 8
    assert (named.text, named.finish_reason) == ("", "stop")


class Fake:
    """An engine that says what it is told to."""

    max_length = 1024

    def __init__(self, tokenizer: Any, *, scores: Any = (), replies: Any = ()) -> None:
        self.tokenizer, self.scores, self.replies = tokenizer, scores, replies
        self.prompts: list[list[int]] = []

    def score(self, pairs: Any) -> Any:
        return enumerate(self.scores)

    def complete(self, prompts: Any, **_: Any) -> Any:
        self.prompts += prompts
        replies = [SimpleNamespace(text=text, finish_reason="stop") for text in self.replies]
        return reversed(list(enumerate(replies)))


@pytest.mark.parametrize(
    "scores",
    [[(-1.0, True), (math.nan, False)], [(-1.0, True), (-math.inf, False)], [(-1.0, True)]],
    ids=["not a number", "infinite", "missing"],
)
def test_a_choice_without_a_finite_log_probability_never_scores(make_tokenizer: Any, scores: Any):
    model = HarnessModel(Fake(make_tokenizer(), scores=scores), chat=False)
    with pytest.raises(EvaluationError, match="riddles, document 1: a choice has no finite log-probability"):
        model.loglikelihood(requests("loglikelihood", [("a", "b"), ("c", "d")]))


@pytest.mark.parametrize("pair", [("a", ""), ("a", "b" * 1025)], ids=["empty", "too long"])
def test_a_choice_that_cannot_be_weighed_never_scores(make_tokenizer: Any, pair: tuple[str, str]):
    model = HarnessModel(Fake(make_tokenizer(), scores=[(-1.0, True)]), chat=False)
    with pytest.raises(EvaluationError, match="riddles, document 1: a choice has no finite"):
        model.loglikelihood(requests("loglikelihood", [("a", "b"), pair]))


def test_a_missing_reply_never_scores(make_tokenizer: Any):
    asked = requests("generate_until", [("a", {"until": []}), ("b", {"until": []})])
    with pytest.raises(EvaluationError, match="riddles, document 1: there is no reply"):
        HarnessModel(Fake(make_tokenizer(), replies=["x", None]), chat=False).generate_until(asked)
    with pytest.raises(EvaluationError, match="riddles, document 0: 1 replies to 2 prompts"):
        HarnessModel(Fake(make_tokenizer(), replies=["x"]), chat=False).generate_until(asked)


def test_answers_are_counted_as_they_come(make_tokenizer: Any):
    told: list[tuple[int, int]] = []

    def counting(total: int) -> Callable[[int], None]:
        return lambda done: told.append((done, total))

    engine = Fake(make_tokenizer(), scores=[(-1.0, True), (-2.0, False)], replies=["x", "y"])
    model = HarnessModel(engine, chat=False, counting=counting)
    assert model.loglikelihood(requests("loglikelihood", [("a", "b"), ("c", "d")])) == engine.scores
    asked = requests("generate_until", [("a", {"until": []}), ("b", {"until": []})])
    assert model.generate_until(asked) == ["x", "y"]
    assert told == [(1, 2), (2, 2)] * 2


@pytest.mark.parametrize("limits", [{"do_sample": True}, {"temperature": 0.5}, {"num_beams": 4}])
def test_replies_that_are_not_greedy_are_refused(make_tokenizer: Any, limits: dict[str, Any]):
    asked = requests("generate_until", [("a", {"until": [], **limits})])
    with pytest.raises(EvaluationError, match="riddles, document 0: replies are greedy here"):
        HarnessModel(Fake(make_tokenizer(), replies=["x"]), chat=False).generate_until(asked)


def test_a_reply_longer_than_the_context_is_refused(make_tokenizer: Any):
    asked = requests("generate_until", [("a", {"until": [], "max_gen_toks": 1024})])
    with pytest.raises(EvaluationError, match="riddles asks for replies of up to 1024 tokens"):
        HarnessModel(Fake(make_tokenizer(), replies=["x"]), chat=False).generate_until(asked)


def test_perplexity_and_begun_replies_are_refused(make_tokenizer: Any):
    model = HarnessModel(Fake(make_tokenizer()), chat=True)
    with pytest.raises(EvaluationError, match="riddles, document 0: perplexity"):
        model.loglikelihood_rolling(requests("loglikelihood_rolling", [("a",)]))
    with pytest.raises(EvaluationError, match="begins the reply"):
        model.apply_chat_template([{"role": "assistant", "content": "The"}], add_generation_prompt=False)


def test_chat_prompts_are_those_of_the_template(tiny_model: Path, tiny_policy: Policy):
    model = HarnessModel(LocalEngine(tiny_model, tiny_policy, 4), chat=True)
    turns = [
        {"role": "system", "content": "Answer."},
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "2+2?"},
    ]
    expected = model.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert model.apply_chat_template(turns) == expected
    assert model.chat_template(True) == model.tokenizer.chat_template
    assert model.tokenizer_name == model.tokenizer.name_or_path


def test_the_beginning_of_text_stands_once(make_tokenizer: Any):
    tokenizer = make_tokenizer(special=("<s>", "</s>"), template=None, bos="<s>", eos="</s>")
    engine = Fake(tokenizer, replies=["x"])
    model = HarnessModel(engine, chat=False)
    bos = tokenizer.bos_token_id
    assert model.tok_encode("ab")[0] == bos
    assert model.tok_encode("<s>ab") == model.tok_encode("ab")
    assert bos not in model.tok_encode("ab", add_special_tokens=False)
    assert model.prefix_token_id == bos
    model.generate_until(requests("generate_until", [("<s>ab", {"until": []})]))
    assert engine.prompts == [model.tok_encode("ab")]
