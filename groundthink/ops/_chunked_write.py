"""The gated delta rule in chunks, in plain torch: a handful of batched matrix products.

Notation (docs/math.md): in a chunk of C tokens, gamma_i is the sum of log_decay up to token i, eta_i the exponent of
the state that token i's error is taken from: gamma_i (decayed) or gamma_{i-1} (raw). With

    B_ij = (k_i . k_j) exp(eta_i - gamma_j)  for j < i,     T = (I + B beta)^-1,
    E    = T (V - exp(eta) K S_0)                                           errors,
    P    = beta E                                                           pseudo-values,
    S_C  = exp(gamma_C) S_0 + (exp(gamma_C - gamma) K)^T P,
    o_i  = scale (exp(gamma_i) S_0^T q_i + sum_{j<=i} (q_i . k_j) exp(gamma_i - gamma_j) P_j),

both error forms differ in eta alone. All exponents are <= 0 and nothing is divided by a gate. The writer's own queries
are rows above its keys: one product serves both wherever they meet the same matrix. Documents mask the same factors
(see `Decays`). The states at the chunks' starts are all that backward is left with; it forms the rest again, since
products in the cache cost less than memory that is new.
"""

from __future__ import annotations

import torch
from torch import Tensor

from groundthink.ops._chunk_factors import (
    Block,
    Decays,
    Scratch,
    Tiles,
    blocks_of,
    by_chunk,
    chunk_tokens,
    count_chunks,
    share,
)


class Room:
    """What forward and backward both need of a block; the same memory, and views of it, for all blocks of a shape.

    R = Q + C rows, Q = C if the text stacks its queries, else 0. What `Chunks.load` fills in:

    Attributes:
        rows: [M,R,K] the writer's queries, if any, above the keys.
        keys: [M,C,K] the lower rows.
        pairs: [M,R,C] decays exp(gamma_i - gamma_j), below them exp(eta_i - gamma_j).
        scores: [M,R,C] products of rows and keys, with these decays: A above B.
        inverse: [M,C,C] T.
        left: [M,C,K] beta times keys times what is left of their writes at the end.
        beta, out: [M,C,1]; enter: [M,R,1], below `enter_write`; through: [M,1,1]. Factors as in `Decays`.
    """

    inverse: Tensor
    beta: Tensor
    out: Tensor
    enter: Tensor
    through: Tensor

    def __init__(self, text: Chunks, shape: tuple[int, int, int]) -> None:
        chunks, rows, c = shape
        self.shape, self.scratch, self.value_dim, self.heads = shape, text.scratch, text.value_dim, text.heads
        self.m, self.top = chunks * rows * text.heads, c if text.stacks else 0
        key_dim = text.keys_shape[-1]
        self.rows = self.scratch("rows", self.m, self.top + c, key_dim)
        self.pairs, self.scores = (self.scratch(name, self.m, self.top + c, c) for name in ("pairs", "scores"))
        self.left, self.lower = self.scratch("left", self.m, c, key_dim), self.scratch("lower", self.m, c, c)
        self.reads, self.keys = self.rows[:, : self.top], self.rows[:, self.top :]
        self.keys_t = self.keys.mT
        self.pairs_top, self.pairs_low = self.pairs[:, : self.top], self.pairs[:, self.top :]
        self.diagonal = self.pairs_low.diagonal(dim1=-2, dim2=-1)
        self.scores_top, self.gram = self.scores[:, : self.top], self.scores[:, self.top :]
        self.shared_keys = share(self.keys, shape, text.keys_shape[2])
        self.shared_reads = None if text.queries is None else share(self.reads, shape, text.queries_heads)
        if text.queries is None:
            self.reads.zero_()
            self.pairs_top.zero_()
        self.eye = torch.eye(c, dtype=self.rows.dtype, device=self.rows.device).expand(self.m, c, c)
        self.values, self.e = self.value_buffer("values"), self.value_buffer("errors")
        self.shared_values = share(self.values, shape, text.heads)

    def value_buffer(self, name: str) -> Tensor:
        """[M,C,V]."""
        return self.scratch(name, self.m, self.shape[2], self.value_dim)

    def each(self, x: Tensor) -> list[Tensor]:
        """[M,...] by chunks."""
        return list(x.unflatten(0, (self.shape[0], -1)).unbind())


class Chunks:
    """Brings blocks of a text into the cache, always into the same memory.

    Args:
        keys, queries, log_decay, beta, documents, raw: as in `chunked_write`.
        value_dim: V.
        stacks: there are rows above the keys whether there are queries or not. A product's rounding depends on its
            shape; with this the memory is the same to the bit, read by its writer or not.
    """

    def __init__(
        self,
        keys: Tensor,
        queries: Tensor | None,
        log_decay: Tensor,
        beta: Tensor,
        documents: Tensor | None,
        raw: bool,
        value_dim: int,
        *,
        stacks: bool,
    ) -> None:
        (batch, length, self.heads), key_dim = beta.shape, keys.shape[-1]
        self.chunk = chunk = chunk_tokens(key_dim)
        self.keys_shape, self.value_dim, self.stacks = keys.shape, value_dim, stacks
        self.keys, self.queries = Tiles(keys, chunk), None if queries is None else Tiles(queries, chunk)
        self.queries_heads = 0 if queries is None else queries.shape[2]
        self.decays = d = Decays(log_decay, documents, chunk=chunk, raw=raw, dtype=beta.dtype)
        self.beta = by_chunk(beta, chunk)
        # One array of all that a block needs per token: a view costs as much time as a small product.
        self._gates = torch.stack([*d.sums, self.beta, d.out, self.beta * d.out, d.through, d.enter, d.enter_write])
        self.scratch = Scratch(beta)
        self.blocks = blocks_of(
            batch, length, self.heads, chunk=chunk, width=max(key_dim, value_dim), device=beta.device
        )

    def load(self, block: Block, x: Room) -> None:
        """Fill in what `Room` lists."""
        gates = block.of(self._gates)[..., None]
        sums, (x.beta, x.out, left, through, *enter) = gates[:-6, ..., 0], gates[-6:]
        x.enter, x.through = torch.cat(enter, 1) if x.top else enter[1], through[:, :1]
        x.shared_keys.copy_(self.keys.of(block))
        if self.queries is not None and x.shared_reads is not None:
            x.shared_reads.copy_(self.queries.of(block))
            self.decays.pairs(block, sums, x.pairs_top, of_writes=False)
        if self.queries is not None and not self.decays.raw:
            x.pairs_low.copy_(x.pairs_top)
            x.diagonal.zero_()
        else:
            self.decays.pairs(block, sums, x.pairs_low, of_writes=True)
        torch.bmm(x.rows, x.keys_t, out=x.scores).mul_(x.pairs)
        torch.mul(x.keys, left, out=x.left)
        torch.mul(x.gram, x.beta.mT, out=x.lower)
        x.inverse = torch.linalg.solve_triangular(x.lower, x.eye, upper=False, unitriangular=True)


class _WriteRoom(Room):
    """And what forward alone needs."""

    def __init__(self, text: Chunks, shape: tuple[int, int, int]) -> None:
        super().__init__(text, shape)
        self.seen = self.scratch("seen", self.m, self.top + shape[2], text.value_dim)
        self.seen_top, self.seen_low = self.seen[:, : self.top], self.seen[:, self.top :]
        self.o, self.p = self.value_buffer("out"), self.value_buffer("pseudo")
        self.shared_o, self.shared_p = (share(x, shape, text.heads) for x in (self.o, self.p))
        changing = (self.rows, self.seen, self.seen_low, self.values, self.e, self.left.mT)
        self.steps = list(zip(*map(self.each, changing), strict=True))


@torch.library.custom_op("groundthink::chunked_write", mutates_args=())
def chunked_write(
    keys: Tensor,
    values: Tensor,
    queries: Tensor | None,
    log_decay: Tensor,
    beta: Tensor,
    initial_state: Tensor | None,
    documents: Tensor | None,
    raw: bool,
    scale: float,
    keep_pseudo: bool,
    keep_states: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the writer reads, [B,T,HV,V] (empty without queries), the final state [B,HV,K,V], and where they are to be
    kept the pseudo-values [B,T,HV,V] and the chunks' first states [N,B,HV,K,V] (else empty); in the gates' dtype."""
    batch, length, heads, value_dim = values.shape
    key_dim, n = keys.shape[-1], count_chunks(length, chunk_tokens(keys.shape[-1]))
    text = Chunks(keys, queries, log_decay, beta, documents, raw, value_dim, stacks=True)
    out = beta.new_empty(values.shape if queries is not None else (0,))
    pseudo = beta.new_empty(values.shape if keep_pseudo else (0,))
    states = beta.new_empty(n if keep_states else 2, batch, heads, key_dim, value_dim)
    final = beta.new_empty(states.shape[1:])
    states[0] = 0 if initial_state is None else initial_state
    ring = [*(states if keep_states else [states[i % 2] for i in range(n)]), final]
    write = _Write(text, values, out, pseudo, scale)
    for block in text.blocks:
        around = ring[block.chunks.start : block.chunks.stop + 1]
        write.step(block, [s[block.rows].view(-1, key_dim, value_dim) for s in around])
    return out, final, pseudo, states if keep_states else beta.new_empty(0)


class _Write:
    """Where the results go, and one block's part of them."""

    def __init__(self, text: Chunks, values: Tensor, out: Tensor, pseudo: Tensor, scale: float) -> None:
        self.text, self.values, self.scale = text, Tiles(values, text.chunk), scale
        self.out, self.pseudo = (Tiles(x, text.chunk) if x.numel() else None for x in (out, pseudo))
        self.rooms: dict[tuple[int, int, int], _WriteRoom] = {}

    def step(self, block: Block, states: list[Tensor]) -> None:
        """Go through a block from the first of these states [M,K,V]; the others, after each chunk, are filled in."""
        if block.shape not in self.rooms:
            self.rooms[block.shape] = _WriteRoom(self.text, block.shape)
        x = self.rooms[block.shape]
        self.text.load(block, x)
        x.shared_values.copy_(self.values.of(block))
        forgets = zip(
            *(x.each(y) for y in (x.enter[:, x.top :], x.inverse, x.through)), states, states[1:], strict=False
        )
        for (rows, seen, recalled, fresh, e, left_t), (enter, inverse, through, before, after) in zip(
            x.steps, forgets, strict=True
        ):
            torch.bmm(rows, before, out=seen)
            fresh.addcmul_(enter, recalled, value=-1)
            torch.bmm(inverse, fresh, out=e)
            torch.mul(before, through, out=after).baddbmm_(left_t, e)
        torch.mul(x.e, x.beta, out=x.p)
        if self.pseudo is not None:
            self.pseudo.store(block, x.shared_p)
        if self.out is not None:
            torch.mul(x.seen_top, x.enter[:, : x.top], out=x.o)
            x.o.baddbmm_(x.scores_top, x.p, beta=self.scale, alpha=self.scale)
            self.out.store(block, x.shared_o)


@chunked_write.register_fake
def _(
    keys: Tensor,
    values: Tensor,
    queries: Tensor | None,
    log_decay: Tensor,
    beta: Tensor,
    initial_state: Tensor | None,
    documents: Tensor | None,
    raw: bool,
    scale: float,
    keep_pseudo: bool,
    keep_states: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, length, heads, value_dim = values.shape
    state = (batch, heads, keys.shape[-1], value_dim)
    return (
        beta.new_empty(values.shape if queries is not None else (0,)),
        beta.new_empty(state),
        beta.new_empty(values.shape if keep_pseudo else (0,)),
        beta.new_empty((count_chunks(length, chunk_tokens(keys.shape[-1])), *state) if keep_states else (0,)),
    )
