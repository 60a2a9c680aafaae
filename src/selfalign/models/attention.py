"""Attention over a packed row: every branch of the tree sees its own path and nothing else."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from selfalign.errors import ModelError
from selfalign.models.packing import Branch

NAME = "selfalign_tree"

_BLOCK = 128
"""Queries attended at once on a processor: small enough that scores stay in its cache."""

_CHANGE_SCORES = {"s_aux", "position_bias", "head_mask"}
"""Arguments of transformers' attention functions that would change the result and that we don't compute."""


def tree_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    branches: tuple[Branch, ...] | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    windows: dict[torch.nn.Module, int | None] | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Attend within a packed row of L tokens, as an attention function of transformers.

    Args:
        module: The attention layer.
        query: `(1, H, L, D)`.
        key: `(1, G, L, D)`, where G divides H.
        value: `(1, G, L, E)`.
        attention_mask: Not used; the branches say who sees whom.
        branches: Of the row; `None` where the architecture does not pass them on.
        scaling: Of the scores; `None` is one over the root of D.
        dropout: Of the attention weights.
        sliding_window: Positions a token looks back at, itself included; `None` is all.
        softcap: Bound of the scores, by tanh (Gemma 2, 2408.00118, section 2); `None` is none.
        windows: Told the window of each layer that comes here.
        rest: Not used.

    Returns:
        `(1, L, H, E)`, and no weights.

    Raises:
        ModelError: The architecture asks for something else.
    """
    del attention_mask
    if windows is not None:
        windows[module] = sliding_window
    if unknown := sorted(name for name in _CHANGE_SCORES & rest.keys() if rest[name] is not None):
        raise ModelError(f"attention with {', '.join(unknown)}")
    if branches is None:
        raise ModelError("its layers keep back what their attention is told")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    query, key = query.to(value.dtype), key.to(value.dtype)  # rotary positions leave them in float32
    if query.device.type == "cpu" and dropout == 0 and softcap is None:
        attended: Tensor = _BlockAttention.apply(  # type: ignore[no-untyped-call]
            query[0], key[0], value[0], branches, scaling, sliding_window
        )
        return attended.transpose(0, 1)[None].contiguous(), None
    outputs = []
    for branch in branches:
        own = slice(branch.start, branch.end)
        k, v = (_path(part[0], branch)[None] for part in (key, value))
        seen = _seen(branch, sliding_window, query.device)
        outputs.append(_attend(query[:, :, own], k, v, seen, scaling, dropout, softcap))
    return torch.cat(outputs, 2).transpose(1, 2).contiguous(), None


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seen: Tensor,
    scaling: float,
    dropout: float,
    softcap: float | None,
) -> Tensor:
    if softcap is None:
        return F.scaled_dot_product_attention(
            query, key, value, seen, dropout, scale=scaling, enable_gqa=True
        )
    copies = query.shape[1] // key.shape[1]  # the fused kernels can't bound the scores
    scores = query @ key.repeat_interleave(copies, 1).transpose(2, 3) * scaling
    scores = (torch.tanh(scores / softcap) * softcap).float().masked_fill(~seen, -torch.inf)
    weights = F.dropout(torch.softmax(scores, -1).to(value.dtype), dropout)
    return weights @ value.repeat_interleave(copies, 1)


def _path(part: Tensor, branch: Branch) -> Tensor:
    """Return the keys or values `(G, L, D)` that a branch sees: `(G, S, D)`, its own last."""
    return torch.cat([part[:, start:end] for start, end in (*branch.shared, (branch.start, branch.end))], 1)


def _seen(branch: Branch, window: int | None, device: torch.device) -> Tensor:
    """Return which tokens of its path each token of a branch sees, `(T, S)`."""
    keys = branch.depth + branch.end - branch.start
    asking, asked = (
        torch.arange(branch.depth, keys, device=device)[:, None],
        torch.arange(keys, device=device),
    )
    return (asked <= asking) if window is None else (asked <= asking) & (asked > asking - window)


class _BlockAttention(torch.autograd.Function):
    """Attention by blocks of queries, whose weights are computed again in the backward pass.

    Twice as fast in bfloat16 on a processor as torch's fused kernel, and as lean: H x 128 x S weights at
    once. Shapes are `(H, L, D)` for queries and `(G, L, D)` for keys and values.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        branches: tuple[Branch, ...],
        scaling: float,
        window: int | None,
    ) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.rest = branches, scaling, window
        output = query.new_empty(*query.shape[:2], value.shape[-1])
        for branch in branches:
            keys, values = _path(key, branch), _path(value, branch)
            for first, last in _blocks(branch):
                rows, sees = slice(branch.start + first, branch.start + last), slice(branch.depth + last)
                q = _grouped(query[:, rows], len(keys))
                weights = _weights(q, keys[:, sees], last - first, scaling, window)
                output[:, rows] = (weights @ values[:, sees]).reshape(len(query), -1, value.shape[-1])
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        branches, scaling, window = ctx.rest
        grad_query = torch.empty_like(query)
        grad_key, grad_value = (torch.zeros(part.shape, device=part.device) for part in (key, value))
        for branch in branches:
            keys, values = _path(key, branch), _path(value, branch)
            path_key, path_value = (torch.zeros(part.shape, device=part.device) for part in (keys, values))
            for first, last in _blocks(branch):
                rows, sees = slice(branch.start + first, branch.start + last), slice(branch.depth + last)
                q, g = _grouped(query[:, rows], len(keys)), _grouped(grad[:, rows], len(keys))
                weights = _weights(q, keys[:, sees], last - first, scaling, window)
                path_value[:, sees] += weights.transpose(1, 2) @ g
                scores = torch._softmax_backward_data(
                    g @ values[:, sees].transpose(1, 2), weights, -1, weights.dtype
                )
                scores *= scaling
                grad_query[:, rows] = (scores @ keys[:, sees]).reshape(len(query), -1, query.shape[-1])
                path_key[:, sees] += scores.transpose(1, 2) @ q
            at = 0
            for start, end in (*branch.shared, (branch.start, branch.end)):
                grad_key[:, start:end] += path_key[:, at : at + end - start]
                grad_value[:, start:end] += path_value[:, at : at + end - start]
                at += end - start
        return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype), None, None, None


def _blocks(branch: Branch) -> list[tuple[int, int]]:
    """Return the first and last token of each block of a branch, counted from its start."""
    size = branch.end - branch.start
    return [(first, min(first + _BLOCK, size)) for first in range(0, size, _BLOCK)]


def _grouped(part: Tensor, groups: int) -> Tensor:
    """Return `(H, T, D)` as `(G, H / G * T, D)`: heads that share keys become rows of one product."""
    return part.reshape(groups, -1, part.shape[-1])


def _weights(query: Tensor, keys: Tensor, size: int, scaling: float, window: int | None) -> Tensor:
    """Return the attention weights `(G, R * T, S)` of grouped queries, T = `size` of them the last of S."""
    scores = ((query * scaling) @ keys.transpose(1, 2)).contiguous()
    by_token = scores.view(len(keys), -1, size, scores.shape[-1])
    by_token[..., -size:].masked_fill_(_later(size), -torch.inf)
    if window is not None and window < scores.shape[-1]:
        by_token.masked_fill_(_earlier(size, scores.shape[-1], window), -torch.inf)
    return torch.softmax(scores, -1)


def _later(size: int) -> Tensor:
    """Return which tokens come after each of `size` tokens."""
    return torch.ones(size, size, dtype=torch.bool).triu(1)


def _earlier(size: int, keys: int, window: int) -> Tensor:
    """Return which of `keys` tokens lie before the window of each of the last `size` of them."""
    return torch.arange(keys) <= torch.arange(keys - size, keys)[:, None] - window


AttentionInterface.register(NAME, tree_attention)
