"""RMSNorm, and parameters that stay in float32 whatever the model is cast to."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from groundthink import ops


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (Zhang and Sennrich, 1910.07467)."""

    roles: ClassVar = {"weight": "norm"}

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension, see `ops.rms_norm`."""
        return ops.rms_norm(x, self.weight, eps=self.eps)

    def after(self, x: Tensor, branch: Tensor | None) -> tuple[Tensor, Tensor]:
        """The residual stream with `branch` joined, and its norm, see `ops.add_rms_norm`."""
        return ops.add_rms_norm(x, branch, self.weight, eps=self.eps)


class GatedRMSNorm(RMSNorm):
    """The norm of what each head read, under its gate."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:  # type: ignore[override]
        """The norm of each head of x [B,T,H,V] times silu(gate [B,T,H*V]), see `ops.gated_rms_norm`."""
        return ops.gated_rms_norm(x, gate, self.weight, eps=self.eps)


class Float32Module(nn.Module):
    """A module whose parameters follow device moves but no cast to half precision.

    Gates act over thousands of tokens: in bfloat16 a decay of 0.999 is 1.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def keep_precision(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if not moved.is_floating_point() or moved.dtype in (torch.float32, torch.float64):
                return moved
            if tensor.device.type == "meta":
                return moved.to(torch.float32)
            return tensor.to(moved.device)

        return super()._apply(keep_precision, recurse)
