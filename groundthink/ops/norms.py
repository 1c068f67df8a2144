"""RMS norms, alone, after an addition and under a gate: float32 inside, one kernel each way on CUDA."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from groundthink.ops import _fused


def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (Zhang and Sennrich, 1910.07467).

    Args:
        x: [..., D], any floating dtype; computed in at least float32.
        weight: [D].
        eps: added to the mean square.

    Returns:
        [..., D] in x's dtype; on CUDA under autocast in autocast's, which is what the product after it takes.
    """
    return add_rms_norm(x, None, weight, eps=eps)[1]


def add_rms_norm(x: Tensor, branch: Tensor | None, weight: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
    """Join a branch to the residual stream and norm the sum: (x + branch, rms_norm(x + branch)).

    Without a branch the first result is x. Use it, and not x, for what follows the norm: gradients that come back
    that way are then added by the norm's backward kernel.
    """
    if _fused.runs_kernels(x):
        dtype = _fused.output_dtype(x)
        total, out = _fused.kernels("norms").add_rms_norm(x, branch, weight, eps=eps, dtype=dtype)
        return total, out
    total = x if branch is None else x + branch
    return total, _plain(total, weight, eps)


def gated_rms_norm(x: Tensor, gate: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """rms_norm(x) * silu(gate), each head normed by itself.

    Args:
        x: [B,T,H,V].
        gate: [B,T,H*V].
        weight: [V].
        eps: added to the mean square.

    Returns:
        [B,T,H*V] in the common dtype of x and gate.

    Raises:
        ValueError: shapes that do not belong together.
    """
    wanted = (*x.shape[:2], x.shape[2] * x.shape[3])
    if tuple(gate.shape) != wanted or weight.shape != x.shape[-1:]:
        raise ValueError(
            f"x [B,T,H,V], gate [B,T,H*V] and weight [V] do not fit: {tuple(x.shape)}, {tuple(gate.shape)}, "
            f"{tuple(weight.shape)}"
        )
    if _fused.runs_kernels(x):
        out: Tensor = _fused.kernels("norms").gated_rms_norm(x, gate, weight, eps=eps)
        return out
    return _plain(x, weight, eps).flatten(2) * F.silu(gate)


def _plain(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    if x.dtype in (torch.float32, torch.float64):
        return F.rms_norm(x, weight.shape, weight.to(x.dtype), eps)
    return F.rms_norm(x.float(), weight.shape, weight.float(), eps).to(x.dtype)
