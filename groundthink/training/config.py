"""What a run is: frozen dataclasses, read from a recipe that names only what differs from the defaults."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import yaml

from groundthink.errors import ConfigError
from groundthink.training.ladder import climb
from groundthink.training.losses import LOSSES, weight_problems
from groundthink.training.strict import load_yaml, read_fields, read_text, set_path, to_plain

TEXT = "text"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixItem:
    """One source of rows in a phase.

    Attributes:
        source: "text", or the name of a task.
        name: how losses and metrics of this item are called; empty means `source`.
        weight: share of the rows, relative to the other items.
        loss_weight: weight of this item's loss in the objective; see `Phase.normalise`. At 0 its rows are there for
            the phase's `losses` alone.
        loss_factors: of the phase's `losses` in this item's rows, 1 where none is named: `{lasting_writes: 0}` makes
            writing free where something will be asked.
        pure: share of the steps whose rows are all of this item; the other steps mix by `weight`, which may then
            be 0. Which steps is a function of the step's number.
        options: options of the task.
    """

    source: str = TEXT
    name: str = ""
    weight: float = 1.0
    loss_weight: float = 1.0
    loss_factors: dict[str, Any] = dataclasses.field(default_factory=dict)
    pure: float = 0.0
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def label(self) -> str:
        """Name of the item in events and metrics."""
        return self.name or self.source

    def check(self, phase: str, index: int, losses: Mapping[str, Any]) -> list[str]:
        """Everything out of range, with its path; `losses` are those of the phase."""
        path = f"{phase}.mix[{index}]"
        problems = weight_problems(self.loss_factors, f"{path}.loss_factors")
        for name in self.loss_factors:
            if name in LOSSES and name not in losses:
                problems.append(f"{path}.loss_factors.{name} is a factor of nothing: {phase}.losses has no {name}")
        if not re.fullmatch(r"[A-Za-z0-9_-]+", self.label):
            problems.append(f"{path}.name {self.label!r} may hold letters, digits, - and _ only")
        if self.weight < 0 or (self.weight == 0 and not self.pure):
            problems.append(f"{path}.weight is {self.weight}, it must be above 0, or 0 where pure is above 0")
        if self.loss_weight < 0:
            problems.append(f"{path}.loss_weight is {self.loss_weight}, it must be at least 0")
        if not 0 <= self.pure <= 1:
            problems.append(f"{path}.pure is {self.pure}, it must be in [0, 1]")
        if self.source == TEXT and self.options:
            problems.append(f"{path}.options: text has no options")
        return problems


@dataclasses.dataclass(frozen=True, kw_only=True)
class Threshold:
    """A condition on a validation metric. A phase ends early once all its thresholds hold.

    Attributes:
        metric: such as `kv_recall.exact` or `text.bits_per_byte` (item name, then metric).
        at_least, at_most: the bound; exactly one of them.
        n: episodes (or held-out windows) behind the decision; None means `evaluation_n`.
        patience: evaluations in a row that must meet the bound.
    """

    metric: str = ""
    at_least: float | None = None
    at_most: float | None = None
    n: int | None = None
    patience: int = 1

    def met(self, value: float) -> bool:
        """Whether the value meets the bound; NaN never does."""
        if self.at_least is not None:
            return value >= self.at_least
        return self.at_most is not None and value <= self.at_most

    def check(self, path: str, items: Sequence[str]) -> list[str]:
        """Everything out of range; `items` are the names that the phase can measure."""
        problems = []
        item, dot, _ = self.metric.partition(".")
        if not dot or item not in items:
            wanted = ", ".join(f"{name}.…" for name in items)
            problems.append(f"{path}.metric {self.metric!r} does not name an item of this phase ({wanted})")
        if (self.at_least is None) == (self.at_most is None):
            problems.append(f"{path} needs exactly one of at_least and at_most")
        if self.n is not None and self.n < 1:
            problems.append(f"{path}.n is {self.n}, it must be at least 1")
        if self.patience < 1:
            problems.append(f"{path}.patience is {self.patience}, it must be at least 1")
        return problems


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of training with one mix, length and learning-rate curve.

    Attributes:
        name: how the phase is called in events.
        steps: optimizer steps at most.
        max_seconds: wall-clock budget of the phase, evaluations included. A run with a budget depends on the
            machine's speed and is not reproducible to the bit; off (None) by default.
        rows, length: tokens of one optimizer step are rows x length.
        accumulate: pieces that the rows of each item are cut into, one backward each; same objective.
        mix: where the rows come from.
        normalise: "source": the objective is the mean of the items' losses per labelled token, weighted by
            their `loss_weight`; "token": every labelled token of the step counts the same, times the
            `loss_weight` of its item.
        learning_rate_scale: times `optimizer.learning_rate`.
        warmup_steps: steps of linear warm-up at the start of the phase.
        schedule: after the warm-up, "cosine" down to `floor` at the last step, or "constant".
        floor: where the cosine ends, as a share of the phase's learning rate.
        advance: thresholds that end the phase early, all together.
        losses: weights of losses beside those of the mix, by name (`LOSSES`), such as `key_orthogonality: 0.3`.
        model_options: run-time knobs of the layers during this phase, such as own_read_drop_prob.
        state_passing: text continues in the same rows from step to step and the state is carried, detached.
    """

    name: str = "train"
    steps: int = 1000
    max_seconds: float | None = None
    rows: int = 32
    length: int = 256
    accumulate: int = 1
    mix: tuple[MixItem, ...] = (MixItem(),)
    normalise: Literal["source", "token"] = "source"
    learning_rate_scale: float = 1.0
    warmup_steps: int = 0
    schedule: Literal["cosine", "constant"] = "cosine"
    floor: float = 0.1
    advance: tuple[Threshold, ...] = ()
    losses: dict[str, Any] = dataclasses.field(default_factory=dict)
    model_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    state_passing: bool = False

    def check(self, path: str) -> list[str]:
        """Everything out of range, with its path."""
        least: dict[str, int] = {"steps": 1, "rows": 1, "length": 2, "accumulate": 1, "warmup_steps": 0}
        problems = _at_least(self, path, least)
        if self.max_seconds is not None and self.max_seconds <= 0:
            problems.append(f"{path}.max_seconds is {self.max_seconds}, it must be above 0")
        if self.learning_rate_scale <= 0:
            problems.append(f"{path}.learning_rate_scale is {self.learning_rate_scale}, it must be above 0")
        if not 0 <= self.floor <= 1:
            problems.append(f"{path}.floor is {self.floor}, it must be in [0, 1]")
        if self.accumulate > self.rows:
            problems.append(f"{path}.accumulate is {self.accumulate}, more than the {self.rows} rows")
        if not self.mix:
            problems.append(f"{path}.mix is empty, it needs at least one source")
        labels = [item.label for item in self.mix]
        for i, item in enumerate(self.mix):
            problems += item.check(path, i, self.losses)
            if labels.count(item.label) > 1:
                problems.append(f"{path}.mix[{i}].name {item.label!r} is given twice: name the items apart")
        for i, threshold in enumerate(self.advance):
            problems += threshold.check(f"{path}.advance[{i}]", labels)
        problems += weight_problems(self.losses, f"{path}.losses")
        problems += self._pure_problems(path)
        for name, value in self.model_options.items():
            if not isinstance(value, (bool, int, float)):
                problems.append(f"{path}.model_options.{name} is {value!r}, it must be a number, true or false")
        if self.state_passing and self.losses.get("anchor"):
            why = "what the model said before has no state to go on from"
            problems.append(f"{path}.state_passing and {path}.losses.anchor exclude each other: {why}")
        if self.losses.get("anchor") and all(item.loss_weight for item in self.mix):
            cure = "give what is to be held on to a loss_weight of 0"
            problems.append(f"{path}.losses.anchor holds on to nothing: no item of {path}.mix is there for it, {cure}")
        if self.state_passing and TEXT not in [item.source for item in self.mix]:
            problems.append(f"{path}.state_passing carries text on, but the mix has no text")
        return problems

    @property
    def _held_rows(self) -> int:
        """Rows without a loss of their own in a mixed step, at most: neighbours in the mix share their rounding."""
        total = sum(item.weight for item in self.mix)
        held = [
            sum(item.weight for item in run) for has, run in groupby(self.mix, lambda i: i.loss_weight > 0) if not has
        ]
        return sum(math.ceil(self.rows * weight / total - 1e-9) for weight in held if total)

    def _pure_problems(self, path: str) -> list[str]:
        pure = [f"{path}.mix[{i}].pure" for i, item in enumerate(self.mix) if item.pure]
        problems = []
        if sum(item.pure for item in self.mix) > 1 + 1e-9:
            problems.append(f"{' and '.join(pure)} add up to more than 1")
        idle = [f"{path}.mix[{i}]" for i, item in enumerate(self.mix) if not item.loss_weight and item.pure]
        if idle or (self.mix and not any(item.loss_weight for item in self.mix)):
            what = f"{' and '.join(idle)}: steps of nothing but rows" if idle else f"{path}.mix: rows"
            problems.append(f"{what} with a loss_weight of 0 have no loss of their own: raise one loss_weight above 0")
        if not problems and 0 < self.rows <= self._held_rows:
            why = "rows with a loss_weight of 0 can take whole steps, which then have no loss"
            problems.append(f"{path}.rows is {self.rows}: {why}: raise rows, or the weight of the other items")
        if self.mix and not any(item.weight for item in self.mix):
            problems.append(f"{path}.mix: every weight is 0, so the steps that are not pure have no rows")
        if self.state_passing and pure:
            stop = "steps without text would break its streams"
            problems.append(f"{path}.state_passing and {' and '.join(pure)} exclude each other: {stop}")
        return problems


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where text comes from.

    Attributes:
        corpus: "python-stdlib", or files and folders.
        tokenizer: "bytes", or the folder of a trained tokenizer.
        separator: the string between the documents of one file; None means that a file is one document.
    """

    corpus: tuple[str, ...] = ("python-stdlib",)
    tokenizer: str = "bytes"
    separator: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW.

    Attributes:
        embedding_scale: times `learning_rate`, for embeddings. AdamW makes each id's seldom and small gradients into
            full steps, so ids that are hardly ever answers drift; 0 leaves embeddings as they were drawn.
        weight_decay: of matrices and embeddings; norms, biases, gates and convolutions are spared.
        clip_norm: bound on the L2 norm of the whole gradient.
    """

    learning_rate: float = 1e-3
    embedding_scale: float = 1.0
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    clip_norm: float = 1.0

    def check(self, path: str) -> list[str]:
        """Everything out of range."""
        problems = [
            f"{path}.{name} is {getattr(self, name)}, it must be above 0"
            for name in ("learning_rate", "eps", "clip_norm")
            if getattr(self, name) <= 0
        ]
        problems += [
            f"{path}.{name} is {getattr(self, name)}, it must be at least 0"
            for name in ("weight_decay", "embedding_scale")
            if getattr(self, name) < 0
        ]
        if not all(0 <= beta < 1 for beta in self.betas):
            problems.append(f"{path}.betas is {list(self.betas)}, both must be in [0, 1)")
        return problems


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole run.

    Attributes:
        model: fields of ModelConfig that differ from its defaults.
        data: corpus and tokenizer.
        vocabulary: fields of the tasks' Vocabulary.
        phases: one after the other.
        seed: of everything: parameters, data, dropout, validation episodes.
        device: "auto" takes CUDA where there is one.
        precision: arithmetic of the forward pass; parameters and optimizer are float32 always. "auto" is bfloat16 on
            CUDA, where float32 kernels are many times slower, and float32 on the CPU.
        compile: torch.compile of the loss.
        log_every, evaluate_every, checkpoint_every: in steps; 0 turns evaluations off and leaves only the
            checkpoints at the end and at a stop. Evaluations count the steps of their phase.
        evaluation_n: episodes (or held-out windows) per metric.
        keep_last: checkpoints kept; 0 keeps all.
        max_skips: steps in a row with a non-finite loss or gradient before the run gives up.
    """

    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    data: DataConfig = DataConfig()
    vocabulary: dict[str, Any] = dataclasses.field(default_factory=dict)
    phases: tuple[Phase, ...] = (Phase(),)
    optimizer: OptimizerConfig = OptimizerConfig()
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool = False
    log_every: int = 10
    evaluate_every: int = 100
    evaluation_n: int = 200
    checkpoint_every: int = 500
    keep_last: int = 2
    max_skips: int = 20

    def __post_init__(self) -> None:
        problems: list[str] = []
        values = read_fields(type(self), to_plain(self), "", problems)
        _refuse(problems or self.check(), "training config")
        for name, value in values.items():  # 8 and 8.0 are one weight, so they must have one digest
            object.__setattr__(self, name, value)

    def check(self) -> list[str]:
        """Everything out of range, each with its path."""
        least = {"log_every": 1, "evaluate_every": 0, "evaluation_n": 1, "checkpoint_every": 0}
        problems = _at_least(self, "", {**least, "keep_last": 0, "max_skips": 1, "seed": 0})
        if not self.phases:
            problems.append("phases is empty, it needs at least one phase")
        if not self.data.corpus:
            problems.append("data.corpus is empty, name python-stdlib or at least one file")
        problems += self.optimizer.check("optimizer")
        names = [phase.name for phase in self.phases]
        for i, phase in enumerate(self.phases):
            problems += phase.check(f"phases[{i}]")
            if names.count(phase.name) > 1:
                problems.append(f"phases[{i}].name {phase.name!r} is given twice")
            if phase.losses and self.compile:
                problems.append(f"compile and phases[{i}].losses exclude each other: a compiled model is not heard")
            if phase.advance and not self.evaluate_every:
                problems.append(f"phases[{i}].advance needs evaluations, but evaluate_every is 0")
        return problems

    @property
    def digest(self) -> str:
        """SHA-256 of the resolved config, hexadecimal."""
        return hashlib.sha256(json.dumps(to_plain(self), sort_keys=True).encode()).hexdigest()


def config_from_dict(raw: Any, where: str = "training config") -> TrainConfig:
    """Plain values to a config; a phase with a `ladder` becomes one phase for each rung, see `climb`.

    Raises:
        ConfigError: naming every unknown field, wrong type and value out of range, each with its path.
    """
    problems: list[str] = []
    values = read_fields(TrainConfig, {} if raw is None else climb(raw, problems), "", problems)
    draft = object.__new__(TrainConfig)
    for field in dataclasses.fields(TrainConfig):
        default = field.default_factory() if callable(field.default_factory) else field.default
        object.__setattr__(draft, field.name, values.get(field.name, default))
    try:
        problems += draft.check()
    except (
        TypeError,
        AttributeError,
    ):  # an item of the wrong type is told already; its range cannot be looked at
        assert problems
    _refuse(problems, where)
    return TrainConfig(**values)


def load_recipe(source: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """A shipped recipe by name, or a YAML file (anything with a slash or ending in .yaml or .yml).

    Args:
        source: name or path.
        overrides: like `phases[0].steps=50`, applied in order; the rungs of a ladder are phases of their own.

    Raises:
        ConfigError: no such recipe, unreadable, or anything wrong in it; all problems at once.
    """
    text = str(source)
    if isinstance(source, Path) or "/" in text or text.endswith((".yaml", ".yml")):
        raw, where = load_yaml(read_text(Path(source)), text), text
    else:
        names = recipe_names()
        if text not in names:
            raise ConfigError(f"there is no recipe {text!r}", fix=f"name one of {', '.join(names)}, or a YAML file")
        raw, where = (
            load_yaml((_recipes() / f"{text}.yaml").read_text(encoding="utf-8"), text),
            f"recipe {text}",
        )
    config = config_from_dict(raw, where)
    if not overrides:
        return config
    plain = to_plain(config)
    for override in overrides:
        set_path(plain, override)
    return config_from_dict(plain, f"{where} with {', '.join(overrides)}")


def recipe_names() -> list[str]:
    """The shipped recipes."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _recipes().iterdir() if entry.name.endswith(".yaml"))


def to_yaml(config: TrainConfig) -> str:
    """The resolved config, every field named; `load_recipe` of it gives the same config."""
    return yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True)


def _recipes() -> Any:
    return resources.files("groundthink").joinpath("recipes")


def _at_least(config: Any, path: str, bounds: Mapping[str, int]) -> list[str]:
    prefix = f"{path}." if path else ""
    return [
        f"{prefix}{name} is {getattr(config, name)}, it must be at least {bound}"
        for name, bound in bounds.items()
        if getattr(config, name) < bound
    ]


def _refuse(problems: Sequence[str], where: str) -> None:
    if problems:
        raise ConfigError("; ".join(problems), where=where, fix="change the fields named")
