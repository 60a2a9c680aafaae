import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from selfalign.models import logps as room
from selfalign.models.logps import CompletionLogps
from selfalign.models.packing import TokenSequence, pack

VOCABULARY = 97
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
OWN_HEADS = {k: v for k, v in SMALL.items() if k != "num_key_value_heads"}
GPT = {"vocab_size": VOCABULARY, "n_layer": 3, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}
LATENT = (
    dict.fromkeys(("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "moe_intermediate_size"), 16)
    | dict.fromkeys(("num_key_value_heads", "n_routed_experts", "num_experts_per_tok"), 4)
    | {"qk_rope_head_dim": 8, "v_head_dim": 12, "n_group": 1, "topk_group": 1}
)
"""Keys wider than values."""
WINDOW = 9
"""Fewer tokens than the sequences have, so that it cuts shared and own ones."""

PACKED = {
    "llama": hf.LlamaConfig(**SMALL),
    "llama, tied": hf.LlamaConfig(**SMALL, tie_word_embeddings=True),
    "qwen2": hf.Qwen2Config(**SMALL),
    "qwen2, window": hf.Qwen2Config(
        **SMALL, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1
    ),
    "qwen2, window of no layer": hf.Qwen2Config(
        **SMALL, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=3
    ),
    "qwen3": hf.Qwen3Config(**SMALL, head_dim=8),
    "gemma": hf.GemmaConfig(**SMALL, head_dim=8),
    "gemma2": hf.Gemma2Config(**SMALL, head_dim=8, sliding_window=WINDOW),
    "gemma2, small caps": hf.Gemma2Config(
        **SMALL, head_dim=8, attn_logit_softcapping=0.5, final_logit_softcapping=1.0
    ),
    "gemma3": hf.Gemma3TextConfig(**SMALL, head_dim=8, sliding_window=WINDOW, sliding_window_pattern=2),
    "mistral, window": hf.MistralConfig(**SMALL, sliding_window=WINDOW),
    "phi": hf.PhiConfig(**SMALL),
    "phi3, window": hf.Phi3Config(**SMALL, sliding_window=WINDOW),
    "smollm3": hf.SmolLM3Config(**SMALL),
    "olmo2": hf.Olmo2Config(**SMALL),
    "cohere": hf.CohereConfig(**SMALL),
    "granite": hf.GraniteConfig(**SMALL, logits_scaling=3.0),
    "gpt2": hf.GPT2Config(**GPT, n_embd=32),
    "gpt-neox": hf.GPTNeoXConfig(**OWN_HEADS),
    "opt": hf.OPTConfig(**OWN_HEADS, ffn_dim=48, word_embed_proj_dim=32),
    "mixtral": hf.MixtralConfig(**SMALL),
    "deepseek-v3": hf.DeepseekV3Config(**SMALL | LATENT),
    "jetmoe": hf.JetMoeConfig(**SMALL, kv_channels=8, num_local_experts=4),
}
OTHER = "other log-probabilities"
NOT_PACKED = {
    "bloom": (hf.BloomConfig(**GPT, hidden_size=32), OTHER),
    "mpt": (hf.MptConfig(vocab_size=VOCABULARY, d_model=32, n_layers=3, n_heads=4), OTHER),
    "lfm2": (hf.Lfm2Config(**SMALL, layer_types=["conv", "full_attention", "conv"]), OTHER),
    "mamba": (hf.MambaConfig(**OWN_HEADS), "recurrent layers"),
    "stablelm": (hf.StableLmConfig(**SMALL), "keep back what their attention is told"),
    "gpt-oss": (hf.GptOssConfig(**SMALL, head_dim=8, num_local_experts=4), "attention with s_aux"),
}
every_not_packed = pytest.mark.parametrize(("config", "reason"), NOT_PACKED.values(), ids=NOT_PACKED)


def model_of(config: Any, **settings: Any) -> Any:
    """A random model whose norms, biases and heads are no special case either."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = copy.deepcopy(config)
        model = hf.AutoModelForCausalLM.from_config(config, attn_implementation="eager", **settings).eval()
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def ids_of(*sizes: int) -> list[tuple[int, ...]]:
    ids = np.random.default_rng(0).integers(3, VOCABULARY, sum(sizes)).tolist()
    ends = np.cumsum(sizes)
    return [tuple(ids[end - size : end]) for end, size in zip(ends, sizes, strict=True)]


def every_case() -> list[TokenSequence]:
    """Prompts that share a part, completions that do, are a prefix of another, or equal; another root."""
    prompt, own, start, *ends = ids_of(14, 5, 6, 12, 7, 4, 9, 3, 30)
    return [
        TokenSequence(prompt, ends[0]),
        TokenSequence(prompt[:9] + own, ends[1]),
        TokenSequence(prompt, start + ends[2]),
        TokenSequence(ends[4], ends[5]),
        TokenSequence(prompt, start + ends[3]),
        TokenSequence(prompt, start),
        TokenSequence(prompt, start),
        TokenSequence(prompt[:1], ends[1][:1]),
    ]


def one_by_one(model: Any, sequences: Sequence[TokenSequence]) -> Tensor:
    """The completions' log-probabilities as the model alone gives them, nothing packed, padded or cut."""
    found = []
    for sequence in sequences:
        ids = torch.tensor([sequence.ids])
        logps = torch.log_softmax(model(ids).logits[0, :-1].float(), -1).gather(-1, ids[0, 1:, None])
        found.append(logps[len(sequence.prompt) - 1 :].sum())
    return torch.stack(found)


def results_of(
    logps: Callable[[Any], Tensor], sequences: Any, model: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probabilities, and the gradients of a sum in which each sequence has a weight of its own."""
    model.zero_grad()
    found = logps(sequences)
    (torch.linspace(-1, 2, len(found)) * found).sum().backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return found.detach(), gradients


def assert_same(found: tuple[Tensor, dict[str, Tensor]], expected: tuple[Tensor, dict[str, Tensor]]) -> None:
    """Gradients are compared on the scale of the largest, as some are zero but for rounding."""
    torch.testing.assert_close(found[0], expected[0], rtol=1e-6, atol=1e-5)
    scale = max(gradient.abs().max().item() for gradient in expected[1].values())
    assert scale > 0.1
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        torch.testing.assert_close(
            found[1][name], gradient, rtol=1e-4, atol=2e-6 * scale, msg=lambda text, n=name: f"{n}: {text}"
        )


# Architectures


@pytest.mark.parametrize("name", PACKED)
def test_a_packed_row_gives_what_each_sequence_gives_alone(name: str):
    model, sequences = model_of(PACKED[name]), every_case()
    expected = results_of(lambda s: one_by_one(model, s), sequences, model)
    logps = CompletionLogps(model)
    assert logps.not_packed is None
    assert_same(results_of(logps, sequences, model), expected)


@every_not_packed
def test_what_cannot_be_packed_is_padded_and_says_why(config: Any, reason: str):
    model, sequences = model_of(config), every_case()
    expected = results_of(lambda s: one_by_one(model, s), sequences, model)
    logps = CompletionLogps(model)
    assert logps.not_packed is not None
    assert reason in logps.not_packed
    assert_same(results_of(logps, sequences, model), expected)


@every_not_packed
def test_what_cannot_be_packed_is_not_packed_in_bfloat16_either(config: Any, reason: str):
    logps = CompletionLogps(model_of(config).bfloat16())
    assert logps.not_packed is not None
    assert reason in logps.not_packed


def test_a_window_that_only_the_mask_of_an_architecture_tells_is_kept():
    """Of 20 tokens: longer than what packing is tried on, shorter than the sequences."""
    model, sequences = (
        model_of(hf.PhimoeConfig(**SMALL, num_local_experts=4, sliding_window=20)),
        every_case(),
    )
    expected = results_of(lambda s: one_by_one(model, s), sequences, model)
    assert_same(results_of(CompletionLogps(model), sequences, model), expected)


def test_an_architecture_that_computes_something_else_after_its_head_is_not_packed():
    model, sequences = model_of(PACKED["llama"]), every_case()
    plain = model.forward

    def forward(*words: Any, **named: Any) -> Any:
        output = plain(*words, **named)
        output.logits = 2 * output.logits
        return output

    model.forward = forward
    expected = results_of(lambda s: one_by_one(model, s), sequences, model)
    logps = CompletionLogps(model)
    assert logps.not_packed == "the architecture gives a packed row other log-probabilities"
    assert_same(results_of(logps, sequences, model), expected)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "config", [PACKED["llama"], *(config for config, _ in NOT_PACKED.values())], ids=lambda c: c.model_type
)
def test_a_model_stays_in_training_or_out_of_it(config: Any, training: bool):
    model = model_of(config).train(training)
    logps = CompletionLogps(model)
    assert {module.training for module in logps.modules()} == {training}
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_order_of_sequences_is_kept():
    logps, sequences = CompletionLogps(model_of(PACKED["llama"])), every_case()
    with torch.no_grad():
        assert torch.equal(logps(sequences[::-1]), logps(sequences).flip(0))


def test_the_longest_sequence_is_that_of_the_positions():
    assert CompletionLogps(model_of(PACKED["llama"])).max_length == 512
    assert CompletionLogps(model_of(PACKED["gpt2"])).max_length == 1024


# Long branches


@pytest.mark.parametrize("window", [None, WINDOW, 200], ids=lambda w: f"window {w}")
def test_a_branch_of_several_blocks_of_queries(window: int | None):
    prompt, one, other, root = ids_of(150, 300, 129, 257)
    sequences = [
        TokenSequence(prompt, one),
        TokenSequence(prompt, one[:140] + other),
        TokenSequence(root, one[:9]),
    ]
    model = model_of(hf.MistralConfig(**SMALL, sliding_window=window))
    expected = results_of(lambda s: one_by_one(model, s), sequences, model)
    logps = CompletionLogps(model)
    assert logps.not_packed is None
    assert_same(results_of(logps, sequences, model), expected)


# Adapters


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj", "down_proj", "lm_head"]},
        {"target_modules": "all-linear", "modules_to_save": ["lm_head", "embed_tokens"]},
    ],
    ids=["adapter on the head", "whole head and embeddings"],
)
def test_adapters_pack_as_their_base_does(settings: dict[str, Any]):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, task_type="CAUSAL_LM", **settings)
    model, sequences = peft.get_peft_model(model_of(PACKED["llama"]), config), every_case()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    expected = results_of(lambda s: one_by_one(model, s), sequences, model)
    assert any("lm_head" in name for name in expected[1])
    logps = CompletionLogps(model)
    assert logps.not_packed is None
    assert_same(results_of(logps, sequences, model), expected)


# Memory


def test_gradient_checkpointing_gives_the_same():
    sequences = every_case()
    plain, saving = model_of(PACKED["llama"]).train(), model_of(PACKED["llama"]).train()
    expected = results_of(CompletionLogps(plain), sequences, plain)
    logps = CompletionLogps(saving)
    saving.activation_checkpointing_enable()
    saving.enable_input_require_grads()
    passes: list[int] = []
    saving.model.layers[0].mlp.register_forward_pre_hook(lambda *_: passes.append(1))
    assert_same(results_of(logps, sequences, saving), expected)
    assert len(passes) == 2


@pytest.mark.parametrize("rows", [1, 7, 10**6])
@pytest.mark.parametrize("name", ["llama, tied", "gemma2, small caps", "granite"])
def test_the_vocabulary_head_in_chunks_gives_the_same(name: str, rows: int, monkeypatch: pytest.MonkeyPatch):
    model, sequences = model_of(PACKED[name]), every_case()
    expected = results_of(lambda s: one_by_one(model, s), sequences, model)
    logps = CompletionLogps(model)
    calls: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda _m, words, _o: calls.append(len(words[0])))
    monkeypatch.setattr(room, "CHUNK", rows * VOCABULARY)
    assert_same(results_of(logps, sequences, model), expected)
    targets = sum(calls) // 2  # each chunk is computed in both passes
    assert max(calls) == min(rows, targets)


class Largest(TorchDispatchMode):
    """Notes the size of the largest float tensor that anything computes."""

    size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                self.size = max(self.size, tensor.numel())
        return out


@pytest.mark.parametrize("name", ["llama", "llama, tied", "gemma2", "cohere"])
def test_the_logits_of_all_tokens_never_exist_at_once(name: str, monkeypatch: pytest.MonkeyPatch):
    draw = np.random.default_rng(0).integers(3, VOCABULARY, (60, 12)).tolist()
    pairs = [(TokenSequence(tuple(p[:4]), tuple(p[4:])), TokenSequence(tuple(p[:4]), (p[0],))) for p in draw]
    sequences = [side for pair in pairs for side in pair]
    model = model_of(PACKED[name])
    logps = CompletionLogps(model)
    targets = len(pack(sequences).targets)
    largest = {}
    for rows in (16, 10**6):
        monkeypatch.setattr(room, "CHUNK", rows * VOCABULARY)
        with Largest() as largest[rows]:
            results_of(logps, sequences, model)
    assert largest[10**6].size == targets * VOCABULARY
    assert largest[16].size < targets * VOCABULARY * 0.75


# Types and dropout


@pytest.mark.parametrize("name", ["llama, tied", "qwen2, window", "gemma2", "gpt2", "mixtral"])
def test_bfloat16_products_come_near_float32(name: str):
    model, sequences = model_of(PACKED[name]), every_case()
    logps = CompletionLogps(model)
    exact, exact_gradients = results_of(logps, sequences, model)

    def coarse(sequences: Sequence[TokenSequence]) -> Tensor:
        with logps.precision(torch.bfloat16):
            return logps(sequences)

    found, gradients = results_of(coarse, sequences, model)
    assert found.dtype == torch.float32
    assert not torch.equal(found, exact)
    torch.testing.assert_close(found, exact, rtol=2e-2, atol=0)
    one, other = (torch.cat([g.flatten() for g in all_.values()]) for all_ in (gradients, exact_gradients))
    assert (one - other).norm() < 0.05 * other.norm()


def test_a_model_held_in_bfloat16_packs_too():
    model, sequences = model_of(PACKED["llama"]).bfloat16(), every_case()
    with torch.no_grad():
        expected = one_by_one(model, sequences)
        logps = CompletionLogps(model)
        assert logps.not_packed is None
        torch.testing.assert_close(logps(sequences), expected, rtol=2e-2, atol=0)


def test_inference_keeps_no_graph_and_computes_in_the_asked_type():
    logps, sequences = CompletionLogps(model_of(PACKED["llama"])), every_case()
    with logps.inference(torch.float32):
        exact = logps(sequences)
    with logps.inference(torch.bfloat16):
        coarse = logps(sequences)
    assert not exact.requires_grad
    assert torch.equal(exact, logps(sequences))
    assert not torch.equal(exact, coarse)


@pytest.mark.parametrize(
    ("name", "dropout"),
    [
        ("llama", {"attention_dropout": 0.5}),
        ("gemma2", {"attention_dropout": 0.5}),
        ("gpt2", {"attn_pdrop": 0.5, "resid_pdrop": 0.0, "embd_pdrop": 0.0}),
    ],
)
def test_dropout_of_attention_acts_in_training_and_follows_the_seed(name: str, dropout: dict[str, float]):
    config = copy.deepcopy(PACKED[name])
    config.update(dropout)
    model, sequences = model_of(config), every_case()
    logps = CompletionLogps(model)
    plain = results_of(logps, sequences, model)
    logps.train()

    def dropped(seed: int) -> tuple[Tensor, dict[str, Tensor]]:
        torch.manual_seed(seed)
        return results_of(logps, sequences, model)

    first, again, other = dropped(0), dropped(0), dropped(1)
    assert torch.equal(first[0], again[0])
    assert all(torch.isfinite(gradient).all() for gradient in first[1].values())
    for one, two in ((first[0], plain[0]), (first[0], other[0])):
        assert (one - two).abs().min() > 1e-3


@pytest.mark.parametrize("name", ["llama", "mistral, window", "gemma2", "phi"])
def test_the_attention_that_can_drop_gives_the_same_where_it_drops_next_to_nothing(name: str):
    config = copy.deepcopy(PACKED[name])
    config.attention_dropout = 1e-9
    model, sequences = model_of(config), every_case()
    expected = results_of(lambda s: one_by_one(model, s), sequences, model)
    assert_same(results_of(CompletionLogps(model).train(), sequences, model), expected)
