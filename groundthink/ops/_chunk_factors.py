"""Texts in chunks of time, a few of them in hand at once, and what gates and document boundaries do to sums in them.

A block is a run of chunks of some rows of the batch, small enough to stay in a processor's cache while everything is
done to it; its buffers serve the next block again. Fresh memory costs more than arithmetic: the operating system hands
it out page by page. Arrays of a whole text are [N,B,H,C]: chunk, row, head, token; those of a block [M,C,...] with
M = chunks * rows * heads in that order. The last chunk is as short as the text leaves it: nothing is padded in a block.
"""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor

# Products with states grow with K, those inside a chunk with C; half of the latter is above the diagonal and wasted.
CHUNK, CHUNK_WIDE, WIDE = 32, 64, 64
# Numbers in a buffer of a block, for each thread: in float32 half a MiB, so that the buffers in use stay in its cache.
# Other devices want all the parallel work there is and have no pages to wait for.
BUFFER = 2**17
BUFFER_ELSEWHERE = 2**24

# A factor below exp(-78) is 0: beside it, what follows is numbers that have lost their leading digit (denormal), which
# processors handle a hundred times slower. Exponents stop a little below, for exp of -infinity is as slow.
LOWEST = -79.0
NOTHING = math.exp(-78.0)


@dataclasses.dataclass(frozen=True)
class Block:
    """Chunks of equal length, one after the other, of some rows of the batch and all heads.

    Attributes:
        rows: of the batch.
        chunks: of [N,...].
        chunk: tokens in each; fewer in a text's last.
    """

    rows: slice
    chunks: slice
    chunk: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Chunks, rows, tokens in each chunk."""
        return self.chunks.stop - self.chunks.start, self.rows.stop - self.rows.start, self.chunk

    def of(self, x: Tensor) -> Tensor:
        """Arrays [...,N,B,H,C] of a whole text -> [...,M,C] of this block."""
        return x[..., self.chunks, self.rows, :, : self.chunk].flatten(-4, -2)

    def put(self, x: Tensor, whole: Tensor) -> None:
        """The way back of `of`: write [M,C] into [N,B,H,C]."""
        place = whole[self.chunks, self.rows, :, : self.chunk]
        place.copy_(x.view(place.shape))


def chunk_tokens(key_dim: int) -> int:
    """C: tokens in a chunk, by the keys' size."""
    return CHUNK if key_dim <= WIDE else CHUNK_WIDE


def count_chunks(length: int, chunk: int) -> int:
    """Chunks that hold this many tokens."""
    return -(-length // chunk)


def blocks_of(batch: int, length: int, heads: int, *, chunk: int, width: int, device: torch.device) -> list[Block]:
    """All blocks of a text, in an order in which those of the same rows follow each other in time.

    Args:
        batch, length, heads: of the text.
        chunk: tokens in a chunk.
        width: the larger of key and value size.
        device: decides how much is in hand at once.
    """
    room = BUFFER * torch.get_num_threads() if device.type == "cpu" else BUFFER_ELSEWHERE
    matrices = int(room / (chunk * width))
    rows = max(1, min(batch, matrices // heads))
    # Blocks of several chunks hold all rows, so that their states lie in memory as one batch of matrices.
    count = max(1, matrices // (batch * heads)) if rows == batch else 1
    whole = length // chunk
    found = []
    for row in range(0, batch, rows):
        some = slice(row, min(batch, row + rows))
        found += [Block(some, slice(n, min(whole, n + count)), chunk) for n in range(0, whole, count)]
        if length > whole * chunk:
            found.append(Block(some, slice(whole, whole + 1), length - whole * chunk))
    return found


class Tiles:
    """A tensor [B,T,H,X] seen as chunks: whole ones, and the rest of the text behind them."""

    def __init__(self, x: Tensor, chunk: int) -> None:
        self._chunk, whole = chunk, x.shape[1] // chunk
        self._whole = self._split(x[:, : whole * chunk], whole)
        self._rest = self._split(x[:, whole * chunk :], 1)

    @staticmethod
    def _split(x: Tensor, chunks: int) -> Tensor:
        """View [B,T,H,X] as [chunks,B,H,1,C,X]."""
        return x.unflatten(1, (chunks, x.shape[1] // max(1, chunks))).permute(1, 0, 3, 2, 4)[:, :, :, None]

    def of(self, block: Block) -> Tensor:
        """[chunks,rows,H,1,C,X]."""
        return self._whole[block.chunks, block.rows] if block.chunk == self._chunk else self._rest[:, block.rows]

    def store(self, block: Block, x: Tensor) -> None:
        """Write [chunks,rows,H,G,C,X], summing the G value heads that share a head."""
        self.of(block).copy_(x if x.shape[3] == 1 else x.sum(3, keepdim=True))


class Scratch:
    """Buffers by name; each lives as long as this object and serves block after block."""

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._held: dict[str, Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        """A contiguous buffer of this shape, with whatever is in it."""
        size = math.prod(shape)
        if name not in self._held or self._held[name].numel() < size:
            self._held[name] = self._like.new_empty(size)
        return self._held[name][:size].view(shape)


def share(x: Tensor, shape: tuple[int, int, int], heads: int) -> Tensor:
    """View [M,C,X] of a block as [chunks,rows,H,G,C,X]: the value heads by the head they share."""
    return x.unflatten(0, (shape[0], shape[1], heads, -1))


def by_chunk(x: Tensor, chunk: int) -> Tensor:
    """[B,T,H] -> [N,B,H,C], zero behind the end of the text."""
    batch, length, heads = x.shape
    n = count_chunks(length, chunk)
    return F.pad(x, (0, 0, 0, n * chunk - length)).view(batch, n, chunk, heads).permute(1, 0, 3, 2).contiguous()


def by_token(x: Tensor, length: int) -> Tensor:
    """The inverse of `by_chunk`: contiguous [B,T,H]."""
    return x.permute(1, 0, 3, 2).flatten(1, 2)[:, :length].contiguous()


def gamma_to_log_decay(d_gamma: Tensor, length: int) -> Tensor:
    """Gradient of the running sums, [N,B,H,C], to that of the steps, [B,T,H]."""
    return by_token(d_gamma.flip(-1).cumsum(-1).flip(-1), length)


class Decays:
    """Decay factors: everything that a gate or a document boundary does to a sum is in here.

    With gamma the sum of log_decay from the start of a chunk, or of a document in it, and eta the exponent of the state
    that a token looks at:

    Attributes:
        enter: [N,B,H,C] exp(gamma_i): what a read at token i finds of the chunk's first state.
        enter_write: [N,B,H,C] exp(eta_i): what the error at token i is taken from.
        out: [N,B,H,C] exp(gamma_C - gamma_i): what is left of token i's write at the end.
        through: [N,B,H,C] exp(gamma_C), for all i the same: what is left of the first state at the end.
        sums: [4 or 2,N,B,H,C] gamma as a sum of two numbers, and of the raw form eta likewise.

    Args:
        log_decay: [B,T,H].
        documents: [B,T] ids or None; every path across the start of a document is cut.
        chunk: tokens in a chunk.
        raw: writes look at the state before their own decay: eta_i is gamma_{i-1} instead of gamma_i.
        dtype: of the factors.
    """

    def __init__(
        self, log_decay: Tensor, documents: Tensor | None, *, chunk: int, raw: bool, dtype: torch.dtype
    ) -> None:
        steps = by_chunk(log_decay.double(), chunk)
        # Sums reach -20 * 64; their differences near 0 need more than float32 holds of the sums themselves.
        gamma = steps.cumsum(-1)
        self._ids = None
        if documents is not None:
            self._ids, before = _ids(documents, chunk)
            # Sums start again with a document, so that not even their rounding knows of the one before.
            gamma = gamma - (gamma - steps).gather(-1, _first_of_document(self._ids).expand_as(gamma))
        eta = gamma - steps if raw else gamma
        self.raw = raw
        last = gamma[..., -1:].expand_as(gamma)
        self.enter, self.out, self.through = (_exp(x, dtype) for x in (gamma, last - gamma, last))
        self.enter_write = _exp(eta, dtype) if raw else self.enter
        high = torch.stack([gamma, eta] if raw else [gamma]).to(dtype)
        self.sums = torch.stack([high, (torch.stack([gamma, eta][: high.shape[0]]) - high).to(dtype)], 1).flatten(0, 1)
        if self._ids is not None:
            carried = self._ids == before
            self.enter, self.enter_write = self.enter * carried, self.enter_write * carried
            self.out = self.out * (self._ids == self._ids[..., -1:])
            self.through = self.through * carried[..., -1:]
        self._lowest = torch.full((), LOWEST, dtype=dtype, device=gamma.device)
        self._highest = torch.full((chunk, chunk), LOWEST, dtype=dtype, device=gamma.device).triu(1)

    def pairs(self, block: Block, sums: Tensor, into: Tensor, *, of_writes: bool) -> Tensor:
        """exp(gamma_i - gamma_j) for j <= i, of writes exp(eta_i - gamma_j) for j < i; 0 elsewhere.

        Args:
            block: which M chunks.
            sums: theirs, [4 or 2,M,C].
            into: [M,C,C] whatever its strides.
            of_writes: see above.
        """
        (high, low), (high_of, low_of) = sums[:2], sums[-2:] if of_writes else sums[:2]
        torch.sub(high_of[:, :, None], high[:, None, :], out=into)
        into.add_(low_of[:, :, None]).sub_(low[:, None, :])
        into.clamp_(self._lowest, self._highest[: block.chunk, : block.chunk])
        if self._ids is not None:
            ids = self._ids[block.chunks, block.rows, :, : block.chunk]
            other = ids[..., :, None] != ids[..., None, :]
            into.unflatten(0, (*other.shape[:2], -1)).masked_fill_(other, LOWEST)
        torch.threshold_(into.exp_(), NOTHING, 0.0)
        if of_writes:
            into.diagonal(dim1=-2, dim2=-1).zero_()
        return into


def _exp(x: Tensor, dtype: torch.dtype) -> Tensor:
    """exp; what is above 0 lies across documents and is cut afterwards."""
    return F.threshold(x.clamp_max(0).exp(), NOTHING, 0.0).to(dtype)


def _first_of_document(ids: Tensor) -> Tensor:
    """Where in its chunk a token's document begins, [N,B,1,C]; 0 if it began earlier."""
    place = torch.arange(ids.shape[-1], device=ids.device)
    begins = F.pad(ids[..., 1:] != ids[..., :-1], (1, 0), value=True)
    return torch.where(begins, place, 0).cummax(-1).values


def _ids(documents: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """Document of each token, [N,B,1,C], and of the token before each chunk, [N,B,1,1].

    The first document continues the initial state, so before the first chunk stands the first token's own id.
    """
    batch, length = documents.shape
    n = count_chunks(length, chunk)
    ids = F.pad(documents[:, None], (0, n * chunk - length), mode="replicate")[:, 0]
    ids = ids.view(batch, n, 1, chunk).transpose(0, 1)
    return ids, torch.cat([ids[:1, ..., :1], ids[:-1, ..., -1:]])
