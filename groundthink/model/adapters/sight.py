"""What one layer of a foreign model sees without a memory, and how transformers' cache layers are read and set."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

Tensors = dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Sight:
    """One layer.

    Attributes:
        memory: whether it carries a recurrent memory.
        taps: tokens before the present one that its convolution sees.
        window: tokens that its attention sees, the present one included; inf for full attention, 0 for none.
    """

    memory: bool = False
    taps: int = 0
    window: float = 0

    @property
    def reach(self) -> float:
        """Tokens before the present one that it sees without a memory. Paths side by side count once."""
        return max(self.taps, self.window - 1, 0)

    @property
    def slides(self) -> bool:
        """Whether its attention forgets."""
        return 0 < self.window < math.inf


class CountingCache(DynamicCache):
    """A stock cache that can tell a length without attention layers too: the stock one refuses.

    Args:
        config: of the model.
        seen: tokens before the ones that come now.
    """

    def __init__(self, config: Any, *, seen: int = 0) -> None:
        super().__init__(config=config)
        self.seen = seen

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen before this call."""
        try:
            return super().get_seq_length(layer_idx)
        except ValueError:
            return self.seen

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Keys and their offset; without attention there are none but the new ones."""
        try:
            return super().get_mask_sizes(query_length, layer_idx)
        except ValueError:
            return query_length, self.seen


def read_recurrent(layer: Any) -> Tensors:
    """Copies of the `native` memory and of `conv` [B,taps + 1,channels] of a recurrent cache layer.

    Raises:
        LookupError: the model has not filled it.
    """
    memory, conv = layer.recurrent_states[0], layer.conv_states[0]
    if memory is None or conv is None:
        raise LookupError("its cache holds no recurrent state")
    return {"native": memory.clone(), "conv": conv.transpose(1, 2).clone()}


def set_recurrent(layer: Any, native: Tensor, conv: Tensor) -> None:
    """Fill a fresh recurrent cache layer with copies."""
    window = conv.transpose(1, 2).contiguous()
    layer.lazy_initialization(conv_states=window)
    layer.lazy_initialization(recurrent_states=native)
    layer.conv_states[0].copy_(window)
    layer.recurrent_states[0].copy_(native)
    layer.has_previous_state[0] = True


def read_attention(layer: Any, *, seen: int) -> Tensors:
    """Copies of `keys` and `values` [B,L,H,K] of an attention cache layer; `seen` [B] counts padding too.

    Raises:
        LookupError: the model has not filled it.
    """
    if not getattr(layer, "is_initialized", False):
        raise LookupError("its cache holds no keys and values")
    keys, values = (x.transpose(1, 2).clone() for x in (layer.keys, layer.values))
    count = torch.full((keys.shape[0],), seen, dtype=torch.int64, device=keys.device)
    return {"keys": keys, "values": values, "seen": count}


def set_attention(layer: Any, keys: Tensor, values: Tensor, *, seen: int) -> None:
    """Fill a fresh attention cache layer with copies."""
    keys, values = (x.transpose(1, 2).contiguous().clone() for x in (keys, values))
    layer.lazy_initialization(keys, values)
    layer.keys, layer.values = keys, values
    if hasattr(layer, "cumulative_length"):
        layer.cumulative_length = seen
