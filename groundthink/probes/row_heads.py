"""K7: which heads carry it? Chosen on one half of the episodes, scored on the other, against random sets of heads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from groundthink.probes.bench import Bench, Point
from groundthink.probes.intervention import MEMORY
from groundthink.probes.interventions import Transplant
from groundthink.probes.prefilled import Block, Prefilled
from groundthink.probes.row import Row, not_run
from groundthink.records import ProbeResult

MOST_PIECES = 32  # above that, whole layers instead of heads
REACH = 0.90  # share of what the whole memory does
RANDOM_SETS = 19  # enough for a p of 0.05
Piece = tuple[int, int | None]  # layer and head; None for all heads of the layer


def pieces_of(prefilled: Prefilled) -> list[Piece]:
    """Heads of every layer that carries a memory, or the layers if there are too many."""

    def shapes(block: Block) -> list[tuple[int, int]]:
        found = []
        for layer, carried in enumerate(block.mine.layers):
            if MEMORY[0] in carried:
                memory = carried[MEMORY[0]]
                found.append((layer, memory.shape[1] if memory.dim() == 4 else 1))
        return found

    (layers,) = prefilled.map(shapes, 1)
    if sum(heads for _, heads in layers) > MOST_PIECES or any(heads == 1 for _, heads in layers):
        return [(layer, None) for layer, _ in layers]
    return [(layer, head) for layer, heads in layers for head in range(heads)]


def followed(prefilled: Prefilled, pieces: Sequence[Piece], kind: str) -> Tensor:
    """Whether each answer [n] is the donor's where only these pieces are donated, bool."""

    def arm(block: Block) -> Tensor:
        snapshot = block.mine
        for layer in sorted({layer for layer, _ in pieces}):
            heads = [head for where, head in pieces if where == layer and head is not None]
            swap = Transplant(layers=(layer,), heads=tuple(heads) if heads else None)
            snapshot = swap(snapshot, block.snapshot(kind))
        return block.said(snapshot)

    name = f"pieces {sorted(pieces, key=str)} {kind}"
    return prefilled.said(name, arm) == prefilled.donors(kind).answers


def run_heads(bench: Bench, point: Point | None) -> Iterator[ProbeResult]:
    """The smallest set, added in the order in which single pieces follow, that reaches 90 % of the whole memory."""
    prefilled, kind = bench.prefilled(bench.shortest), "values"
    if not prefilled.layers():
        yield not_run("heads", "no layer carries a memory")
        return
    pieces = pieces_of(prefilled)
    half = len(prefilled) // 2
    if len(pieces) < 2 or not half:
        yield not_run("heads", f"there is {len(pieces)} piece of memory, so there is nothing to tell apart")
        return
    single = {piece: followed(prefilled, [piece], kind) for piece in pieces}
    order = sorted(pieces, key=lambda piece: (-float(single[piece][:half].double().mean()), str(piece)))

    def score(chosen: Sequence[Piece]) -> float:
        return float(followed(prefilled, chosen, kind)[half:].double().mean())

    whole = score(pieces)
    size = next((k for k in range(1, len(order)) if score(order[:k]) >= REACH * whole), len(order))
    chosen = order[:size]
    generator = torch.Generator().manual_seed(bench.seed_of("heads"))
    draws = {
        tuple(sorted(torch.randperm(len(pieces), generator=generator)[:size].tolist())) for _ in range(4 * RANDOM_SETS)
    }
    others = [[pieces[i] for i in draw] for draw in sorted(draws)]
    controls = [score(other) for other in others if set(other) != set(chosen)][:RANDOM_SETS]
    reached = score(chosen)
    p = (1 + sum(value >= reached for value in controls)) / (1 + len(controls))
    without = {piece: score([other for other in pieces if other != piece]) for piece in pieces}
    best = max(controls, default=0.0)
    yield ProbeResult(
        f"heads@{bench.shortest.name}", float(size), "info",
        f"{size} of {len(pieces)} {'heads' if pieces[0][1] is not None else 'layers'} carry {100 * REACH:.0f} % of what"
        f" the whole memory does (follow {reached:.3f} of {whole:.3f}; the best of {len(controls)} other sets of that"
        f" size {best:.3f}).",
        n=len(prefilled) - half,
        details={
            "chosen": [list(piece) for piece in chosen], "p": p, "random": controls,
            "alone": {str(piece): float(single[piece][half:].double().mean()) for piece in pieces},
            "left_out": {str(piece): value for piece, value in without.items()},
        },
    )  # fmt: skip


HEADS = Row("K7", "Which heads", "Which parts of the memory carry the answer?", "causal", run_heads)
