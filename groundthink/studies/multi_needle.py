"""`multi-needle`: several needles, each under a key of its own, any id of the vocabulary."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from groundthink.probes import cut_own_reads, cut_reads
from groundthink.records import ProbeResult
from groundthink.studies.parts import asked, config_of, item, task_of, twin_of
from groundthink.studies.single_needle import EMBEDDINGS
from groundthink.studies.study import SMOKE_SIZES, Line, Size, Study, Wanted, Work
from groundthink.tasks import Vocabulary
from groundthink.training import TrainConfig
from groundthink.training.config import Phase

TASK, COUNTS = "marker_needle", (2, 3, 5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes: `ids` of the vocabulary, `keys`, `length` of training and test, `steps` of `rows` rows; `n` questions."""

    ids: int
    keys: int
    length: int
    steps: int
    rows: int
    n: int
    learning_rate: float
    model: Mapping[str, Any]


def training(work: Work) -> TrainConfig:
    """Two, three and five needles, all of them asked, in short episodes and in episodes of full length."""
    s = work.settings
    options: dict[str, Any] = {"ids": "text", "held_out": 0.0}
    counts = [item(TASK, name=f"short{n}", length=16 * n, n_needles=n, n_queries=n, **options) for n in COUNTS]
    counts += [item(TASK, name=f"long{n}", length=s.length, n_needles=n, n_queries=n, **options) for n in COUNTS]
    phase = Phase(
        steps=s.steps, rows=s.rows, length=s.length, warmup_steps=min(30, s.steps), mix=tuple(counts),
        normalise="token",  # as in single-needle
    )  # fmt: skip
    vocabulary = Vocabulary(text=s.ids, n_keys=s.keys, n_values=1, n_filler=1)
    return config_of(
        work, model=s.model, vocabulary=vocabulary, phases=[phase], learning_rate=s.learning_rate,
        embedding_scale=EMBEDDINGS,
    )  # fmt: skip


def hybrid(work: Work) -> Iterator[ProbeResult]:
    """Every number of needles, and five of them with each kind of read cut."""
    config, s = training(work), work.settings
    model = work.train(config)
    for n in COUNTS:
        task = task_of(config, TASK, ids="text", length=s.length, n_needles=n, held_out=0.0)
        yield asked(model, task, f"{n} needles, all ids", n=s.n, seed=work.seed)
    task = task_of(config, TASK, ids="text", length=s.length, n_needles=5, held_out=0.0)
    yield asked(model, task, "5 needles, S reads cut", n=s.n, seed=work.seed, cut=cut_reads)
    yield asked(model, task, "5 needles, own reads cut", n=s.n, seed=work.seed, cut=cut_own_reads)


def twin(work: Work) -> Iterator[ProbeResult]:
    """The no-read twin on the same tokens."""
    config, s = twin_of(training(work)), work.settings
    model = work.train(config)
    task = task_of(config, TASK, ids="text", length=s.length, n_needles=5, held_out=0.0)
    yield asked(model, task, "5 needles, all ids", n=s.n, seed=work.seed)


SMALL = {"pattern": "GGS", "d_model": 96, "n_heads": 2, "head_dim": 32, "value_dim": 32, "window_size": 16}
STUDY = Study(
    name="multi-needle",
    question="Are two, three and five needles with keys of their own recalled at T 512?",
    origin="Source 001: 2, 3 and 5 needles under one marker with one cue, which no model can answer: 0 %, one seed.",
    sizes={
        "full": Size(
            seeds=3,
            settings=Settings(
                ids=50_257, keys=64, length=512, steps=600, rows=16, n=1000, learning_rate=1e-3,
                model={"pattern": "GGS", "d_model": 256, "window_size": 64},
            ),
            cost="a GPU: T 512, 5M tokens a model, vocabulary 50,257, two models a seed",
        ),
        "quick": Size(
            seeds=1,
            settings=Settings(ids=512, keys=16, length=96, steps=220, rows=24, n=200, learning_rate=3e-3, model=SMALL),
            cost="about a minute and a half on a core: 512 ids, T 96",
        ),
        "smoke": Size(
            seeds=1,
            settings=Settings(
                ids=256, keys=8, length=80, steps=10, rows=6, n=20, learning_rate=3e-3,
                model={**SMALL, **SMOKE_SIZES},
            ),
            cost="seconds",
        ),
    },
    arms={"GGS": hybrid, "no-read twin": twin},
    lines=(
        *(
            Line(label=f"{n} needles, T 512 (quick: 96), all ids", arm="GGS", measure=f"{n} needles, all ids",
                 source="0 %", wanted={"full": Wanted(at_least=0.95)})
            for n in COUNTS
        ),
        Line(label="5 needles, reads of the S layer cut", arm="GGS", measure="5 needles, S reads cut"),
        Line(label="5 needles, own reads of the G layers cut", arm="GGS", measure="5 needles, own reads cut"),
        Line(label="5 needles, no-read twin", arm="no-read twin", measure="5 needles, all ids"),
    ),
)  # fmt: skip
