"""SwiGLU between its two projections, and the gates of the delta rule: one kernel each way on CUDA."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from groundthink.ops import _fused


def swiglu(packed: Tensor) -> Tensor:
    """silu(gate) * up for packed = [gate, up] along the last dimension (Shazeer, 2002.05202): [..., 2F] to [..., F]."""
    if _fused.runs_kernels(packed):
        out: Tensor = _fused.kernels("pointwise").swiglu(packed)
        return out
    gate, up = packed.chunk(2, -1)
    return F.silu(gate) * up


def delta_gates(
    x: Tensor,
    weight: Tensor,
    *,
    beta_bias: Tensor | None,
    decay_bias: Tensor,
    a_log: Tensor | None,
    beta_range: float,
    beta_floor: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """log_decay and beta of every head.

    beta = beta_floor + (beta_range - beta_floor) sigmoid(W_b x + beta_bias), or beta_floor everywhere without a
    beta_bias. log_decay = -exp(a_log) softplus(W_a x + decay_bias), or
    log sigmoid(W_a x + decay_bias) without a_log.

    Args:
        x: [B,T,D], any floating dtype.
        weight: [2H,D] float32 (or float64): W_a over W_b; [H,D] without a beta_bias: W_a alone.
        beta_bias, decay_bias, a_log: [H] in the weight's dtype.
        beta_range: largest beta: 1, or 2 where negative eigenvalues are allowed.
        beta_floor: smallest beta.

    Returns:
        log_decay and beta, each [B,T,H] in the weight's dtype, whatever autocast says.
    """
    if beta_bias is not None and _fused.runs_kernels(x) and weight.dtype == torch.float32:
        log_decay, beta = _fused.kernels("gates").delta_gates(
            x, weight, beta_bias=beta_bias, decay_bias=decay_bias, a_log=a_log, beta_range=beta_range - beta_floor
        )
        return log_decay, beta + beta_floor if beta_floor else beta
    with torch.autocast(x.device.type, enabled=False):
        raw_decay = F.linear(x.to(weight.dtype), weight)
        if beta_bias is None:
            beta = torch.full_like(raw_decay, beta_floor)
        else:
            raw_decay, raw_beta = raw_decay.chunk(2, -1)
            beta = torch.sigmoid(raw_beta + beta_bias) * (beta_range - beta_floor) + beta_floor
        if a_log is not None:
            log_decay = -a_log.exp() * F.softplus(raw_decay + decay_bias)
        else:
            log_decay = F.logsigmoid(raw_decay + decay_bias)
    return log_decay, beta
