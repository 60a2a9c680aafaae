"""Drawing the next token of every row, each with its own random numbers."""

import torch
from torch import Tensor

_HEADS = (64, 1024)


def sample(logits: Tensor, uniforms: Tensor, temperature: float, top_p: float) -> Tensor:
    """Draw one token a row from the nucleus, by inverting its cumulative distribution.

    A row's token depends on its own logits and its own uniform number alone, so a draw does not change
    with the company it is drawn in.

    Args:
        logits: `(B, V)`.
        uniforms: `(B,)`, in [0, 1).
        temperature: 0 takes the likeliest token.
        top_p: The nucleus is the smallest set of likeliest tokens whose probability reaches this.

    Returns:
        Token ids `(B,)`.

    Source: nucleus sampling, arXiv 1904.09751, section 3.1.
    """
    if temperature == 0:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits.float() / temperature, dim=-1)
    return _from_head(probabilities, uniforms, top_p, _HEADS)


def _from_head(probabilities: Tensor, uniforms: Tensor, top_p: float, heads: tuple[int, ...]) -> Tensor:
    """Draw from the likeliest few tokens where the nucleus is among them, and from more where it is not.

    Most nuclei end within a few dozen tokens. Each row is drawn from the first head that holds its nucleus,
    whatever the others need, as each way of sorting may order equal probabilities in another way.
    """
    if not heads:
        return _draw(*probabilities.sort(dim=-1, descending=True), uniforms, top_p)
    values, tokens = probabilities.topk(min(heads[0], probabilities.shape[-1]), dim=-1)
    drawn = _draw(values, tokens, uniforms, top_p)
    wide = values.sum(-1) < top_p
    if bool(wide.any()):
        drawn[wide] = _from_head(probabilities[wide], uniforms[wide], top_p, heads[1:])
    return drawn


def _draw(values: Tensor, tokens: Tensor, uniforms: Tensor, top_p: float) -> Tensor:
    """Draw from tokens whose probabilities fall from left to right."""
    cumulative = values.cumsum(-1)
    in_nucleus = cumulative - values < top_p
    size = in_nucleus.sum(-1, keepdim=True)
    mass = cumulative.gather(-1, size - 1)
    place = (cumulative <= uniforms[:, None] * mass).sum(-1, keepdim=True)
    return tokens.gather(-1, torch.minimum(place, size - 1)).squeeze(-1)
