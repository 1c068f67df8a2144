"""`text-needle`: strings in natural text, one vocabulary for text, names and values, learned together with language.

Text comes first: a model of text already copies names, and strings of two to four letters are then learned in a few
hundred steps, where without it they take thousands. Then lines that are all asked for beside the text; then lines lose
their markers, and some names are asked for that were never given. At last, when it is learned what to write, the price
of what is written of text into heads that never forget is raised: a text has thousands of tokens to fill them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from groundthink.probes.face import predict_with
from groundthink.records import ProbeResult
from groundthink.studies.parts import bits_per_byte, config_of, task_of, twin_of
from groundthink.studies.study import SMOKE_SIZES, Line, Size, Study, Wanted, Work, share
from groundthink.tasks import Vocabulary, evaluate
from groundthink.training import TrainConfig
from groundthink.training.config import MixItem, Phase
from groundthink.training.sources import Recipe

TASK, NEEDLES = "text_strings", 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes: `length` of training, steps of text, bootcamp, all forms at a low and at a high price; `n` questions.

    `growth`: the longest test, in training lengths. `prices` of a write in rows of text, by phase: many training
    lengths of text are what drives lines out of the heads that keep them, so what is written into those costs
    something, and more once lines are known. Heads that forget are left to language. The twin pays the same.
    """

    length: int
    growth: int
    text_steps: int
    bootcamp_steps: int
    language_steps: int
    settle_steps: int
    prices: Mapping[str, float]
    rows: int
    n: int
    documents: int
    learning_rate: float
    model: Mapping[str, Any]


def _strings(name: str, weight: float, **options: Any) -> MixItem:
    """Rows with lines. Writing is free there: a price would press on lines as on text, and both end up faint."""
    return MixItem(source=TASK, name=name, weight=weight, options=options, loss_factors={"lasting_writes": 0})


def _phase(s: Settings, name: str, steps: int, **options: Any) -> Phase:
    losses = {"lasting_writes": s.prices[name]}
    return Phase(name=name, steps=steps, rows=s.rows, length=s.length, losses=losses, **options)


def training(work: Work) -> TrainConfig:
    """Text; lines with markers in short and long rows; all forms, some names absent; the same at a higher price.

    No phase ends early: hybrid and twin are compared on equal tokens.
    """
    s = work.settings
    short = s.length // 4
    dense = {"length": short, "n_needles": short // 30, "n_queries": short // 30}  # a line and its cue are 28 tokens
    most = {"length": s.length, "n_needles": NEEDLES, "n_queries": NEEDLES}
    # Those are nearly all lines. What text before a line and behind it does, only rows with few questions show:
    # one of eight lines, so that lines stand alone, or two of three.
    alone = {"length": s.length, "n_needles": NEEDLES, "n_queries": 1}
    few = {"length": s.length, "n_needles": 3, "n_queries": 2}
    text_first = _phase(s, "text", s.text_steps, warmup_steps=s.text_steps // 20, schedule="constant", mix=(MixItem(),))
    bootcamp = _phase(
        s, "bootcamp", s.bootcamp_steps, schedule="constant",
        mix=(MixItem(), _strings("dense", 1, **dense, marked=True), _strings("many", 1, **most, marked=True)),
    )  # fmt: skip
    forms = (
        MixItem(weight=3),
        _strings("marked", 1, **most, marked=True),
        _strings("bare", 1, **most, absent=0.3),
        _strings("few", 1, **few, absent=0.25),
        _strings("alone", 2, **alone, absent=0.25),
    )
    language = _phase(s, "language", s.language_steps, schedule="constant", mix=forms)
    settle = _phase(s, "settle", s.settle_steps, mix=forms)
    text = Recipe(TrainConfig(data=work.data)).tokenizer.vocab_size
    vocabulary = Vocabulary(text=text, n_keys=1, n_values=1, n_filler=1)
    return config_of(
        work, model=s.model, vocabulary=vocabulary, phases=[text_first, bootcamp, language, settle],
        learning_rate=s.learning_rate,
    )  # fmt: skip


def _measured(work: Work, config: TrainConfig) -> Iterator[ProbeResult]:
    s = work.settings
    model = work.train(config)
    for length, where in ((s.length, "T"), (s.growth * s.length, "longest")):
        for form, options in (("marked", {"marked": True}), ("bare", {}), ("absent", {"absent": 1.0})):
            task = task_of(config, TASK, length=length, n_needles=NEEDLES, **options)
            result = evaluate(task, predict_with(model), n=s.n, seed=work.seed, batch_size=16)
            yield share(f"{form}, {where}", result.exact, chance=task.chance().in_context if form != "absent" else None)
    yield bits_per_byte(model, config, documents=s.documents, length=s.length)


def hybrid(work: Work) -> Iterator[ProbeResult]:
    """The hybrid."""
    yield from _measured(work, training(work))


def twin(work: Work) -> Iterator[ProbeResult]:
    """The no-read twin on the same curriculum."""
    yield from _measured(work, twin_of(training(work)))


PRICES = {"text": 0.03, "bootcamp": 0.1, "language": 1.0, "settle": 30.0}
NINE_FIVE = {"full": Wanted(at_least=0.95)}
TOLD = {"marked": "with markers", "bare": "without markers", "absent": "names never given, ABSENT is right"}
STUDY = Study(
    name="text-needle",
    question="Are eight strings in natural text recalled at many times the training length, at no cost in language?",
    origin="Not tried by the sources.",
    text=True,
    sizes={
        "full": Size(
            seeds=3,
            settings=Settings(
                length=512, growth=16, text_steps=500, bootcamp_steps=300, language_steps=600,
                settle_steps=1600, prices=PRICES, rows=48, n=400, documents=64, learning_rate=1e-3,
                # Eight tokens of convolution see a whole name and what stands between it and its value. Lines are to
                # last in heads that never forget: left to a decay, they last as long as training rows are. The memory
                # below forgets within a line, or else lines are told by the lines before them. Four layers
                # read the one above: with two, the twin whose G layers read for themselves catches up in language.
                model={"pattern": "GGSSSS", "d_model": 384, "n_heads": 6, "window_size": 16, "conv_width": 8,
                       "lasting_heads": 4, "least_forgetting": 0.01, "least_forgetting_below": 0.05,
                       "start": "context"},
            ),
            cost="a GPU: 74M tokens a model, give more text by --corpus, two models a seed; tested at 8,192",
        ),
        "quick": Size(
            seeds=1,
            settings=Settings(
                length=288, growth=2, text_steps=20, bootcamp_steps=20, language_steps=20, settle_steps=10,
                prices=PRICES, rows=8, n=16, documents=4, learning_rate=2e-3,
                model={"pattern": "GS", "d_model": 96, "n_heads": 2, "window_size": 16, "lasting_heads": 1},
            ),
            cost="about a minute on a core; far too short to learn",
        ),
        "smoke": Size(
            seeds=1,
            settings=Settings(
                length=288, growth=2, text_steps=2, bootcamp_steps=2, language_steps=2, settle_steps=2,
                prices=PRICES, rows=4, n=2, documents=2, learning_rate=2e-3,
                model={**SMOKE_SIZES, "pattern": "GS", "n_heads": 2, "lasting_heads": 1},
            ),
            cost="seconds",
        ),
    },
    arms={"hybrid": hybrid, "no-read twin": twin},
    lines=(
        *(
            Line(label=f"8 strings of 2 to 4 letters, {TOLD[form]}, T {tokens}", arm="hybrid",
                 measure=f"{form}, {where}", source="not tried", wanted=NINE_FIVE)
            for form in TOLD
            for tokens, where in (("512", "T"), ("8,192", "longest"))
        ),
        Line(label="no-read twin, without markers, T 8,192", arm="no-read twin", measure="bare, longest"),
        Line(label="bits per byte", arm="hybrid", measure="bits per byte"),
        Line(label="bits per byte less the no-read twin's", arm="hybrid", measure="bits per byte",
             less=("no-read twin", "bits per byte"), wanted={"full": Wanted(at_most=0.0)}),
    ),
)  # fmt: skip
