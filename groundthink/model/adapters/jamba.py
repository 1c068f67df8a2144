"""Jamba: layers of Mamba among layers of full attention. And Mamba itself."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from groundthink.model.adapters.base import Adapter, by_layer_type
from groundthink.model.adapters.sight import Sight


class Selective(Adapter):
    """Base: a Mamba memory, native [B,channels,K]. Every channel is asked with the same C, so it is one head of V."""

    def to_memory(self, native: Tensor) -> Tensor:
        """See `Adapter`."""
        return native.transpose(1, 2).unsqueeze(1).contiguous()

    def from_memory(self, memory: Tensor) -> Tensor:
        """See `Adapter`."""
        return memory.squeeze(1).transpose(1, 2).contiguous()


class Jamba(Selective):
    """Jamba."""

    family = "Jamba"
    model_types = ("jamba",)

    @classmethod
    def sights(cls, config: Any) -> tuple[Sight, ...]:
        """See `Adapter`."""
        return by_layer_type(config, taps=config.mamba_d_conv - 1)


class Mamba(Selective):
    """Mamba, and Falcon's."""

    family = "Mamba"
    model_types = ("mamba", "falcon_mamba")

    @classmethod
    def sights(cls, config: Any) -> tuple[Sight, ...]:
        """See `Adapter`."""
        return (Sight(memory=True, taps=config.conv_kernel - 1),) * config.num_hidden_layers
