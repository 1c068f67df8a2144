"""Chunks of time, and what gates and document boundaries do to the sums inside them."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 64


def to_chunks(x: Tensor, n_chunks: int, *, own: bool = False) -> Tensor:
    """[B,T,H,X] -> [B*H*N, C, X], zero-padded at the end of time.

    `own`: the result shares no memory with x, so it may be changed in place. Fresh memory costs more here than
    arithmetic does: the operating system hands it out page by page.
    """
    batch, length, heads, width = x.shape
    chunk = -(-length // n_chunks)
    padded = x if n_chunks * chunk == length else F.pad(x, (0, 0, 0, 0, 0, n_chunks * chunk - length))
    chunks = padded.view(batch, n_chunks, chunk, heads, width).permute(0, 3, 1, 2, 4)
    chunks = chunks.reshape(batch * heads * n_chunks, chunk, width)
    return chunks.clone() if own and chunks.data_ptr() == x.data_ptr() else chunks


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
class Edges:
    """What is left of a state over part of a chunk, M = B*H*N chunks.

    Attributes:
        enter: [M,C,1] exp(eta_i): of the chunk's first state, for token i; eta is gamma for reads.
        out: [M,C,1] exp(gamma_C - gamma_i): of token i's write, at the end.
        through: [M,1,1] exp(gamma_C): of the first state, at the end.
    """

    enter: Tensor
    out: Tensor
    through: Tensor


class Decays:
    """Decay factors of all chunks: everything that a gate or a document boundary does to a sum is in here.

    Args:
        log_decay: [B,T,H].
        documents: [B,T] ids or None; every path across the start of a document is cut.
        shift: take token i's exponent before its own decay (eta_i = gamma_{i-1}), as writes of the raw form do.
        dtype: of the factors.
    """

    def __init__(self, log_decay: Tensor, documents: Tensor | None, *, shift: bool, dtype: torch.dtype) -> None:
        n_chunks, self.chunk = chunk_layout(log_decay.shape[1])
        steps = to_chunks(log_decay.double()[..., None], n_chunks).squeeze(-1)
        # Sums reach -20 * 64; their differences near 0 need more than float32 holds of the sums themselves.
        self.gamma = steps.cumsum(-1)
        self.eta = self.gamma - steps if shift else self.gamma
        self.dtype = dtype
        self.ids = None if documents is None else _ids(documents, log_decay.shape[2])

    def pairs(self, *, diagonal: bool) -> Tensor:
        """[M,C,C] exp(eta_i - gamma_j) for j < i, and for j = i if asked; 0 elsewhere."""
        high_eta, high = self.eta.to(self.dtype), self.gamma.to(self.dtype)
        low_eta, low = (self.eta - high_eta).to(self.dtype), (self.gamma - high).to(self.dtype)
        difference = (high_eta[:, :, None] - high[:, None, :]).add_(low_eta[:, :, None]).sub_(low[:, None, :])
        causal = torch.ones(self.chunk, self.chunk, dtype=torch.bool, device=high.device).tril(0 if diagonal else -1)
        kept = causal
        if self.ids is not None:
            ids, _ = self.ids
            kept = causal & (ids[:, :, None] == ids[:, None, :])
        return difference.masked_fill_(~kept, float("-inf")).exp_()

    def edges(self) -> Edges:
        """The factors of first and last states."""
        last = self.gamma[:, -1:]
        parts = [self.eta, last - self.gamma, last]
        enter, out, through = ((x.exp().to(self.dtype))[..., None] for x in parts)
        if self.ids is None:
            return Edges(enter, out, through)
        ids, before = self.ids
        carried = (ids == before)[..., None]
        return Edges(enter * carried, out * (ids == ids[:, -1:])[..., None], through * carried[:, -1:])


def _ids(documents: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Document of each token, [M,C], and of the token before each chunk, [M,1].

    The first document continues the initial state, so before the first chunk stands the first token's own id.
    """
    batch, length = documents.shape
    n_chunks, chunk = chunk_layout(length)
    ids = F.pad(documents[:, None], (0, n_chunks * chunk - length), mode="replicate")[:, 0]
    ids = ids.view(batch, 1, n_chunks, chunk).expand(batch, heads, n_chunks, chunk)
    before = torch.cat([ids[:, :, :1, 0], ids[:, :, :-1, -1]], dim=2)
    return ids.reshape(-1, chunk), before.reshape(-1, 1)


def gamma_to_log_decay(d_gamma: Tensor, batch: int, heads: int, length: int) -> Tensor:
    """Gradient of the running sums, [M,C], to that of the steps, float [B,T,H]."""
    d_steps = d_gamma.flip(-1).cumsum(-1).flip(-1)
    return from_chunks(d_steps[..., None], batch, heads, length).squeeze(-1)
