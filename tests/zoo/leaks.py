"""Leaks of the future, planted into any model with blocks: small enough to hide in a loss, not in a probe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from groundthink.layers import Mixed

STRENGTH = 1e-3  # of the residual stream
CHUNK = 64
M = TypeVar("M", bound=nn.Module)


def block_mean(y: Tensor) -> Tensor:
    """Every token sees the mean of the text."""
    return y + STRENGTH * y.mean(1, keepdim=True)


def chunk_mean(y: Tensor) -> Tensor:
    """Every token sees the mean of its chunk."""
    means = [chunk.mean(1, keepdim=True).expand_as(chunk) for chunk in y.split(CHUNK, 1)]
    return y + STRENGTH * torch.cat(means, 1)


def circular_convolution(y: Tensor) -> Tensor:
    """A convolution by FFT without padding: the end of the text wraps round to its first token."""
    return y + STRENGTH * y.roll(1, 1)


def off_by_one_mask(y: Tensor) -> Tensor:
    """A mask that is one wider than it should be: every token sees the next one."""
    return y + STRENGTH * torch.cat([y[:, 1:], torch.zeros_like(y[:, :1])], 1)


def shifted_labels(logits: Tensor) -> Tensor:
    """Logits of the next position, as if the labels had been shifted twice."""
    return logits.roll(-1, 1)


MIXING: dict[str, Callable[[Tensor], Tensor]] = {
    "block mean": block_mean,
    "chunk mean": chunk_mean,
    "circular convolution": circular_convolution,
    "off-by-one mask": off_by_one_mask,
}
FIVE = (*MIXING, "shifted labels")


def mix_into(model: M, mix: Callable[[Tensor], Tensor], layer: int = 0) -> M:
    """Put a function of the time axis behind one block."""
    model.blocks[layer].register_forward_hook(lambda _m, _i, out: Mixed(mix(out.y), out.state, out.memory))  # type: ignore[index, union-attr]
    return model


def plant(model: M, leak: str) -> M:
    """Put one of the five leaks into a model."""
    if leak in MIXING:
        return mix_into(model, MIXING[leak])
    prefill = model.prefill

    def shifted(input_ids: Tensor, **options: Any) -> tuple[Tensor, Any]:
        logits, snapshot = prefill(input_ids, **options)  # type: ignore[operator]
        return shifted_labels(logits), snapshot

    model.prefill = shifted  # type: ignore[assignment]
    return model
