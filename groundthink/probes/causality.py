"""Does any logit depend on a later token? Asked from outside (change the suffix) and from inside (gradients).

In float32 on the CPU the answer must be exactly 0: equal shapes run equal instructions, so the smallest difference is
information that flowed backwards. A control asks whether the past moves the logits; without it a constant would pass.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from groundthink.probes.face import (
    Model,
    derived_seed,
    device_of,
    exactness,
    gap,
    logits_of,
    mode,
    other_tokens,
    seeded,
    takes_documents,
    tolerance_of,
)
from groundthink.records import ProbeResult

CHUNK = 64  # the chunk length of the memory operator: its edges are where a chunked leak begins


@dataclasses.dataclass(frozen=True)
class Change:
    """How far logits moved.

    Attributes:
        leak: largest change of a logit that must not have changed.
        moved: smallest, over the positions, of the largest change among those that must change.
        where: the first position and setting that leaked; empty if none did.
        allowed: largest change that still counts as none, see `face.exactness`.
    """

    leak: float = 0.0
    moved: float = float("inf")
    where: str = ""
    allowed: float = 0.0

    def add(self, leak: float, moved: float, where: str, allowed: float) -> Change:
        """This change and one more."""
        first = self.where or (where if leak > allowed else "")
        return Change(max(self.leak, leak), min(self.moved, moved), first, max(self.allowed, allowed))

    def join(self, other: Change) -> Change:
        """Both together."""
        return self.add(other.leak, other.moved, other.where, other.allowed)

    @property
    def passed(self) -> bool:
        """Whether nothing changed that must not."""
        return self.leak <= self.allowed


def edge_positions(length: int, *, window: int, chunk: int = CHUNK) -> list[int]:
    """First changed positions p where leaks begin: round the edges of chunks, of the window and of the text."""
    candidates = {1, chunk - 1, chunk, chunk + 1, 2 * chunk, window - 1, window, window + 1, length - 1}
    return sorted(p for p in candidates if 1 <= p < length)


def shortest_text(window: int, chunk: int = CHUNK) -> int:
    """Tokens that a text needs so that every edge position lies inside it."""
    return max(2 * chunk, window + 1) + 2


def suffix_change(
    model: Model,
    ids: Tensor,
    *,
    positions: Iterable[int],
    training: bool = False,
    documents: Tensor | None = None,
    seed: int = 0,
) -> Change:
    """Change every token from p on; no logit before p may move, and some logit from p on must.

    Then change every token before p instead, and look whether logits from p on move: that is `moved` (not asked of
    packed documents, whose past is meant to be out of reach).

    Args:
        ids: [B,T] int64, B > 1.
        positions: the p, each in [1, T).
        training: probe training mode, with equal drops in every pass.
        documents: [B,T] ids of packed documents, for models that take them.
        seed: of the replaced tokens and the drops.
    """
    device, change = device_of(model), Change()
    ids = ids.to(device)

    def run(tokens: Tensor) -> Tensor:
        with seeded(derived_seed(seed, "drops"), device):
            return logits_of(model, tokens, documents)

    generator = torch.Generator().manual_seed(derived_seed(seed, "suffix", training))
    with mode(model, training=training), torch.no_grad():
        base = run(ids)
        for p in positions:
            other = other_tokens(ids, model.sizes.vocab_size, generator)
            later = run(torch.cat([ids[:, :p], other[:, p:]], 1))
            moved = float("inf")
            if documents is None:
                earlier = run(torch.cat([other[:, :p], ids[:, p:]], 1))
                moved = gap(earlier[:, p:], base[:, p:])
            where = f"p = {p}, {'training' if training else 'evaluation'} mode" + (", packed" * (documents is not None))
            change = change.add(gap(later[:, :p], base[:, :p]), moved, where, exactness(base))
    return change


def isolation(
    model: Model, ids: Tensor, *, documents: Tensor | None = None, training: bool = False, seed: int = 0
) -> Change:
    """Change one row at a time, or one document of every row; no logit of the others may move.

    Rows must be apart exactly. A document may move the rounding of the next one, because running sums of log decays
    go through the boundary and only their differences are used; so what is allowed there is the tolerance of parity.

    Args:
        ids: [B,T] int64, B > 1.
        documents: [B,T] ids of packed documents, of which one is changed at a time; None changes rows.
        training: probe training mode.
        seed: of the replaced tokens and the drops.
    """
    device, change = device_of(model), Change()
    ids = ids.to(device)
    generator = torch.Generator().manual_seed(derived_seed(seed, "isolation"))
    if documents is None:
        what, groups = "row", torch.arange(ids.shape[0], device=device)[:, None].expand_as(ids)
    else:
        what, groups = "document", documents.to(device)

    def run(tokens: Tensor) -> Tensor:
        with seeded(derived_seed(seed, "drops"), device):
            return logits_of(model, tokens, None if documents is None else groups)

    with mode(model, training=training), torch.no_grad():
        base = run(ids)
        allowed = exactness(base)
        if documents is not None:
            allowed = max(allowed, tolerance_of(base) * float(base.abs().max()))
        for group in groups.unique():
            mask = groups == group
            after = run(torch.where(mask, other_tokens(ids, model.sizes.vocab_size, generator), ids))
            where = f"{what} {int(group)}, {'training' if training else 'evaluation'} mode"
            change = change.add(gap(after[~mask], base[~mask]), gap(after[mask], base[mask]), where, allowed)
    return change


def gradient_leak(
    model: Model, ids: Tensor, *, positions: Iterable[int], training: bool = False, seed: int = 0
) -> Change | None:
    """The gradient of all logits before p, weighted at random, by the embeddings from p on: it must be 0.

    Returns:
        None for a model without `embed`, or one whose logits carry no gradient.
    """
    embed = getattr(model, "embed", None)
    if not isinstance(embed, nn.Module):
        return None
    device, change = device_of(model), Change()
    caught: list[Tensor] = []

    def catch(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        caught.append(output.detach().requires_grad_())
        return caught[-1]

    with mode(model, training=training), torch.enable_grad(), contextlib.ExitStack() as stack:
        stack.callback(embed.register_forward_hook(catch).remove)
        with seeded(derived_seed(seed, "drops"), device):
            logits = logits_of(model, ids.to(device))
        if not caught or not logits.requires_grad:
            return None
        generator = torch.Generator().manual_seed(derived_seed(seed, "gradient"))
        weights = torch.randn(tuple(logits.shape), generator=generator).to(logits)
        zeros = torch.zeros_like(caught[0])
        for p in positions:
            total = (logits[:, :p] * weights[:, :p]).sum()
            (found,) = torch.autograd.grad(total, caught[0], retain_graph=True, allow_unused=True)
            found = zeros if found is None else found
            where = f"p = {p}, {'training' if training else 'evaluation'} mode"
            leak, moved = gap(found[:, p:], zeros[:, p:]), gap(found[:, :p], zeros[:, :p])
            change = change.add(leak, moved, where, exactness(logits))
    return change


def causality(model: Model, ids: Tensor, *, seed: int = 0, positions: Iterable[int] = ()) -> tuple[ProbeResult, ...]:
    """The precondition C0: suffix change, gradient, isolation of rows and documents, and the sensitivity control.

    Args:
        ids: [B,T] int64 with B > 1, at least as long as the texts on which the model is judged.
        seed: of the replaced tokens and the drops.
    """
    positions = sorted({*edge_positions(ids.shape[1], window=model.sizes.window_size), *positions})
    packed = packed_documents(ids) if takes_documents(model) else None
    suffix, apart, between, gradient = Change(), Change(), Change(), Change()
    gradient_asked = False
    for training in (False, True) if isinstance(model, nn.Module) else (False,):
        for documents in (None, packed) if packed is not None else (None,):
            found = suffix_change(model, ids, positions=positions, training=training, documents=documents, seed=seed)
            suffix = suffix.join(found)
        apart = apart.join(isolation(model, ids, training=training, seed=seed))
        if packed is not None:
            between = between.join(isolation(model, ids, documents=packed, training=training, seed=seed))
        inside = gradient_leak(model, ids, positions=positions, training=training, seed=seed)
        gradient_asked = inside is not None
        gradient = gradient if inside is None else gradient.join(inside)
    shape = {"positions": positions, "rows": ids.shape[0], "length": ids.shape[1], "documents": packed is not None}
    rows = [_result("causality/suffix", suffix, "Changing later tokens moves earlier logits by at most", shape)]
    if gradient_asked:
        meaning = "Earlier logits depend on later embeddings with a gradient of at most"
        rows.append(_result("causality/gradient", gradient, meaning, shape))
    else:
        meaning = "Not asked: the model has no embedding to differentiate by."
        rows.append(ProbeResult("causality/gradient", 0.0, "info", meaning, details=shape))
    rows.append(_result("causality/rows", apart, "Changing one row moves the others by at most", shape))
    if packed is not None:
        meaning = "Changing one packed document moves the others by at most"
        rows.append(_result("causality/documents", between, meaning, shape))
    return (*rows, _sensitivity(suffix, shape))


def packed_documents(ids: Tensor) -> Tensor:
    """Ids of three documents a row [B,T] int32, cut at other places in every row and not at chunk edges."""
    rows, length = ids.shape
    cuts = torch.stack([torch.arange(rows) % 5 + length // 3, torch.arange(rows) % 7 + 2 * length // 3], 1)
    return (torch.arange(length)[None, :, None] >= cuts[:, None, :]).sum(-1).to(torch.int32).to(ids.device)


def _result(name: str, change: Change, meaning: str, shape: dict[str, object]) -> ProbeResult:
    place = f", first at {change.where}" if change.where else ""
    return ProbeResult(
        name,
        change.leak,
        "pass" if change.passed else "fail",
        f"{meaning} {change.leak:.3g}{place}.",
        threshold=change.allowed,
        details={**shape, "where": change.where},
    )


def _sensitivity(suffix: Change, shape: dict[str, object]) -> ProbeResult:
    heard = 0 < suffix.moved < float("inf")
    return ProbeResult(
        "causality/sensitivity",
        suffix.moved,
        "pass" if heard else "fail",
        f"Changing earlier tokens moves later logits by at least {suffix.moved:.3g}"
        + ("." if heard else ": the causality tests are empty."),
        threshold=0.0,
        details=shape,
    )
