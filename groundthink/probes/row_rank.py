"""K8: how much of the memory is used? Fewer singular values, fewer bits."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from groundthink.errors import StateError
from groundthink.probes.bench import Bench, Point
from groundthink.probes.edits import low_rank, spectrum
from groundthink.probes.intervention import MEMORY
from groundthink.probes.interventions import Quantise
from groundthink.probes.prefilled import Block, Prefilled
from groundthink.probes.row import Row, not_run
from groundthink.records import ProbeResult, Proportion

BITS = (8, 6, 4, 3, 2)
KEPT = 0.90  # share of the accuracy that counts as kept


def effective_rank(memory: Tensor) -> Tensor:
    """exp of the entropy of the singular values' shares, for each [...,K,V]; 0 where there is no memory."""
    return spread(torch.linalg.svdvals(memory.double()))


def spread(values: Tensor) -> Tensor:
    """exp of the entropy of the shares of singular values [...,N]; 0 where all are."""
    total = values.sum(-1, keepdim=True)
    share = torch.where(total > 0, values / total, 0.0)
    entropy = -torch.special.xlogy(share, share).sum(-1)
    return torch.where(total[..., 0] > 0, entropy.exp(), 0.0)


def run_rank(bench: Bench, point: Point | None) -> Iterator[ProbeResult]:
    """Accuracy by rank and by bits on a quarter of the episodes, and the effective rank of every head."""
    prefilled = bench.prefilled(bench.shortest)
    layers = prefilled.layers()
    if not layers:
        yield not_run("rank", "no layer carries a memory")
        return
    n = max(1, min(len(prefilled), bench.n // 4))

    def shape(block: Block) -> list[int]:
        return [min(x.shape[-2:]) if x.dim() == 4 else 0 for x in (block.mine.layers[i][MEMORY[0]] for i in layers)]

    full = min(prefilled.map(shape, 1)[0])
    base = prefilled.share(prefilled.base()[:n], prefilled.questions.answers)
    if full > 1:
        yield _ranks(bench, prefilled, layers, full, base, n)
    else:
        yield not_run("rank", "the memory is no matrix")
    bits = {b: _share(prefilled, f"bits {b}", Quantise(bits=b), n) for b in BITS}
    enough = [b for b, share in bits.items() if share.rate >= KEPT * base.rate]
    least = f"{min(enough)} bits are enough" if enough else "none of them is enough"
    yield ProbeResult(
        f"bits@{bench.shortest.name}", float(min(enough, default=0)), "info",
        "Rounded to fewer bits, the memory answers right in "
        + ", ".join(f"{share.rate:.2f} at {b}" for b, share in bits.items())
        + f"; {least} for {100 * KEPT:.0f} % of the recall.",
        n=n, details={"bits": {str(b): share.as_dict() for b, share in bits.items()}},
    )  # fmt: skip


def _ranks(
    bench: Bench, prefilled: Prefilled, layers: tuple[int, ...], full: int, base: Proportion, n: int
) -> ProbeResult:
    ranks = [1 << i for i in range(full.bit_length()) if 1 << i < full]
    spectra = prefilled.map(lambda b: {i: spectrum(b.mine.layers[i][MEMORY[0]]) for i in layers}, n)
    by_block = dict(zip((block.rows.start for block in prefilled.blocks), spectra, strict=False))

    def cut(block: Block, rank: int) -> Tensor:
        snapshot = block.mine
        for layer, parts in by_block[block.rows.start].items():
            snapshot = snapshot.replace(layer, **{MEMORY[0]: low_rank(snapshot.layers[layer][MEMORY[0]], rank, parts)})
        return block.said(snapshot)

    found = {
        r: prefilled.share(prefilled.said(f"rank {r}", lambda b, r=r: cut(b, r), n=n), prefilled.questions.answers)  # type: ignore[misc]
        for r in ranks
    }
    enough = [r for r, share in found.items() if share.rate >= KEPT * base.rate]
    effective = {str(layer): spread(values).mean(0).tolist() for layer, (_, values, _) in spectra[0].items()}
    least = min(enough, default=full)
    return ProbeResult(
        f"rank@{bench.shortest.name}", float(least), "info",
        f"{least} of {full} singular values of each memory are enough for {100 * KEPT:.0f} % of the recall: "
        + ", ".join(f"{share.rate:.2f} at {r}" for r, share in found.items()) + ".",
        n=n,
        details={"ranks": {str(r): share.as_dict() for r, share in found.items()}, "effective_rank": effective},
    )  # fmt: skip


def _share(prefilled: Prefilled, name: str, change: Quantise, n: int) -> Proportion:
    def arm(block: Block) -> Tensor:
        try:
            return block.said(change(block.mine))
        except StateError:  # the memory has no more than that anyway, so nothing would change
            return block.said(block.mine)

    said = prefilled.said(name, arm, n=n)
    return prefilled.share(said, prefilled.questions.answers)


RANK = Row("K8", "How much is used", "How much of the memory does it take?", "causal", run_rank)
