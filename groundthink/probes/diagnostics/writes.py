"""D7 to D10: what many writes cost, what fits, what a second identical write does, and what one write gives back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from groundthink.model import Snapshot
from groundthink.probes import drawn
from groundthink.probes.bench import Bench, Point, random_tokens
from groundthink.probes.face import Model, device_of, mode
from groundthink.probes.heard import BETA, KEYS, LOG_DECAY, QUERIES, VALUES, heard, of_value_heads
from groundthink.probes.intervention import MEMORY
from groundthink.probes.mechanics import (
    error_curve,
    expected_similarity,
    orthonormal_keys,
    random_keys,
    write_all,
    write_sizes,
)
from groundthink.probes.recall import RECALL, ask, recall
from groundthink.probes.row import Row, not_run
from groundthink.probes.statistics import mean_interval
from groundthink.records import ProbeResult, Proportion

TRIALS = 8  # memories that are filled by random keys
EXACT = 1e-5  # float32 sums over K terms, with room for ten times their rounding
NOTHING = 1e-6  # change of a memory that counts as none: rounding of float32
USELESS = 0.5  # relative error from which less than half of a value comes back
LEAST = 40  # questions of a cell: 40 of 40 have a lower bound above 0.90
COPIES = 16


def run_interference(bench: Bench, point: Point | None) -> Iterator[ProbeResult]:
    """Recall of the first pair against how many pairs are written after it."""
    v, n = bench.task.vocabulary, max(LEAST, bench.n // 8)
    most = min(len(v.keys), len(v.values), 4 * bench.task.n_pairs)
    counts = sorted({1 << i for i in range(most.bit_length()) if 1 << i <= most} | {bench.task.n_pairs})
    found: dict[int, Proportion] = {}
    for count in counts:
        task = bench.task.with_options(n_pairs=count, distance=f"fixed:{max(2, bench.horizon + 1)}")
        questions = ask(task, n=n, seed=bench.seed_of(f"writes {count}"), accept=lambda q: q.revealed_at == 2)
        found[count] = recall(bench.model, questions).right
        bench.progress("interference")
    share = found[bench.task.n_pairs]
    x = {count: p.rate for count, p in found.items()}
    line = drawn.series(
        "first pair", x, low={c: p.low for c, p in found.items()}, high={c: p.high for c, p in found.items()}
    )
    yield ProbeResult(
        "interference", share.rate, "pass" if share.low >= RECALL else "fail",
        "Of the first pair it recalls " + ", ".join(f"{p.rate:.2f} of {c} written" for c, p in found.items()) + ".",
        low=share.low, high=share.high, n=share.n, chance=1 / bench.task.n_pairs, threshold=RECALL,
        details={"points": {str(c): p.as_dict() for c, p in found.items()}, "pictures": [drawn.lines(
            [line], title="Interference: recall of the first pair", x_label="pairs written (doubling scale)",
            y_label="share of right answers", log_x=True, y_limits=(-0.03, 1.05))]},
    )  # fmt: skip


def run_capacity(bench: Bench, point: Point | None) -> Iterator[ProbeResult]:
    """Error of what comes back against the number of writes: orthogonal keys, random keys, the model's own."""
    shape = _memory_shape(bench.model)
    if shape is None:
        yield not_run("memory_capacity", "no layer carries a memory that is a matrix")
        return
    size, width, form = shape
    generator = torch.Generator().manual_seed(bench.seed_of("capacity"))
    counts = sorted({max(1, size // 8), max(1, size // 4), max(1, size // 2), size, 2 * size})
    values = torch.randn(TRIALS, counts[-1], width, generator=generator)
    straight = orthonormal_keys(TRIALS, size, size, generator=generator)
    curves = {
        "orthogonal keys": error_curve(straight, values, [c for c in counts if c <= size], error=form),
        "random keys": error_curve(
            random_keys(TRIALS, counts[-1], size, generator=generator), values, counts, error=form
        ),
    }
    own = own_keys(bench, max(counts[-1], bench.task.n_pairs))
    if own is not None:
        own_values = torch.randn(*own.shape[:2], width, generator=generator)
        curves["the model's own keys"] = error_curve(
            own,
            own_values,
            sorted(c for c in {*counts, bench.task.n_pairs, own.shape[1]} if c <= own.shape[1]),
            error=form,
        )
    picture = _errors_picture(curves)
    worst = float(curves["orthogonal keys"][size].max())
    yield ProbeResult(
        "memory_capacity/orthogonal", worst, "pass" if worst < EXACT else "fail",
        f"{size} values under orthogonal keys of {size} dimensions come back with a relative error of at most"
        f" {worst:.1e}.",
        n=TRIALS * size, chance=1.0, threshold=EXACT, details={"pictures": [picture]},
    )  # fmt: skip
    for name, label in (("random", "random keys"), ("own", "the model's own keys")):
        if label in curves:
            yield _capacity(name, label, curves[label], size if name == "random" else bench.task.n_pairs)


def _capacity(name: str, label: str, curve: dict[int, Tensor], asked: int) -> ProbeResult:
    """The mean error at the largest count that is not above `asked`; random keys are there to compare with."""
    count = max((c for c in curve if c <= asked), default=min(curve))
    mean, low, high = mean_interval(curve[count].mean(1).tolist())
    fits = [c for c, e in curve.items() if float(e.mean()) <= USELESS]
    verdict = "info" if name == "random" else "pass" if high < USELESS else "fail"
    return ProbeResult(
        f"memory_capacity/{name}", mean, verdict,
        f"Of {count} values under {label} the error is {mean:.3f} of their size; up to {max(fits, default=0)} come back"
        " with less than half lost.",
        low=low, high=high, n=curve[count].numel(), chance=1.0, threshold=USELESS,
        details={"error": {str(c): float(e.mean()) for c, e in curve.items()},
                 "of_the_first": {str(c): float(e[:, 0].mean()) for c, e in curve.items()}},
    )  # fmt: skip


def _errors_picture(curves: dict[str, dict[int, Tensor]]) -> dict[str, Any]:
    found = []
    for name, curve in curves.items():
        found.append(drawn.series(name, {c: min(2.0, float(e.mean())) for c, e in curve.items()}))
        if name != "orthogonal keys":
            found.append(
                drawn.series(f"{name}, first pair", {c: min(2.0, float(e[:, 0].mean())) for c, e in curve.items()})
            )
    return drawn.lines(
        found, title="Capacity of one memory: error of what comes back", x_label="values written (doubling scale)",
        y_label="relative error (1: nothing comes back)", log_x=True,
    )  # fmt: skip


def own_keys(bench: Bench, most: int) -> Tensor | None:
    """Keys [layers x heads, n, K] under which one episode of up to `most` pairs is written; None if none are shown."""
    v = bench.task.vocabulary
    count = min(most, len(v.keys), len(v.values))
    task = bench.task.with_options(n_pairs=count, distance="fixed:2")
    prompts = ask(task, n=1, seed=bench.seed_of("own keys")).prompts
    places = torch.arange(count) * 2 + 2
    found = [x[KEYS][0, places].transpose(0, 1) for x in heard(bench.model, prompts, (KEYS,)).values()]
    return torch.nn.functional.normalize(torch.cat(found), dim=-1) if found else None


def run_redundancy(bench: Bench, point: Point | None) -> Iterator[ProbeResult]:
    """A second identical write: into the bare memory nothing; by each layer less than the first."""
    shape = _memory_shape(bench.model)
    if shape is None:
        yield not_run("redundancy", "no layer carries a memory that is a matrix")
        return
    size, width, form = shape
    generator = torch.Generator().manual_seed(bench.seed_of("redundancy"))
    key = random_keys(TRIALS, 1, size, generator=generator)
    value = torch.randn(TRIALS, 1, width, generator=generator)
    once = write_all(key, value, error=form)
    twice = write_all(key.repeat(1, 2, 1), value.repeat(1, 2, 1), error=form)
    change = float((twice - once).norm() / once.norm())
    yield ProbeResult(
        "redundancy/memory", change, "pass" if change < NOTHING else "fail",
        f"A second identical write with beta 1 changes the memory by {change:.1e} of itself.",
        n=TRIALS, chance=1.0, threshold=NOTHING,
    )  # fmt: skip
    tokens, first, second = repeated_pairs(bench)
    parts = heard(bench.model, tokens, (KEYS, VALUES, BETA, LOG_DECAY))
    for layer, x in parts.items():
        heads = x[BETA].shape[-1]
        sizes = write_sizes(of_value_heads(x[KEYS], heads), x[VALUES], log_decay=x[LOG_DECAY], beta=x[BETA], error=form)
        ratio = sizes[:, second] / sizes[:, first].clamp_min(1e-30)  # [B,H]
        mean, low, high = mean_interval(ratio.mean(1).tolist())
        cells = ratio.mean(0).tolist()
        yield ProbeResult(
            f"redundancy/layer{layer}", mean, "pass" if high < 1 else "fail",
            f"A pair that is said again is written {mean:.3f} times as strongly as the first time; without error"
            " correction it would be 1.",
            low=low, high=high, n=len(tokens), chance=1.0, threshold=1.0,
            details={"heads": cells, "pictures": [drawn.grid(
                [cells], [f"layer {layer}"], [str(h) for h in range(heads)], limits=(0.0, 1.0),
                title=f"Second write against the first, layer {layer}", x_label="head", y_label="")]},
        )  # fmt: skip


def repeated_pairs(bench: Bench) -> tuple[Tensor, int, int]:
    """Texts [n,T] that say one pair twice behind the same filler, and the indices of both values."""
    v, lead = bench.task.vocabulary, 8  # more than any usual convolution sees
    generator = torch.Generator().manual_seed(bench.seed_of("repeated pairs"))

    def some(ids: range, length: int) -> Tensor:
        return torch.randint(ids.start, ids.stop, (COPIES, length), generator=generator)

    said = torch.cat([some(v.filler, lead), some(v.keys, 1), some(v.values, 1)], 1)
    tokens = torch.cat([torch.full((COPIES, 1), v.bos), said, said], 1)
    return tokens, lead + 2, 2 * (lead + 2)


def run_self_retrieval(bench: Bench, point: Point | None) -> Iterator[ProbeResult]:
    """A text of one token: does its own key give back its value, and does the layer ask with that key?"""
    tokens = random_tokens(bench, "self retrieval", COPIES, 1)
    parts = heard(bench.model, tokens, (KEYS, VALUES, BETA))
    if not parts:
        yield not_run("self_retrieval", "the model shows no keys and values")
        return
    with mode(bench.model, training=False), torch.no_grad():
        snapshot: Snapshot = bench.model.prefill(tokens.to(device_of(bench.model)))[1]
    asked = heard(bench.model, tokens, (KEYS, QUERIES))
    for layer, x in parts.items():
        memory = snapshot.layers[layer][MEMORY[0]].double().cpu()
        keys = of_value_heads(x[KEYS][:, 0], memory.shape[1]).double()
        read, value = torch.einsum("bhkv,bhk->bhv", memory, keys), x[VALUES][:, 0].double()
        cos = torch.cosine_similarity(read, value, dim=-1).flatten()
        size = (read.norm(dim=-1) / value.norm(dim=-1).clamp_min(1e-30)).mean(0).tolist()
        least = float(cos.min())
        yield ProbeResult(
            f"self_retrieval/layer{layer}", least, "pass" if least >= 1 - EXACT else "fail",
            f"Asked with its own key, one token's value comes back with a cosine of at least {least:.6f} and"
            f" {sum(size) / len(size):.3f} of its size, which is what beta let in.",
            n=len(cos), chance=0.0, threshold=1 - EXACT, details={"size": size},
        )  # fmt: skip
        if layer in asked:
            yield _alignment(layer, asked[layer][KEYS][:, 0], asked[layer][QUERIES][:, 0])


def _alignment(layer: int, keys: Tensor, queries: Tensor) -> ProbeResult:
    heads = max(keys.shape[1], queries.shape[1])
    cos = torch.cosine_similarity(of_value_heads(keys, heads).double(), of_value_heads(queries, heads).double(), dim=-1)
    mean, low, high = mean_interval(cos.abs().mean(1).tolist())
    return ProbeResult(
        f"self_retrieval/query{layer}", mean, "info",
        f"A token's own query and key have a mean |cosine| of {mean:.3f} in layer {layer}.",
        low=low, high=high, n=len(cos), chance=expected_similarity(keys.shape[-1]),
        details={"pictures": [drawn.grid(
            [cos.mean(0).tolist()], [f"layer {layer}"], [str(h) for h in range(heads)], limits=(-1.0, 1.0),
            title=f"Cosine of a token's query and its key, layer {layer}", x_label="head", y_label="")]},
    )  # fmt: skip


def _memory_shape(model: Model) -> tuple[int, int, Any] | None:
    """K, V and form of the first memory that is a matrix; None without one."""
    with mode(model, training=False), torch.no_grad():
        snapshot = model.prefill(torch.zeros(1, 1, dtype=torch.int64, device=device_of(model)))[1]
    for layer, state in enumerate(snapshot.layers):
        memory = state.get(MEMORY[0])
        if memory is not None and memory.dim() == 4:
            blocks: Any = getattr(model, "blocks", None)
            config = getattr(getattr(blocks[layer], "mixer", None), "config", None) if blocks is not None else None
            return int(memory.shape[2]), int(memory.shape[3]), getattr(config, "error", "decayed")
    return None


INTERFERENCE = Row("D7", "Interference", "Is the first pair still there after many others?", "diagnostic",
                   run_interference)  # fmt: skip
CAPACITY = Row("D8", "Capacity", "How many values does one memory hold, by kind of key?", "diagnostic", run_capacity)
REDUNDANCY = Row("D9", "Redundancy", "Does a second identical write change nothing?", "diagnostic", run_redundancy)
SELF_RETRIEVAL = Row("D10", "Self-retrieval", "Does one write give back its own value?", "diagnostic",
                     run_self_retrieval)  # fmt: skip
