"""How alike the keys of a trained model are: what several studies show beside recall."""

from __future__ import annotations

import torch
from torch import Tensor

from groundthink.probes.face import Model
from groundthink.probes.heard import KEYS, heard
from groundthink.probes.mechanics import expected_similarity, similarity
from groundthink.records import ProbeResult
from groundthink.studies.study import number


def mean_cosine(model: Model, tokens: Tensor, name: str) -> ProbeResult:
    """Mean |cos| between the keys of different tokens of a row [B,T], over heads and G layers."""
    apart = tokens[:, :, None] != tokens[:, None]
    layers = [found[KEYS] for found in heard(model, tokens, (KEYS,)).values()]
    mean = float(torch.stack([similarity(keys, apart).mean() for keys in layers]).mean())
    return number(name, mean, n=tokens.numel(), random=expected_similarity(layers[0].shape[-1]))


def across_contexts(model: Model, rows: Tensor, name: str) -> ProbeResult:
    """Mean |cos| between the keys of the last token of rows [B,T] that end alike and begin differently."""
    layers = [found[KEYS][:, -1][None] for found in heard(model, rows, (KEYS,)).values()]
    return number(name, float(torch.stack([similarity(keys).mean() for keys in layers]).mean()), n=len(rows))
