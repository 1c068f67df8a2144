"""Mamba2: a state-space memory for each head."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from groundthink.model.adapters.base import Adapter
from groundthink.model.adapters.sight import Sight


class Mamba2(Adapter):
    """Mamba2. Native memory [B,H,V,K]: C asks along the state K, x is what is stored."""

    family = "Mamba2"
    model_types = ("mamba2",)

    @classmethod
    def sights(cls, config: Any) -> tuple[Sight, ...]:
        """See `Adapter`."""
        return (Sight(memory=True, taps=config.conv_kernel - 1),) * config.num_hidden_layers

    def to_memory(self, native: Tensor) -> Tensor:
        """See `Adapter`."""
        return native.transpose(2, 3).contiguous()

    def from_memory(self, memory: Tensor) -> Tensor:
        """See `Adapter`."""
        return memory.transpose(2, 3).contiguous()
