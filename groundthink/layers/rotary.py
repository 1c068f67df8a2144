"""Rotary position embedding (Su et al., 2104.09864), exact at any position."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(x: Tensor, positions: Tensor, base: float) -> Tensor:
    """Turn the halves of each head of x [B,T,H,K] by angles that grow with positions [B,T] (int64).

    Angles are formed in float64: in float32 they are off by 0.006 at position 100,000, and a segment continued there
    would differ from the whole.
    """
    half = x.shape[-1] // 2
    speeds = base ** (-torch.arange(half, device=x.device, dtype=torch.float64) / half)
    angles = positions[..., None].double() * speeds
    cos, sin = angles.cos()[:, :, None].to(x.dtype), angles.sin()[:, :, None].to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
