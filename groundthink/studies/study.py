"""What a study is: one question, what the source reports, and what is trained and measured to answer it.

A study is one file that holds a `STUDY`, and one entry in `registry.STUDIES`. Its unit of work is a cell: one arm under
one seed, trained and measured in one process, and recorded in one file. The table is made of those files alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from groundthink.errors import ConfigError
from groundthink.model import HybridForCausalLM
from groundthink.records import ProbeResult, Proportion, to_json
from groundthink.training import TrainConfig, resume, train
from groundthink.training.config import DataConfig

SIZES = ("full", "quick", "smoke")
EVERY = 1000  # steps between checkpoints of a training
NO_FIGURE = "–"
SMOKE_SIZES = {"d_model": 32, "head_dim": 16, "value_dim": 16, "window_size": 4}  # of a model that need not learn


class Interrupted(Exception):
    """A signal stopped a training; its checkpoint is there and the same command goes on from it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a number has to be. Every seed must meet it, not the mean alone.

    Attributes:
        at_least, at_most: bounds, both included.
        errors: the mean over the seeds must be below `at_most` by more than so many of its standard errors; this
            is asked of the mean, since a single seed has no standard error.
    """

    at_least: float | None = None
    at_most: float | None = None
    errors: float | None = None

    def __post_init__(self) -> None:
        if self.at_least is None and self.at_most is None:
            raise ValueError("a bound is missing")
        if self.errors is not None and (self.at_most is None or self.at_least is not None):
            raise ValueError("errors belong to at_most alone")

    def met(self, value: float) -> bool:
        """Whether one value is within the bounds; NaN never is."""
        below = self.at_most is None or value <= self.at_most
        return below and (self.at_least is None or value >= self.at_least)

    def __str__(self) -> str:
        parts = [f"≥ {self.at_least:g}"] if self.at_least is not None else []
        parts += [f"≤ {self.at_most:g}"] if self.at_most is not None else []
        parts += [f"by {self.errors:g} standard errors"] if self.errors is not None else []
        return ", ".join(parts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """One line of the table.

    Attributes:
        label: what is measured, in words.
        arm, measure: which number of which arm.
        less: another (arm, measure) whose number under the same seed is taken off.
        source: what the source reports for it.
        wanted: what it has to be, by size; a size that is not named is shown and not judged.
    """

    label: str
    arm: str
    measure: str
    less: tuple[str, str] | None = None
    source: str = NO_FIGURE
    wanted: Mapping[str, Wanted] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """Numbers of one arm against something, drawn in the report.

    Attributes:
        title, x_label, y_label: what is shown.
        points: for each line of the picture, its name and its (arm, measure, x).
        log_x: octaves on the x axis.
        share: the y axis goes from 0 to 1.
    """

    title: str
    x_label: str
    y_label: str
    points: Mapping[str, tuple[tuple[str, str, float], ...]]
    log_x: bool = True
    share: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """One size of a study.

    Attributes:
        seeds: how many, from 0 up.
        settings: everything that differs between sizes, a frozen dataclass of plain values; what a cell was made
            with, so cells of other settings are never mixed.
        cost: rough time, in words.
    """

    seeds: int
    settings: Any
    cost: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """One cell being worked on.

    Attributes:
        settings: of the size.
        seed: of parameters, data and questions.
        folder: of the trainings of this cell.
        device: "cpu" or "cuda".
        data: corpus and tokenizer, for studies with text.
        on_event: hears the events of the trainings.
    """

    settings: Any
    seed: int
    folder: Path
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    on_event: Callable[[dict[str, Any]], None] | None = None

    def train(self, config: TrainConfig, place: str = "model", **options: Any) -> HybridForCausalLM:
        """A trained model in evaluation mode. A training that was stopped goes on, a finished one is only loaded.

        Args:
            config: of the training; seed, device and checkpoints are those of the cell.
            place: folder of the training in that of the cell.
            options: `model` and `sources`, as for `training.train`.

        Raises:
            Interrupted: a signal stopped it.
        """
        folder = self.folder / place
        config = dataclasses.replace(
            config, seed=self.seed, device=self.device, checkpoint_every=EVERY, keep_last=1, log_every=50
        )
        if any((folder / "checkpoints").glob("step_*")):
            result = resume(folder, on_event=self.on_event, **options)
        else:
            shutil.rmtree(folder, ignore_errors=True)  # killed before its first checkpoint: nothing to go on from
            result = train(config, folder, on_event=self.on_event, **options)
        if not result.finished:
            raise Interrupted(result.reason)
        assert isinstance(result.model, HybridForCausalLM)
        return result.model


Measure = Callable[[Work], Iterable[ProbeResult]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """One question.

    Attributes:
        name: as on the command line.
        question: what it asks, one sentence.
        origin: where the source's figures stand, and what was different there.
        sizes: by name: `full` answers the question, `quick` shows on a CPU that it can be answered, `smoke` runs
            every line of code.
        arms: what is trained and measured, by name.
        lines: of the table.
        curves: drawn in the report.
        text: the study reads text, so --corpus and --tokenizer mean something to it.
    """

    name: str
    question: str
    origin: str
    sizes: Mapping[str, Size]
    arms: Mapping[str, Measure]
    lines: tuple[Line, ...]
    curves: tuple[Curve, ...] = ()
    text: bool = False

    def __post_init__(self) -> None:
        if tuple(self.sizes) != SIZES:
            raise ValueError(f"study {self.name} has sizes {list(self.sizes)}, not {list(SIZES)}")
        used = {line.arm for line in self.lines} | {line.less[0] for line in self.lines if line.less}
        if used != set(self.arms):
            raise ValueError(f"study {self.name}: lines are of {sorted(used)}, arms are {sorted(self.arms)}")

    def only(self, arms: Sequence[str]) -> Study:
        """The study with these arms alone (none named: all), and the lines and curves that need no other.

        Raises:
            ConfigError: there is no such arm, or nothing is said of one without the others.
        """
        if not arms:
            return self
        unknown = [arm for arm in arms if arm not in self.arms]
        if unknown:
            there = "; ".join(self.arms)
            raise ConfigError(f"no arm {unknown[0]!r}", where=f"study {self.name}", fix=f"the arms are: {there}")
        lines = tuple(line for line in self.lines if {line.arm, *(line.less or ())[:1]} <= set(arms))
        silent = set(arms) - {line.arm for line in lines}
        if silent:
            raise ConfigError(
                f"every line of {min(silent)!r} needs another arm", where=f"study {self.name}", fix="name that arm too"
            )
        curves = tuple(
            c for c in self.curves if {arm for points in c.points.values() for arm, *_ in points} <= set(arms)
        )
        kept = {arm: measure for arm, measure in self.arms.items() if arm in arms}
        return dataclasses.replace(self, arms=kept, lines=lines, curves=curves)

    def digest(self, size: str, data: DataConfig) -> str:
        """Of what a cell of this size is made with: 16 hexadecimal digits."""
        head = [self.name, size, self.sizes[size].settings, data if self.text else None]
        return hashlib.sha256(to_json(head).encode()).hexdigest()[:16]


def share(name: str, found: Proportion, *, chance: float | None = None, **details: Any) -> ProbeResult:
    """Right answers among independent questions, with their Wilson interval."""
    return ProbeResult(
        name, found.rate, "info", f"{name}: {found}", low=found.low, high=found.high, n=found.n, chance=chance,
        details={**details, "hits": found.hits},
    )  # fmt: skip


def number(
    name: str, value: float, *, n: int, low: float | None = None, high: float | None = None, **details: Any
) -> ProbeResult:
    """Any other number; `n` says how many trials, tokens or values are behind it."""
    return ProbeResult(name, value, "info", f"{name}: {value:.6g}, n={n}", low=low, high=high, n=n, details=details)


def by_name(results: Iterable[ProbeResult]) -> dict[str, ProbeResult]:
    """Results of one cell by name.

    Raises:
        ConfigError: a name is given twice.
    """
    found: dict[str, ProbeResult] = {}
    for result in results:
        if result.name in found:
            raise ConfigError(f"measured {result.name!r} twice", where="study", fix="name the numbers apart")
        found[result.name] = result
    return found
