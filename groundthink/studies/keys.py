"""How alike the keys of a trained model are: what several studies show beside recall."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from groundthink.probes.cuts import hooked, layers_with
from groundthink.probes.face import Model, device_of, mode
from groundthink.records import ProbeResult
from groundthink.studies.study import number

KEYS = "mixer.hook_k"


def keys_of(model: Model, tokens: Tensor) -> list[Tensor]:
    """Unit keys [B,T,H,K] of every G layer, on the CPU."""
    heard: list[Tensor] = []
    with (
        mode(model, training=False),
        torch.no_grad(),
        hooked(model, KEYS, layers_with(model, KEYS), lambda _layer, keys: heard.append(keys.float().cpu())),
    ):
        model.prefill(tokens.to(device_of(model)))
    return [F.normalize(keys, dim=-1) for keys in heard]


def mean_cosine(model: Model, tokens: Tensor, name: str) -> ProbeResult:
    """Mean |cos| between the keys of different tokens of a row, over heads and G layers.

    Random directions of size K have sqrt(2 / (pi K)).
    """
    different = tokens[:, :, None] != tokens[:, None, :]
    found = []
    for keys in keys_of(model, tokens):
        cosines = torch.einsum("bihk,bjhk->bhij", keys, keys).abs()
        found.append(cosines[different[:, None].expand_as(cosines)].mean())
        size = keys.shape[-1]
    return number(name, float(torch.stack(found).mean()), n=tokens.numel(), random=math.sqrt(2 / (math.pi * size)))


def across_contexts(model: Model, rows: Tensor, name: str) -> ProbeResult:
    """Mean |cos| between the keys of the last token of rows [B,T] that end alike and begin differently."""
    found = []
    for keys in keys_of(model, rows):
        last = keys[:, -1].transpose(0, 1)  # [H,B,K]
        cosines = (last @ last.mT).abs()
        apart = ~torch.eye(len(rows), dtype=torch.bool)
        found.append(cosines[:, apart].mean())
    return number(name, float(torch.stack(found).mean()), n=len(rows))
