"""`progressive-curriculum`: one needle, then two to five, then language, each by its threshold at the full length."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

from groundthink.probes import cut_own_reads, cut_reads
from groundthink.records import ProbeResult
from groundthink.studies.parts import asked, bits_per_byte, config_of, item, task_of
from groundthink.studies.study import Line, Size, Study, Wanted, Work, number
from groundthink.tasks import Vocabulary
from groundthink.training import TrainConfig
from groundthink.training.config import MixItem, Phase, Threshold
from groundthink.training.sources import Recipe

TASK, GYM = "marker_needle", (2, 3, 4, 5)
RETRIEVAL, ENOUGH = 0.95, 0.70  # thresholds of the source
LANGUAGE = "language"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes: `length` throughout, `ids` of the needles, `cap` steps of a phase at most, `language_steps`; `n` asked."""

    length: int
    ids: int
    cap: int
    language_steps: int
    rows: int
    evaluate_every: int
    n: int
    documents: int
    learning_rate: float
    model: Mapping[str, Any]


def _needles(work: Work, n: int) -> tuple[MixItem, MixItem]:
    """Short episodes, many to a row, and episodes of the full length: the second are those that thresholds look at."""
    options = {"n_needles": n, "n_queries": n, "held_out": 0.0}
    return (
        item(TASK, name="short", length=16 * (n + 1), **options),
        item(TASK, name="needles", length=work.settings.length, **options),
    )


def training(work: Work) -> TrainConfig:
    """Retrieval, a gym of four rungs, language with five needles beside it."""
    s = work.settings
    # Every answer counts the same, as in single-needle: of a long row's few answers alone nothing is learned.
    common: dict[str, Any] = {"rows": s.rows, "length": s.length, "schedule": "constant", "normalise": "token"}
    phases = [
        Phase(
            name=f"needles-{n}",
            steps=s.cap,
            warmup_steps=s.cap // 20 if n == 1 else 0,
            mix=_needles(work, n),
            advance=(Threshold(metric="needles.exact", at_least=RETRIEVAL if n == 1 else ENOUGH),),
            **common,
        )
        for n in (1, *GYM)
    ]
    mix = (MixItem(weight=2), *_needles(work, GYM[-1]))
    steps = {"steps": s.language_steps, "warmup_steps": s.language_steps // 20}
    phases.append(Phase(name=LANGUAGE, rows=s.rows, length=s.length, mix=mix, **steps))
    text = Recipe(TrainConfig(data=work.data)).tokenizer.vocab_size
    vocabulary = Vocabulary(text=text, n_keys=64, n_values=s.ids, n_filler=1)
    return config_of(
        work, model=s.model, vocabulary=vocabulary, phases=phases, learning_rate=s.learning_rate,
        evaluate_every=s.evaluate_every, evaluation_n=min(100, s.n),
    )  # fmt: skip


def hybrid(work: Work) -> Iterator[ProbeResult]:
    """How every phase ended, and what is recalled after the last."""
    config, s = training(work), work.settings
    model = work.train(config)
    ends: dict[str, dict[str, Any]] = {}
    for line in (work.folder / "model" / "events.jsonl").read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        if event["event"] == "phase" and event["action"] == "end":
            ends[event["phase"]] = event
    for name, event in ends.items():
        yield number(f"steps of {name}", event["steps"], n=1, reason=event["reason"])
    capped = [name for name, event in ends.items() if name != LANGUAGE and event["reason"] != "threshold"]
    yield number("phases ended by their cap", len(capped), n=len(ends) - 1, phases=capped)
    task = task_of(config, TASK, length=s.length, n_needles=GYM[-1], held_out=0.0)
    yield asked(model, task, "5 needles", n=s.n, seed=work.seed)
    yield asked(model, task, "5 needles, S reads cut", n=s.n, seed=work.seed, cut=cut_reads)
    yield asked(model, task, "5 needles, own reads cut", n=s.n, seed=work.seed, cut=cut_own_reads)
    yield bits_per_byte(model, config, documents=s.documents, length=s.length)


ARM = "hybrid"
STUDY = Study(
    name="progressive-curriculum",
    question="Does the curriculum reach language by its thresholds, and are five needles still recalled after it?",
    origin="Source 001: T 2,048, never leaves the gym, 0 % on five needles; one marker and one cue for all of them.",
    text=True,
    sizes={
        "full": Size(
            seeds=3,
            settings=Settings(
                length=2048, ids=4096, cap=3000, language_steps=800, rows=12, evaluate_every=50, n=400, documents=64,
                learning_rate=1e-3, model={"pattern": "GGGS", "d_model": 256, "window_size": 64},
            ),
            cost="a GPU: T 2,048, at most 390M tokens a model, 27M if every threshold is met at once",
        ),
        "quick": Size(
            seeds=1,
            settings=Settings(
                length=128, ids=128, cap=100, language_steps=30, rows=12, evaluate_every=20, n=100, documents=4,
                learning_rate=3e-3,
                model={"pattern": "GGS", "d_model": 96, "n_heads": 2, "head_dim": 32, "value_dim": 32,
                       "window_size": 16},
            ),
            cost="at most about a minute and a half on a core: T 128",
        ),
        "smoke": Size(
            seeds=1,
            settings=Settings(
                length=112, ids=64, cap=2, language_steps=2, rows=4, evaluate_every=2, n=4, documents=2,
                learning_rate=3e-3,
                model={"pattern": "GS", "d_model": 32, "n_heads": 1, "head_dim": 16, "value_dim": 16, "window_size": 4},
            ),
            cost="seconds",
        ),
    },
    arms={ARM: hybrid},
    lines=(
        Line(label="phases that ended by their step cap instead of their threshold (0.95, then 0.70)", arm=ARM,
             measure="phases ended by their cap", source="the first of the gym", wanted={"full": Wanted(at_most=0)}),
        *(
            Line(label=f"steps until {n} needle{'s' * (n > 1)} reached the threshold or the cap", arm=ARM,
                 measure=f"steps of needles-{n}")
            for n in (1, *GYM)
        ),
        Line(label="5 needles at T 2,048 (quick: 128), after language", arm=ARM, measure="5 needles", source="0 %",
             wanted={"full": Wanted(at_least=0.90)}),
        Line(label="the same, reads of the S layer cut", arm=ARM, measure="5 needles, S reads cut"),
        Line(label="the same, own reads of the G layers cut", arm=ARM, measure="5 needles, own reads cut"),
        Line(label="bits per byte", arm=ARM, measure="bits per byte"),
    ),
)  # fmt: skip
