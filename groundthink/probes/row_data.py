"""C2 and C4: the data do not give the answers away, and a model that never learned finds none."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch

from groundthink.errors import TaskError
from groundthink.model import HybridForCausalLM
from groundthink.probes.bench import Bench, Point
from groundthink.probes.face import Model, seeded
from groundthink.probes.recall import Questions, answers_of, classify, recall, recall_row
from groundthink.probes.row import Row, not_run
from groundthink.probes.row_beside import EVIDENCE, harness_row
from groundthink.probes.statistics import at_least
from groundthink.records import ProbeResult
from groundthink.tasks import check_episode

MASKED = 0.02  # what the upper bound without the stored values may exceed chance by
TRAINING = 1000  # training episodes that a test episode must not be among


def run_data(bench: Bench, point: Point | None) -> Iterator[ProbeResult]:
    """C2: episodes are what they claim, none is a training episode, keys are bound anew, masked values are unknown."""
    yield _episodes(bench)
    yield _masked(bench)


def _episodes(bench: Bench) -> ProbeResult:
    questions, vocabulary = bench.near, bench.task.vocabulary
    faults = []
    for episode in questions.episodes[:100]:
        try:
            check_episode(episode, vocabulary)
        except TaskError as error:
            faults.append(str(error))
    task = bench.task.with_options(distance="fixed:2")
    seen = {_hash(e.tokens.tobytes()) for e in task.episodes(bench.seed, "train", min(TRAINING, 4 * bench.n))}
    shared = sum(_hash(e.tokens.tobytes()) in seen for e in questions.episodes)
    repeated, bindings = same_bindings(questions, bench.task.n_pairs)
    expected = 1 / vocabulary.n_values
    fixed = at_least(repeated, bindings, expected) < EVIDENCE / 10 if bindings else False
    overlap = set(vocabulary.filler) & (set(vocabulary.keys) | set(vocabulary.values))
    bad = faults[:1] + [f"{shared} episodes occur in training"] * bool(shared)
    bad += ["keys keep their values"] * fixed + ["filler holds keys or values"] * bool(overlap)
    meaning = (
        f"Of {len(questions)} episodes {shared} occur among {len(seen)} of training; a key that comes again has its"
        f" old value in {repeated} of {bindings} cases (by chance 1 in {vocabulary.n_values})"
        + (f": {'; '.join(bad)}." if bad else ".")
    )
    return ProbeResult("data/episodes", float(shared), "fail" if bad else "pass", meaning, details={"faults": bad})


def same_bindings(questions: Questions, n_pairs: int) -> tuple[int, int]:
    """How often a key of an episode has the value that it had when it was last seen, and how often it was seen."""
    last: dict[int, int] = {}
    repeated = seen = 0
    for prompt in questions.prompts[:, 1 : 1 + 2 * n_pairs].tolist():
        for key, value in zip(prompt[::2], prompt[1::2], strict=True):
            if key in last:
                seen += 1
                repeated += last[key] == value
            last[key] = value
    return repeated, seen


def _masked(bench: Bench) -> ProbeResult:
    """The same questions with every stored value replaced by filler."""
    questions, filler = bench.near, bench.task.vocabulary.filler
    generator = torch.Generator().manual_seed(bench.seed_of("masked"))
    prompts = questions.prompts.clone()
    values = slice(2, 2 + 2 * bench.task.n_pairs, 2)
    shape = prompts[:, values].shape
    prompts[:, values] = torch.randint(filler.start, filler.stop, tuple(shape), generator=generator)
    found = classify(answers_of(bench.model, prompts), questions)
    chance = questions.chance["in_context"]
    row = recall_row("data/masked", found, questions, at_most=chance + MASKED, meaning="With the stored values masked")
    p = at_least(found.right.hits, found.right.n, chance)
    undecided = row.verdict == "fail" and p >= EVIDENCE
    meaning = (
        f"With the stored values masked the answer is right in {found.right}"
        + (f": undecided, n = {found.right.n} is too few." if undecided else ".")
    )  # fmt: skip
    verdict = "info" if undecided else row.verdict
    return ProbeResult(
        "data/masked", row.value, verdict, meaning, row.low, row.high, row.n, chance, chance + MASKED,
        {"p_above_chance": p},
    )  # fmt: skip


def run_untrained(bench: Bench, point: Point | None) -> Iterator[ProbeResult]:
    """C4: the same architecture with random parameters must be at chance beyond R."""
    blank = untrained(bench.model, bench.seed_of("untrained"))
    if blank is None:
        yield not_run("harness/untrained", "the model does not say how it is built anew")
        return
    questions = bench.asked(bench.points[0])
    meaning = "The same model with random parameters must be at chance. Recall"
    yield harness_row(f"harness/untrained@{bench.points[0].name}", recall(blank, questions), questions, meaning)


def untrained(model: Model, seed: int) -> Model | None:
    """The same architecture with random parameters, on the same device; None if nobody knows how to make it."""
    make = getattr(model, "untrained", None)
    if callable(make):
        return make(seed)
    if not isinstance(model, HybridForCausalLM):
        return None
    with seeded(seed, model.device):
        blank: HybridForCausalLM = HybridForCausalLM(model.sizes)
    return blank.to(device=model.device, dtype=model.dtype).eval()  # type: ignore[call-arg]


def _hash(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


DATA = Row(
    "C2",
    "Data",
    "Could the questions be answered without reading the facts?",
    "precondition",
    run_data,
    core=True,
    gate=True,
)
UNTRAINED = Row(
    "C4",
    "Untrained model",
    "Does a model that never learned fail, as it must?",
    "precondition",
    run_untrained,
    gate=True,
)
