"""What a loss beside the token losses is: what it listens to, and its value for each row."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True)
class Heard:
    """What one forward pass handed over.

    Attributes:
        tokens: [B,T].
        documents: [B,T] ids, non-decreasing in a row, or None.
        model: the model that was heard, for its weights.
        anchor: what the model as it was hands to its head [B,T,d], and that head [vocabulary,d]; None where
            nothing is held on to.
        outputs: by pattern, what each module of that name returned, in the order of the calls.
    """

    tokens: Tensor
    documents: Tensor | None
    model: nn.Module
    outputs: Mapping[str, tuple[Any, ...]]
    anchor: tuple[Tensor, Tensor] | None = None

    @property
    def head(self) -> Tensor:
        """The model's output weight [vocabulary,d], as wide as losses want it."""
        return wide(self.model.get_output_embeddings().weight)  # type: ignore[operator]

    def same_document(self, first: Tensor | slice, second: Tensor | slice) -> Tensor:
        """Whether the tokens at two lists of positions belong together: bool [B,n], or [1,n] without documents."""
        if self.documents is None:
            return torch.ones_like(self.tokens[:1, first], dtype=torch.bool)
        return self.documents[:, first] == self.documents[:, second]


@dataclasses.dataclass(frozen=True)
class Loss:
    """A loss by name. `Phase.losses` gives it a weight.

    Attributes:
        name: as recipes write it.
        hears: patterns of full module names (`*.hook_k`); each must name at least one module of the model.
        of_rows: from what was heard, [B] with a gradient. A mean over rows, not over a batch, so that
            cutting a step into pieces changes nothing.
    """

    name: str
    hears: tuple[str, ...]
    of_rows: Callable[[Heard], Tensor]


def wide(x: Tensor) -> Tensor:
    """In float32, or in float64 where it is that already."""
    return x if x.dtype == torch.float64 else x.float()


def mean_where(values: Tensor, counts: Tensor) -> Tensor:
    """Mean [B] of values [B,...] where counts (bool, broadcast to them) says so; 0 in rows where nothing counts."""
    weights = counts.expand_as(values).to(values.dtype).flatten(1)
    return (values.flatten(1) * weights).sum(1) / weights.sum(1).clamp_min(1)


def mean_of(layers: list[Tensor]) -> Tensor:
    """Mean [B] of the layers' values, so that a weight means the same at any depth."""
    return torch.stack(layers).mean(0)
