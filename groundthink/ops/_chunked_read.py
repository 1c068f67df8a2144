"""Causal reads of a memory written in chunks: the second half of `_chunked_write`, with other queries each time."""

from __future__ import annotations

import torch
from torch import Tensor

from groundthink.ops._chunk_factors import Decays, chunk_layout, from_chunks, gamma_to_log_decay, to_chunks
from groundthink.ops._shapes import expand_heads, fold_heads


@torch.library.custom_op("groundthink::chunked_read", mutates_args=())
def chunked_read(
    queries: Tensor,
    keys: Tensor,
    pseudo: Tensor,
    states: Tensor,
    log_decay: Tensor,
    documents: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """o [B,T,H,V] in float32 (float64 for float64 gates); and for the backward pass, both [M,C,C]: the scores
    (q_i . k_j) exp(gamma_i - gamma_j) and the decays in them."""
    batch, length, heads, value_dim = pseudo.shape
    n_chunks, _ = chunk_layout(length)
    dtype = pseudo.dtype
    decays = Decays(log_decay, documents, shift=False, dtype=dtype)
    pairs = decays.pairs(diagonal=True)
    q = to_chunks(expand_heads(queries, heads).to(dtype), n_chunks)
    k = to_chunks(expand_heads(keys, heads).to(dtype), n_chunks)
    start = states.transpose(1, 2).reshape(-1, k.shape[-1], value_dim)
    scores = torch.bmm(q, k.mT).mul_(pairs)
    out = torch.bmm(q, start).mul_(decays.edges().enter).baddbmm_(scores, to_chunks(pseudo, n_chunks))
    return from_chunks(out.mul_(scale), batch, heads, length), scores, pairs


@chunked_read.register_fake
def _(
    queries: Tensor,
    keys: Tensor,
    pseudo: Tensor,
    states: Tensor,
    log_decay: Tensor,
    documents: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, heads, _ = pseudo.shape
    n_chunks, chunk = chunk_layout(length)
    square = (batch * heads * n_chunks, chunk, chunk)
    # Contiguous like the real results, whatever the strides of the inputs.
    return pseudo.new_empty(pseudo.shape), pseudo.new_empty(square), pseudo.new_empty(square)


@torch.library.custom_op("groundthink::chunked_read_backward", mutates_args=())
def chunked_read_backward(
    d_out: Tensor,
    queries: Tensor,
    keys: Tensor,
    pseudo: Tensor,
    states: Tensor,
    log_decay: Tensor,
    documents: Tensor | None,
    scores: Tensor,
    pairs: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of queries, keys, pseudo-values, chunk-start states and log_decay."""
    batch, length, heads, value_dim = pseudo.shape
    n_chunks, _ = chunk_layout(length)
    dtype = pseudo.dtype
    enter = Decays(log_decay, documents, shift=False, dtype=dtype).edges().enter
    q = to_chunks(expand_heads(queries, heads).to(dtype), n_chunks, own=True)
    k = to_chunks(expand_heads(keys, heads).to(dtype), n_chunks)
    p = to_chunks(pseudo, n_chunks)
    start = states.transpose(1, 2).reshape(-1, k.shape[-1], value_dim)
    do = to_chunks(d_out, n_chunks, own=True).mul_(scale)
    d_scores = torch.bmm(do, p.mT)
    d_exponent = scores * d_scores
    d_scores.mul_(pairs)
    dk = torch.bmm(d_scores.mT, q)
    dq = torch.bmm(do, start.mT).mul_(enter)
    d_gamma = d_exponent.sum(2) - d_exponent.sum(1) + (q * dq).sum(-1)
    dq.baddbmm_(d_scores, k)
    d_start = torch.bmm(q.mul_(enter).mT, do)
    d_start = d_start.view(batch, heads, n_chunks, k.shape[-1], value_dim).transpose(1, 2).contiguous()

    return (
        fold_heads(from_chunks(dq, batch, heads, length), queries),
        fold_heads(from_chunks(dk, batch, heads, length), keys),
        from_chunks(torch.bmm(scores.mT, do), batch, heads, length),
        d_start,
        gamma_to_log_decay(d_gamma, batch, heads, length),
    )


@chunked_read_backward.register_fake
def _(
    d_out: Tensor,
    queries: Tensor,
    keys: Tensor,
    pseudo: Tensor,
    states: Tensor,
    log_decay: Tensor,
    documents: Tensor | None,
    scores: Tensor,
    pairs: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    given = (queries, keys, pseudo, states, log_decay)
    return tuple(x.new_empty(x.shape) for x in given)  # type: ignore[return-value]


def _read_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    _, *squares = output
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *squares)
    ctx.set_materialize_grads(False)  # as in `_chunked_write`


def _read_backward(ctx, d_out, *d_squares):  # type: ignore[no-untyped-def]
    del d_squares  # kept for this function alone
    if d_out is None:
        return (None,) * 7
    with torch.autocast(d_out.device.type, enabled=False):  # `backward()` may be called inside autocast
        grads = torch.ops.groundthink.chunked_read_backward(d_out.contiguous(), *ctx.saved_tensors, ctx.scale)
    return (*grads, None, None)


torch.library.register_autograd("groundthink::chunked_read", _read_backward, setup_context=_read_context)
