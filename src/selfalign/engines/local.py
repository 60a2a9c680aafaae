"""The embedded engine: a transformers model in this process, decoded in batches.

What all prompts of a call share (the system turn, the rubric) is computed once; a prompt is computed
once for its N samples; rows that have finished leave the batch.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from selfalign.config import Policy, Sampling
from selfalign.engines.choices import Spelling, by_choice, spellings
from selfalign.engines.protocol import Choice, ChoiceRequest, Generation, GenerationRequest
from selfalign.engines.sampling import sample
from selfalign.models.attention import NAME
from selfalign.models.load import compute_dtype, load_chat, load_model, pick_device
from selfalign.models.logps import CompletionLogps
from selfalign.models.packing import TokenSequence, micro_batches
from selfalign.records import FinishReason

_COMPACT_SHARE = 0.25
_ROW_TOKENS = 8192
"""Tokens of a packed row in which choices are scored."""


@dataclass
class _Row:
    """One sequence being decoded."""

    key: str
    prompt: tuple[int, ...]
    uniforms: np.ndarray[Any, np.dtype[np.float32]]
    new: list[int] = field(default_factory=list)
    finish: FinishReason | None = None


class LocalEngine:
    """Generates with a decoder-only model of transformers."""

    def __init__(self, model: Path, policy: Policy, batch_size: int, batch_tokens: int = 65536) -> None:
        """Load the model in the computing type of its device."""
        self._device = pick_device(policy)
        self._model = load_model(model, policy, compute_dtype(policy, self._device)).eval()
        self._chat = load_chat(model, policy)
        self._batch_size = batch_size
        self._batch_tokens = batch_tokens
        self._logps: CompletionLogps | None = None
        self._context: int = self._model.config.max_position_embeddings
        eos = self._model.generation_config.eos_token_id
        # A control token of any kind ends the turn: a base model may open the next one instead of closing
        # this one.
        added = self._chat.tokenizer.added_tokens_decoder.items()
        special = {token_id for token_id, token in added if token.special}
        self._eos = (set(eos if isinstance(eos, list) else [eos]) | special) - {None}
        # Padding behind a shared prefix would eat into the window of layers that look back only so far.
        layers = DynamicCache(config=self._model.config).layers
        self._can_share = all(type(layer) is DynamicLayer for layer in layers)

    @torch.inference_mode()
    def generate(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> Iterator[Generation]:
        """Yield a generation for each request; see `Engine`."""
        rows = []
        for request in requests:
            prompt = tuple(self._chat.prompt_ids(request.messages, request.reply_start))
            room = min(sampling.max_new_tokens, self._context - len(prompt))
            if room < 1:
                yield Generation(request.key, None, "prompt_too_long", 0)
                continue
            uniforms = np.random.default_rng(request.seed).random(room, dtype=np.float32)
            rows.append(_Row(request.key, prompt, uniforms))
        rows.sort(key=lambda row: (len(row.prompt), row.prompt))
        shared = _shared_prefix([row.prompt for row in rows]) if self._can_share else 0
        prefix = self._prefix_cache(rows[0].prompt[:shared]) if shared else None
        for batch in self._batches(rows):
            yield from self._decode(batch, prefix, shared, sampling)

    @torch.inference_mode()
    def choose(self, requests: Sequence[ChoiceRequest]) -> Iterator[Choice]:
        """Yield the probabilities of the choices of each request; see `Engine`.

        Nothing is decoded: prompts with their choices are laid out as a tree, in which what prompts share is
        computed once, and the log-probabilities of the choices are read off it.
        """
        asked: list[tuple[ChoiceRequest, list[Spelling], tuple[TokenSequence, ...]]] = []
        for request in requests:
            prompt = tuple(self._chat.prompt_ids(request.messages, request.reply_start))
            spelled = spellings(self._chat, request.reply_start, request.choices)
            if len(prompt) + max(len(ids) for _, ids in spelled) > self._context:
                yield Choice(request.key, None)
                continue
            asked.append((request, spelled, tuple(TokenSequence(prompt, ids) for _, ids in spelled)))
        for batch in micro_batches(asked, lambda item: item[2], _ROW_TOKENS):
            together = [sequence for _, _, sequences in batch for sequence in sequences]
            with self._packing() as logps:
                found = logps(together).exp().tolist()
            for request, spelled, _ in batch:
                likelihoods, found = found[: len(spelled)], found[len(spelled) :]
                yield Choice(request.key, by_choice(spelled, likelihoods, len(request.choices)))

    @contextmanager
    def _packing(self) -> Iterator[CompletionLogps]:
        """Lend the model as one that reads packed rows."""
        before = self._model.config._attn_implementation
        try:
            if self._logps is None:
                self._logps = CompletionLogps(self._model)
            elif self._logps.not_packed is None:
                self._model.set_attn_implementation(NAME)
            yield self._logps
        finally:
            self._model.set_attn_implementation(before)

    def _batches(self, rows: Sequence[_Row]) -> Iterator[list[_Row]]:
        """Cut rows, the shortest first, into batches that fit in memory when all reach their limit."""
        batch: list[_Row] = []
        for row in rows:
            room = (len(batch) + 1) * (len(row.prompt) + len(row.uniforms)) <= self._batch_tokens
            if batch and (len(batch) == self._batch_size or not room):
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch

    def _decode(
        self, rows: list[_Row], prefix: DynamicCache | None, shared: int, sampling: Sampling
    ) -> Iterator[Generation]:
        logits, cache, mask = self._prefill(rows, prefix, shared)
        while True:
            step = [float(row.uniforms[len(row.new)]) if row.finish is None else 0.0 for row in rows]
            uniforms = torch.tensor(step, device=self._device)
            tokens = sample(logits, uniforms, sampling.temperature, sampling.top_p)
            for row, token in zip(rows, tokens.tolist(), strict=True):
                if row.finish is None and self._advance(row, token):
                    yield self._generation(row)
            live = [i for i, row in enumerate(rows) if row.finish is None]
            if not live:
                return
            if len(rows) - len(live) >= _COMPACT_SHARE * len(rows):
                keep = torch.tensor(live, device=self._device)
                cache.batch_select_indices(keep)
                mask, tokens = mask[keep], tokens[keep]
                rows = [rows[i] for i in live]
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
            positions = torch.tensor([[len(r.prompt) + len(r.new) - 1] for r in rows], device=self._device)
            logits = self._model(
                input_ids=tokens[:, None],
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            ).logits[:, -1]

    def _prefill(
        self, rows: list[_Row], prefix: DynamicCache | None, shared: int
    ) -> tuple[Tensor, DynamicCache, Tensor]:
        """Compute each distinct prompt once and copy its state to its samples.

        Returns:
            Next-token logits `(B, V)`, the cache of the batch, and its mask `(B, T)`.
        """
        places: dict[tuple[int, ...], int] = {}
        for row in rows:
            places.setdefault(row.prompt, len(places))
        suffixes = [prompt[shared:] for prompt in places]
        width = max(map(len, suffixes))
        ids = torch.tensor([[0] * (width - len(s)) + list(s) for s in suffixes], device=self._device)
        pads = torch.tensor([width - len(s) for s in suffixes], device=self._device)
        steps = torch.arange(width, device=self._device)
        real = (steps >= pads[:, None]).long()
        mask = torch.cat([real.new_ones(len(suffixes), shared), real], dim=1)
        cache = DynamicCache(config=self._model.config)
        if prefix is not None:
            cache = _copy(prefix, self._model.config)
            cache.batch_repeat_interleave(len(suffixes))
        output = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(shared + steps - pads[:, None]).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        index = torch.tensor([places[row.prompt] for row in rows], device=self._device)
        cache.batch_select_indices(index)
        return output.logits[index, -1], cache, mask[index]

    def _prefix_cache(self, ids: tuple[int, ...]) -> DynamicCache:
        cache = DynamicCache(config=self._model.config)
        tensor = torch.tensor([ids], device=self._device)
        self._model(input_ids=tensor, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return cache

    def _advance(self, row: _Row, token: int) -> bool:
        """Add a token to a row and return whether the row is finished."""
        end = self._chat.end_of_turn
        row.new.append(token)
        if token in self._eos:
            del row.new[-1:]
            row.finish = "stop"
        elif tuple(row.new[-len(end) :]) == end:
            del row.new[-len(end) :]
            row.finish = "stop"
        elif len(row.new) == len(row.uniforms):
            row.finish = "length"
        return row.finish is not None

    def _generation(self, row: _Row) -> Generation:
        assert row.finish is not None  # noqa: S101 -- only finished rows are given out
        return Generation(row.key, self._chat.text(row.new), row.finish, len(row.new))


def _shared_prefix(prompts: Sequence[tuple[int, ...]]) -> int:
    """Return how many first tokens all prompts share, at least one token being left to each."""
    if len(set(prompts)) < 2:
        return 0
    first, last = min(prompts), max(prompts)
    limit = min(map(len, prompts)) - 1
    shared = 0
    while shared < limit and first[shared] == last[shared]:
        shared += 1
    return shared


def _copy(cache: DynamicCache, config: Any) -> DynamicCache:
    copied = DynamicCache(config=config)
    for index, layer in enumerate(cache.layers):
        copied.update(layer.keys, layer.values, index)
    return copied
