"""`key-collapse`: training makes keys alike; regularisers keep them apart. What does that do to recall?"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import torch

from groundthink.model import HybridForCausalLM
from groundthink.records import ProbeResult
from groundthink.studies.keys import mean_cosine
from groundthink.studies.multi_needle import SMALL, TASK, Settings, training
from groundthink.studies.parts import asked, task_of
from groundthink.studies.study import SMOKE_SIZES, Line, Measure, Size, Study, Work
from groundthink.training.sources import build_model

LOSSES = {"key_orthogonality": 0.3, "beta_sparsity": 0.1}  # weights of source 001
ROWS, LENGTH, NEEDLES = 4, 128, 5  # of random ids whose keys are compared


def _arm(losses: Mapping[str, float]) -> Measure:
    def measure(work: Work) -> Iterator[ProbeResult]:
        s, config = work.settings, training(work)
        phases = tuple(dataclasses.replace(phase, losses=dict(losses)) for phase in config.phases)
        config = dataclasses.replace(config, phases=phases)
        untrained: HybridForCausalLM = build_model(dataclasses.replace(config, seed=work.seed))
        generator = torch.Generator().manual_seed(work.seed)
        tokens = torch.randint(s.ids, (ROWS, LENGTH), generator=generator)
        yield mean_cosine(untrained, tokens, "untrained")
        model = work.train(config)
        yield mean_cosine(model, tokens, "trained")
        task = task_of(config, TASK, ids="text", length=s.length, n_needles=NEEDLES, held_out=0.0)
        yield asked(model, task, "recall", n=s.n, seed=work.seed)

    return measure


PLAIN, KEPT = "without regularisers", "with regularisers"
STUDY = Study(
    name="key-collapse",
    question="How alike do keys become in training, with and without regularisers, and what does it do to recall?",
    origin="Source 001: GS, d 512, mean |cosine| of keys of random tokens: 0.582 trained, 0.105 untrained, 0.10 trained"
    " with key orthogonality 0.5; single heads 0.38 to 0.79; one seed.",
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
            settings=Settings(ids=512, keys=16, length=96, steps=150, rows=24, n=200, learning_rate=3e-3, model=SMALL),
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
    arms={PLAIN: _arm({}), KEPT: _arm(LOSSES)},
    lines=(
        Line(label="mean |cosine| of keys of different random ids, untrained", arm=PLAIN, measure="untrained",
             source="0.105"),
        Line(label=f"the same, trained {PLAIN}", arm=PLAIN, measure="trained", source="0.58"),
        Line(label=f"the same, trained {KEPT}", arm=KEPT, measure="trained", source="0.10"),
        Line(label=f"5 needles, trained {PLAIN}", arm=PLAIN, measure="recall", source="0 %"),
        Line(label=f"5 needles, trained {KEPT}", arm=KEPT, measure="recall", source="0 %"),
        Line(label=f"5 needles, {KEPT} less {PLAIN}", arm=KEPT, measure="recall", less=(PLAIN, "recall")),
    ),
)  # fmt: skip
