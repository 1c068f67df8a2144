"""Losses by name, as recipes write them. Language and retrieval are no entries: they are items of a phase's mix."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from groundthink.training.losses import (
    anchor,
    beta_sparsity,
    key_orthogonality,
    lasting_writes,
    memory_consistency,
    output_consistency,
    state_stability,
)
from groundthink.training.losses.loss import Loss

LOSSES: Mapping[str, Loss] = MappingProxyType(
    {
        module.LOSS.name: module.LOSS
        for module in (
            key_orthogonality,
            beta_sparsity,
            lasting_writes,
            state_stability,
            output_consistency,
            memory_consistency,
            anchor,
        )
    }
)


def weight_problems(weights: Mapping[str, Any], path: str) -> list[str]:
    """What is wrong with a phase's `losses`: unknown names, weights that are no numbers or negative."""
    problems = []
    for name, weight in weights.items():
        if name not in LOSSES:
            problems.append(f"{path} has no loss {name!r}: there are {', '.join(LOSSES)}; tasks and text go into mix")
        elif isinstance(weight, bool) or not isinstance(weight, (int, float)) or weight < 0:
            problems.append(f"{path}.{name} is {weight!r}, it must be a weight of at least 0")
    return problems
