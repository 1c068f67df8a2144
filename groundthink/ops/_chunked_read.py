"""Causal reads of a memory written in chunks: the second half of `_chunked_write`, with other queries each time."""

from __future__ import annotations

import torch
from torch import Tensor

from groundthink.ops._chunk_factors import (
    Block,
    Decays,
    Scratch,
    Tiles,
    blocks_of,
    chunk_tokens,
    gamma_to_log_decay,
    share,
)


class _Read:
    """What forward and backward both need: blocks, their decays, buffers."""

    def __init__(
        self, queries: Tensor, keys: Tensor, pseudo: Tensor, states: Tensor, log_decay: Tensor, documents: Tensor | None
    ) -> None:
        self.tensors = {"queries": queries, "keys": keys, "pseudo": pseudo}
        self.chunk = chunk = chunk_tokens(keys.shape[-1])
        self.tiles = {name: Tiles(x, chunk) for name, x in self.tensors.items()}
        self.states, self.heads = states, pseudo.shape[2]
        self.decays = Decays(log_decay, documents, chunk=chunk, raw=False, dtype=pseudo.dtype)
        self.scratch = Scratch(pseudo)
        (batch, length, _, width), key_dim = pseudo.shape, keys.shape[-1]
        self.blocks = blocks_of(batch, length, self.heads, chunk=chunk, width=max(key_dim, width), device=pseudo.device)

    def buffer(self, block: Block, name: str, like: Tensor) -> tuple[Tensor, Tensor]:
        """[M,C,X] for a block of a tensor [B,T,H,X], and the same as [chunks,rows,H,G,C,X]."""
        chunks, rows, chunk = block.shape
        x = self.scratch(name, chunks * rows * self.heads, chunk, like.shape[-1])
        return x, share(x, block.shape, like.shape[2])

    def load(self, block: Block) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Queries, keys, pseudo-values, first states, `enter`, decays in the scores, scores."""
        found = []
        for name, x in self.tensors.items():
            buffer, shared = self.buffer(block, name, x)
            shared.copy_(self.tiles[name].of(block))
            found.append(buffer)
        q, k, p = found
        start = self.states[block.chunks, block.rows].view(-1, *self.states.shape[-2:])
        pairs = self.scratch("pairs", q.shape[0], block.chunk, block.chunk)
        self.decays.pairs(block, block.of(self.decays.sums), pairs, of_writes=False)
        scores = torch.bmm(q, k.mT, out=self.scratch("scores", *pairs.shape)).mul_(pairs)
        return q, k, p, start, block.of(self.decays.enter)[..., None], pairs, scores


@torch.library.custom_op("groundthink::chunked_read", mutates_args=())
def chunked_read(
    queries: Tensor,
    keys: Tensor,
    pseudo: Tensor,
    states: Tensor,
    log_decay: Tensor,
    documents: Tensor | None,
    scale: float,
) -> Tensor:
    """[B,T,HV,V] in the pseudo-values' dtype: queries [B,T,H or HV,K] put to what `chunked_write` has kept."""
    text = _Read(queries, keys, pseudo, states, log_decay, documents)
    out = torch.empty_like(pseudo)
    tiles = Tiles(out, text.chunk)
    for block in text.blocks:
        q, _, p, start, enter, _, scores = text.load(block)
        o, shared = text.buffer(block, "out", out)
        torch.bmm(q, start, out=o).mul_(enter).baddbmm_(scores, p, beta=scale, alpha=scale)
        tiles.store(block, shared)
    return out


@chunked_read.register_fake
def _(
    queries: Tensor,
    keys: Tensor,
    pseudo: Tensor,
    states: Tensor,
    log_decay: Tensor,
    documents: Tensor | None,
    scale: float,
) -> Tensor:
    return pseudo.new_empty(pseudo.shape)


@torch.library.custom_op("groundthink::chunked_read_backward", mutates_args=())
def chunked_read_backward(
    d_out: Tensor,
    queries: Tensor,
    keys: Tensor,
    pseudo: Tensor,
    states: Tensor,
    log_decay: Tensor,
    documents: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of queries, keys, pseudo-values, first states and log_decay."""
    text = _Read(queries, keys, pseudo, states, log_decay, documents)
    results = dq, dk, d_pseudo, d_states = tuple(x.new_empty(x.shape) for x in (queries, keys, pseudo, states))
    names = ("dq", "dk", "d_pseudo")
    d_gamma, given, *tiles = torch.zeros_like(text.decays.enter), *(Tiles(x, text.chunk) for x in (d_out, *results[:3]))
    for block in text.blocks:
        q, k, p, start, enter, pairs, scores = text.load(block)
        (x_dq, x_dk, x_dp), shared = zip(*map(text.buffer, [block] * 3, names, results), strict=False)
        g, shared_g = text.buffer(block, "d_out", pseudo)
        shared_g.copy_(given.of(block))
        torch.bmm(scores.mT, g.mul_(scale), out=x_dp)
        d_scores = torch.bmm(g, p.mT, out=text.scratch("d_scores", *scores.shape))
        d_exponent = scores.mul_(d_scores)
        torch.bmm(d_scores.mul_(pairs).mT, q, out=x_dk)
        torch.bmm(g, start.mT, out=x_dq).mul_(enter)
        seen = torch.mul(q, x_dq, out=text.scratch("product", *q.shape)).sum(-1)
        block.put(d_exponent.sum(2) - d_exponent.sum(1) + seen, d_gamma)
        x_dq.baddbmm_(d_scores, k)
        for tile, x in zip(tiles, shared, strict=True):
            tile.store(block, x)
        torch.bmm(q.mul_(enter).mT, g, out=d_states[block.chunks, block.rows].view(start.shape))
    return dq, dk, d_pseudo, d_states, gamma_to_log_decay(d_gamma, keys.shape[1])


@chunked_read_backward.register_fake
def _(
    d_out: Tensor,
    queries: Tensor,
    keys: Tensor,
    pseudo: Tensor,
    states: Tensor,
    log_decay: Tensor,
    documents: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    given = (queries, keys, pseudo, states, log_decay)
    return tuple(x.new_empty(x.shape) for x in given)  # type: ignore[return-value]


def _context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    del output
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, d_out):  # type: ignore[no-untyped-def]
    with torch.autocast(d_out.device.type, enabled=False):  # `backward()` may be called inside autocast
        grads = torch.ops.groundthink.chunked_read_backward(d_out, *ctx.saved_tensors, ctx.scale)
    return (*grads, None, None)


chunked_read.register_autograd(_backward, setup_context=_context)
