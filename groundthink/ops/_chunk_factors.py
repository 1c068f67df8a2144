"""Chunks of time, and what gates and document boundaries do to the sums inside them."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 64


def to_chunks(x: Tensor, n_chunks: int) -> Tensor:
    """[B,T,H,X] -> [B*H*N, C, X], zero-padded at the end of time."""
    batch, length, heads, width = x.shape
    chunk = -(-length // n_chunks)
    if n_chunks * chunk != length:
        x = F.pad(x, (0, 0, 0, 0, 0, n_chunks * chunk - length))
    x = x.view(batch, n_chunks, chunk, heads, width).permute(0, 3, 1, 2, 4)
    return x.reshape(batch * heads * n_chunks, chunk, width)


def from_chunks(x: Tensor, batch: int, heads: int, length: int) -> Tensor:
    """The inverse of `to_chunks`: [B*H*N, C, X] -> contiguous [B,T,H,X]."""
    _, chunk, width = x.shape
    x = x.view(batch, heads, -1, chunk, width).permute(0, 2, 3, 1, 4)
    return x.reshape(batch, -1, heads, width)[:, :length].contiguous()


def chunk_layout(length: int) -> tuple[int, int]:
    """Number of chunks and tokens per chunk: as few chunks of at most 64 as hold the text, of equal length."""
    n_chunks = -(-length // CHUNK)
    return n_chunks, -(-length // n_chunks)


@dataclasses.dataclass(frozen=True)
class Factors:
    """Decay factors of all chunks; everything a gate or a document boundary does to a sum is in here.

    Attributes (M = B*H*N chunks):
        read: [M,C,C] exp(gamma_i - gamma_j), j <= i.
        erase: [M,C,C] exp(eta_i - gamma_j), j < i.
        read_in, erase_in: [M,C,1] exp(gamma_i), exp(eta_i): what is left of the chunk's first state.
        out: [M,C,1] exp(gamma_C - gamma_i): what is left of token i at the end.
        through: [M,1,1] exp(gamma_C).
    """

    read: Tensor
    erase: Tensor
    read_in: Tensor
    erase_in: Tensor
    out: Tensor
    through: Tensor


def factors(log_decay: Tensor, documents: Tensor | None, *, raw: bool, dtype: torch.dtype) -> Factors:
    """Decay factors for log_decay [B,T,H] and documents [B,T]."""
    n_chunks, chunk = chunk_layout(log_decay.shape[1])
    steps = to_chunks(log_decay.double()[..., None], n_chunks).squeeze(-1)
    # Sums reach -20 * 64; their differences near 0 need more than float32 holds of the sums themselves.
    gamma = steps.cumsum(-1)
    eta = gamma - steps if raw else gamma

    def exp_difference(rows: Tensor, diagonal: int) -> Tensor:
        high_rows, high = rows.to(dtype), gamma.to(dtype)
        low_rows, low = (rows - high_rows).to(dtype), (gamma - high).to(dtype)
        difference = (high_rows[:, :, None] - high[:, None, :]) + (low_rows[:, :, None] - low[:, None, :])
        causal = torch.ones(chunk, chunk, dtype=torch.bool, device=gamma.device).tril(diagonal)
        return difference.masked_fill_(~causal, float("-inf")).exp_()

    last = gamma[:, -1:]
    result = Factors(
        read=exp_difference(gamma, 0),
        erase=exp_difference(eta, -1),
        read_in=gamma.exp().to(dtype)[..., None],
        erase_in=eta.exp().to(dtype)[..., None],
        out=(last - gamma).exp().to(dtype)[..., None],
        through=last.exp().to(dtype)[..., None],
    )
    return result if documents is None else _mask_documents(result, documents, log_decay.shape[2])


def _mask_documents(f: Factors, documents: Tensor, heads: int) -> Factors:
    """Cut every path that crosses the start of a document. The first document continues the initial state."""
    batch, length = documents.shape
    n_chunks, chunk = chunk_layout(length)
    ids = F.pad(documents[:, None], (0, n_chunks * chunk - length), mode="replicate")[:, 0]
    ids = ids.view(batch, 1, n_chunks, chunk).expand(batch, heads, n_chunks, chunk)
    before = torch.cat([ids[:, :, :1, 0], ids[:, :, :-1, -1]], dim=2).reshape(-1, 1)
    ids = ids.reshape(-1, chunk)
    same = ids[:, :, None] == ids[:, None, :]
    carried = (ids == before)[..., None]
    return Factors(
        read=f.read * same,
        erase=f.erase * same,
        read_in=f.read_in * carried,
        erase_in=f.erase_in * carried,
        out=f.out * (ids == ids[:, -1:])[..., None],
        through=f.through * carried[:, -1:],
    )


def gamma_to_log_decay(d_gamma: Tensor, batch: int, heads: int, length: int) -> Tensor:
    """Gradient of the running sums, [M,C], to that of the steps, float [B,T,H]."""
    d_steps = d_gamma.flip(-1).cumsum(-1).flip(-1)
    return from_chunks(d_steps[..., None], batch, heads, length).squeeze(-1)
