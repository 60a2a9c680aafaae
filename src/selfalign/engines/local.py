"""The embedded engine: a transformers model in this process, decoded in batches.

What all prompts of a call share (the system turn, the rubric) is computed once; a prompt is computed
once for its N samples; rows that have finished leave the batch, and others enter in their place.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from selfalign.config import Policy, Sampling
from selfalign.engines.cache import ATTENTION, Rows, is_plain, join, keep
from selfalign.engines.protocol import Choice, ChoiceRequest, Generation, GenerationRequest
from selfalign.engines.sampling import sample
from selfalign.models.attention import NAME
from selfalign.models.choices import Spelling, by_choice, spellings
from selfalign.models.load import compute_dtype, load_chat, load_model, pick_device
from selfalign.models.logps import CompletionLogps
from selfalign.models.packing import TokenSequence, micro_batches
from selfalign.records import FinishReason, Message

_ENTER_SHARE = 0.125
"""Rows enter when they make up this share of the batch or more, as each time costs a copy of it."""
_COMPACT_SHARE = 0.25
_GROUP_SHARE = 0.25
"""Samples of one prompt enter together, up to this share of a batch: they wait for as many to leave."""
_ROW_TOKENS = 8192
"""Tokens of a packed row in which choices are scored."""


@dataclass(frozen=True)
class _Ends:
    """What ends a completion and is left out of it."""

    tokens: frozenset[int]
    turn: tuple[int, ...] = ()
    """Token ids in a row."""
    texts: tuple[str, ...] = ()

    @property
    def text_tokens(self) -> int:
        """Return how many last tokens hold any of the texts; a token is at least a byte."""
        return max((len(text.encode()) for text in self.texts), default=0) + 1


@dataclass
class _Row:
    """One sequence being decoded."""

    key: str
    prompt: tuple[int, ...]
    uniforms: np.ndarray[Any, np.dtype[np.float32]]
    ends: _Ends
    new: list[int] = field(default_factory=list)
    finish: FinishReason | None = None

    @property
    def span(self) -> int:
        """Return how many columns the row takes when it reaches its limit."""
        return len(self.prompt) + len(self.uniforms)


class LocalEngine:
    """Generates with a decoder-only model of transformers."""

    def __init__(self, model: Path, policy: Policy, batch_size: int, batch_tokens: int = 65536) -> None:
        """Load the model in the computing type of its device."""
        self._device = pick_device(policy)
        self._model = load_model(model, policy, compute_dtype(policy, self._device)).eval()
        if self._model.config._attn_implementation == "sdpa":
            self._model.set_attn_implementation(ATTENTION)
        self._chat = load_chat(model, policy)
        self._batch_size = batch_size
        self._batch_tokens = batch_tokens
        self._logps: CompletionLogps | None = None
        self._context: int = self._model.config.max_position_embeddings
        eos = self._model.generation_config.eos_token_id
        eos = set(eos if isinstance(eos, list) else [eos]) | {self.tokenizer.eos_token_id}
        self._text_ends = _Ends(frozenset(eos - {None}))
        # A control token of any kind ends the turn: a base model may open the next one instead of closing
        # this one.
        added = self.tokenizer.added_tokens_decoder.items()
        special = {token_id for token_id, token in added if token.special}
        self._turn_ends = _Ends(self._text_ends.tokens | special, self._chat.end_of_turn)
        # Columns that are not a row's own would eat into the window of layers that look back only so far:
        # there no prefix is shared, and no row enters before all have left.
        self._plain = is_plain(DynamicCache(config=self._model.config))

    @property
    def tokenizer(self) -> Any:
        """Return the tokenizer, which has a chat template."""
        return self._chat.tokenizer

    @property
    def max_length(self) -> int:
        """Return the number of tokens that the model has positions for."""
        return self._context

    def render(self, messages: Sequence[Message]) -> str:
        """Return the text of a prompt, up to where the assistant's own words begin."""
        return self._chat.render(messages)

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
            rows.append(_Row(request.key, prompt, uniforms, self._turn_ends))
        yield from self._decode_all(rows, sampling)

    @torch.inference_mode()
    def complete(
        self, prompts: Sequence[Sequence[int]], *, stop: Sequence[str], max_new_tokens: int, chat: bool
    ) -> Iterator[tuple[int, Generation]]:
        """Yield the likeliest words after each prompt of token ids with its place, in any order.

        Args:
            prompts: Each leaves room for `max_new_tokens`.
            stop: Texts that end a completion, besides the end of text; they and what follows are left out.
            max_new_tokens: Of each completion.
            chat: Whether the end of the turn, and any other control token, ends a completion too.
        """
        ends = replace(self._turn_ends if chat else self._text_ends, texts=tuple(filter(None, stop)))
        uniforms = np.zeros(max_new_tokens, dtype=np.float32)
        rows = [_Row(str(place), tuple(ids), uniforms, ends) for place, ids in enumerate(prompts)]
        greedy = Sampling(temperature=0, max_new_tokens=max_new_tokens)
        for generation in self._decode_all(rows, greedy):
            yield int(generation.key), generation

    def _decode_all(self, rows: list[_Row], sampling: Sampling) -> Iterator[Generation]:
        # The longest first: whoever enters later fits into the columns of those who are there.
        rows.sort(key=lambda row: (-len(row.prompt), row.prompt))
        shared = _shared_prefix([row.prompt for row in rows]) if self._plain else 0
        prefix = self._prefix_cache(rows[0].prompt[:shared]) if shared else None
        yield from self._decode(deque(self._groups(rows)), prefix, shared, sampling)

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

    @torch.inference_mode()
    def score(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> Iterator[tuple[int, tuple[float, bool]]]:
        """Yield the log-probability of each continuation, and whether it is the likeliest, token by token.

        Each comes with the place of its pair, in any order.

        Args:
            pairs: Context and continuation as token ids, neither empty; together at most one token longer
                than the model has positions for.
        """
        sequences = [TokenSequence(tuple(context), tuple(continuation)) for context, continuation in pairs]
        with self._packing() as logps:
            packed = logps.not_packed is None
        for batch in _scored_together(sequences, packed=packed):
            with self._packing() as logps:
                sums, greedy = logps.with_greedy([sequences[place] for place in batch])
            yield from zip(batch, zip(sums.tolist(), greedy.tolist(), strict=True), strict=True)

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

    def _groups(self, rows: Sequence[_Row]) -> Iterator[list[_Row]]:
        """Cut rows into those that enter a batch together: a prompt's samples, if they are not too many."""
        for _, samples in groupby(rows, key=lambda row: row.prompt):
            same = list(samples)
            fitting = min(_GROUP_SHARE * self._batch_size, self._batch_tokens / same[0].span)
            size = max(1, int(fitting))
            yield from (same[i : i + size] for i in range(0, len(same), size))

    def _entering(self, live: Sequence[_Row], queue: deque[list[_Row]]) -> list[_Row]:
        """Take from the queue what fits beside the live rows, or nothing while that is too little.

        All rows fit in memory when they reach their limits, as a batch is as wide as its widest row.
        """
        if live and not self._plain:
            return []
        batch, groups = list(live), 0
        for group in queue:
            size = len(batch) + len(group)
            widest = max(row.span for row in (*batch, *group))
            if batch and (size > self._batch_size or size * widest > self._batch_tokens):
                break
            batch += group
            groups += 1
        entering = batch[len(live) :]
        if len(entering) < _ENTER_SHARE * len(batch) and groups < len(queue):
            return []
        for _ in range(groups):
            queue.popleft()
        return entering

    def _decode(
        self, queue: deque[list[_Row]], prefix: DynamicCache | None, shared: int, sampling: Sampling
    ) -> Iterator[Generation]:
        """Decode token by token; rows leave as they finish, and others enter in their place."""
        batch: list[_Row] = []
        held: Rows | None = None
        while queue or batch:
            live = _live(batch)
            entering = self._entering([batch[i] for i in live], queue)
            parts = [] if held is None else [(held, batch)]
            if entering:
                logits, entered = self._prefill(entering, prefix, shared)
                yield from self._draw(entering, logits, sampling)
                parts.append((entered, entering))
            if entering or (held is not None and _is_loose(batch, held.mask.shape[1])):
                batch = [row for _, rows in parts for row in rows if row.finish is None]
                held = self._gather(parts) if batch else None
            if held is None:
                continue
            held.mask = torch.cat([held.mask, held.mask.new_ones(len(batch), 1)], dim=1)
            tokens = [[row.new[-1] if row.finish is None else 0] for row in batch]
            logits = self._model(
                input_ids=torch.tensor(tokens, device=self._device),
                attention_mask=held.mask,
                position_ids=torch.tensor(
                    [[len(row.prompt) + len(row.new) - 1] for row in batch], device=self._device
                ),
                past_key_values=held.cache,
                use_cache=True,
            ).logits[:, -1]
            yield from self._draw(batch, logits, sampling)

    def _gather(self, parts: Sequence[tuple[Rows, list[_Row]]]) -> Rows:
        """Return what the unfinished rows remember."""
        chosen = [(held, torch.tensor(_live(rows))) for held, rows in parts]
        return join(chosen) if self._plain else keep(*chosen[-1])

    def _draw(self, rows: Sequence[_Row], logits: Tensor, sampling: Sampling) -> Iterator[Generation]:
        """Draw the next token of each unfinished row and yield those that it finishes."""
        step = [float(row.uniforms[len(row.new)]) if row.finish is None else 0.0 for row in rows]
        uniforms = torch.tensor(step, device=self._device)
        tokens = sample(logits, uniforms, sampling.temperature, sampling.top_p)
        for row, token in zip(rows, tokens.tolist(), strict=True):
            if row.finish is None and self._advance(row, token):
                yield self._generation(row)

    def _prefill(self, rows: Sequence[_Row], prefix: DynamicCache | None, shared: int) -> tuple[Tensor, Rows]:
        """Compute each distinct prompt once and copy its state to its samples.

        Returns:
            Next-token logits `(B, V)`, and what the rows remember.
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
        index = torch.tensor([places[row.prompt] for row in rows])
        return output.logits[index, -1], keep(Rows(cache, mask), index)

    def _prefix_cache(self, ids: tuple[int, ...]) -> DynamicCache:
        cache = DynamicCache(config=self._model.config)
        tensor = torch.tensor([ids], device=self._device)
        self._model(input_ids=tensor, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return cache

    def _advance(self, row: _Row, token: int) -> bool:
        """Add a token to a row and return whether the row is finished."""
        ends = row.ends
        row.new.append(token)
        if token in ends.tokens:
            del row.new[-1:]
            row.finish = "stop"
        elif ends.turn and tuple(row.new[-len(ends.turn) :]) == ends.turn:
            del row.new[-len(ends.turn) :]
            row.finish = "stop"
        elif ends.texts and self._has_stopped(row):
            row.finish = "stop"
        elif len(row.new) == len(row.uniforms):
            row.finish = "length"
        return row.finish is not None

    def _has_stopped(self, row: _Row) -> bool:
        """Say whether the last words hold a text that ends the row, be it spelled by a control token."""
        last = self.tokenizer.decode(row.new[-row.ends.text_tokens :], clean_up_tokenization_spaces=False)
        return any(text in last for text in row.ends.texts)

    def _generation(self, row: _Row) -> Generation:
        assert row.finish is not None  # noqa: S101 -- only finished rows are given out
        text = self._chat.text(row.new)
        for end in row.ends.texts:
            text = text.partition(end)[0]
        return Generation(row.key, text, row.finish, len(row.new))


def _live(rows: Sequence[_Row]) -> list[int]:
    """Return the places of the unfinished rows."""
    return [i for i, row in enumerate(rows) if row.finish is None]


def _scored_together(sequences: Sequence[TokenSequence], *, packed: bool) -> Iterator[list[int]]:
    """Yield the places of sequences that fit into one row or, if they can't be packed, into padded ones."""
    if packed:
        yield from micro_batches(range(len(sequences)), lambda place: (sequences[place],), _ROW_TOKENS)
        return
    order = sorted(range(len(sequences)), key=lambda place: -len(sequences[place]))
    while order:
        size = max(1, _ROW_TOKENS // len(sequences[order[0]]))
        yield order[:size]
        del order[:size]


def _is_loose(batch: Sequence[_Row], width: int) -> bool:
    """Say whether so many rows have finished, or so wide ones, that the others should go on without them."""
    spans = [row.span for row in batch if row.finish is None]
    finished = len(batch) - len(spans)
    return finished >= _COMPACT_SHARE * len(batch) or (finished > 0 and width >= max(spans))


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
