"""`capacity`: how many pairs fit into one memory, by the geometry of the keys and in a trained model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from groundthink.probes.face import predict_with
from groundthink.probes.mechanics import orthonormal_keys, random_keys
from groundthink.records import ProbeResult, Proportion
from groundthink.studies.parts import config_of, item, task_of
from groundthink.studies.study import Curve, Line, Measure, Size, Study, Wanted, Work, number, share
from groundthink.studies.writes import read_back, values_of
from groundthink.tasks import N50, Vocabulary, evaluate, n50, points
from groundthink.training.config import Phase
from groundthink.training.run import choose_device

SWEEP = (2, 4, 8, 16, 32, 64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes: K, V and `trials` of the bare memory; `steps` of `rows` rows and `n` questions of the trained model."""

    trials: int
    steps: int
    rows: int
    n: int
    learning_rate: float
    model: Mapping[str, Any]
    key_dim: int = 64
    value_dim: int = 64


def _bare(orthogonal: bool) -> Measure:
    """The first value written, found among all that were written by its direction."""

    def measure(work: Work) -> Iterator[ProbeResult]:
        s, generator = work.settings, torch.Generator().manual_seed(work.seed)
        found = {}
        for n in SWEEP:
            keys = (orthonormal_keys if orthogonal else random_keys)(s.trials, n, s.key_dim, generator=generator)
            values = values_of(s.trials, n, s.value_dim, generator)
            read = read_back(keys, values, device=choose_device(work.device))[:, :1]
            said = torch.nn.functional.cosine_similarity(read, values, dim=-1).argmax(-1)
            found[n] = Proportion(int((said == 0).sum()), s.trials)
            yield share(f"N {n}", found[n], chance=1 / n)
        yield _half("N50", n50(found, seed=work.seed), s.trials)

    return measure


def trained(work: Work) -> Iterator[ProbeResult]:
    """A GS model trained on up to 64 pairs, each of them asked; tested with one question an episode."""
    s, largest = work.settings, SWEEP[-1]
    sweep: dict[str, Any] = {"distance": "uniform:4:30"}
    mix = tuple(
        item("kv_recall", name=f"pairs{n}", n_pairs=n, n_queries=n, **sweep) for n in SWEEP if n >= 4
    )  # fmt: skip
    phase = Phase(
        steps=s.steps, rows=s.rows, length=5 * largest + 64, warmup_steps=min(50, s.steps), mix=mix,
        model_options={"own_read_drop_prob": 1.0},
    )  # fmt: skip
    vocabulary = Vocabulary(text=256, n_keys=2 * largest, n_values=2 * largest, n_filler=64)
    config = config_of(work, model=s.model, vocabulary=vocabulary, phases=[phase], learning_rate=s.learning_rate)
    model = work.train(config)
    horizon = int(model.horizon)
    task = task_of(config, "kv_capacity", n_min=SWEEP[0], n_max=largest, distance=f"beyond:{horizon}")
    result = evaluate(task, predict_with(model), n=s.n, seed=work.seed, batch_size=16)
    by_n = points(result.by_kind)
    for n in SWEEP:
        yield share(f"N {n}", by_n.get(n, Proportion(0, 0)), chance=1 / n)
    complete = len(by_n) == len(SWEEP)
    yield _half("N50", n50(by_n, seed=work.seed) if complete else None, s.n)


def _half(name: str, fit: N50 | None, n: int) -> ProbeResult:
    """The fitted capacity; NaN where accuracy is not at half anywhere in the sweep."""
    if fit is None:
        return number(name, math.nan, n=n, bracketed=False)
    return number(name, fit.n50, n=n, low=fit.low, high=fit.high, bracketed=True)


ARMS = {"orthonormal keys": _bare(True), "random keys": _bare(False), "trained GS": trained}
SMALL = {"pattern": "GS", "d_model": 128, "d_ff": 384, "n_heads": 2, "window_size": 16}
EXACT = dict.fromkeys(("full", "quick", "smoke"), Wanted(at_least=1.0))

STUDY = Study(
    name="capacity",
    question="How many pairs fit into one memory of 64 keys?",
    origin="Source 001: K 64 holds 64 orthogonal keys exactly and some 20 to 30 random ones; mathematics, one seed.",
    sizes={
        "full": Size(
            seeds=3,
            settings=Settings(trials=1000, steps=4000, rows=48, n=4000, learning_rate=1e-3, model=SMALL),
            cost="minutes on a GPU: 74M tokens a model",
        ),
        "quick": Size(
            seeds=1,
            settings=Settings(trials=300, steps=150, rows=12, n=300, learning_rate=2e-3, model=SMALL),
            cost="about a minute on a core; the trained model is far from done",
        ),
        "smoke": Size(
            seeds=1,
            settings=Settings(
                trials=10, steps=10, rows=1, n=40, learning_rate=2e-3,
                model={"pattern": "GS", "d_model": 32, "n_heads": 1, "head_dim": 16, "value_dim": 16, "window_size": 4},
            ),
            cost="seconds",
        ),
    },
    arms=ARMS,
    lines=(
        *(
            Line(label=f"{arm}: {n} pairs, first value found among all", arm=arm, measure=f"N {n}",
                 wanted=EXACT if arm == "orthonormal keys" else {})
            for arm in ("orthonormal keys", "random keys")
            for n in (16, 64)
        ),
        Line(label="random keys: pairs at which half are right", arm="random keys", measure="N50",
             source="20 to 30 (by another criterion)"),
        *(
            Line(label=f"trained GS, K 64 in 2 heads: {n} pairs, exact answer beyond R", arm="trained GS",
                 measure=f"N {n}")
            for n in SWEEP
        ),
        Line(label="trained GS: pairs at which half are right (– where half is not reached)", arm="trained GS",
             measure="N50"),
    ),
    curves=(
        Curve(
            title="Right answers", x_label="pairs written", y_label="share",
            points={arm: tuple((arm, f"N {n}", float(n)) for n in SWEEP) for arm in ARMS},
        ),
    ),
)  # fmt: skip
