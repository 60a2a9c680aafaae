"""Log-probabilities of completions, from packed rows and a vocabulary head in chunks."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from selfalign.models.attention import NAME
from selfalign.models.packing import TokenSequence, pack
from selfalign.models.token_logps import token_logps

CHUNK = 2**24
"""Logits that exist at once, at most; a position's logits count as one for each token of the vocabulary."""

Read = Callable[[Tensor, Tensor], Tensor]
"""What is wanted of each target, `(N,)` or `(N, K)`, from its logits, `(N, V)`, and its id, `(N,)`."""


class CompletionLogps(torch.nn.Module):
    """A language model that returns the log-probability of each completion."""

    def __init__(self, model: Any, *, tried: bool = True) -> None:
        """Take a causal language model of transformers, with or without adapters.

        Whether packing computes what the model computes on each sequence alone is tried on two short
        sequences; where it does not, as with recurrent layers, `not_packed` says why and every sequence
        gets a padded row of its own. A model without numbers can't be `tried`: it is packed.
        """
        super().__init__()
        self.model = model
        self.train(model.training)
        self._inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._finish = _finish(self._inner.config)
        self.not_packed: str | None = None
        if tried:
            self.not_packed = self._try_packing()
        else:
            self._inner.set_attn_implementation(NAME)

    def forward(self, sequences: Sequence[TokenSequence]) -> Tensor:
        """Return the summed log-probabilities of the completions' tokens, `(S,)` in float32."""
        return self._sums(sequences, token_logps)

    def with_greedy(self, sequences: Sequence[TokenSequence]) -> tuple[Tensor, Tensor]:
        """Return what `forward` does, and whether greedy decoding gives just these tokens; both `(S,)`.

        A sequence may be one token longer than the model has positions for.
        """
        sums = self._sums(sequences, _logps_and_misses)
        return sums[:, 0], sums[:, 1] == 0

    @property
    def max_length(self) -> int:
        """Return the number of tokens that the model has positions for."""
        return int(self._inner.config.get_text_config().max_position_embeddings)

    @property
    def layers(self) -> list[str]:
        """Return the names of the classes of the model's layers."""
        return list(self._inner._no_split_modules)

    @contextmanager
    def inference(self, autocast: torch.dtype) -> Iterator[None]:
        """Compute without gradients, with products in the given type."""
        with torch.inference_mode(), self.precision(autocast):
            yield

    def precision(self, autocast: torch.dtype) -> torch.autocast:
        """Return the context in which products are in the given type."""
        return torch.autocast(self._device().type, autocast, autocast != torch.float32)

    def _sums(self, sequences: Sequence[TokenSequence], read: Read) -> Tensor:
        """Return what is read of the completions' tokens, summed, `(S,)` or `(S, K)`."""
        summed = self._packed if self.not_packed is None else self._padded
        return summed(sequences, read)

    def _packed(self, sequences: Sequence[TokenSequence], read: Read = token_logps, **told: Any) -> Tensor:
        row = pack(sequences)
        device = self._device()

        def tensor(values: Sequence[int]) -> Tensor:
            return torch.tensor(values, device=device)

        hidden = self._inner.get_decoder()(
            input_ids=tensor(row.ids)[None],
            position_ids=tensor(row.positions)[None],
            use_cache=False,
            branches=row.branches,
            **told,
        ).last_hidden_state[0]
        values = self._of_targets(hidden.index_select(0, tensor(row.sources)), tensor(row.targets), read)
        sums = values.new_zeros(len(sequences), *values.shape[1:])
        return sums.index_add(0, tensor(row.owners), values[tensor(row.terms)])

    def _of_targets(self, hidden: Tensor, targets: Tensor, read: Read) -> Tensor:
        """Return what is read of each target, from the hidden state before it, `(N, D)`.

        A chunk's logits are computed again in the backward pass, so that no two chunks exist at once.
        """
        head = self._inner.get_output_embeddings()

        def chunk(hidden: Tensor, targets: Tensor) -> Tensor:
            return read(self._finish(head(hidden)), targets)

        size = max(1, CHUNK // self._inner.config.get_text_config().vocab_size)
        chunks = zip(torch.split(hidden, size), torch.split(targets, size), strict=True)
        return torch.cat([checkpoint(chunk, h, t, use_reentrant=False) for h, t in chunks])

    def _padded(self, sequences: Sequence[TokenSequence], read: Read = token_logps) -> Tensor:
        """Pad on the right without a mask: no token of a causal model sees what comes after it."""
        width = max(map(len, sequences))
        ids = torch.tensor([s.ids + (0,) * (width - len(s)) for s in sequences], device=self._device())
        logits = self.model(input_ids=ids[:, :-1], use_cache=False).logits
        found = read(logits.flatten(0, 1), ids[:, 1:].flatten())
        values = found.view(len(ids), -1, *found.shape[1:])
        return torch.stack(
            [row[len(s.prompt) - 1 : len(s) - 1].sum(0) for row, s in zip(values, sequences, strict=True)]
        )

    def _try_packing(self) -> str | None:
        """Return why packing is not possible, or `None` if it is, having turned it on."""
        if self._inner._is_stateful:
            return "the architecture has recurrent layers"
        before = self._inner.config._attn_implementation
        training = self.training
        draw = np.random.default_rng(0).integers(3, self._inner.config.get_text_config().vocab_size, 32)
        prompt, chosen, rejected, other = (tuple(part.tolist()) for part in np.split(draw, [8, 16, 24]))
        pair = [TokenSequence(prompt, chosen), TokenSequence(prompt, rejected)]
        with torch.no_grad():
            self.eval()
            alone = self._padded(pair)
            self._inner.set_attn_implementation(NAME)
            problem = self._packing_problem(pair, alone, other)
            self.train(training)
        if problem is not None:
            self._inner.set_attn_implementation(before)
        return problem

    def _packing_problem(
        self, pair: Sequence[TokenSequence], alone: Tensor, other: tuple[int, ...]
    ) -> str | None:
        """Return what is wrong with a packed pair; `other` is another first completion, as long."""
        windows: dict[torch.nn.Module, int | None] = {}
        try:
            packed = self._packed(pair, windows=windows)
        except (TypeError, ValueError, AttributeError, NotImplementedError) as error:
            return f"the architecture can't take a packed row: {error}"
        config = self._inner.config.get_text_config()
        if len(windows) < config.num_hidden_layers:
            return "the architecture gives a packed row other log-probabilities: not every layer attends"
        kinds = getattr(config, "layer_types", None)
        slides = "sliding_attention" in kinds if kinds else getattr(config, "sliding_window", None)
        if slides and not any(windows.values()):
            return "the architecture does not tell its attention the sliding window"
        exact = next(self.model.parameters()).dtype == torch.float32
        moved = self._packed([TokenSequence(pair[0].prompt, other), pair[1]])
        if not torch.allclose(packed, alone, rtol=1e-4 if exact else 2e-2):
            return "the architecture gives a packed row other log-probabilities"
        if not torch.allclose(packed[1], moved[1], rtol=1e-5 if exact else 2e-3):
            return "the architecture lets the completions of a packed row see each other"
        return None

    def _device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device


def _logps_and_misses(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the log-probability of each target and 1 where another token is likelier, `(N, 2)`."""
    misses = (logits.argmax(-1) != targets).float()
    return torch.stack([token_logps(logits, targets), misses], -1)


def _finish(config: Any) -> Callable[[Tensor], Tensor]:
    """Return what the architecture does to the logits of its head, by its configuration."""
    scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
    cap = getattr(config, "final_logit_softcapping", None)

    def finish(logits: Tensor) -> Tensor:
        logits = logits if scale == 1 else logits.float() * scale
        return logits if cap is None else torch.tanh(logits.float() / cap) * cap

    return finish
