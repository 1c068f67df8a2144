"""Gated DeltaNet as flash-linear-attention has it; its kernels run on a GPU only."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from groundthink.errors import BackendError, CheckpointError
from groundthink.layers import State
from groundthink.model.adapters.base import Adapter
from groundthink.model.adapters.sight import Sight, Tensors


def register() -> None:
    """Make transformers know fla's models.

    Raises:
        BackendError: fla is not installed.
    """
    try:
        import fla.models  # noqa: F401 (registers its configs and models)
    except ImportError as error:
        raise BackendError(
            "this checkpoint needs flash-linear-attention, which cannot be imported here",
            fix="pip install 'groundthink[kernels]', on a machine with a GPU",
        ) from error


class FlaGatedDeltaNet(Adapter):
    """fla's Gated DeltaNet, with or without attention layers. Native memory [B,H,V,K]; three convolutions a layer."""

    family = "fla Gated DeltaNet"
    model_types = ("gated_deltanet",)

    @classmethod
    def sights(cls, config: Any) -> tuple[Sight, ...]:
        """See `Adapter`."""
        if not config.use_short_conv:
            raise CheckpointError("fla's Gated DeltaNet without short convolutions", fix="it is not supported")
        attention = config.attn or {}
        window = attention.get("window_size")
        delta = Sight(memory=True, taps=config.conv_size - 1)
        exact = Sight(window=math.inf if window is None else window)
        return tuple(exact if i in attention.get("layers", ()) else delta for i in range(config.num_hidden_layers))

    def to_memory(self, native: Tensor) -> Tensor:
        """See `Adapter`."""
        return native.transpose(2, 3).contiguous()

    def from_memory(self, memory: Tensor) -> Tensor:
        """See `Adapter`."""
        return memory.transpose(2, 3).contiguous()

    def new_cache(self, *, seen: int = 0) -> Any:
        """See `Adapter`."""
        from fla.models.utils import Cache

        return Cache(seen_tokens=seen)

    def get_state(self, cache: Any, layer: int, *, seen: int) -> Tensors:
        """See `Adapter`; `conv` holds the channels of q, k and v side by side."""
        held = cache[layer]
        if self.layers[layer].memory:
            if held["recurrent_state"] is None or held["conv_state"] is None:
                raise LookupError("its cache holds no recurrent state")
            parts = [part.transpose(1, 2) for part in held["conv_state"]]
            return {"native": held["recurrent_state"].clone(), "conv": torch.cat(parts, 2)}
        heads = self._heads(layer)
        keys, values = (x.unflatten(2, (heads, -1)).clone() for x in held["attn_state"])
        count = keys.new_full((keys.shape[0],), seen).long()
        return {"keys": keys, "values": values, "seen": count}

    def set_state(self, cache: Any, layer: int, state: State) -> None:
        """See `Adapter`."""
        if self.layers[layer].memory:
            parts = state["conv"].split(self._channels(layer), 2)
            conv = tuple(part.transpose(1, 2).contiguous().clone() for part in parts)
            cache.update(recurrent_state=state["native"].clone(), conv_state=conv, layer_idx=layer, offset=0)
            return
        kept = tuple(state[name].flatten(2).contiguous().clone() for name in ("keys", "values"))
        window = self.layers[layer].window
        named = {"window_size": None if math.isinf(window) else int(window)}
        cache.update(attn_state=kept, layer_idx=layer, offset=0, cache_kwargs=named)
        cache.layers[layer]._seen_tokens = int(state["seen"][0])  # its rotary positions count from here

    def _module(self, layer: int) -> Any:
        return self.inner.model.layers[layer].attn

    def _heads(self, layer: int) -> int:
        return int(self._module(layer).num_kv_heads)

    def _channels(self, layer: int) -> list[int]:
        module = self._module(layer)
        return [int(module.key_dim), int(module.key_dim), int(module.value_dim)]
