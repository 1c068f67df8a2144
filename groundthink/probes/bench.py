"""What is asked, of whom, under which seed: questions are drawn once and shared by all rows of a certificate."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from groundthink.errors import ConfigError, StateError, TaskError
from groundthink.probes.face import Model, derived_seed
from groundthink.probes.prefilled import Prefilled
from groundthink.probes.recall import Questions, answers_of, ask, ask_near
from groundthink.probes.text_needles import ask_needles, needle_prefilled
from groundthink.probes.transplant import at_boundary, least_distance
from groundthink.tasks import Vocabulary
from groundthink.tasks.kv_recall import KvRecall
from groundthink.tasks.needle import Needle

POINTS = ("R+1", "2R", "8R")  # distances at which recall is asked whatever the lengths
LEAST_VALUES = 64
OnEvent = Callable[[str, dict[str, Any]], None]


@dataclasses.dataclass(frozen=True)
class Point:
    """Where recall is asked.

    Attributes:
        name: `R+1`, `2x`, `text-2x`, ...
        distance: tokens from the nearest pair to the question; of needles, the least from the asked one.
        length: tokens of the prompt.
        kind: `filler` or `text`.
        cut: whether memories are transplanted there, so that it gets a verdict of its own.
    """

    name: str
    distance: int
    length: int
    kind: str = "filler"
    cut: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Bench:
    """See above.

    Attributes:
        model: the model on trial.
        twins: trained models to stand beside, by name.
        task: pairs over filler.
        needle: needles in text, or None.
        text: documents of held-out token ids, int64 [T] each; empty for none.
        horizon: R that the distances are counted in: the largest finite one of model and twins, or the window where
            the model's own is infinite.
        n: episodes a cell.
        seed: of every episode.
        points: where recall is asked, near to far.
        language: bits per byte against a twin, see `probes.language`.
        tell: hears (kind, facts) of every step forward.
    """

    model: Model
    twins: Mapping[str, Model]
    task: KvRecall
    needle: Needle | None
    text: tuple[Tensor, ...]
    horizon: int
    n: int
    seed: int
    points: tuple[Point, ...]
    language: Mapping[str, Any] | None = None
    tell: OnEvent | None = None
    kept: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def finite(self) -> bool:
        """Whether the model's own horizon is."""
        return math.isfinite(self.model.horizon)

    @property
    def cuts(self) -> tuple[Point, ...]:
        """The points that get a verdict."""
        return tuple(point for point in self.points if point.cut)

    @property
    def shortest(self) -> Point:
        """The nearest point over filler at which memories are transplanted."""
        return min((p for p in self.cuts if p.kind == "filler"), key=lambda p: p.distance)

    @functools.cached_property
    def near(self) -> Questions:
        """Pairs inside the window."""
        return ask_near(self.task, window=self.model.sizes.window_size, n=self.n, seed=self.seed_of("near"))

    def asked(self, point: Point) -> Questions:
        """The questions of a point."""
        name = f"asked {point.name}"
        if name not in self.kept:
            self.kept[name] = self._ask(point)
        return self.kept[name]

    def prefilled(self, point: Point) -> Prefilled:
        """The questions of a point that gets a verdict, read up to their boundary."""
        name = f"prefilled {point.name}"
        if name not in self.kept:
            questions, tick = self.asked(point), functools.partial(self.progress, point.name)
            if point.kind == "text":
                assert self.needle is not None
                found = needle_prefilled(
                    self.model, self.needle, questions, horizon=self.horizon, seed=self.seed, tick=tick
                )
            else:
                found = at_boundary(self.model, self.task, questions, horizon=self.horizon, seed=self.seed, tick=tick)
            self.kept[name] = found
        return self.kept[name]

    def said(self, point: Point) -> Tensor:
        """The answers [n] at a point; across the boundary where there is one, so that it is read only once."""
        name = f"said {point.name}"
        if name not in self.kept:
            self.kept[name] = (
                self.prefilled(point).base() if point.cut else answers_of(self.model, self.asked(point).prompts)
            )
        return self.kept[name]

    def forget(self, point: Point) -> None:
        """Let go of a point's snapshots."""
        self.kept.pop(f"prefilled {point.name}", None)

    def seed_of(self, name: str) -> int:
        """A seed for one purpose."""
        return derived_seed(self.seed, "certify", name)

    def progress(self, where: str) -> None:
        """Say that another block of a long row is done."""
        if self.tell is not None:
            self.tell("progress", {"where": where})

    def _ask(self, point: Point) -> Questions:
        if point.kind == "text":
            assert self.needle is not None
            return ask_needles(self.needle, point.length, horizon=self.horizon, n=self.n, seed=self.seed_of(point.name))
        task = self.task.with_options(distance=f"fixed:{point.distance}")
        return ask(task, n=self.n, seed=self.seed_of(point.name))


def make_points(
    horizon: int,
    *,
    n_pairs: int,
    trained_length: int | None = None,
    multiples: Sequence[int] = (),
    text_multiples: Sequence[int] = (),
) -> tuple[Point, ...]:
    """R+1, 2R and 8R, and each multiple of the training length as a text of exactly so many tokens.

    Raises:
        ConfigError: multiples without a length, or a length that leaves no room beyond the horizon.
    """
    used = 1 + 2 * n_pairs  # tokens before the filler
    at = {"R+1": max(2, horizon + 1), "2R": max(2, 2 * horizon), "8R": max(8 * horizon, least_distance(horizon))}
    points = [Point(name, d, used + d, cut=name == POINTS[-1] and not multiples) for name, d in at.items()]
    if (multiples or text_multiples) and (trained_length is None or trained_length < 1):
        raise ConfigError("multiples of what?", where="certify", fix="give trained_length in tokens")
    for kind, chosen in (("filler", multiples), ("text", text_multiples)):
        for multiple in dict.fromkeys(chosen):
            length = multiple * (trained_length or 0)
            distance = length - used if kind == "filler" else least_distance(horizon)
            if length < used + least_distance(horizon):
                raise ConfigError(
                    f"{multiple} x {trained_length} tokens leave no room for {n_pairs} pairs and a distance of"
                    f" {least_distance(horizon)} (2 R + 3)",
                    where="multiples",
                    fix=f"ask for texts of at least {used + least_distance(horizon)} tokens",
                )
            name = f"{multiple}x" if kind == "filler" else f"text-{multiple}x"
            points.append(Point(name, distance, length, kind, cut=True))
    return tuple(points)


def make_bench(
    model: Model,
    twins: Mapping[str, Model],
    *,
    vocabulary: Vocabulary,
    n_pairs: int = 16,
    n: int = 400,
    seed: int = 0,
    trained_length: int | None = None,
    multiples: Sequence[int] = (),
    needle: Needle | None = None,
    text_multiples: Sequence[int] = (),
    text: Sequence[Tensor] = (),
    language: Mapping[str, Any] | None = None,
    tell: OnEvent | None = None,
) -> Bench:
    """Check that everything fits together; arguments as of `certify`.

    Raises:
        TaskError: the vocabulary does not fit the task or a model; no episodes; needles of another vocabulary.
        ConfigError: see `make_points`; multiples in text without needles.
    """
    for name, one in {"model": model, **twins}.items():
        check_face(name, one)
        check_vocabulary(name if name == "model" else f"twin {name}", one, vocabulary)
    if n < 1:
        raise TaskError(f"{n} episodes a cell", where="n", fix="give 100 or more")
    if needle is not None and needle.vocabulary != vocabulary:
        raise TaskError("the needles have another vocabulary", where="needle", fix="make them with the same one")
    if text_multiples and needle is None:
        raise ConfigError("no needles to hide in text", where="text_multiples", fix="give a needle task")
    largest = max((int(document.max()) for document in text if len(document)), default=0)
    if largest >= model.sizes.vocab_size:
        raise TaskError(
            f"the text has id {largest}, the model has {model.sizes.vocab_size} ids",
            where="text",
            fix="use the tokenizer of the model",
        )
    reaches = [int(m.horizon) for m in (model, *twins.values()) if math.isfinite(m.horizon)]
    if not math.isfinite(model.horizon):
        reaches.append(model.sizes.window_size)
    horizon = max(reaches)
    points = make_points(
        horizon,
        n_pairs=n_pairs,
        trained_length=trained_length,
        multiples=multiples,
        text_multiples=text_multiples,
    )
    task = KvRecall(vocabulary, n_pairs=n_pairs, distance="fixed:2")
    return Bench(
        model, dict(twins), task, needle, tuple(x.cpu() for x in text), horizon, n, seed, points, language, tell
    )


def check_face(name: str, model: Model) -> None:
    """Refuse what cannot be read in pieces: without a cache there is no state to certify.

    Raises:
        StateError: naming what is missing.
    """
    missing = [what for what in ("prefill", "resume", "horizon", "sizes") if not hasattr(model, what)]
    if missing:
        raise StateError(
            f"{type(model).__name__} has no {', no '.join(missing)}: it cannot be read in pieces",
            where=name,
            fix="give a model with a cache, or wrap it to the face of probes.Model",
        )


def check_vocabulary(name: str, model: Model, vocabulary: Vocabulary) -> None:
    """Refuse a vocabulary that is too small, or of another model.

    Raises:
        TaskError: naming which.
    """
    if vocabulary.n_values < LEAST_VALUES:
        raise TaskError(
            f"{vocabulary.n_values} values are too few for a certificate",
            where="vocabulary",
            fix=f"give it at least {LEAST_VALUES}",
        )
    if vocabulary.size > model.sizes.vocab_size:
        raise TaskError(
            f"the task needs {vocabulary.size} ids, the model has {model.sizes.vocab_size}",
            where=name,
            fix="certify with the vocabulary that the model was trained with",
        )


def random_tokens(bench: Bench, name: str, rows: int, length: int) -> Tensor:
    """Tokens [rows,length] drawn evenly from the model's vocabulary."""
    generator = torch.Generator().manual_seed(bench.seed_of(name))
    return torch.randint(bench.model.sizes.vocab_size, (rows, length), generator=generator)
