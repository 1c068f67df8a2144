"""`blind-window`: a hybrid trained on text alone recalls as far as its window reaches; a few episodes cure it.

Two stages of one model: text alone; then recall episodes, at most 5 % as many tokens as all the text, beside text that
is not learned any further but held on to: wherever nothing is asked, the model is to say what it said before (the loss
`anchor`). First loosely, so that recall is learned, then tightly, so that text comes back. The change in bits per byte
is that from the model as it was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from groundthink.model import HybridForCausalLM
from groundthink.probes.face import predict_with
from groundthink.records import ProbeResult
from groundthink.studies.parts import bits_per_byte, config_of, task_of
from groundthink.studies.study import Curve, Line, Size, Study, Wanted, Work, number, share
from groundthink.tasks import Vocabulary, evaluate
from groundthink.training import TrainConfig
from groundthink.training.config import MixItem, Phase
from groundthink.training.sources import Recipe

TASK = "text_strings"
REACHES = (1, 2, 4, 16)  # lengths, in windows
BLIND, CURED = "text alone", "cured"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes.

    Attributes:
        window: tokens of the S layers' window.
        length, rows, steps: of the training on text.
        text_rows: beside the episodes, `length` tokens each.
        learn, heal: steps, rows of episodes in each, and weight of the anchor while recall is learned and afterwards.
        cure_rate: times the learning rate, in both. Text moves away as far as steps are large, and comes back as they
            shrink.
        price: of writes into heads that keep what they hold, from the start: text leaves them empty, what the cure
            writes into them disturbs little, and stays.
        n: questions at each length; `documents` of held-out text.
    """

    window: int
    length: int
    rows: int
    steps: int
    text_rows: int
    learn: tuple[int, int, float]
    heal: tuple[int, int, float]
    cure_rate: float
    price: float
    n: int
    documents: int
    learning_rate: float
    model: Mapping[str, Any]


def training(work: Work, *phases: Phase) -> TrainConfig:
    """One stage."""
    s = work.settings
    text = Recipe(TrainConfig(data=work.data)).tokenizer.vocab_size
    return config_of(
        work,
        model={**s.model, "window_size": s.window},
        vocabulary=Vocabulary(text=text, n_keys=1, n_values=1, n_filler=1),
        phases=phases,
        learning_rate=s.learning_rate,
    )


def _text(s: Settings) -> Phase:
    """Text alone."""
    return Phase(
        steps=s.steps, rows=s.rows, length=s.length, warmup_steps=s.steps // 20, mix=(MixItem(),),
        losses={"lasting_writes": s.price},
    )  # fmt: skip


def _episodes(length: int) -> dict[str, dict[str, int]]:
    """Short and full of lines, which is quick to learn; long and mostly text, which is what is asked in the end.

    Without the latter no training shows what so much text does to a line.
    """
    short, lines = length // 8, max(2, length // 170)  # a line and its cue are at most 26 tokens
    return {
        "dense": {"length": short, "n_needles": short // 28, "n_queries": short // 28},
        "few": {"length": length, "n_needles": lines, "n_queries": lines},
    }


def _cure(s: Settings, name: str, sizes: tuple[int, int, float], **options: Any) -> Phase:
    """Episodes, a half of each kind, beside rows of text that are there to be held on to."""
    steps, rows, anchor = sizes
    episodes = _episodes(s.length)
    mix = (
        MixItem(weight=s.text_rows, loss_weight=0),
        *(MixItem(source=TASK, name=n, weight=rows / len(episodes), options=o) for n, o in episodes.items()),
    )
    return Phase(
        name=name, steps=steps, rows=s.text_rows + rows, length=s.length, mix=mix,
        learning_rate_scale=s.cure_rate, losses={"lasting_writes": s.price, "anchor": anchor}, **options,
    )  # fmt: skip


def stages(work: Work) -> Iterator[ProbeResult]:
    """Both stages, and what each recalls."""
    s = work.settings
    first = training(work, _text(s))
    blind = work.train(first, "text")
    yield from _recalled(work, first, blind, BLIND)
    learn = _cure(s, "learn", s.learn, schedule="constant", warmup_steps=s.learn[0] // 20)
    second = training(work, learn, _cure(s, "heal", s.heal, floor=0.0))
    yield from _recalled(work, second, work.train(second, "cure", model=blind), CURED)
    episodes = sum(steps * rows for steps, rows, _ in (s.learn, s.heal))
    yield number("recall tokens over text tokens", episodes / (s.steps * s.rows), n=episodes * s.length)


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
                window=64, length=1024, rows=32, steps=2400, text_rows=24, learn=(600, 5, 64.0),
                heal=(840, 1, 256.0), cure_rate=0.2, price=0.4, n=400, documents=64, learning_rate=1e-3,
                model={"pattern": "GGGS", "d_model": 384, "conv_width": 8, "lasting_heads": 2,
                       "lasting_layers": "all", "least_forgetting": 0.01},
            ),
            cost="a GPU: 79M tokens of text, 3.9M of recall beside 35M of text that is held on to, for each of five"
            " seeds; give more text by --corpus",
        ),
        "quick": Size(
            seeds=1,
            settings=Settings(
                window=32, length=256, rows=6, steps=160, text_rows=4, learn=(16, 2, 16.0), heal=(8, 2, 256.0),
                cure_rate=0.5, price=0.4, n=40, documents=4, learning_rate=2e-3, model=SMALL,
            ),
            cost="about a minute and a half on a core; far too short for text to be learned",
        ),
        "smoke": Size(
            seeds=1,
            settings=Settings(
                window=32, length=256, rows=2, steps=4, text_rows=2, learn=(2, 2, 16.0), heal=(1, 2, 256.0),
                cure_rate=0.5, price=0.4, n=2, documents=2, learning_rate=2e-3,
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
        Line(label=f"{BLIND}: bits per byte", arm=ARM, measure=f"{BLIND}, bits per byte"),
        Line(label=f"{CURED} less {BLIND}: bits per byte", arm=ARM, measure=f"{CURED}, bits per byte",
             less=(ARM, f"{BLIND}, bits per byte"), wanted=EQUAL),
    ),
    curves=(
        Curve(
            title="Recall by length of the text", x_label="length, in windows", y_label="share",
            points={
                stage: tuple((ARM, f"{stage}, {reach} windows", float(reach)) for reach in REACHES)
                for stage in (BLIND, CURED)
            },
        ),
    ),
)  # fmt: skip
