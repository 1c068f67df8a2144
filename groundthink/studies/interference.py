"""`interference`: how much of a value is left after so many other writes, by the geometry of the keys."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial

import torch

from groundthink.probes.mechanics import orthonormal_keys, random_keys
from groundthink.records import ProbeResult
from groundthink.studies.study import Curve, Line, Measure, Size, Study, Wanted, Work, number
from groundthink.studies.writes import correlated_keys, read_back, relative, values_of
from groundthink.training.run import choose_device

WRITES = (1, 5, 10, 25, 50, 100, 200)
# Keys that are all orthogonal, or all at one cosine, cannot be more than there are dimensions.
FEW = tuple(n for n in WRITES if n < 64)
REPORTED = {1: "0.000", 5: "0.262", 10: "0.390", 25: "0.646", 50: "0.916", 100: "1.192", 200: "1.371"}
TRAINED_COSINE = 0.582  # what source 001 found between the keys of its trained model

Keys = Callable[..., torch.Tensor]  # (trials, n, size, generator=...) -> [trials,n,size]


@dataclasses.dataclass(frozen=True)
class Settings:
    """K, V: sizes of keys and values; `trials` of each number of writes under each seed."""

    key_dim: int = 64
    value_dim: int = 128
    trials: int = 200


def _arm(keys: Keys, counts: tuple[int, ...]) -> Measure:
    """The error of the first value written, after n writes in all."""

    def measure(work: Work) -> Iterator[ProbeResult]:
        s, generator = work.settings, torch.Generator().manual_seed(work.seed)
        for n in counts:
            chosen = keys(s.trials, n, s.key_dim, generator=generator)
            values = values_of(s.trials, n, s.value_dim, generator)
            error = relative(read_back(chosen, values, device=choose_device(work.device)), values)
            yield number(f"first of {n}", float(error[:, 0].mean()), n=s.trials)
            yield number(f"last of {n}", float(error[:, -1].mean()), n=s.trials)

    return measure


ARMS = {
    "random keys": _arm(random_keys, WRITES),
    "orthonormal keys": _arm(orthonormal_keys, FEW),
    "correlated keys": _arm(partial(correlated_keys, cosine=TRAINED_COSINE), FEW),
}

STUDY = Study(
    name="interference",
    question="How much of a value is lost to later writes under other keys?",
    origin="Source 001, interference scaling: K 64, V 128, exact delta rule, beta 1, 20 trials, no interval.",
    sizes={
        "full": Size(seeds=3, settings=Settings(), cost="seconds"),
        "quick": Size(seeds=3, settings=Settings(trials=50), cost="seconds"),
        "smoke": Size(seeds=1, settings=Settings(trials=4), cost="a second"),
    },
    arms=ARMS,
    lines=(
        *(
            Line(
                label=f"random unit keys, {n} writes: relative error of the first",
                arm="random keys",
                measure=f"first of {n}",
                source=REPORTED[n],
            )
            for n in WRITES
        ),
        Line(
            label="random unit keys, 200 writes: relative error of the last",
            arm="random keys",
            measure="last of 200",
            wanted=dict.fromkeys(("full", "quick", "smoke"), Wanted(at_most=1e-5)),
        ),
        Line(
            label="orthonormal keys, 50 writes: relative error of the first",
            arm="orthonormal keys",
            measure="first of 50",
            wanted=dict.fromkeys(("full", "quick", "smoke"), Wanted(at_most=1e-5)),
        ),
        Line(
            label=f"keys at cosine {TRAINED_COSINE} of each other, 10 writes: relative error of the first",
            arm="correlated keys",
            measure="first of 10",
        ),
    ),
    curves=(
        Curve(
            title="Relative error of the first value",
            x_label="writes in all",
            y_label="relative error",
            share=False,
            points={
                "random keys": tuple(("random keys", f"first of {n}", float(n)) for n in WRITES),
                "orthonormal keys": tuple(("orthonormal keys", f"first of {n}", float(n)) for n in FEW),
                f"cosine {TRAINED_COSINE}": tuple(("correlated keys", f"first of {n}", float(n)) for n in FEW),
            },
        ),
    ),
)
