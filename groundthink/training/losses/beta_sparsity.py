"""A memory of fixed size should be written seldom: mean beta over tokens, heads, G layers (source 001: 0.1 to 0.3)."""

from __future__ import annotations

from torch import Tensor

from groundthink.training.losses.loss import Heard, Loss, mean_of, wide

BETA = "*.hook_beta"


def of_rows(heard: Heard) -> Tensor:
    """[B]: see the module."""
    return mean_of([wide(beta).flatten(1).mean(1) for beta in heard.outputs[BETA]])


LOSS = Loss("beta_sparsity", (BETA,), of_rows)
