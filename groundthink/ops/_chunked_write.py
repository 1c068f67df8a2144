"""The gated delta rule in chunks, in plain torch: a handful of batched matrix products and a hand-written backward.

Notation (docs/math.md): in a chunk of C tokens, gamma_i is the sum of log_decay up to token i, eta_i the exponent of
the state that token i's error is taken from: gamma_i (decayed) or gamma_{i-1} (raw). With

    L_ij = beta_i (k_i . k_j) exp(eta_i - gamma_j)  for j < i,     T = (I + L)^-1,
    P    = T beta (V - exp(eta) K S_0)                                      pseudo-values,
    S_C  = exp(gamma_C) S_0 + (exp(gamma_C - gamma) K)^T P,
    o_i  = scale (exp(gamma_i) S_0^T q_i + sum_{j<=i} (q_i . k_j) exp(gamma_i - gamma_j) P_j),

both error forms differ in eta alone. All exponents are <= 0 and nothing is divided by a gate. Substituting P gives
S_C = M S_0 + U with a K x K matrix M per chunk, so the serial part is one product per chunk, forward (M) and
backward (M^T); all else runs over all chunks at once. Documents mask the same factors (see `Decays`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from groundthink.ops._chunk_factors import Decays, chunk_layout, from_chunks, gamma_to_log_decay, to_chunks
from groundthink.ops._shapes import expand_heads, fold_heads


@torch.library.custom_op("groundthink::chunked_write", mutates_args=())
def chunked_write(
    keys: Tensor,
    values: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    initial_state: Tensor | None,
    documents: Tensor | None,
    raw: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Pseudo-values [B,T,H,V], chunk-start states [B,N,H,K,V], final state [B,H,K,V]; and for the backward pass, all
    [M,C,C]: T transposed, the decays exp(eta_i - gamma_j), and the products (k_i . k_j) with these decays."""
    batch, length, heads, value_dim = values.shape
    n_chunks, _ = chunk_layout(length)
    dtype = beta.dtype
    decays = Decays(log_decay, documents, shift=raw, dtype=dtype)
    pairs, f = decays.pairs(diagonal=False), decays.edges()
    k = to_chunks(expand_heads(keys, heads).to(dtype), n_chunks)
    v = to_chunks(values.to(dtype), n_chunks)
    b = to_chunks(beta[..., None], n_chunks)
    gram = torch.bmm(k, k.mT).mul_(pairs)
    lower = b * gram
    eye = torch.eye(k.shape[1], dtype=dtype, device=k.device)
    # LAPACK answers in column order, so the transpose is what lies in rows.
    inverse_t = torch.linalg.solve_triangular(
        lower, eye.expand_as(lower), upper=False, unitriangular=True
    ).mT.contiguous()
    inverse = inverse_t.mT
    erased = torch.bmm(inverse, f.enter * b * k)  # W: what P takes from S_0
    fresh = torch.bmm(inverse, b * v)  # what P is without S_0
    k_out = f.out * k
    carry = torch.bmm(k_out.mT, erased).neg_()
    carry.diagonal(dim1=-2, dim2=-1).add_(f.through.squeeze(-1))
    added = torch.bmm(k_out.mT, fresh)

    shape = (batch * heads, n_chunks, k.shape[-1])
    carry, added = carry.view(*shape, k.shape[-1]), added.view(*shape, value_dim)
    state = k.new_zeros(batch * heads, k.shape[-1], value_dim)
    if initial_state is not None:
        state = initial_state.to(dtype).reshape(state.shape)
    states = []
    for n in range(n_chunks):
        states.append(state)
        state = torch.baddbmm(added[:, n], carry[:, n], state)
    starts = torch.stack(states, 1)
    pseudo = fresh.baddbmm_(erased, starts.view(-1, k.shape[-1], value_dim), alpha=-1)
    return (
        from_chunks(pseudo, batch, heads, length),
        starts.view(batch, heads, n_chunks, k.shape[-1], value_dim).transpose(1, 2).contiguous(),
        state.view(batch, heads, k.shape[-1], value_dim).clone(),
        inverse_t,
        pairs,
        gram,
    )


@chunked_write.register_fake
def _(
    keys: Tensor,
    values: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    initial_state: Tensor | None,
    documents: Tensor | None,
    raw: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, length, heads, value_dim = values.shape
    n_chunks, chunk = chunk_layout(length)
    key_dim = keys.shape[-1]
    square = (batch * heads * n_chunks, chunk, chunk)
    return (
        beta.new_empty(batch, length, heads, value_dim),
        beta.new_empty(batch, n_chunks, heads, key_dim, value_dim),
        beta.new_empty(batch, heads, key_dim, value_dim),
        beta.new_empty(square),
        beta.new_empty(square),
        beta.new_empty(square),
    )


def _state_gradients(
    k_out: Tensor, erased: Tensor, through: Tensor, dp: Tensor, d_start: Tensor, d_final: Tensor
) -> tuple[Tensor, Tensor]:
    """The serial part: dS_n = M^T dS_{n+1} + (outside gradients of S_n) - W^T (outside gradients of P).

    Returns the gradient of each chunk's last state, [M,K,V], and of the initial state, [B,H,K,V].
    """
    carry_t = torch.bmm(erased.mT, k_out).neg_()
    carry_t.diagonal(dim1=-2, dim2=-1).add_(through.squeeze(-1))
    local = torch.baddbmm(d_start, erased.mT, dp, alpha=-1)
    rows, (key_dim, value_dim) = d_final.shape[0] * d_final.shape[1], d_final.shape[2:]
    carry_t, local = carry_t.view(rows, -1, key_dim, key_dim), local.view(rows, -1, key_dim, value_dim)
    n_chunks = local.shape[1]
    d_state = d_final.reshape(rows, key_dim, value_dim)
    d_ends: list[Tensor] = [d_state] * n_chunks
    for n in reversed(range(n_chunks)):
        d_ends[n] = d_state
        d_state = torch.baddbmm(local[:, n], carry_t[:, n], d_state)
    return torch.stack(d_ends, 1).view(-1, key_dim, value_dim), d_state.view(d_final.shape).clone()


@torch.library.custom_op("groundthink::chunked_write_backward", mutates_args=())
def chunked_write_backward(
    d_pseudo: Tensor,
    d_states: Tensor,
    d_final: Tensor,
    keys: Tensor,
    values: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    documents: Tensor | None,
    pseudo: Tensor,
    states: Tensor,
    inverse_t: Tensor,
    pairs: Tensor,
    gram: Tensor,
    raw: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of keys, values, log_decay, beta and initial state. Derivation: docs/math.md."""
    batch, length, heads, value_dim = values.shape
    n_chunks, _ = chunk_layout(length)
    dtype = beta.dtype
    f = Decays(log_decay, documents, shift=raw, dtype=dtype).edges()
    k = to_chunks(expand_heads(keys, heads).to(dtype), n_chunks)
    v = to_chunks(values.to(dtype), n_chunks)
    b = to_chunks(beta[..., None], n_chunks)
    p = to_chunks(pseudo, n_chunks)
    start = states.transpose(1, 2).reshape(-1, k.shape[-1], value_dim)
    dp = to_chunks(d_pseudo, n_chunks)
    d_start = d_states.transpose(1, 2).reshape(-1, k.shape[-1], value_dim)
    k_out = f.out * k
    erased = torch.bmm(inverse_t.mT, f.enter * b * k)

    d_end, d_initial = _state_gradients(k_out, erased, f.through, dp, d_start, d_final.to(dtype))
    dp = torch.baddbmm(dp, k_out, d_end)
    dx = torch.bmm(inverse_t, dp)
    recalled = torch.bmm(k, start).mul_(f.enter)
    d_lower = torch.bmm(dx, p.mT).neg_()  # the strict lower triangle counts; `pairs` is 0 elsewhere
    d_exponent = gram * d_lower  # times beta_i: the gradient of eta_i - gamma_j
    d_exponent_rows = d_exponent.sum(-1)
    d_beta = (v - recalled).mul_(dx).sum(-1) + d_exponent_rows
    d_gram = d_lower.mul_(pairs).mul_(b)
    bdx = dx.mul_(b)
    dk = torch.bmm(d_gram, k).baddbmm_(d_gram.mT, k)
    dk.sub_(torch.bmm(bdx, start.mT).mul_(f.enter))
    p_end = torch.bmm(p, d_end.mT).mul_(f.out)
    dk.add_(p_end)

    d_out = p_end.mul_(k).sum(-1)
    d_gamma = -torch.bmm(b.mT, d_exponent).squeeze(1) - d_out
    d_gamma[:, -1] += d_out.sum(-1) + f.through.flatten() * (start * d_end).sum((-2, -1))
    d_eta = b.squeeze(-1) * d_exponent_rows - recalled.mul_(bdx).sum(-1)
    if raw:
        d_gamma[:, :-1] += d_eta[:, 1:]
    else:
        d_gamma += d_eta
    return (
        fold_heads(from_chunks(dk, batch, heads, length), keys),
        from_chunks(bdx, batch, heads, length).to(values.dtype),
        gamma_to_log_decay(d_gamma, batch, heads, length),
        from_chunks(d_beta[..., None], batch, heads, length).squeeze(-1),
        d_initial,
    )


@chunked_write_backward.register_fake
def _(
    d_pseudo: Tensor,
    d_states: Tensor,
    d_final: Tensor,
    keys: Tensor,
    values: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    documents: Tensor | None,
    pseudo: Tensor,
    states: Tensor,
    inverse_t: Tensor,
    pairs: Tensor,
    gram: Tensor,
    raw: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    given = (keys, values, log_decay, beta, d_final)
    return tuple(x.new_empty(x.shape) for x in given)  # type: ignore[return-value]


def _write_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    keys, values, log_decay, beta, initial_state, documents, raw = inputs
    pseudo, states, _, *squares = output
    ctx.save_for_backward(keys, values, log_decay, beta, documents, pseudo, states, *squares)
    ctx.raw, ctx.state_dtype = raw, None if initial_state is None else initial_state.dtype
    ctx.set_materialize_grads(False)  # the squares have no gradient; zeros for them would be the largest tensors here


def _write_backward(ctx, d_pseudo, d_states, d_final, *d_squares):  # type: ignore[no-untyped-def]
    del d_squares  # kept for this function alone
    keys, values, log_decay, beta, documents, pseudo, states, *squares = ctx.saved_tensors
    d_pseudo = torch.zeros_like(pseudo) if d_pseudo is None else d_pseudo
    d_states = torch.zeros_like(states) if d_states is None else d_states
    d_final = torch.zeros_like(states[:, 0]) if d_final is None else d_final
    given = (d_pseudo, d_states, d_final, keys, values, log_decay, beta, documents, pseudo, states, *squares)
    with torch.autocast(keys.device.type, enabled=False):  # `backward()` may be called inside autocast
        dk, dv, dg, db, d_initial = torch.ops.groundthink.chunked_write_backward(*given, ctx.raw)
    d_initial = None if ctx.state_dtype is None else d_initial.to(ctx.state_dtype)
    return dk, dv, dg, db, d_initial, None, None


torch.library.register_autograd("groundthink::chunked_write", _write_backward, setup_context=_write_context)
