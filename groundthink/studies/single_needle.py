"""`single-needle`: one needle under a marker, any id of the vocabulary, four times beyond the training length."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from groundthink.probes import cut_own_reads, cut_reads
from groundthink.records import ProbeResult
from groundthink.studies.parts import asked, config_of, item, task_of, twin_of
from groundthink.studies.study import SMOKE_SIZES, Line, Size, Study, Wanted, Work
from groundthink.tasks import Vocabulary
from groundthink.training import TrainConfig
from groundthink.training.config import Phase

TASK, GROWTH = "marker_needle", 4
SHORT = 16  # tokens of an episode in the dense rows
HELD_OUT = 0.1  # share of the ids that are never a needle in training
# Of AdamW's rate, for embeddings. At their full rate ids that are seldom answers drift, and recall of one id in ten
# thousand comes and goes again (docs/log.md, 2026-11-23, "Seldom ids").
EMBEDDINGS = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes: `ids` of the vocabulary, `length` of training, `steps` of `rows` x `length` tokens; `n` questions."""

    ids: int
    length: int
    steps: int
    rows: int
    n: int
    learning_rate: float
    model: Mapping[str, Any]


def training(work: Work, *, held_out: float = 0.0) -> TrainConfig:
    """Half the rows hold many short episodes, so that answers are dense; the other half episodes of full length.

    Every answer counts the same, which is what lets the dense rows teach; their mean beside that of the few answers of
    long rows is mostly noise (docs/log.md, 2026-11-22, "Dense answers").
    """
    s = work.settings
    options: dict[str, Any] = {"ids": "text", "keyed": False, "held_out": held_out}
    phase = Phase(
        steps=s.steps,
        rows=s.rows,
        length=s.length,
        warmup_steps=min(30, s.steps),
        normalise="token",
        mix=(item(TASK, name="short", length=SHORT, **options), item(TASK, length=s.length, **options)),
    )
    vocabulary = Vocabulary(text=s.ids, n_keys=1, n_values=1, n_filler=1)
    return config_of(
        work, model=s.model, vocabulary=vocabulary, phases=[phase], learning_rate=s.learning_rate,
        embedding_scale=EMBEDDINGS,
    )  # fmt: skip


def hybrid(work: Work) -> Iterator[ProbeResult]:
    """The hybrid, whole and with each kind of read cut."""
    config, s = training(work), work.settings
    model = work.train(config)
    for growth, where in ((1, "T"), (GROWTH, "4 T")):
        task = task_of(config, TASK, ids="text", keyed=False, length=growth * s.length, held_out=0.0)
        yield asked(model, task, f"{where}, all ids", n=s.n, seed=work.seed)
    horizon, longest = int(model.horizon), GROWTH * s.length
    slack = longest - 8 - (horizon + 1)  # the needle may be anywhere beyond the horizon
    far = task_of(
        config, TASK, ids="text", keyed=False, length=longest, held_out=0.0, distance=f"beyond:{horizon}:{slack}"
    )
    yield asked(model, far, "4 T, beyond R", n=s.n, seed=work.seed)
    yield asked(model, far, "4 T, beyond R, S reads cut", n=s.n, seed=work.seed, cut=cut_reads)
    yield asked(model, far, "4 T, beyond R, own reads cut", n=s.n, seed=work.seed, cut=cut_own_reads)


def unseen(work: Work) -> Iterator[ProbeResult]:
    """A second hybrid, trained without a tenth of the ids as needles, asked for those and for the others."""
    config, s = training(work, held_out=HELD_OUT), work.settings
    model = work.train(config)
    task = task_of(config, TASK, ids="text", keyed=False, length=s.length, held_out=HELD_OUT)
    yield asked(model, task, "T, ids never asked in training", n=s.n, seed=work.seed)
    every = task.with_options(held_out=0.0)
    yield asked(model, every, "T, all ids", n=s.n, seed=work.seed)


def twin(work: Work) -> Iterator[ProbeResult]:
    """The no-read twin on the same tokens."""
    config, s = twin_of(training(work)), work.settings
    model = work.train(config)
    for growth, where in ((1, "T"), (GROWTH, "4 T")):
        task = task_of(config, TASK, ids="text", keyed=False, length=growth * s.length, held_out=0.0)
        yield asked(model, task, f"{where}, all ids", n=s.n, seed=work.seed)


SMALL = {"pattern": "GGS", "d_model": 96, "n_heads": 2, "head_dim": 32, "value_dim": 32, "window_size": 16}
STUDY = Study(
    name="single-needle",
    question="Is any one id of the vocabulary recalled among random ids, and four times beyond the training length?",
    origin="Source 001: GS with shifted values, d 512, ids 100 to 50,157, T 256, 30 to 50 trials, one seed.",
    sizes={
        "full": Size(
            seeds=3,
            settings=Settings(
                ids=50_257, length=256, steps=600, rows=32, n=1000, learning_rate=1e-3,
                model={"pattern": "GGS", "d_model": 256, "window_size": 64, "decay_bias": 9.0},
            ),
            cost="a GPU: T 256, 5M tokens a model, vocabulary 50,257, two models a seed",
        ),
        "quick": Size(
            seeds=1,
            settings=Settings(ids=1024, length=64, steps=160, rows=32, n=200, learning_rate=3e-3, model=SMALL),
            cost="about a minute and a half on a core: 1,024 ids, T 64",
        ),
        "smoke": Size(
            seeds=1,
            settings=Settings(
                ids=256, length=32, steps=10, rows=8, n=20, learning_rate=3e-3,
                model={**SMALL, **SMOKE_SIZES},
            ),
            cost="seconds",
        ),
    },
    arms={"GGS": hybrid, "GGS, ids held out": unseen, "no-read twin": twin},
    lines=(
        Line(label="T 256 (quick: 64), all ids", arm="GGS", measure="T, all ids", source="98 to 100 %",
             wanted={"full": Wanted(at_least=0.99), "quick": Wanted(at_least=0.95)}),
        Line(label="T 1,024 (quick: 256), all ids", arm="GGS", measure="4 T, all ids", source="13.3 % (4 of 30)",
             wanted={"full": Wanted(at_least=0.95), "quick": Wanted(at_least=0.95)}),
        Line(label="another model, T 256, ids that were never a needle in training", arm="GGS, ids held out",
             measure="T, ids never asked in training"),
        Line(label="the same model, T 256, all ids, of which it never was asked for a tenth", arm="GGS, ids held out",
             measure="T, all ids"),
        Line(label="T 1,024, needle beyond the receptive horizon", arm="GGS", measure="4 T, beyond R"),
        Line(label="the same, reads of the S layer cut", arm="GGS", measure="4 T, beyond R, S reads cut"),
        Line(label="the same, own reads of the G layers cut", arm="GGS", measure="4 T, beyond R, own reads cut"),
        Line(label="no-read twin, T 256, all ids", arm="no-read twin", measure="T, all ids"),
        Line(label="no-read twin, T 1,024, all ids", arm="no-read twin", measure="4 T, all ids"),
    ),
)  # fmt: skip
