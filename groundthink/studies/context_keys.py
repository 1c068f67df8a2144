"""`context-keys`: a key that sees the tokens before it tells one needle from another."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from groundthink.records import ProbeResult
from groundthink.studies.keys import across_contexts
from groundthink.studies.multi_needle import COUNTS, SMALL, TASK, Settings, training
from groundthink.studies.parts import asked, task_of
from groundthink.studies.study import SMOKE_SIZES, Line, Measure, Size, Study, Work
from groundthink.training.sources import Recipe

CONTEXTS, BEFORE = 16, 8  # texts that end with the marker, and tokens before it


def _arm(changes: Mapping[str, Any]) -> Measure:
    def measure(work: Work) -> Iterator[ProbeResult]:
        config, s = training(work), work.settings
        config = dataclasses.replace(config, model={**config.model, **changes})
        model = work.train(config)
        for n in COUNTS:
            task = task_of(config, TASK, ids="text", length=s.length, n_needles=n, held_out=0.0)
            yield asked(model, task, f"{n} needles", n=s.n, seed=work.seed)
        generator = torch.Generator().manual_seed(work.seed)
        rows = torch.randint(s.ids, (CONTEXTS, BEFORE + 1), generator=generator)
        rows[:, -1] = Recipe(config).vocabulary.marker
        yield across_contexts(model, rows, "marker keys")

    return measure


ARMS: dict[str, dict[str, Any]] = {
    "the token alone": {"conv_width": 0},
    "dense context of 4": {"conv_width": 0, "key_conv_width": 4},
    "dense context of 8": {"conv_width": 0, "key_conv_width": 8},
    "depthwise convolution of 4": {"conv_width": 4},
}
REPORTED = {("dense context of 8", n): "0 %" for n in COUNTS}
GS = {"pattern": "GS"}
STUDY = Study(
    name="context-keys",
    question="Do keys that see their context tell needles with keys of their own apart?",
    origin="Source 001: marker keys have cosine 1.0000 across contexts without context; dense context of 8: 100 % on"
    " one needle in training, 0 % on 2, 3 and 5 under one marker with one cue; one seed.",
    sizes={
        "full": Size(
            seeds=3,
            settings=Settings(
                ids=50_257, keys=64, length=512, steps=600, rows=16, n=1000, learning_rate=1e-3,
                model={**GS, "d_model": 256, "window_size": 64},
            ),
            cost="a GPU: T 512, 5M tokens a model, vocabulary 50,257, four models a seed",
        ),
        "quick": Size(
            seeds=1,
            settings=Settings(
                ids=256, keys=8, length=80, steps=200, rows=12, n=200, learning_rate=3e-3, model={**SMALL, **GS}
            ),
            cost="about a minute and a half on a core: 256 ids, T 80",
        ),
        "smoke": Size(
            seeds=1,
            settings=Settings(
                ids=256, keys=8, length=80, steps=6, rows=6, n=20, learning_rate=3e-3,
                model={**SMALL, **GS, **SMOKE_SIZES},
            ),
            cost="seconds",
        ),
    },
    arms={name: _arm(changes) for name, changes in ARMS.items()},
    lines=(
        *(
            Line(label=f"{name}: {n} needles, T 512 (quick: 80)", arm=name, measure=f"{n} needles",
                 source=REPORTED.get((name, n), "–"))
            for name in ARMS
            for n in COUNTS
        ),
        *(
            Line(label=f"{name}: mean |cosine| of one marker's keys in {CONTEXTS} contexts", arm=name,
                 measure="marker keys", source="1.0000" if name == "the token alone" else "–")
            for name in ARMS
        ),
    ),
)  # fmt: skip
