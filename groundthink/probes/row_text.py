"""N1: what the memory is worth in natural text, in nats: a fresh start c > R tokens back against the whole prefix.

Whatever has no memory sees the same either way, so it gets exactly 0. Tokens that complete a bigram seen before, but
beyond the horizon, are counted apart: there only a memory can help.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from groundthink.probes.bench import Bench, Point
from groundthink.probes.face import Model, device_of, mode, read_on
from groundthink.probes.language import paired_bootstrap
from groundthink.probes.prefilled import block_shape
from groundthink.probes.row import Row, not_run
from groundthink.probes.row_leak import nats
from groundthink.records import ProbeResult
from groundthink.tasks import ar_hit_buckets

SCORED = 32  # tokens after each place
PLACES = 4  # in each document
LONGEST = 2048  # tokens of a document that are read
MOST_DOCUMENTS = 64


def run_text(bench: Bench, point: Point | None) -> Iterator[ProbeResult]:
    """Nats a token, over documents in pairs; all tokens, and recalls beyond the horizon."""
    if not bench.text:
        yield not_run("text", "no text")
        return
    fresh = bench.horizon + 1
    least = PLACES * (fresh + SCORED)
    documents = [d for d in bench.text if len(d) >= least][:MOST_DOCUMENTS]
    if len(documents) < 2:
        yield not_run("text", f"fewer than two documents of at least {least} tokens")
        return
    length = min(LONGEST, *(len(d) for d in documents))
    ids = torch.stack([d[:length] for d in documents])
    places = [length * (i + 1) // PLACES - SCORED - 1 for i in range(PLACES)]
    gain = gains(bench.model, ids, places, fresh)
    scored = np.concatenate([np.arange(p + 1, p + 1 + SCORED) for p in places])
    recalls = np.stack([_beyond(row.numpy(), bench, scored) for row in ids])
    yield _row(bench, "text/all", gain, np.ones_like(recalls), "all tokens", length)
    yield _row(bench, "text/recalls", gain, recalls, f"tokens seen before, more than {bench.horizon} back", length)


def gains(model: Model, ids: Tensor, places: list[int], fresh: int) -> Tensor:
    """NLL after a fresh start `fresh` tokens before each scored token's place less NLL after the whole, [B,n] nats."""
    rows, segment = block_shape(model, ids.shape[1])
    found = []
    with mode(model, training=False), torch.no_grad():
        for part in ids.to(device_of(model)).split(rows):
            whole, short, snapshot, at = [], [], None, 0
            for place in places:
                for piece in part[:, at:place].split(segment, 1):
                    snapshot = read_on(model, piece, snapshot)[1]
                span, targets = part[:, place : place + SCORED], part[:, place + 1 : place + 1 + SCORED]
                assert snapshot is not None
                logits, snapshot = model.resume(snapshot, span)
                whole.append(nats(logits, targets))
                alone = model.prefill(part[:, place - fresh : place + SCORED])[0]
                short.append(nats(alone[:, -SCORED:], targets))
                at = place + SCORED
            found.append(torch.cat(short, 1) - torch.cat(whole, 1))
    return torch.cat(found)


def _beyond(tokens: np.ndarray, bench: Bench, scored: np.ndarray) -> np.ndarray:
    """Which scored tokens complete a bigram whose last occurrence lies beyond the horizon."""
    window = min(bench.model.sizes.window_size, bench.horizon + 1)
    found = ar_hit_buckets(tokens, np.zeros_like(tokens), window=max(1, window), reach=bench.horizon)["beyond"]
    return np.isin(scored, found)


def _row(bench: Bench, name: str, gain: Tensor, chosen: np.ndarray, who: str, length: int) -> ProbeResult:
    mask = torch.from_numpy(chosen.astype(bool))
    counts = mask.sum(1)
    use = counts > 0
    if int(use.sum()) < 2:
        return not_run(name, f"fewer than two documents have {who}")
    means = ((gain * mask).sum(1)[use] / counts[use]).tolist()
    weights = counts[use].double().tolist()
    mean, low, high = paired_bootstrap(means, [0.0] * len(means), weights=weights, seed=bench.seed_of(name))
    return ProbeResult(
        name, mean, "pass" if low > 0 else "fail",
        f"In text, what lies more than {bench.horizon + 1} tokens back is worth {mean:+.4f} nats a token for {who}"
        f" (95 % interval {low:+.4f} to {high:+.4f}, {int(use.sum())} documents).",
        low=low, high=high, n=int(use.sum()), threshold=0.0,
        details={"tokens": int(counts.sum()), "length": length, "fresh_start": bench.horizon + 1},
    )  # fmt: skip


TEXT = Row("N1", "Worth in text", "Does the memory help with natural text?", "text", run_text)
