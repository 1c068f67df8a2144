"""SwiGLU (Shazeer, 2002.05202)."""

from __future__ import annotations

from torch import Tensor, nn

from groundthink import ops


class SwiGLU(nn.Module):
    """W_down (silu(W_gate x) * W_up x)."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.up = nn.Linear(d_model, 2 * d_ff, bias=False)
        self.down = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B,T,D] to [B,T,D]."""
        return self.down(ops.swiglu(self.up(x)))
