"""The smoke form of a run: every phase, loss and evaluation of it, in about ten steps."""

from __future__ import annotations

import dataclasses

from groundthink.training.config import TrainConfig


def smoke_form(config: TrainConfig, steps: int = 10) -> TrainConfig:
    """The same run on a CPU in `steps` steps, shared by its phases (at least one each), a row of each item a step, two
    validation episodes. Sizes, lengths, losses and thresholds stay as they are."""
    each = max(1, steps // len(config.phases))
    phases = tuple(
        dataclasses.replace(
            phase,
            steps=each,
            rows=len(phase.mix),
            accumulate=1,
            warmup_steps=min(phase.warmup_steps, each),
            mix=tuple(dataclasses.replace(item, weight=1.0) for item in phase.mix),
            advance=tuple(dataclasses.replace(threshold, n=None) for threshold in phase.advance),
        )
        for phase in config.phases
    )
    return dataclasses.replace(
        config,
        phases=phases,
        device="cpu",
        log_every=1,
        evaluation_n=2,
        evaluate_every=each if config.evaluate_every else 0,
    )
