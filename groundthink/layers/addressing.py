"""How a G layer may address its memory beside learned keys: context, slots, and the key of the token before."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from groundthink import ops
from groundthink.layers.config import LayerConfig


class KeyContext(nn.Module):
    """Dense causal convolution under the key projection: the same marker in another context gets another key."""

    roles: ClassVar = {"weight": "convolution"}

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.width, self.std = config.key_conv_width, (config.key_conv_width * config.d_model) ** -0.5
        self.mimetic = config.start != "plain"
        self.weight = nn.Parameter(torch.empty(config.d_model, config.key_conv_width * config.d_model))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Normal, of about the input's size; mimetic: small numbers round the mean of two tokens."""
        nn.init.normal_(self.weight, std=self.std)
        if self.mimetic:
            self.weight.mul_(0.2)
            for tap in self.weight.split(self.weight.shape[0], 1)[-2:]:
                tap.diagonal().add_(0.5)

    def forward(self, x: Tensor, state: Tensor | None, documents: Tensor | None) -> tuple[Tensor, Tensor]:
        """[B,T,D] and the state [B,W-1,D], see `ops.causal_windows`."""
        windows, after = ops.causal_windows(x, self.width, state=state, documents=documents)
        return nn.functional.linear(windows, self.weight), after


def slots_of(tokens: Tensor, slot_tokens: tuple[int, ...]) -> Tensor | None:
    """[B,T] int64: i where a token is `slot_tokens[i]`, -1 elsewhere; None if no token is a slot.

    One comparison per slot, because a table would have to be a tensor that travels with the model.
    """
    if not slot_tokens:
        return None
    slots = torch.full_like(tokens, -1)
    for i, token in enumerate(slot_tokens):
        slots = slots.masked_fill(tokens == token, i)
    return slots


def address(x: Tensor, slots: Tensor | None) -> Tensor:
    """Keys or queries x [B,T,...,K] with row i of the identity where `slots` [B,T] says i >= 0.

    The rows of the identity are the fixed orthonormal basis: orthogonal to the bit in every dtype, so up to K slots
    never disturb each other.
    """
    if slots is None:
        return x
    rows = (slots[..., None] == torch.arange(x.shape[-1], device=x.device)).to(x.dtype)
    wide = slots.shape + (1,) * (x.dim() - 3)
    return torch.where(slots.view(*wide, 1) >= 0, rows.view(*wide, -1), x)


class Written(NamedTuple):
    """With what a token addresses the memory: key [B,T,H,K], beta and log_decay [B,T,HV]."""

    key: Tensor
    beta: Tensor
    log_decay: Tensor


def shift(now: Written, before: Written | None, documents: Tensor | None) -> Written:
    """Of each token the address of the token before it; the first of a document has none and writes nothing.

    Args:
        now: of every token.
        before: of the last token before the segment, [B,1,...] each; None means nothing came before.
        documents: [B,T] ids, non-decreasing; the first document continues `before`.
    """
    shifted = []
    for i, mine in enumerate(now):
        first = torch.zeros_like(mine[:, :1]) if before is None else before[i].to(mine.dtype)
        moved = torch.cat([first, mine[:, :-1]], 1)
        if documents is not None:
            same = torch.ones_like(documents, dtype=torch.bool)
            same[:, 1:] = documents[:, 1:] == documents[:, :-1]
            moved = moved.where(same.view(*same.shape, *[1] * (mine.dim() - 2)), 0.0)
        shifted.append(moved)
    return Written(*shifted)
