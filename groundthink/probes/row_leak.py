"""C0n: is a text easier when the model sees all of it at once than when it sees the prefix only, as a generator does?

The causality tests compare logits up to rounding; in 16-bit types that hides a small leak. What a leak is *for*, being
a better guess of the next token, shows in nats: at the same positions, over some 50,000 tokens, at random cuts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from groundthink.probes.bench import Bench, Point
from groundthink.probes.face import Model, device_of, mode, read_on
from groundthink.probes.recall import rows_per_pass
from groundthink.probes.row import Row
from groundthink.records import ProbeResult

MARGIN = 0.002  # nats
TOKENS = 50_000  # at n = 400; in proportion for other n
STEPS = 16  # tokens read one by one after each cut
LEAST_ROWS = 16
ONE_SIDED_95 = 1.645


def run_leak(bench: Bench, point: Point | None) -> Iterator[ProbeResult]:
    """On the episodes of the longest length, and on text where there is some."""
    wanted = max(STEPS, TOKENS * bench.n // 400)
    longest = max(bench.points, key=lambda p: p.length)
    rows = min(bench.n, max(LEAST_ROWS, -(-4 * wanted // longest.length)))
    yield _row("leak/episodes", bench, bench.asked(longest).prompts[:rows], wanted)
    text = text_rows(bench.text, longest.length, rows)
    if text is not None:
        yield _row("leak/text", bench, text, wanted)


def text_rows(documents: tuple[Tensor, ...], length: int, rows: int) -> Tensor | None:
    """Documents joined and cut into at most so many rows [B,length]; None if there are not two."""
    if not documents:
        return None
    joined = torch.cat(documents)
    found = joined[: len(joined) // length * length].view(-1, length)[:rows]
    return found if len(found) >= 2 else None


def difference(model: Model, ids: Tensor, *, wanted: int, seed: int) -> Tensor:
    """NLL from the prefix only less NLL in the whole, nats [B,n] of about `wanted` tokens in all, float64.

    Args:
        model: that reads.
        ids: [B,T] int64.
        wanted: tokens.
        seed: of the cuts.
    """
    length, device = ids.shape[1], device_of(model)
    slots = (length - 1) // STEPS
    count = max(1, min(slots, -(-wanted // (len(ids) * STEPS))))
    chosen = torch.randperm(slots, generator=torch.Generator().manual_seed(seed))[:count].sort().values * STEPS
    with mode(model, training=False), torch.no_grad():
        whole = torch.cat([
            nats(model.prefill(rows.to(device))[0][:, :-1], rows[:, 1:])
            for rows in ids.split(rows_per_pass(model, length))
        ])  # fmt: skip
        together = max(LEAST_ROWS, rows_per_pass(model, 64, last=True))  # many rows: a step costs a pass, however many
        segment = max(1, rows_per_pass(model, together, last=True))
        alone = torch.cat([
            _alone(model, rows.to(device), chosen.tolist(), segment) for rows in ids.split(together)
        ])  # fmt: skip
    at = (chosen[:, None] + torch.arange(STEPS)).flatten()
    return alone - whole[:, at]


def nats(logits: Tensor, targets: Tensor) -> Tensor:
    """-log p [B,T] of these tokens, float64, on the CPU."""
    chosen = logits.gather(-1, targets.to(logits.device)[..., None])[..., 0].double()
    return (logits.float().logsumexp(-1).double() - chosen).cpu()


def _alone(model: Model, ids: Tensor, cuts: list[int], segment: int) -> Tensor:
    """NLL [B,n] of the tokens after those at the steps behind each cut, each seen from its prefix only."""
    snapshot, at, found = None, 0, []
    for cut in cuts:
        for part in ids[:, at:cut].split(segment, 1) if cut > at else ():
            snapshot = read_on(model, part, snapshot)[1]
        for t in range(cut, cut + STEPS):
            token = ids[:, t : t + 1]
            logits, snapshot = model.prefill(token) if snapshot is None else model.resume(snapshot, token)
            found.append(nats(logits, ids[:, t + 1 : t + 2]))
        at = cut + STEPS
    return torch.cat(found, 1)


def _row(name: str, bench: Bench, ids: Tensor, wanted: int) -> ProbeResult:
    bench.progress(name)
    found = difference(bench.model, ids, wanted=wanted, seed=bench.seed_of(name))
    by_row = found.mean(1)
    mean = float(by_row.mean())
    # Tokens of one row hang together, so rows are the trials.
    error = float(by_row.std()) / math.sqrt(len(by_row)) if len(by_row) > 1 else math.inf
    low, high = mean - ONE_SIDED_95 * error, mean + ONE_SIDED_95 * error
    passed = max(abs(low), abs(high)) <= MARGIN  # NaN is no pass
    meaning = (
        f"Seen from the prefix only, the next token costs {mean:+.2g} nats against the whole {name[5:]} at once"
        f" (90 % interval {low:+.2g} to {high:+.2g}, {found.numel()} tokens of texts {ids.shape[1]} long)."
    )
    details = {"tokens": found.numel(), "rows": len(ids), "length": ids.shape[1], "level": 0.90}
    return ProbeResult(
        name, mean, "pass" if passed else "fail", meaning,
        low=low, high=high, n=found.numel(), threshold=MARGIN, details=details,
    )  # fmt: skip


LEAK = Row(
    "C0n",
    "Leak in nats",
    "Is text easier to guess when the rest of it is in view?",
    "precondition",
    run_leak,
    gate=True,
)
