"""Writes that stay should be few: mean beta over tokens, each head weighted by how much of a write it still has later.

A head that forgets within a few tokens may write whatever language wants of it; a head that keeps for thousands of
tokens is where something old can be found, and every write into it takes a bit of that away. So the weight of a head
is exp(HORIZON * its mean log decay in the row), without a gradient, and the weights are normed over all heads of all G
layers: `beta_sparsity` asks the same of every head, and is paid where nobody reads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from groundthink.training.losses.loss import Heard, Loss, wide

BETA, LOG_DECAY = "*.hook_beta", "*.hook_log_decay"
HORIZON = 4096  # tokens; a head counts in full if it holds for many times as long, and hardly at a tenth of it


def of_rows(heard: Heard) -> Tensor:
    """[B]: see the module."""
    beta = torch.cat([wide(part).mean(1) for part in heard.outputs[BETA]], -1)  # [B, heads of all layers]
    with torch.no_grad():
        mean = torch.cat([wide(part).mean(1) for part in heard.outputs[LOG_DECAY]], -1)
        held = (HORIZON * mean).softmax(-1)
    return (held * beta).sum(-1)


LOSS = Loss("lasting_writes", (BETA, LOG_DECAY), of_rows)
