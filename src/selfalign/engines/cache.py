"""What the rows of a batch remember: keys and values with room to grow, for rows that come and go.

And how a new token attends to them on a processor.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, Cache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "selfalign_decode"

ROOM = 32
"""Columns that a layer has behind its last token when it has grown."""


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of a layer with room behind them, so that to add a token copies none of the others.

    The room is part of what attention is given, as torch copies what does not lie densely before it
    multiplies it; causal masks leave it out.
    """

    def __init__(self, keys: Tensor, values: Tensor, length: int) -> None:
        """Take keys and values, `(B, G, C, D)`, with `length` columns in use and zeros behind them."""
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values
        self._length = length

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: Any, **_named: Any
    ) -> tuple[Tensor, Tensor]:
        """Add columns, `(B, G, T, D)`, and return all keys and all values with their room."""
        added = key_states.shape[2]
        end = self._length + added
        if more := self.get_mask_sizes(added)[0] - self.keys.shape[2]:
            self.keys, self.values = (F.pad(part, (0, 0, 0, more)) for part in (self.keys, self.values))
        self.keys[:, :, self._length : end] = key_states
        self.values[:, :, self._length : end] = value_states
        self._length = end
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many columns attention is given after so many are added, and the first one's place."""
        end, capacity = self._length + query_length, self.keys.shape[2]
        return (capacity if end <= capacity else end + ROOM), 0

    def get_seq_length(self) -> int:
        """Return how many columns are in use."""
        return self._length


@dataclass
class Rows:
    """The cache of B rows that end in the same column, and which of its T columns are theirs."""

    cache: Cache
    mask: Tensor
    """`(B, T)`, 1 where a column holds a token of the row."""


def is_plain(cache: Cache) -> bool:
    """Say whether every layer keeps all columns, so that rows of several caches can be joined."""
    return all(type(layer) in (DynamicLayer, RoomyLayer) for layer in cache.layers)


def keep(rows: Rows, kept: Tensor) -> Rows:
    """Return the kept rows of a cache of any kind, in the given order; it is used up."""
    rows.cache.batch_select_indices(kept)
    return Rows(rows.cache, rows.mask[kept])


def join(parts: Sequence[tuple[Rows, Tensor]]) -> Rows:
    """Return the chosen rows of plain caches as one, aligned at their last column.

    Columns before the first token of all chosen rows are dropped. The caches are used up layer by layer, so
    that no more than one layer is in memory twice.

    Args:
        parts: Caches with the indices of their rows to keep, at least one row in all.
    """
    parts = [(rows, kept) for rows, kept in parts if len(kept)]
    masks = [rows.mask[kept] for rows, kept in parts]
    width = max(mask.shape[1] - int(mask.any(0).int().argmax()) for mask in masks)
    used = [(kept, rows.mask.shape[1]) for rows, kept in parts]
    layers = []
    for old in zip(*(rows.cache.layers for rows, _ in parts), strict=True):
        keys = _stack([layer.keys for layer in old], used, width)
        values = _stack([layer.values for layer in old], used, width)
        layers.append(RoomyLayer(keys, values, width))
        for layer in old:
            layer.reset()
    return Rows(Cache(layers=layers), torch.cat([F.pad(mask, (width - mask.shape[1], 0)) for mask in masks]))


def _stack(parts: Sequence[Tensor], used: Sequence[tuple[Tensor, int]], width: int) -> Tensor:
    """Copy the used rows and columns of each `(B, G, C, D)` so that all end at `width`; zeros are around."""
    _, groups, _, size = parts[0].shape
    stacked = parts[0].new_zeros(sum(len(kept) for kept, _ in used), groups, width + ROOM, size)
    row = 0
    for part, (kept, end) in zip(parts, used, strict=True):
        columns = min(end, width)
        target = stacked[row : row + len(kept), :, width - columns : width]
        target.copy_(part[:, :, end - columns : end][kept])
        row += len(kept)
    return stacked


def decode_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    **named: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers' `sdpa` does; one new token a row in bfloat16 on a processor in half the time.

    There torch's fused kernel takes twice as long as two products of matrices, keys by queries and weights by
    values, each of the heads that share keys.

    Args:
        module: The attention layer.
        query: `(B, H, L, D)`.
        key: `(B, G, S, D)`, where G divides H.
        value: `(B, G, S, E)`.
        attention_mask: True where a query sees a key, `(B, 1, L, S)`; `None` is everywhere.
        scaling: Of the scores; `None` is one over the root of D.
        named: What `sdpa` takes besides.

    Returns:
        `(B, L, H, E)`, and no weights.
    """
    simple = query.device.type == "cpu" and query.dtype == torch.bfloat16 and query.shape[2] == 1
    plain = attention_mask is not None and attention_mask.dtype == torch.bool and attention_mask.shape[1] == 1
    changed = any(named.get(name) is not None for name in ("position_bias", "softcap", "cache"))
    if attention_mask is None or changed or not simple or not plain or named.get("dropout"):
        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module, query, key, value, attention_mask, scaling=scaling, **named
        )
    rows, heads, _, size = query.shape
    groups, seen = key.shape[1:3]
    grouped = (query * (size**-0.5 if scaling is None else scaling)).reshape(rows * groups, -1, size)
    scores = torch.bmm(key.flatten(0, 1), grouped.transpose(1, 2)).transpose(1, 2).contiguous()
    scores.view(rows, groups, -1, seen).masked_fill_(~attention_mask, -torch.inf)
    attended = torch.bmm(torch.softmax(scores, -1), value.flatten(0, 1))
    return attended.view(rows, 1, heads, -1), None


AttentionInterface.register(ATTENTION, decode_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
