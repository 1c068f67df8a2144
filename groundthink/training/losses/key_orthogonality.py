"""Keys of different tokens should not resemble each other: what is written under one disturbs the other.

Mean |cos(k_i, k_j)| over pairs of positions of one document with different tokens, over heads and G layers. Source
001 weighs it 0.1 to 0.5. Two occurrences of one token may share their key: it is the same address. Keys of size K in
random directions score sqrt(2 / (pi K)), so 0 is not reached by more than K tokens.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from groundthink.training.losses.loss import Heard, Loss, mean_of, mean_where, wide

KEYS = "*.hook_k"
MOST = 256  # positions compared in a row: all pairs of a long row would cost more than the model itself
GOLDEN = (math.sqrt(5) - 1) / 2


def compared_positions(length: int, most: int = MOST) -> Tensor:
    """int64 [n]: every position, or `most` of them, one in each of as many equal stretches.

    Where in its stretch a position lies follows the golden ratio: an even stride could meet keys alone in a text that
    alternates keys and values.
    """
    if length <= most:
        return torch.arange(length)
    index = torch.arange(most)
    start, stop = index * length // most, (index + 1) * length // most
    return start + ((index * GOLDEN) % 1 * (stop - start)).long()


def of_rows(heard: Heard) -> Tensor:
    """[B]: see the module."""
    at = compared_positions(heard.tokens.shape[1]).to(heard.tokens.device)
    i, j = torch.triu_indices(len(at), len(at), offset=1, device=at.device)
    different = heard.tokens[:, at[i]] != heard.tokens[:, at[j]]
    counts = (different & heard.same_document(at[i], at[j]))[:, None]  # [B,1,pairs]
    layers = []
    for keys in heard.outputs[KEYS]:
        unit = F.normalize(wide(keys[:, at]), dim=-1).transpose(1, 2)  # [B,H,n,K]
        layers.append(mean_where((unit @ unit.mT)[..., i, j].abs(), counts))
    return mean_of(layers)


LOSS = Loss("key_orthogonality", (KEYS,), of_rows)
