"""Is a text read in one go, in pieces, token by token, from a saved snapshot and behind padding the same text?"""

from __future__ import annotations

import dataclasses
import itertools
import math
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from groundthink.model import Snapshot
from groundthink.probes.causality import CHUNK, shortest_text
from groundthink.probes.face import (
    Model,
    device_of,
    gap,
    logits_of,
    mode,
    read_on,
    takes_documents,
    takes_padding,
    tolerance_of,
)
from groundthink.records import ProbeResult


@dataclasses.dataclass(frozen=True)
class Gap:
    """How far two ways of reading a text differ.

    Attributes:
        name: the way that was held against reading the whole.
        relative: max |a - b| / max |b|.
        agreement: share of positions with the same argmax, ties aside.
    """

    name: str
    relative: float
    agreement: float


def compare(name: str, a: Tensor, b: Tensor) -> Gap:
    """`a` held against the reference `b`, both [B,T,vocabulary]."""
    scale = float(b.abs().max())
    relative = gap(a, b) / scale if scale else gap(a, b)
    best = b.topk(2, -1).values
    # Where the two best are closer than rounding, either may win: a tie says nothing.
    clear = best[..., 0] - best[..., 1] > 2 * tolerance_of(b) * scale
    same = (a.argmax(-1) == b.argmax(-1)) | ~clear
    return Gap(name, relative if math.isfinite(scale) else math.inf, float(same.double().mean()))


def in_pieces(model: Model, ids: Tensor, cuts: Iterable[int]) -> Tensor:
    """Logits [B,T,vocabulary] of a text read in the pieces between these cuts."""
    edges = [0, *cuts, ids.shape[1]]
    logits, snapshot = model.prefill(ids[:, : edges[1]])
    parts = [logits]
    for start, stop in itertools.pairwise(edges[1:]):
        logits, snapshot = model.resume(snapshot, ids[:, start:stop])
        parts.append(logits)
    return torch.cat(parts, 1)


def from_file(model: Model, ids: Tensor, cut: int) -> Tensor:
    """Logits of a text resumed from a snapshot that went through a file."""
    before, snapshot = model.prefill(ids[:, :cut])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "snapshot.safetensors"
        snapshot.save(path)
        loaded = Snapshot.load(path).to(ids.device)
    after, _ = model.resume(loaded, ids[:, cut:])
    return torch.cat([before, after], 1)


def behind_padding(model: Model, ids: Tensor, padding: int) -> Tensor:
    """Logits of a text behind `padding` tokens on its left: masked, or a document of their own."""
    padded = torch.cat([ids.new_zeros(ids.shape[0], padding), ids], 1)
    if not takes_documents(model):
        mask = (torch.arange(padded.shape[1], device=ids.device) >= padding).to(torch.int64).expand_as(padded)
        before, snapshot = model.prefill(padded[:, :-2], attention_mask=mask[:, :-2])  # type: ignore[call-arg]
        return torch.cat([before[:, padding:], model.resume(snapshot, ids[:, -2:])[0]], 1)
    documents = (torch.arange(padded.shape[1], device=ids.device) >= padding).to(torch.int32).expand_as(padded)
    return logits_of(model, padded, documents)[:, padding:]


def interrupted(model: Model, ids: Tensor, cut: int) -> Tensor:
    """Logits of a text resumed after the model has read another one: the snapshot must hold everything."""
    before, snapshot = model.prefill(ids[:, :cut])
    model.prefill(ids.flip(1))
    return torch.cat([before, model.resume(snapshot, ids[:, cut:])[0]], 1)


def splits(length: int, *, window: int, chunk: int = CHUNK) -> list[tuple[int, ...]]:
    """Places to cut a text: at and off the edges of chunks and of the window, once and often."""
    third = length // 3
    candidates = [
        (1,), (window,), (chunk - 1,), (chunk,), (chunk + 1,), (length - 1,),
        (third, third + 1, 2 * third), tuple(range(7, length, 29)),
    ]  # fmt: skip
    return [cut for cut in dict.fromkeys(candidates) if cut and cut[0] > 0 and cut[-1] < length and _rising(cut)]


def steps(length: int, *, window: int, chunk: int = CHUNK) -> list[int]:
    """Cuts that leave one token to a piece where a state may go wrong: past all edges at the start, and at the end."""
    first = min(length, shortest_text(window, chunk))
    return [*range(1, first), *range(max(first, length - chunk - 2), length)]


def gaps(model: Model, ids: Tensor) -> list[Gap]:
    """Every way of reading `ids` [B,T], held against reading it whole."""
    ids = ids.to(device_of(model))
    length, window = ids.shape[1], model.sizes.window_size
    with mode(model, training=False), torch.no_grad():
        whole = logits_of(model, ids)
        found = [
            compare(f"cut at {', '.join(map(str, cut[:4]))}", in_pieces(model, ids, cut), whole)
            for cut in splits(length, window=window)
        ]
        found.append(compare("step by step", in_pieces(model, ids, steps(length, window=window)), whole))
        found.append(compare("the last token alone", read_on(model, ids)[0][:, None], whole[:, -1:]))
        found.append(compare("from a saved snapshot", from_file(model, ids, length // 2), whole))
        for cut in (length // 2, length - 2):
            found.append(compare(f"after another text at {cut}", interrupted(model, ids, cut), whole))
        if takes_documents(model) or takes_padding(model):
            found.append(compare("left-padded", behind_padding(model, ids, 5), whole))
    return found


def parity(model: Model, ids: Tensor) -> tuple[ProbeResult, ...]:
    """The precondition C1: one result, its value the largest relative difference.

    Args:
        ids: [B,T] int64, T at least 3 and best no multiple of a chunk.
    """
    found = gaps(model, ids)
    with torch.no_grad():
        allowed = tolerance_of(model.prefill(ids[:1, :1].to(device_of(model)))[0])
    worst = max(found, key=lambda g: g.relative)
    agreement = min(g.agreement for g in found)
    passed = worst.relative <= allowed and (agreement == 1 or allowed > 1e-5)
    meaning = (
        f"Whole, in pieces, step by step and resumed logits differ by at most {worst.relative:.2g} of the largest logit"
        f" ({worst.name}); {100 * agreement:.4g} % of the predictions agree."
    )
    details = {
        "ways": [dataclasses.asdict(g) for g in found],
        "agreement": agreement,
        "left_padded": takes_documents(model) or takes_padding(model),
    }
    return (
        ProbeResult(
            "parity", worst.relative, "pass" if passed else "fail", meaning, threshold=allowed, details=details
        ),
    )


def _rising(cut: tuple[int, ...]) -> bool:
    return all(a < b for a, b in itertools.pairwise(cut))
