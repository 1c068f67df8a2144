"""`blind-window`: a hybrid trained on text alone recalls as far as its window reaches; a few episodes cure it.

Three stages of one model: text alone; the same with a little more text; the same text again with recall episodes beside
it, at most 5 % as many tokens as all the text. The second stands for what the further steps do by themselves, so the
change in bits per byte is that between the second and the third.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from groundthink.model import HybridForCausalLM
from groundthink.probes.face import predict_with
from groundthink.records import ProbeResult
from groundthink.studies.parts import SELDOM_WRITTEN, bits_per_byte, config_of, task_of
from groundthink.studies.study import Curve, Line, Size, Study, Wanted, Work, number, share
from groundthink.tasks import Vocabulary, evaluate
from groundthink.training import TrainConfig
from groundthink.training.config import MixItem, Phase
from groundthink.training.sources import Recipe, build_model

TASK = "text_strings"
REACHES = (1, 2, 4, 16)  # lengths, in windows
BLIND, ON, CURED = "text alone", "more text", "cured"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes.

    Attributes:
        window: tokens of the S layers' window.
        length, rows, steps: of the training on text.
        more_steps, text_rows, recall_rows: of the cure; `length` tokens each.
        recall_weight: of the loss of episodes beside that of text.
        n: questions at each length; `documents` of held-out text.
    """

    window: int
    length: int
    rows: int
    steps: int
    more_steps: int
    text_rows: int
    recall_rows: int
    recall_weight: float
    n: int
    documents: int
    learning_rate: float
    model: Mapping[str, Any]


def training(work: Work, *, phase: Phase) -> TrainConfig:
    """One stage."""
    s = work.settings
    text = Recipe(TrainConfig(data=work.data)).tokenizer.vocab_size
    return config_of(
        work,
        model={**s.model, "window_size": s.window},
        vocabulary=Vocabulary(text=text, n_keys=1, n_values=1, n_filler=1),
        phases=[phase],
        learning_rate=s.learning_rate,
    )


def _cure(work: Work, *, recall: bool) -> Phase:
    """More steps of text, with recall episodes beside it or not; the rows of text are the same either way."""
    s = work.settings
    mix = [MixItem(name="more", weight=s.text_rows)]
    if recall:
        short, most = s.length // 8, s.length // 64  # a line and its cue are at most 26 tokens
        dense = {"length": short, "n_needles": short // 28, "n_queries": short // 28}
        many = {"length": s.length, "n_needles": most, "n_queries": most}
        beside: dict[str, Any] = {"source": TASK, "loss_weight": s.recall_weight}
        mix.append(MixItem(name="dense", weight=s.recall_rows * 3 / 4, options=dense, **beside))
        mix.append(MixItem(name="many", weight=s.recall_rows / 4, options=many, **beside))
    return Phase(
        steps=s.more_steps, rows=s.text_rows + (s.recall_rows if recall else 0), length=s.length, mix=tuple(mix),
        warmup_steps=s.more_steps // 20, learning_rate_scale=0.5, normalise="source", losses=SELDOM_WRITTEN,
    )  # fmt: skip


def stages(work: Work) -> Iterator[ProbeResult]:
    """All three stages, and what each recalls."""
    s = work.settings
    text = Phase(
        steps=s.steps, rows=s.rows, length=s.length, warmup_steps=s.steps // 20, mix=(MixItem(),), losses=SELDOM_WRITTEN
    )
    first = training(work, phase=text)
    blind = work.train(first, "text")
    yield from _recalled(work, first, blind, BLIND)
    for place, name, recall in (("more", ON, False), ("cure", CURED, True)):
        config = training(work, phase=_cure(work, recall=recall))
        start = build_model(first)
        start.load_state_dict(copy.deepcopy(blind.state_dict()))
        model = work.train(config, place, model=start)
        yield from _recalled(work, config, model, name)
    tokens = s.more_steps * s.recall_rows / (s.steps * s.rows + s.more_steps * s.text_rows)
    yield number("recall tokens over text tokens", tokens, n=s.more_steps * s.recall_rows * s.length)


def _recalled(work: Work, config: TrainConfig, model: HybridForCausalLM, stage: str) -> Iterator[ProbeResult]:
    """One string among text of each length: anywhere, as in the published tests, and farther away than the horizon."""
    s = work.settings
    for reach in REACHES:
        length = reach * s.window
        task = task_of(config, TASK, length=length, n_needles=1)
        result = evaluate(task, predict_with(model), n=s.n, seed=work.seed, batch_size=32)
        yield share(f"{stage}, {reach} windows", result.exact, chance=task.chance().value_range)
    far = task_of(config, TASK, length=REACHES[-1] * s.window, n_needles=1, depth="first")
    result = evaluate(far, predict_with(model), n=s.n, seed=work.seed, batch_size=32)
    yield share(f"{stage}, first of 16 windows", result.exact, chance=far.chance().value_range)
    found = bits_per_byte(model, config, documents=s.documents, length=s.length)
    yield dataclasses.replace(found, name=f"{stage}, bits per byte")


ARM = "GGS"
SMALL = {"pattern": "GGS", "d_model": 128, "n_heads": 2}
EQUAL = {"full": Wanted(at_least=-0.002, at_most=0.002)}
STUDY = Study(
    name="blind-window",
    question="Does a hybrid trained on text alone recall beyond its window, and what do a few recall episodes change?",
    origin="Five published hybrids (2,048 tokens of window): 51 % at 4,096, 25 % at 8,192, the window's share.",
    text=True,
    sizes={
        "full": Size(
            seeds=5,
            settings=Settings(
                window=64, length=1024, rows=32, steps=2000, more_steps=450, text_rows=24, recall_rows=8,
                recall_weight=0.1, n=400, documents=64, learning_rate=1e-3,
                model={"pattern": "GGGS", "d_model": 384, "conv_width": 8, "decay_bias": 9.0},
            ),
            cost="a GPU: 77M tokens of text and 3.7M of recall for each of five seeds; give more text by --corpus",
        ),
        "quick": Size(
            seeds=1,
            settings=Settings(
                window=32, length=256, rows=6, steps=160, more_steps=40, text_rows=5, recall_rows=1,
                recall_weight=0.1, n=40, documents=4, learning_rate=2e-3, model=SMALL,
            ),
            cost="about a minute and a half on a core; far too short for text to be learned",
        ),
        "smoke": Size(
            seeds=1,
            settings=Settings(
                window=32, length=256, rows=2, steps=4, more_steps=3, text_rows=2, recall_rows=2,
                recall_weight=0.1, n=2, documents=2, learning_rate=2e-3,
                model={"pattern": "GS", "d_model": 32, "n_heads": 1, "head_dim": 16, "value_dim": 16},
            ),
            cost="seconds",
        ),
    },
    arms={ARM: stages},
    lines=(
        *(
            Line(label=f"{BLIND}: string anywhere in a text of {reach} windows", arm=ARM,
                 measure=f"{BLIND}, {reach} windows", source={2: "51 %", 4: "25 %"}.get(reach, "–"))
            for reach in REACHES
        ),
        Line(label=f"{CURED}: recall tokens over all text tokens", arm=ARM, measure="recall tokens over text tokens",
             wanted={"full": Wanted(at_most=0.05)}),
        *(
            Line(label=f"{CURED}: string anywhere in a text of {reach} windows", arm=ARM,
                 measure=f"{CURED}, {reach} windows", wanted={"full": Wanted(at_least=0.95)} if reach == 16 else {})
            for reach in REACHES
        ),
        Line(label=f"{CURED}: string at the beginning of 16 windows", arm=ARM,
             measure=f"{CURED}, first of 16 windows"),
        Line(label=f"{ON}, without episodes: string anywhere in a text of 16 windows", arm=ARM,
             measure=f"{ON}, 16 windows"),
        Line(label=f"{ON}: bits per byte", arm=ARM, measure=f"{ON}, bits per byte"),
        Line(label=f"{CURED} less {ON}: bits per byte", arm=ARM, measure=f"{CURED}, bits per byte",
             less=(ARM, f"{ON}, bits per byte"), wanted=EQUAL),
    ),
    curves=(
        Curve(
            title="Recall by length of the text", x_label="length, in windows", y_label="share",
            points={
                stage: tuple((ARM, f"{stage}, {reach} windows", float(reach)) for reach in REACHES)
                for stage in (BLIND, ON, CURED)
            },
        ),
    ),
)  # fmt: skip
