"""Where a run stands, and what a phase's thresholds make of an evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from groundthink.errors import ConfigError
from groundthink.training.config import Phase
from groundthink.training.mixture import Measurement


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a run stands: all that a resumed run needs to know beside tensors. Times in seconds.

    Attributes:
        step, tokens: steps taken (skipped ones included) and tokens read so far.
        phase, step_in_phase: index of the phase, and steps taken in it.
        elapsed, phase_elapsed: wall-clock time of the run and of the phase, interruptions left out.
        skips, skips_in_a_row: steps with a fault, in all and since the last good one.
        patience: per threshold of the phase, evaluations in a row that met it.
        best: best value of each metric in the whole run.
    """

    step: int = 0
    tokens: int = 0
    phase: int = 0
    step_in_phase: int = 0
    elapsed: float = 0.0
    phase_elapsed: float = 0.0
    skips: int = 0
    skips_in_a_row: int = 0
    patience: tuple[int, ...] = ()
    best: dict[str, float] = dataclasses.field(default_factory=dict)


def judge(progress: Progress, phase: Phase, measured: Mapping[str, Measurement]) -> Progress:
    """The progress after an evaluation: patience of each threshold, and the best value of each metric.

    Raises:
        ConfigError: a threshold names a metric that was not measured.
    """
    patience = []
    for threshold, before in zip(phase.advance, progress.patience, strict=True):
        if threshold.metric not in measured:
            raise ConfigError(
                f"metric {threshold.metric!r} was not measured",
                where=f"phase {phase.name}",
                fix=f"name one of {', '.join(measured)}",
            )
        patience.append(before + 1 if threshold.met(measured[threshold.metric].value) else 0)
    best = dict(progress.best)
    for name, found in measured.items():
        better = min if name.endswith("bits_per_byte") else max
        best[name] = better(best.get(name, found.value), found.value)
    return dataclasses.replace(progress, patience=tuple(patience), best=best)


def unmet(progress: Progress, phase: Phase) -> list[str]:
    """Metrics of the thresholds that do not hold yet."""
    pairs = zip(phase.advance, progress.patience, strict=True)
    return [threshold.metric for threshold, count in pairs if count < threshold.patience]
