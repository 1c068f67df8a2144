"""The memory by itself: what it gives back of what was written, with keys, values and gates handed in."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from groundthink import ops
from groundthink.ops.memory import ErrorForm


def expected_similarity(size: int) -> float:
    """E|cos| of two random directions in `size` dimensions, for large sizes: sqrt(2 / (pi K))."""
    return math.sqrt(2 / (math.pi * size))


def random_keys(rows: int, n: int, size: int, *, generator: torch.Generator) -> Tensor:
    """[rows,n,size] float32, evenly on the sphere."""
    return torch.nn.functional.normalize(torch.randn(rows, n, size, generator=generator), dim=-1)


def orthonormal_keys(rows: int, n: int, size: int, *, generator: torch.Generator) -> Tensor:
    """[rows,n,size] float32, orthonormal within each row.

    Raises:
        ValueError: more keys than dimensions.
    """
    if n > size:
        raise ValueError(f"{n} orthonormal keys do not fit into {size} dimensions")
    square = torch.randn(rows, size, size, dtype=torch.float64, generator=generator)
    return torch.linalg.qr(square).Q[:, :n].float()


def write_all(keys: Tensor, values: Tensor, *, error: ErrorForm = "decayed", backend: str = "auto") -> Tensor:
    """The state [R,K,V] float32 after writing values [R,n,V] under keys [R,n,K] with beta 1 and no decay."""
    gate = torch.zeros(*keys.shape[:2], 1)
    memory = ops.write(
        keys[:, :, None], values[:, :, None], log_decay=gate, beta=gate + 1, error=error, backend=backend
    )
    return memory.final_state[:, 0]


def errors(state: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """|S^T k - v| / |v| of each pair, [R,n]; an empty memory's is 1."""
    read = torch.einsum("rkv,rnk->rnv", state.double(), keys.double())
    return (read - values.double()).norm(dim=-1) / values.double().norm(dim=-1)


def error_curve(keys: Tensor, values: Tensor, counts: list[int], *, error: ErrorForm = "decayed") -> dict[int, Tensor]:
    """count -> errors [R,count] after so many writes; the first of them is the oldest pair."""
    found = {}
    for count in counts:
        k, v = keys[:, :count], values[:, :count]
        found[count] = errors(write_all(k, v, error=error), k, v)
    return found


def write_sizes(keys: Tensor, values: Tensor, *, log_decay: Tensor, beta: Tensor, error: ErrorForm) -> Tensor:
    """|S_t - a_t S_{t-1}| of each write, [B,T,H] float64: how much a token puts into the memory.

    Args:
        keys, values: [B,T,H,K] and [B,T,H,V], for as many heads as there are gates.
        log_decay, beta: [B,T,H].
        error: form of the delta rule, see `ops.write`.
    """
    k, v, b = keys.double(), values.double(), beta.double()
    decay = log_decay.double().exp()
    state = k.new_zeros(*k[:, 0].shape, v.shape[-1])
    sizes = []
    for t in range(k.shape[1]):
        decayed = decay[:, t, :, None, None] * state
        seen = decayed if error == "decayed" else state
        wrong = v[:, t] - torch.einsum("bhkv,bhk->bhv", seen, k[:, t])
        put = torch.einsum("bhk,bhv->bhkv", k[:, t], b[:, t, :, None] * wrong)
        sizes.append(put.flatten(2).norm(dim=-1))
        state = decayed + put
    return torch.stack(sizes, 1)


def similarity(keys: Tensor, apart: Tensor | None = None) -> Tensor:
    """Mean |cos| of different keys of a row, [R,H], for keys [R,n,H,K].

    Args:
        apart: [R,n,n] bool, the pairs that count; None means all but a key with itself.
    """
    cos = cosines(keys).abs()
    n = keys.shape[1]
    counts = ~torch.eye(n, dtype=torch.bool).expand(len(keys), n, n) if apart is None else apart
    counted = counts[:, None].to(cos.dtype)
    return (cos * counted).sum((-1, -2)) / counted.sum((-1, -2)).clamp_min(1)


def cosines(keys: Tensor) -> Tensor:
    """[R,H,n,n] cosines of the keys [R,n,H,K] of a row."""
    unit = torch.nn.functional.normalize(keys.double(), dim=-1)
    return torch.einsum("rnhk,rmhk->rhnm", unit, unit)
