"""The certificate: preconditions, recall beyond the horizon, causal tests; one record, one verdict, one sentence.

One function per group of rows; each takes a `Bench`, which holds the questions that all arms share.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from groundthink.errors import TaskError
from groundthink.probes.causality import causality, shortest_text
from groundthink.probes.cuts import OWN_READ, S_READ, cut_own_reads, cut_reads, layers_with
from groundthink.probes.face import Model, derived_seed, device_of, mode
from groundthink.probes.intervention import carriers
from groundthink.probes.language import language as language_row
from groundthink.probes.parity import parity
from groundthink.probes.recall import RECALL, Questions, ask, ask_near, recall, recall_row
from groundthink.probes.transplant import KEEP, least_distance, transplant_rows
from groundthink.probes.verdict import NEAR, POINTS, sentence, verdict_of
from groundthink.records import Certificate, ProbeResult, provenance, to_json
from groundthink.tasks import Vocabulary
from groundthink.tasks.kv_recall import KvRecall

LEAST_VALUES = 64
LONGEST_PARITY = 512  # tokens; step by step costs a pass for each
OnEvent = Callable[[str, dict[str, Any]], None]


@dataclasses.dataclass(frozen=True, eq=False)
class Bench:
    """What is asked, of whom, under which seed; questions are drawn once and shared by all arms.

    Attributes:
        model: the model on trial.
        task: pairs over filler.
        horizon: R that the distances are counted in: the largest finite one of model and twins, or the window where
            the model's own is infinite.
        n: episodes a cell.
        seed: of every episode.
    """

    model: Model
    task: KvRecall
    horizon: int
    n: int
    seed: int

    @functools.cached_property
    def near(self) -> Questions:
        """Pairs inside the window."""
        return ask_near(self.task, window=self.model.sizes.window_size, n=self.n, seed=self._seed("near"))

    @functools.cached_property
    def far(self) -> dict[str, Questions]:
        """Pairs beyond the horizon, by the name of the distance."""
        return {point: self.at(distance, point) for point, distance in distances(self.horizon).items()}

    @functools.cached_property
    def transplant(self) -> Questions:
        """Pairs so far away that a boundary fits between: those of 8R, unless R is tiny."""
        last = POINTS[-1]
        needed = least_distance(self.horizon)
        return self.far[last] if distances(self.horizon)[last] >= needed else self.at(needed, "transplant")

    def at(self, distance: int, name: str) -> Questions:
        """Questions whose nearest pair is exactly this far away."""
        return ask(self.task.with_options(distance=f"fixed:{distance}"), n=self.n, seed=self._seed(name))

    def _seed(self, name: str) -> int:
        return derived_seed(self.seed, "certify", name)


def distances(horizon: int) -> dict[str, int]:
    """The distances of the nearest pair, in tokens; a cue has two tokens, so none is below 2."""
    return {point: max(2, d) for point, d in zip(POINTS, (horizon + 1, 2 * horizon, 8 * horizon), strict=True)}


def certify(
    model: Model,
    *,
    vocabulary: Vocabulary,
    n_pairs: int = 16,
    n: int = 400,
    seed: int = 0,
    twins: Mapping[str, Model] | None = None,
    language: Mapping[str, Any] | None = None,
    on_event: OnEvent | None = None,
) -> Certificate:
    """Ask a model everything and judge it.

    Args:
        model: trained on `kv_recall` episodes with this vocabulary.
        vocabulary: ranges of ids; at least 64 values.
        n_pairs: pairs in each episode.
        n: one-query episodes a cell.
        seed: of every episode.
        twins: trained models to stand beside, by name (`no-read`, `G-only`, `window-only`, ...).
        language: `difference`, `low`, `high`, `n`, `against`: bits per byte against a twin, see `probes.language`.
        on_event: hears ("probe", row as a dictionary) as each row is found, so that a broken run leaves its part.

    Returns:
        A certificate whose result part (`result_json`) depends on the models and the seed only.

    Raises:
        TaskError: the vocabulary does not fit the task or the model.
        StateError: the episodes are longer than the model was told.
    """
    for name, one in {"model": model, **(twins or {})}.items():
        _check(name, one, vocabulary)
    bench = _bench(model, vocabulary, n_pairs=n_pairs, n=n, seed=seed, twins=twins or {})
    rows: list[ProbeResult] = []
    for row in _all_rows(bench, twins or {}, language):
        rows.append(row)
        if on_event is not None:
            on_event("probe", dataclasses.asdict(row))
    finite = math.isfinite(model.horizon)
    horizon = bench.horizon if finite else None
    verdict, reason = verdict_of(rows, finite=finite)
    text = sentence(verdict, reason, rows, horizon=horizon, twins=tuple(twins or ()))
    return Certificate(verdict, text, horizon, tuple(rows), seed, provenance())


def result_json(certificate: Certificate) -> str:
    """The part of a certificate that is the same on every rerun: all but its provenance."""
    return to_json(dataclasses.replace(certificate, provenance={}))


def _all_rows(bench: Bench, twins: Mapping[str, Model], language: Mapping[str, Any] | None) -> Iterator[ProbeResult]:
    yield horizon_row(bench, twins)
    preconditions = []
    for row in precondition_rows(bench):
        preconditions.append(row)
        yield row
    if any(row.verdict == "fail" for row in preconditions):
        return  # what a leaking or inconsistent model recalls means nothing
    yield from recall_rows(bench)
    yield from cut_rows(bench)
    yield from twin_rows(bench, twins)
    yield from transplant_rows(
        bench.model,
        bench.task,
        bench.transplant,
        horizon=bench.horizon,
        seed=bench.seed,
        required=math.isfinite(bench.model.horizon),
    )
    if language is not None:
        yield language_row(**language)


def horizon_row(bench: Bench, twins: Mapping[str, Model]) -> ProbeResult:
    """How far back each model reaches without a memory, and the R that distances are counted in."""
    reaches = {"model": bench.model.horizon, **{name: twin.horizon for name, twin in twins.items()}}
    shown = {name: int(reach) if math.isfinite(reach) else None for name, reach in reaches.items()}
    own = "without end" if shown["model"] is None else f"{shown['model']} tokens back"
    meaning = f"Without a memory the model reaches {own}; distances are counted in R = {bench.horizon}."
    return ProbeResult("horizon", float(bench.horizon), "info", meaning, details={"reaches": shown})


def precondition_rows(bench: Bench) -> Iterator[ProbeResult]:
    """Causality and parity, on random tokens and on the very episodes asked, as long as the longest of them."""
    longest = bench.transplant.prompts
    length = max(longest.shape[1], shortest_text(bench.model.sizes.window_size))
    ids = _texts(bench, longest, length)
    yield from causality(bench.model, ids, seed=bench.seed)
    # Parity costs a pass per token; a state that goes wrong does so at edges, and far from the start.
    yield from parity(bench.model, ids[:, -max(LONGEST_PARITY, shortest_text(bench.model.sizes.window_size)) :])


def recall_rows(bench: Bench) -> Iterator[ProbeResult]:
    """The control inside the window, and recall beyond the horizon."""
    found = recall(bench.model, bench.near)
    yield recall_row(NEAR, found, bench.near, at_least=RECALL, meaning="Recall of pairs inside the window")
    required = RECALL if math.isfinite(bench.model.horizon) else None
    for point, questions in bench.far.items():
        found = recall(bench.model, questions)
        yield _far_row(bench, f"recall@{point}", recall_row(f"recall@{point}", found, questions, at_least=required))


def cut_rows(bench: Bench) -> Iterator[ProbeResult]:
    """The same questions with the reads of S layers cut, and with the G layers' own reads cut."""
    for arm, path, cut, who in (
        ("S-reads-cut", S_READ, cut_reads, "the reads of S layers"),
        ("own-reads-cut", OWN_READ, cut_own_reads, "the G layers' own reads"),
    ):
        if not layers_with(bench.model, path):
            yield ProbeResult(f"recall/{arm}", 0.0, "info", f"The model has nothing to cut: no layer with {who[4:]}.")
            continue
        with cut(bench.model):
            for point, questions in {"near": bench.near, **bench.far}.items():
                name = f"recall@{point}/{arm}"
                row = recall_row(name, recall(bench.model, questions), questions, meaning=f"Recall with {who} cut")
                yield _far_row(bench, name, row)


def twin_rows(bench: Bench, twins: Mapping[str, Model]) -> Iterator[ProbeResult]:
    """The same questions to each twin. One without any memory must be at chance beyond R: it tests the harness."""
    if not twins:
        yield ProbeResult("twin", 0.0, "info", "twin: not supplied")
    for name, twin in twins.items():
        blind = math.isfinite(twin.horizon) and not _has_memory(twin, bench.near.prompts[:1, :1])
        for point, questions in {"near": bench.near, **bench.far}.items():
            row_name = f"recall@{point}/twin:{name}"
            found, meaning = recall(twin, questions), f"Recall of the {name} twin"
            yield _far_row(bench, row_name, recall_row(row_name, found, questions, meaning=meaning))
            if blind and point != "near":
                limit = questions.chance["in_context"] + KEEP
                yield recall_row(
                    f"harness/{name}@{point}", found, questions, at_most=limit,
                    meaning=f"The {name} twin has no memory and cannot see so far, so it must be at chance. Recall",
                )  # fmt: skip


def _far_row(bench: Bench, name: str, row: ProbeResult) -> ProbeResult:
    details = {"pairs": bench.task.n_pairs, "values": bench.task.vocabulary.n_values, "task": bench.task.digest}
    return dataclasses.replace(row, name=name, details={**row.details, **details})


def _texts(bench: Bench, prompts: Tensor, length: int) -> Tensor:
    """Two rows of random tokens and two that end with an episode and its cue, int64 [4,length]."""
    generator = torch.Generator().manual_seed(derived_seed(bench.seed, "texts"))
    ids = torch.randint(bench.model.sizes.vocab_size, (4, length), generator=generator)
    episodes = prompts[:2]
    ids[: len(episodes), length - prompts.shape[1] :] = episodes
    return ids


def _has_memory(model: Model, ids: Tensor) -> bool:
    with mode(model, training=False), torch.no_grad():
        return bool(carriers(model.prefill(ids.to(device_of(model)))[1]))


def _bench(
    model: Model, vocabulary: Vocabulary, *, n_pairs: int, n: int, seed: int, twins: Mapping[str, Model]
) -> Bench:
    reaches = [int(m.horizon) for m in (model, *twins.values()) if math.isfinite(m.horizon)]
    if not math.isfinite(model.horizon):
        reaches.append(model.sizes.window_size)
    task = KvRecall(vocabulary, n_pairs=n_pairs, distance="fixed:2")
    return Bench(model, task, max(reaches), n, seed)


def _check(name: str, model: Model, vocabulary: Vocabulary) -> None:
    if vocabulary.n_values < LEAST_VALUES:
        raise TaskError(
            f"{vocabulary.n_values} values are too few for a certificate",
            where="vocabulary",
            fix=f"give it at least {LEAST_VALUES}",
        )
    if vocabulary.size > model.sizes.vocab_size:
        raise TaskError(
            f"the task needs {vocabulary.size} ids, the model has {model.sizes.vocab_size}",
            where=name if name == "model" else f"twin {name}",
            fix="certify with the vocabulary that the model was trained with",
        )
