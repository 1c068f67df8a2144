"""D11 to D14: needles by depth and length, confusion between needles, state against window, rank of the answer."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from groundthink.probes import drawn
from groundthink.probes.bench import Bench, Point
from groundthink.probes.curves import needle_map
from groundthink.probes.cuts import OWN_READ, S_READ, cut_own_reads, cut_reads, hooked, layers_with
from groundthink.probes.face import Model, device_of, mode
from groundthink.probes.recall import RECALL, Questions, answers_of, rows_per_pass
from groundthink.probes.row import Row, not_run
from groundthink.probes.row_distance import LOCAL
from groundthink.probes.statistics import mean_interval
from groundthink.probes.transplant import KEEP
from groundthink.records import ProbeResult, Proportion

DEPTHS, GROWTH = (0.0, 0.25, 0.5, 0.75, 1.0), (1, 2, 4)
CONFUSED = 0.05  # share of the stored values said that may be another needle's
ROWS = 200  # questions of which the whole distribution is looked at


def run_needles(bench: Bench, point: Point | None) -> Iterator[ProbeResult]:
    """Recall of one needle in text at every depth, up to four times the length of the task."""
    if bench.needle is None:
        yield not_run("needle_grid", "there are no needles to hide in text")
        return
    task, n = bench.needle.with_options(n_queries=1), max(1, bench.n // 16)
    lengths = [task.length * growth for growth in GROWTH]
    found = needle_map(bench.model, task, depths=DEPTHS, lengths=lengths, n=n, seed=bench.seed)
    cells = {(d, size): rate for d, row in zip(DEPTHS, found["rates"], strict=True)
             for size, rate in zip(lengths, row, strict=True)}  # fmt: skip
    whole = Proportion(round(sum(cells.values()) * n), len(cells) * n)
    (depth, length), least = min(cells.items(), key=lambda item: item[1])
    yield ProbeResult(
        "needle_grid", whole.rate, "pass" if whole.low >= RECALL else "fail",
        f"Over all depths and lengths it finds {whole.rate:.3f} of the needles; fewest at {100 * depth:.0f} % of"
        f" {length} tokens, {least:.3f}.",
        low=whole.low, high=whole.high, n=whole.n, chance=found["chance"], threshold=RECALL,
        details={**found, "pictures": [drawn.grid(
            found["rates"], [f"{100 * d:.0f} %" for d in DEPTHS], [str(size) for size in lengths], limits=(0.0, 1.0),
            title="Needle by depth and length", x_label="length of the text (tokens)",
            y_label="where the needle lies")]},
    )  # fmt: skip


def run_confusion(bench: Bench, point: Point | None) -> Iterator[ProbeResult]:
    """Whose value is said where another's was asked for: by the asked pair's place and the said one's."""
    questions = bench.asked(bench.points[1])
    matrix = confusion(bench.said(bench.points[1]), questions)
    n, pairs = int(matrix.sum()), len(matrix)
    right, named = int(matrix[:, :pairs].diagonal().sum()), int(matrix[:, :pairs].sum())
    share = Proportion(named - right, named)  # of the answers that name any stored value; without one it is NaN
    asked = matrix.sum(1, keepdim=True)
    rates = torch.where(asked > 0, matrix / asked.clamp_min(1), math.nan)
    yield ProbeResult(
        "needle_confusion", share.rate, "pass" if share.high <= CONFUSED else "fail",
        f"{named} of {n} answers name a stored value; {named - right} of them another one's than the asked one's.",
        low=share.low, high=share.high, n=named, chance=(pairs - 1) / pairs, threshold=CONFUSED,
        details={"matrix": matrix.tolist(), "pictures": [drawn.grid(
            rates.tolist(), [str(i + 1) for i in range(pairs)], [*(str(i + 1) for i in range(pairs)), "none"],
            limits=(0.0, 1.0), title="Confusion between needles", x_label="place of the pair whose value is said",
            y_label="place of the asked pair")]},
    )  # fmt: skip


def confusion(said: Tensor, questions: Questions) -> Tensor:
    """Counts [N,N+1] int64 by the place of the asked pair and of the pair whose value is said; last: of none."""
    pairs = questions.stored.shape[1]
    matrix = torch.zeros(pairs, pairs + 1, dtype=torch.int64)
    asked = (questions.stored == questions.answers[:, None]).int().argmax(1)
    is_stored = said[:, None] == questions.stored
    place = torch.where(is_stored.any(1), is_stored.int().argmax(1), pairs)
    matrix.index_put_((asked, place), torch.ones(len(said), dtype=torch.int64), accumulate=True)
    return matrix


@contextlib.contextmanager
def _state_cut(model: Model) -> Iterator[None]:
    with cut_reads(model), cut_own_reads(model):
        yield


@contextlib.contextmanager
def _window_cut(model: Model) -> Iterator[None]:
    with hooked(model, LOCAL, layers_with(model, LOCAL), lambda _layer, output: torch.zeros_like(output)):
        yield


def run_state_window(bench: Bench, point: Point | None) -> Iterator[ProbeResult]:
    """Near and far pairs with everything, without reads of any memory, without windows."""
    reads = layers_with(bench.model, S_READ) + layers_with(bench.model, OWN_READ)
    if not reads or not layers_with(bench.model, LOCAL):
        yield not_run("state_window", "the model has no reads or no window that can be cut")
        return
    where = {"inside the window": bench.near, f"at {bench.points[1].name}": bench.asked(bench.points[1])}
    arms: dict[str, contextlib.AbstractContextManager[None]] = {
        "whole": contextlib.nullcontext(), "state cut": _state_cut(bench.model),
        "window cut": _window_cut(bench.model),
    }  # fmt: skip
    found: dict[str, dict[str, Proportion]] = {}
    for arm, cut in arms.items():
        with cut:
            found[arm] = {
                name: Proportion(int((answers_of(bench.model, q.prompts) == q.answers).sum()), len(q))
                for name, q in where.items()
            }
        bench.progress("state against window")
    far = list(where)[1]
    panels = {arm: {name: {"right": p.rate} for name, p in row.items()} for arm, row in found.items()}
    details = {arm: {name: p.as_dict() for name, p in row.items()} for arm, row in found.items()}
    chance, whole = bench.asked(bench.points[1]).chance["in_context"], found["whole"][far]
    state, window = found["state cut"][far], found["window cut"][far]
    yield ProbeResult(
        "state_window/state", state.rate, "pass" if state.high <= chance + KEEP < whole.low else "fail",
        f"Far pairs: {whole.rate:.3f} right, {state.rate:.3f} without reads of the memory.",
        low=state.low, high=state.high, n=state.n, chance=chance, threshold=chance + KEEP,
        details={**details, "pictures": [drawn.dots(panels, title="State against window")]},
    )  # fmt: skip
    yield ProbeResult(
        "state_window/window", window.rate, "info",
        f"Far pairs: {whole.rate:.3f} right, {window.rate:.3f} without the windows.",
        low=window.low, high=window.high, n=window.n, chance=chance, details=details,
    )  # fmt: skip


def run_answer_rank(bench: Bench, point: Point | None) -> Iterator[ProbeResult]:
    """At each distance: the answer's rank among all tokens, and its probability against that of a random one."""
    ranks: dict[int, float] = {}
    ratios: dict[int, float] = {}
    results = []
    for p in (p for p in bench.points if p.kind == "filler"):
        questions = bench.asked(p)
        rank, ratio = answer_ranks(bench.model, questions, seed=bench.seed_of(f"random token {p.name}"))
        guess = (bench.model.sizes.vocab_size + 1) / 2
        middle, low, high = median_interval(rank.tolist())
        distance = int(questions.distances.float().median())
        ranks[distance] = middle
        results.append(ProbeResult(
            f"answer_rank/rank@{p.name}", middle, "pass" if high < guess else "fail",
            f"Of {bench.model.sizes.vocab_size} tokens the answer is number {middle:g} (median).",
            low=low, high=high, n=len(rank), chance=guess, threshold=guess,
        ))  # fmt: skip
        mean, low, high = mean_interval(ratio.tolist())
        ratios[distance] = mean
        results.append(ProbeResult(
            f"answer_rank/ratio@{p.name}", mean, "pass" if low > 0 else "fail",
            f"The answer is {10.0 ** min(mean, 300):.3g} times as likely as a random token (10 to the {mean:.2f}).",
            low=low, high=high, n=len(ratio), chance=0.0, threshold=0.0,
        ))  # fmt: skip
    labels = (("Rank of the answer", "median rank (1: first)", ranks, (bench.model.sizes.vocab_size + 1) / 2),
              ("Answer against a random token", "log10 of the ratio", ratios, 0.0))  # fmt: skip
    pictures = [
        drawn.lines([drawn.series("model", points)], title=title, x_label="distance (tokens, doubling scale)",
                    y_label=label, log_x=True, chance=chance) for title, label, points, chance in labels
    ]  # fmt: skip
    for i, result in enumerate(results):
        if i == 0:
            result.details["pictures"] = pictures
        yield result


@torch.no_grad()
def answer_ranks(model: Model, questions: Questions, *, seed: int) -> tuple[Tensor, Tensor]:
    """Rank [n] of each answer (1: first; equals share theirs) and log10 P(answer) / P(some other token) [n]."""
    generator = torch.Generator().manual_seed(seed)
    prompts, answers = questions.prompts[:ROWS], questions.answers[:ROWS]
    parts = []
    with mode(model, training=False):
        for rows in prompts.split(rows_per_pass(model, prompts.shape[1])):
            parts.append(model.prefill(rows.to(device_of(model)))[0][:, -1].float().cpu())
    logits = torch.cat(parts)
    size = logits.shape[1]
    others = (answers + torch.randint(1, size, answers.shape, generator=generator)) % size
    mine = logits.gather(1, answers[:, None])
    rank = 1 + (logits > mine).sum(1) + ((logits == mine).sum(1) - 1) / 2
    ratio = (mine - logits.gather(1, others[:, None]))[:, 0] / math.log(10)
    return rank.double(), ratio.double()


def median_interval(values: list[float]) -> tuple[float, float, float]:
    """The median with its 95 % interval by order statistics (normal approximation of the binomial)."""
    ordered = sorted(values)
    n = len(ordered)
    half = 0.98 * math.sqrt(n)  # 1.96 sqrt(n / 4)
    low, high = max(0, math.floor(n / 2 - half)), min(n - 1, math.ceil(n / 2 + half))
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2, ordered[low], ordered[high]


NEEDLES = Row("D11", "Needle map", "Where in a text is a needle found?", "diagnostic", run_needles)
CONFUSION = Row("D12", "Confusion", "Is one needle taken for another?", "diagnostic", run_confusion)
STATE_WINDOW = Row("D13", "State or window", "What is lost without the memory, and without the window?", "diagnostic",
                   run_state_window)  # fmt: skip
ANSWER_RANK = Row("D14", "Rank of the answer", "How far up does the answer stand among all tokens?", "diagnostic",
                  run_answer_rank)  # fmt: skip
