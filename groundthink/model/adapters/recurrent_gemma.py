"""RecurrentGemma (Griffin): the state lies in attributes of its modules, beside the cache."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from groundthink.layers import State
from groundthink.model.adapters.base import Adapter
from groundthink.model.adapters.sight import Sight, Tensors


class RecurrentGemma(Adapter):
    """RecurrentGemma. Native memory [B,width], one number a channel: heads of K = 1.

    Where several tokens continue a text, its convolution starts from zeros in the releases that were looked at
    (transformers 5.17 and 5.23), so whole and split differ; with `step=True` it is what `generate` makes of it.
    """

    family = "RecurrentGemma"
    model_types = ("recurrent_gemma",)

    @classmethod
    def sights(cls, config: Any) -> tuple[Sight, ...]:
        """See `Adapter`."""
        recurrent = Sight(memory=True, taps=config.conv1d_width - 1)
        attention = Sight(window=config.attention_window_size)
        # 5.17 calls its blocks recurrent and attention, 5.23 linear_attention and sliding_attention.
        return tuple(
            recurrent if kind in ("recurrent", "linear_attention") else attention for kind in config.layers_block_type
        )

    def to_memory(self, native: Tensor) -> Tensor:
        """See `Adapter`."""
        return native.unflatten(1, (self.config.num_attention_heads, 1, -1))

    def from_memory(self, memory: Tensor) -> Tensor:
        """See `Adapter`."""
        return memory.flatten(1)

    def get_state(self, cache: Any, layer: int, *, seen: int) -> Tensors:
        """See `Adapter`."""
        if not self.layers[layer].memory:
            return super().get_state(cache, layer, seen=seen)
        block = self._block(layer)
        if block.rg_lru.recurrent_states is None or block.conv1d_state is None:
            raise LookupError("its modules hold no recurrent state")
        return {
            "native": block.rg_lru.recurrent_states.clone(),
            "conv": block.conv1d_state.transpose(1, 2).clone(),
        }

    def set_state(self, cache: Any, layer: int, state: State) -> None:
        """See `Adapter`."""
        if not self.layers[layer].memory:
            super().set_state(cache, layer, state)
            return
        block = self._block(layer)
        block.rg_lru.recurrent_states = state["native"].clone()
        block.conv1d_state = state["conv"].transpose(1, 2).contiguous().clone()

    @contextlib.contextmanager
    def untouched(self) -> Iterator[None]:
        """Put the modules' attributes back: a text that is being generated elsewhere goes on from its own state."""
        blocks = [self._block(i) for i, sight in enumerate(self.layers) if sight.memory]
        before = [(block.rg_lru.recurrent_states, block.conv1d_state) for block in blocks]
        try:
            for block in blocks:
                block.rg_lru.recurrent_states = block.conv1d_state = None
            yield
        finally:
            for block, (memory, conv) in zip(blocks, before, strict=True):
                block.rg_lru.recurrent_states, block.conv1d_state = memory, conv

    def _block(self, layer: int) -> Any:
        return self.inner.model.layers[layer].temporal_block
