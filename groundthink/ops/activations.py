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
    beta_bias: Tensor,
    decay_bias: Tensor,
    a_log: Tensor | None,
    beta_range: float,
) -> tuple[Tensor, Tensor]:
    """log_decay and beta of every head.

    beta = beta_range * sigmoid(W_b x + beta_bias). log_decay = -exp(a_log) softplus(W_a x + decay_bias), or
    log sigmoid(W_a x + decay_bias) without a_log.

    Args:
        x: [B,T,D], any floating dtype.
        weight: [2H,D] float32 (or float64): W_a over W_b.
        beta_bias, decay_bias, a_log: [H] in the weight's dtype.
        beta_range: 1, or 2 where negative eigenvalues are allowed.

    Returns:
        log_decay and beta, each [B,T,H] in the weight's dtype, whatever autocast says.
    """
    if _fused.runs_kernels(x) and weight.dtype == torch.float32:
        log_decay, beta = _fused.kernels("gates").delta_gates(
            x, weight, beta_bias=beta_bias, decay_bias=decay_bias, a_log=a_log, beta_range=beta_range
        )
        return log_decay, beta
    with torch.autocast(x.device.type, enabled=False):
        raw_decay, raw_beta = F.linear(x.to(weight.dtype), weight).chunk(2, -1)
        beta = torch.sigmoid(raw_beta + beta_bias) * beta_range
        if a_log is not None:
            log_decay = -a_log.exp() * F.softplus(raw_decay + decay_bias)
        else:
            log_decay = F.logsigmoid(raw_decay + decay_bias)
    return log_decay, beta
