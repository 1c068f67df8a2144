"""What a model's named identity modules pass on while it reads a text; nothing is computed when nobody listens."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from groundthink.probes.cuts import hooked, layers_with
from groundthink.probes.face import Model, device_of, mode
from groundthink.probes.recall import rows_per_pass

KEYS, QUERIES, VALUES = "mixer.hook_k", "mixer.hook_q", "mixer.hook_v"
BETA, LOG_DECAY = "mixer.hook_beta", "mixer.hook_log_decay"

Heard = dict[int, dict[str, Tensor]]


def heard(model: Model, tokens: Tensor, paths: Sequence[str]) -> Heard:
    """layer -> path -> what passed [B,T,...], float32 on the CPU, of every layer that has all of these modules.

    Args:
        model: with blocks; one without is heard as nothing.
        tokens: [B,T] int64, read from the beginning.
        paths: names of modules inside a block.
    """
    layers = [i for i in layers_with(model, paths[0]) if all(i in layers_with(model, path) for path in paths)]
    parts: dict[tuple[int, str], list[Tensor]] = {}

    def keep(path: str, layer: int, output: Tensor) -> None:
        parts.setdefault((layer, path), []).append(output.detach().float().cpu())

    with contextlib.ExitStack() as stack:
        stack.enter_context(mode(model, training=False))
        stack.enter_context(torch.no_grad())
        for path in paths:
            stack.enter_context(hooked(model, path, layers, functools.partial(keep, path)))
        if layers:
            for rows in tokens.split(rows_per_pass(model, tokens.shape[1])):
                model.prefill(rows.to(device_of(model)))
    return {layer: {path: torch.cat(parts[layer, path]) for path in paths} for layer in layers}


def of_value_heads(x: Tensor, heads: int) -> Tensor:
    """[B,T,H,K] or [B,H,K] of key heads as value heads see it: key head h // (HV / H)."""
    return x.repeat_interleave(heads // x.shape[-2], -2)
