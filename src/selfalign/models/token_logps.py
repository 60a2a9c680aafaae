"""The log-probability of a token out of logits, without a float32 copy of them."""

from typing import Any

import torch
from torch import Tensor


def token_logps(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the log-probability of each target token, in float32.

    Args:
        logits: `(N, V)`, any float type.
        targets: `(N,)`, token ids.

    Returns:
        `(N,)`, natural logarithms.
    """
    logps: Tensor = _TokenLogps.apply(logits, targets)  # type: ignore[no-untyped-call]
    return logps


_ROWS = 32
"""Positions whose logits are float32 at once: few enough that they stay in a processor's cache."""


class _TokenLogps(torch.autograd.Function):
    """Gathered log-softmax that keeps the logits in their own type, and float32 of a few rows alone."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        logps = logits.new_empty(targets.shape, dtype=torch.float32)
        for row, rows in enumerate(torch.split(logits, _ROWS)):
            at = slice(row * _ROWS, row * _ROWS + len(rows))
            found = torch.log_softmax(rows.float(), -1)
            logps[at] = found.gather(-1, targets[at].unsqueeze(-1)).squeeze(-1)
        ctx.save_for_backward(logits, targets, logps)
        return logps

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        logits, targets, logps = ctx.saved_tensors
        chosen = logits.gather(-1, targets.unsqueeze(-1)).float()
        normaliser = chosen - logps.unsqueeze(-1)
        grad_logits = torch.empty_like(logits)
        for row, rows in enumerate(torch.split(logits, _ROWS)):
            at = slice(row * _ROWS, row * _ROWS + len(rows))
            scale = grad[at].unsqueeze(-1)
            found = (rows.float() - normaliser[at]).exp_().mul_(-scale)
            found.scatter_add_(-1, targets[at].unsqueeze(-1), scale)
            grad_logits[at] = found
        return grad_logits, None
