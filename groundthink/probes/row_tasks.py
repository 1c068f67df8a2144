"""What else the memory can and cannot do: bound anew, never stored, many pairs, keys of two parts, place in the list.

Nothing here decides a verdict: a model need not have been trained on it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch

from groundthink.errors import ConfigError
from groundthink.probes.bench import Bench, Point
from groundthink.probes.face import predict_with
from groundthink.probes.recall import ask, recall, rows_per_pass
from groundthink.probes.row import Row, not_run
from groundthink.records import ProbeResult, Proportion
from groundthink.tasks import Task, TaskResult, evaluate, n50, points
from groundthink.tasks.kv_capacity import KvCapacity
from groundthink.tasks.kv_compositional import KvCompositional
from groundthink.tasks.kv_overwrite import KvOverwrite

MOST_PAIRS = 64  # of the capacity sweep


def scored(bench: Bench, task: Task, n: int) -> TaskResult:
    """The model's answers to a task."""
    return evaluate(
        task,
        predict_with(bench.model),
        n=n,
        seed=bench.seed_of(task.name),
        batch_size=rows_per_pass(bench.model, task.max_length),
    )


def _distance(bench: Bench, least: int = 2) -> str:
    return f"fixed:{max(least, 2 * bench.horizon)}"


def run_overwrite(bench: Bench, point: Point | None) -> Iterator[ProbeResult]:
    """Keys that were bound anew: the new value, the old one, and the keys that were left alone."""
    n_pairs = max(2, bench.task.n_pairs // 2)
    try:
        task = KvOverwrite(bench.task.vocabulary, n_pairs=n_pairs, n_rebound=n_pairs // 2, distance=_distance(bench))
    except ConfigError as error:
        yield not_run("overwrite", error.what)
        return
    found = scored(bench, task, bench.n)
    new, rest = (found.by_kind.get(kind, Proportion(0, 0)) for kind in ("new", "untouched"))
    stale = found.stale or Proportion(0, 0)
    yield ProbeResult(
        "overwrite", new.rate, "info",
        f"Of keys bound anew the new value is said in {new}, an old one in {stale}; of the others the value in {rest}.",
        low=new.low, high=new.high, n=new.n, chance=found.chance.best,
        details={"new": new.as_dict(), "stale": stale.as_dict(), "untouched": rest.as_dict(), "task": found.digest},
    )  # fmt: skip


def run_absent(bench: Bench, point: Point | None) -> Iterator[ProbeResult]:
    """Keys that were never stored: how often is a stored value said all the same?"""
    try:
        task = bench.task.with_options(absent=1.0, distance=_distance(bench))
    except ConfigError as error:
        yield not_run("absent", error.what)
        return
    found = scored(bench, task, bench.n)
    false, right = found.false_recall or Proportion(0, 0), found.exact
    yield ProbeResult(
        "absent", false.rate, "info",
        f"Asked for keys that were never stored, it says a stored value in {false} and that there is none in {right}.",
        low=false.low, high=false.high, n=false.n, details={"says_absent": right.as_dict(), "task": found.digest},
    )  # fmt: skip


def run_capacity(bench: Bench, point: Point | None) -> Iterator[ProbeResult]:
    """How many pairs until half of them are lost."""
    vocabulary = bench.task.vocabulary
    most = min(MOST_PAIRS, vocabulary.n_keys, vocabulary.n_values)
    task = KvCapacity(vocabulary, n_min=min(4, most), n_max=most, distance=_distance(bench))
    found = points(scored(bench, task, bench.n).by_kind)
    fit = n50(found, seed=bench.seed)
    half = "not within these" if fit is None else f"at {fit.n50:.3g} [{fit.low:.3g}, {fit.high:.3g}]"
    yield ProbeResult(
        "capacity", 0.0 if fit is None else fit.n50, "info",
        "Recall by number of pairs: " + ", ".join(f"{share.rate:.2f} of {k}" for k, share in found.items())
        + f"; half {half}.",
        low=None if fit is None else fit.low, high=None if fit is None else fit.high, n=bench.n,
        details={"points": {str(k): share.as_dict() for k, share in found.items()},
                 "n50": None if fit is None else dataclasses.asdict(fit), "task": task.digest},
    )  # fmt: skip


def run_compositional(bench: Bench, point: Point | None) -> Iterator[ProbeResult]:
    """Keys of two parts, of which neither alone suffices."""
    try:
        task = KvCompositional(bench.task.vocabulary, n_triplets=16, distance=_distance(bench, 3))
    except ConfigError as error:
        yield not_run("compositional", error.what)
        return
    found, chance = scored(bench, task, bench.n), task.chance()
    yield ProbeResult(
        "compositional", found.exact.rate, "info",
        f"With keys of two parts it is right in {found.exact}; knowing one part would give {chance.shortcut:.2f}.",
        low=found.exact.low, high=found.exact.high, n=found.exact.n, chance=chance.shortcut,
        details={"task": found.digest},
    )  # fmt: skip


def run_slots(bench: Bench, point: Point | None) -> Iterator[ProbeResult]:
    """Primacy and recency: recall by the asked pair's place in the list, in thirds."""
    where = bench.points[2]
    questions = bench.asked(where)
    right = bench.said(where) == questions.answers
    slots = torch.tensor([((e.queries[0].revealed_at or 2) - 2) // 2 for e in questions.episodes])
    third = (3 * slots // bench.task.n_pairs).clamp(0, 2)
    found = {
        name: Proportion(int(right[third == i].sum()), int((third == i).sum()))
        for i, name in enumerate(("first", "middle", "last"))
    }
    spread = max(s.rate for s in found.values() if s.n) - min(s.rate for s in found.values() if s.n)
    yield ProbeResult(
        f"slots@{where.name}", spread, "info",
        "Recall by place in the list: " + ", ".join(f"{share.rate:.2f} of the {k} third" for k, share in found.items())
        + ".",
        n=len(right), details={k: share.as_dict() for k, share in found.items()},
    )  # fmt: skip


def run_shift(bench: Bench, point: Point | None) -> Iterator[ProbeResult]:
    """Half and twice as many pairs, and other filler: only a quarter of its ids."""
    vocabulary, n = bench.task.vocabulary, max(1, bench.n // 2)
    pairs = bench.task.n_pairs
    found = {}
    for name, count in (("half the pairs", max(1, pairs // 2)), ("twice the pairs", 2 * pairs)):
        if count <= min(vocabulary.n_keys, vocabulary.n_values):
            task = bench.task.with_options(n_pairs=count, distance=_distance(bench))
            found[name] = recall(bench.model, ask(task, n=n, seed=bench.seed_of(name))).right
    narrow = dataclasses.replace(vocabulary, n_filler=max(1, vocabulary.n_filler // 4))
    task = dataclasses.replace(bench.task, vocabulary=narrow, distance=_distance(bench))
    found["a quarter of the filler's ids"] = recall(bench.model, ask(task, n=n, seed=bench.seed_of("filler"))).right
    worst = min(found.values(), key=lambda share: share.rate)
    yield ProbeResult(
        "shift", worst.rate, "info",
        f"Asked otherwise: {', '.join(f'{share.rate:.2f} with {name}' for name, share in found.items())}.",
        low=worst.low, high=worst.high, n=worst.n, details={name: share.as_dict() for name, share in found.items()},
    )  # fmt: skip


OVERWRITE = Row("T2", "Bound anew", "Does the newest value win?", "beside", run_overwrite)
ABSENT = Row("T1a", "Never stored", "Does it say so when there is nothing to recall?", "beside", run_absent)
CAPACITY = Row("T3", "Capacity", "How many facts fit?", "beside", run_capacity)
COMPOSITIONAL = Row("T4", "Keys of two parts", "Does it bind to both parts of a key?", "beside", run_compositional)
SLOTS = Row("T1s", "Place in the list", "Are early and late facts recalled alike?", "beside", run_slots)
SHIFT = Row(
    "T1d", "Shifted questions", "Does it hold with other numbers of facts and other filler?", "beside", run_shift
)
