"""What is done to one tensor of a snapshot: pure functions of tensors, rows first.

A memory S [B,H,K,V] answers S^T k to a key k [B,H,K] of length 1. The delta rule writes along one key and leaves
whatever is orthogonal to it alone; `rewrite` and `erase` are such writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F
from torch import Tensor

from groundthink.errors import StateError


def derangement(n: int, seed: int) -> Tensor:
    """A permutation [n] that leaves nothing in its place: one random cycle through all."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    result = torch.empty_like(order)
    result[order] = order.roll(1)
    return result


def matched_noise(x: Tensor, *, dims: Sequence[int], seed: int) -> Tensor:
    """Normal noise whose 2-norm over `dims` is that of x. Drawn on the CPU: the same for every device."""
    noise = torch.randn(tuple(x.shape), generator=torch.Generator().manual_seed(seed)).to(x)
    size = torch.linalg.vector_norm(x, dim=tuple(dims), keepdim=True)
    return noise * (size / torch.linalg.vector_norm(noise, dim=tuple(dims), keepdim=True))


Spectrum = tuple[Tensor, Tensor, Tensor]


def spectrum(memory: Tensor) -> Spectrum:
    """Singular vectors and values of every [K,V], float64, where the memory is.

    LAPACK takes a batch one by one; cuSOLVER too, and longer: a certificate of 125M parameters on an H200 spent most
    of seven minutes here. So they are made on the CPU, as many at a time as torch has threads.
    """
    matrices, threads = memory.double().cpu().flatten(0, -3), torch.get_num_threads()
    workers = max(1, min(threads, len(matrices)))
    try:
        # One thread in each worker: left alone, every worker starts as many as there are workers.
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            parts = list(pool.map(lambda m: torch.linalg.svd(m, full_matrices=False), matrices.tensor_split(workers)))
    finally:
        torch.set_num_threads(threads)
    u, s, v = (torch.cat(each).unflatten(0, memory.shape[:-2]).to(memory.device) for each in zip(*parts, strict=True))
    return u, s, v


def low_rank(memory: Tensor, rank: int, parts: Spectrum | None = None) -> Tensor:
    """The nearest [B,H,K,V] of this rank in every row and head: the largest singular values, computed in float64.

    Args:
        memory: [B,H,K,V].
        rank: singular values that are kept.
        parts: its spectrum, for whoever wants several ranks of one memory.
    """
    u, s, v = spectrum(memory) if parts is None else parts
    return (u[..., :rank] * s[..., None, :rank] @ v[..., :rank, :]).to(memory.dtype)


def quantise(x: Tensor, bits: int, *, dims: Sequence[int]) -> Tensor:
    """x rounded to 2^bits - 1 equal steps, symmetric about 0, from -max |x| to max |x| over `dims`."""
    levels = 2 ** (bits - 1) - 1
    largest = x.abs().amax(tuple(dims), keepdim=True)
    step = torch.where(largest > 0, largest / levels, 1.0)
    return (x / step).round() * step


def rewrite(memory: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """S + k (v' - S^T k)^T: afterwards S answers v' [B,H,V] to k [B,H,K], and to keys orthogonal to k what it did."""
    key = _unit(keys, memory)
    return memory + torch.einsum("bhk,bhv->bhkv", key, values.to(memory) - answer(memory, keys))


def erase(memory: Tensor, keys: Tensor) -> Tensor:
    """(I - k k^T) S: afterwards S answers 0 to k [B,H,K], and to keys orthogonal to k what it did."""
    return memory - torch.einsum("bhk,bhv->bhkv", _unit(keys, memory), answer(memory, keys))


def answer(memory: Tensor, keys: Tensor) -> Tensor:
    """S^T k, [B,H,V], for keys [B,H,K] brought to length 1."""
    return torch.einsum("bhkv,bhk->bhv", memory, _unit(keys, memory))


def _unit(keys: Tensor, memory: Tensor) -> Tensor:
    """Keys of length 1 for every value head.

    Raises:
        StateError: keys that do not fit the memory, or one that has no direction.
    """
    rows, heads, size = memory.shape[:3]
    if keys.dim() != 3 or keys.shape[0] != rows or keys.shape[2] != size or heads % keys.shape[1]:
        raise StateError(f"keys {tuple(keys.shape)} do not fit a memory {tuple(memory.shape)}", fix="give [B,H,K]")
    if not (keys != 0).any(-1).all() or not keys.isfinite().all():
        raise StateError("a key without direction", fix="give keys that are finite and not 0")
    return F.normalize(keys.to(memory), dim=-1).repeat_interleave(heads // keys.shape[1], 1)
