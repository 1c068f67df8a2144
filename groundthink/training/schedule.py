"""Learning rate as a function of the position in the phase."""

from __future__ import annotations

import math

from groundthink.training.config import Phase


def learning_rate(base: float, phase: Phase, step: int, *, spent: float = 0.0) -> float:
    """Learning rate of one step.

    Args:
        base: `optimizer.learning_rate`.
        phase: gives scale, warm-up, schedule, floor and step cap.
        step: steps of this phase before this one, from 0.
        spent: share of the phase's wall-clock budget that is used up, in [0, 1]; the schedule follows the
            budget where that runs out before the steps do.
    """
    peak = base * phase.learning_rate_scale
    if step < phase.warmup_steps:
        return peak * (step + 1) / phase.warmup_steps
    if phase.schedule == "constant":
        return peak
    progress = (step - phase.warmup_steps) / max(1, phase.steps - phase.warmup_steps - 1)
    progress = min(1.0, max(progress, spent))
    return peak * (phase.floor + (1 - phase.floor) * 0.5 * (1 + math.cos(math.pi * progress)))
