"""Hybrids of gated delta nets and attention: Qwen3-Next and Qwen3.5."""

from __future__ import annotations

from typing import Any

from groundthink.model.adapters.base import Adapter, by_layer_type
from groundthink.model.adapters.sight import Sight


class QwenHybrid(Adapter):
    """Qwen3-Next and Qwen3.5: gated delta nets with one attention layer among every few. Native memory [B,H,K,V]."""

    family = "Qwen3-Next / Qwen3.5"
    model_types = (
        *("qwen3_next", "qwen3_5", "qwen3_5_text"),
        *("qwen3_5_moe", "qwen3_5_moe_text"),
    )

    @classmethod
    def sights(cls, config: Any) -> tuple[Sight, ...]:
        """See `Adapter`."""
        return by_layer_type(config, taps=config.linear_conv_kernel_dim - 1)
