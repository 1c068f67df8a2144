"""`shifted-value`: when the key of a token writes the value of the next, a marker can find its needle alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from groundthink.records import ProbeResult
from groundthink.studies.parts import asked, task_of
from groundthink.studies.single_needle import GROWTH, SMALL, TASK, Settings, training
from groundthink.studies.study import SMOKE_SIZES, Line, Measure, Size, Study, Work


def _arm(changes: Mapping[str, Any]) -> Measure:
    def measure(work: Work) -> Iterator[ProbeResult]:
        config, s = training(work), work.settings
        config = dataclasses.replace(config, model={**config.model, **changes})
        model = work.train(config)
        for growth, where in ((1, "T"), (GROWTH, "4 T")):
            task = task_of(config, TASK, ids="text", keyed=False, length=growth * s.length, held_out=0.0)
            yield asked(model, task, where, n=s.n, seed=work.seed)

    return measure


ARMS: dict[str, dict[str, Any]] = {
    "value of the same token, no convolution": {"shifted_value": False, "conv_width": 0},
    "shifted value, no convolution": {"shifted_value": True, "conv_width": 0},
    "value of the same token, convolution of 4": {"shifted_value": False, "conv_width": 4},
    "shifted value, convolution of 4": {"shifted_value": True, "conv_width": 4},
}
REPORTED = {"value of the same token, no convolution": "0 %", "shifted value, no convolution": "98 %"}
GS = {"pattern": "GS"}
STUDY = Study(
    name="shifted-value",
    question="Does a needle need the key of the token before it, and can a convolution stand in for the shift?",
    origin="Source 001: GS, d 512, T 256: 0 of 30 without the shift, 49 of 50 with it; one seed.",
    sizes={
        "full": Size(
            seeds=3,
            settings=Settings(
                ids=50_257, length=256, steps=600, rows=32, n=1000, learning_rate=1e-3,
                model={**GS, "d_model": 256, "window_size": 64},
            ),
            cost="a GPU: T 256, 5M tokens a model, vocabulary 50,257, four models a seed",
        ),
        "quick": Size(
            seeds=1,
            settings=Settings(
                ids=512, length=64, steps=240, rows=16, n=200, learning_rate=3e-3, model={**SMALL, **GS}
            ),
            cost="about a minute on a core: 512 ids, T 64",
        ),
        "smoke": Size(
            seeds=1,
            settings=Settings(
                ids=256, length=32, steps=10, rows=4, n=20, learning_rate=3e-3,
                model={**SMALL, **GS, **SMOKE_SIZES},
            ),
            cost="seconds",
        ),
    },
    arms={name: _arm(changes) for name, changes in ARMS.items()},
    lines=tuple(
        Line(label=f"{name}: T {tokens}", arm=name, measure=where,
             source=REPORTED.get(name, "–") if where == "T" else "–")
        for name in ARMS
        for tokens, where in (("256 (quick: 64)", "T"), ("1,024 (quick: 256)", "4 T"))
    ),
)  # fmt: skip
