"""The interface of every sequence mixer, and what passes between the layers of one forward pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from groundthink.layers.config import LayerConfig
from groundthink.ops import DeltaMemory

State = Mapping[str, Tensor]
ROLES = ("matrix", "embedding", "norm", "bias", "gate", "convolution")


@dataclasses.dataclass(frozen=True)
class Context:
    """What a mixer may know beside its input.

    Attributes:
        positions: [B,T] int64 position of each token in its row, carried over segments.
        documents: [B,T] ids, non-decreasing; None means one document per row.
        memories: written by the layers below, nearest last.
        keep_state: whether the state after the last token is wanted.
        keep_memory: whether a later layer will read the memory that this one writes.
        key_weights: [H*K,D] of each of the memories, the projection that made its keys; empty if nobody shares it.
        slots: [B,T] int64, the slot that a token is declared as, -1 for all others; None without slots.
    """

    positions: Tensor
    documents: Tensor | None = None
    memories: tuple[DeltaMemory, ...] = ()
    keep_state: bool = True
    keep_memory: bool = True
    key_weights: tuple[Tensor, ...] = ()
    slots: Tensor | None = None


class Mixed(NamedTuple):
    """What a mixer returns.

    Attributes:
        y: [B,T,D].
        state: what the layer carries on; None if it was not asked for.
        memory: what later layers may read (its final state alone unless `keep_memory`); None if the layer writes none.
    """

    y: Tensor
    state: State | None
    memory: DeltaMemory | None = None


class Mixer(nn.Module):
    """A sequence mixer: x [B,T,D] and the state before it in, y [B,T,D] and the state after it out.

    The contract (tests/contracts/test_mixers.py): causal to the bit; whole = chunked = step by step = any split;
    packed = separate; rows independent; every parameter has a role and gets a gradient; the state is a value: no
    tensor of it is changed in place.
    """

    def forward(self, x: Tensor, state: State | None, context: Context) -> Mixed:
        """Mix along time. `state` None means nothing came before."""
        raise NotImplementedError

    @classmethod
    def reach(cls, config: LayerConfig) -> float:
        """Tokens before the present one that such a layer sees without any memory; inf for full attention."""
        raise NotImplementedError

    def state_shapes(self) -> dict[str, tuple[int | None, ...]]:
        """Shape of each tensor this layer carries, less its rows; None where it grows with the text."""
        raise NotImplementedError

    def parameter_roles(self) -> dict[str, str]:
        """Role of each parameter, by its name in this module."""
        roles = {}
        for name, _ in self.named_parameters():
            owner, _, leaf = name.rpartition(".")
            module = self.get_submodule(owner)
            declared = getattr(module, "roles", None)
            if declared is not None and leaf in declared:
                roles[name] = declared[leaf]
            elif isinstance(module, nn.Linear):
                roles[name] = "matrix" if leaf == "weight" else "bias"
        return roles


def freeze(**tensors: Tensor) -> State:
    """A state: read-only names."""
    return MappingProxyType(tensors)


def row_dropout(x: Tensor, probability: float, *, training: bool, rescale: bool) -> Tensor:
    """Zero whole rows of [B,T,...] with this probability, in training only; scale the others up if asked."""
    if not training or probability == 0:
        return x
    kept = torch.rand(x.shape[0], device=x.device) >= probability
    kept = kept.view(-1, *[1] * (x.dim() - 1)).to(x.dtype)
    return x * (kept / (1 - probability) if rescale else kept)
