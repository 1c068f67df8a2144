"""Attention with a mask of ours: what a window limit, padding in the past, or an attention window has hidden."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from groundthink.errors import StateError

_BY_MASK = ("sdpa", "eager")  # attention that looks at the mask it is given; fused forms draw their own


def attention_of_layers(model: nn.Module) -> dict[int, nn.Module]:
    """The attention modules of a model by the index of their layer."""
    return {
        int(module.layer_idx): module  # type: ignore[arg-type]
        for module in model.modules()
        if hasattr(module, "layer_idx") and hasattr(module, "k_proj") and hasattr(module, "num_key_value_groups")
    }


def visible(valid: Tensor, *, queries: int, window: float) -> Tensor:
    """Which of L keys each of the last `queries` tokens sees: bool [B,1,queries,L], itself always among them.

    Args:
        valid: [B,L] bool, keys that may be seen.
        queries: T; their own keys are the last T.
        window: tokens seen, the present one included.
    """
    length = valid.shape[1]
    at = torch.arange(length - queries, length, device=valid.device)[:, None]
    back = at - torch.arange(length, device=valid.device)
    inside = (back >= 0) & (back < window if math.isfinite(window) else back >= 0)
    return (inside & valid[:, None, :] | (back == 0))[:, None]


@contextlib.contextmanager
def masked(model: Any, masks: Mapping[int, Tensor]) -> Iterator[None]:
    """While inside, the attention of these layers sees what bool [B,1,T,L] says, whatever mask the model makes.

    Raises:
        StateError: the attention of a layer takes no mask.
    """
    modules = attention_of_layers(model)
    name = model.config.get_text_config(decoder=True)._attn_implementation
    missing = [layer for layer in masks if layer not in modules]
    if masks and (missing or name not in _BY_MASK):
        what = f"layer {missing[0]} has no attention that is known" if missing else f"attention {name!r}"
        raise StateError(f"{what}, so nothing can be hidden from it", fix=f"load with {' or '.join(_BY_MASK)}")

    def put(mask: Tensor) -> Any:
        def hook(_module: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> Any:
            x = named["hidden_states"] if "hidden_states" in named else positional[0]
            lowest = torch.finfo(x.dtype).min
            added = torch.zeros(mask.shape, dtype=x.dtype, device=x.device).masked_fill(~mask, lowest)
            return positional, {**named, "attention_mask": added}

        return hook

    with contextlib.ExitStack() as stack:
        for layer, mask in masks.items():
            stack.callback(modules[layer].register_forward_pre_hook(put(mask), with_kwargs=True).remove)
        yield
