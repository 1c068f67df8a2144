"""`mixed-training`: text and facts together, three ways to make a hybrid use its memory, and the no-read twin."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from groundthink.probes import cut_own_reads, cut_reads
from groundthink.probes.face import predict_with
from groundthink.records import ProbeResult
from groundthink.studies.facts_follow import asked_task, follow_rates
from groundthink.studies.parts import (
    bits_per_byte,
    config_of,
    held_out_tokens,
    item,
    nats,
    perplexity,
    task_of,
    twin_of,
)
from groundthink.studies.study import Line, Measure, Size, Study, Wanted, Work, share
from groundthink.tasks import Vocabulary, evaluate
from groundthink.tasks.facts import Facts
from groundthink.training import TrainConfig
from groundthink.training.config import MixItem, Phase, Threshold
from groundthink.training.sources import Recipe


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes: `steps` of `rows` x `length` tokens, a tenth of them facts only; `filler` between facts and question.

    Before them at most `facts_steps` of facts alone, where there are any, `dense` of them in an episode. `n` questions,
    `transplants` of them with a donor's memory; `windows` of held-out text. `plain` stands for the GG model and `model`
    for the hybrid.
    """

    length: int
    filler: int
    dense: int
    facts_steps: int
    steps: int
    rows: int
    n: int
    transplants: int
    windows: int
    learning_rate: float
    plain: Mapping[str, Any]
    model: Mapping[str, Any]


def training(work: Work, mix: str, *, plain: bool = False, **changes: Any) -> TrainConfig:
    """Text, facts or both. Facts lie anywhere in natural text, and every one of them is asked.

    Facts come first, many to a row and every answer counted alike, until they are recalled: text is soon known by heart
    in a corpus of a megabyte or two, and facts learned at its pace come too late. Half of the dense ones are of things
    that only names tell apart, which is what is learned last.
    """
    s = work.settings
    facts = item("facts", n_facts=3, n_queries=3, filler_tokens=s.filler)
    dense = item("facts", name="dense", n_facts=s.dense, n_queries=s.dense, filler_tokens=s.filler // 10, alike=0.5)
    # As they are asked: all facts before all of the filler.
    far = MixItem(source="facts", name="far", weight=0, pure=0.1, options={**facts.options, "position": "start"})
    items = {
        "text": (MixItem(),),
        "facts": (facts,),
        "both": (MixItem(weight=3), facts, far),
    }[mix]
    size: dict[str, Any] = {"rows": s.rows, "length": s.length}
    first = Phase(
        name="facts-first", steps=s.facts_steps, warmup_steps=s.facts_steps // 20, schedule="constant",
        normalise="token", mix=(dense, facts), **size,
        advance=tuple(Threshold(metric=f"{name}.exact", at_least=0.995) for name in ("dense", "facts")),
    )  # fmt: skip
    then = Phase(name=mix, steps=s.steps, warmup_steps=s.steps // 20, learning_rate_scale=0.6, mix=items, **size)
    text = Recipe(TrainConfig(data=work.data)).tokenizer.vocab_size
    vocabulary = Vocabulary(text=text, n_keys=1, n_values=1, n_filler=1)
    model = {**(s.plain if plain else s.model), **changes}
    return config_of(
        work, model=model, vocabulary=vocabulary, phases=[then] if mix == "text" else [first, then],
        learning_rate=s.learning_rate, evaluate_every=max(20, s.facts_steps // 20), evaluation_n=min(100, s.n),
    )  # fmt: skip


def _arm(mix: str, *, twin: bool = False, plain: bool = False, **changes: Any) -> Measure:
    def measure(work: Work) -> Iterator[ProbeResult]:
        s, config = work.settings, training(work, mix, plain=plain, **changes)
        config = twin_of(config) if twin else config
        model = work.train(config)
        tokens = held_out_tokens(config, rows=s.windows, length=s.length)
        yield perplexity("perplexity", nats(model, tokens))
        yield bits_per_byte(model, config, documents=s.windows, length=s.length)
        task = task_of(config, "facts", n_facts=3, filler_tokens=s.filler)
        assert isinstance(task, Facts)
        task = asked_task(task)
        for name, cut in (("facts", None), ("facts, S reads cut", cut_reads), ("facts, own reads cut", cut_own_reads)):
            if cut is None:
                found = evaluate(task, predict_with(model), n=s.n, seed=work.seed, batch_size=8)
            else:
                with cut(model):
                    found = evaluate(task, predict_with(model), n=s.n, seed=work.seed, batch_size=8)
            yield share(name, found.exact, chance=found.chance.best)
        yield from follow_rates(model, task, n=s.transplants, seed=work.seed)

    return measure


DROP: dict[str, Any] = {"local_drop_prob": 0.7}
ARMS: dict[str, Measure] = {
    "reads, both": _arm("both"),
    "no-read twin, both": _arm("both", twin=True),
    "drop, both": _arm("both", **DROP),
    "static scale, both": _arm("both", local_scale=0.3),
    "GG, both": _arm("both", plain=True),
    "drop, facts": _arm("facts", **DROP),
    "drop, text": _arm("text", **DROP),
}
REPORTED = {  # perplexity in training, state zeroed against not, in points
    "GG, both": ("24.1 (text)", "35 % (needle)"),
    "static scale, both": ("3.9 (text; leaking)", "15 % (text)"),
    "drop, both": ("2.2 (leaking)", "100 %, of 8 in the top 5"),
    "drop, text": ("2.8 (leaking)", "6 %"),
    "drop, facts": ("–", "100 %"),
}
OURS, TWIN = "reads, both", "no-read twin, both"
SMALL = {"d_model": 64, "n_heads": 2, "head_dim": 32, "value_dim": 32, "window_size": 16}
STUDY = Study(
    name="mixed-training",
    question="What do text and facts together give, and what does it take for the memory to be used?",
    origin="Source 002: 17.5M GGGGGS, TinyStories, leaking reads, top 5 of 8 colours, 100 tries, delta +88 when zeroed,"
    " one seed; text alone unless said.",
    text=True,
    sizes={
        "full": Size(
            seeds=3,
            settings=Settings(
                length=512, filler=250, dense=4, facts_steps=800, steps=1600, rows=16, n=400, transplants=200,
                windows=64, learning_rate=1e-3,
                # A name stands three tokens before its colour: no key begins with it unless the start says so.
                plain={"pattern": "GG", "d_model": 256, "window_size": 64, "start": "context"},
                model={"pattern": "GGGGGS", "d_model": 256, "window_size": 64, "start": "context"},
            ),
            cost="a GPU: up to 13M tokens a model, seven models a seed; give the source's text (--corpus, --tokenizer)",
        ),
        "quick": Size(
            seeds=1,
            settings=Settings(
                length=384, filler=120, dense=4, facts_steps=12, steps=40, rows=4, n=24, transplants=8, windows=4,
                learning_rate=2e-3,
                plain={"pattern": "GG", **SMALL}, model={"pattern": "GGS", **SMALL},
            ),
            cost="about a minute and a half on a core; far too short to learn",
        ),
        "smoke": Size(
            seeds=1,
            settings=Settings(
                length=384, filler=64, dense=4, facts_steps=2, steps=3, rows=2, n=2, transplants=1, windows=2,
                learning_rate=2e-3,
                plain={"pattern": "GG", "d_model": 32, "n_heads": 1, "head_dim": 16, "value_dim": 16},
                model={"pattern": "GS", "d_model": 32, "n_heads": 1, "head_dim": 16, "value_dim": 16,
                       "window_size": 4},
            ),
            cost="seconds",
        ),
    },
    arms=ARMS,
    lines=(
        *(
            Line(label=f"{arm}: perplexity, held-out", arm=arm, measure="perplexity",
                 source=REPORTED.get(arm, ("–", "–"))[0])
            for arm in ARMS
        ),
        Line(label=f"{OURS}, less the no-read twin: perplexity", arm=OURS, measure="perplexity",
             less=(TWIN, "perplexity"), wanted={"full": Wanted(at_most=0.0, errors=2)}),
        *(
            Line(label=f"{arm}: facts, exact", arm=arm, measure="facts", source=REPORTED.get(arm, ("–", "–"))[1],
                 wanted={"full": Wanted(at_least=1.0)} if arm == OURS else {})
            for arm in ARMS
        ),
        *(
            Line(label=f"{arm}: answers follow a donor's memory", arm=arm, measure="follow",
                 wanted={"full": Wanted(at_least=0.95)} if arm == OURS else {})
            for arm in ARMS
        ),
        Line(label=f"{OURS}: answers stay in spite of it", arm=OURS, measure="keep"),
        Line(label=f"{OURS}: facts, reads of the S layer cut", arm=OURS, measure="facts, S reads cut"),
        Line(label=f"{OURS}: facts, own reads of the G layers cut", arm=OURS, measure="facts, own reads cut"),
    ),
)  # fmt: skip
