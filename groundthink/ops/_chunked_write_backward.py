"""Gradients of a write and of its own read, chunk by chunk from the end.

In the notation of `_chunked_write`, with G = scale dO and D = [G; -dY] the gradient of what queries and keys have seen:

    dE  = beta (A^T G) + beta exp(gamma_C - gamma) K dS_C            dY = T^T dE = dV
    dS_0 = exp(gamma_C) dS_C + (exp(gamma; eta) [Q; K])^T D          the serial part
    F   = (D E^T) * decays                                           gradient of the products, but for beta_j
    d[Q; K] = F (beta K) + exp(gamma; eta) (D S_0^T)                 as rows
    dK      = beta (F^T [Q; K] + exp(gamma_C - gamma) E dS_C^T)      as columns
    dbeta_j = E_j . dP_j = sum_i (D E^T)_ij [A; B]_ij + exp(gamma_C - gamma_j) k_j . (E dS_C^T)_j

The exponents' gradients are the row sums of d[Q; K] * [Q; K] (gamma; eta) less beta dbeta (gamma), and at the chunk's
end what all of it has left there. Later reads add their gradients of P and of the states.
"""

from __future__ import annotations

import torch
from torch import Tensor

from groundthink.ops._chunk_factors import Block, Tiles, by_token, gamma_to_log_decay, share
from groundthink.ops._chunked_write import Chunks, Room, chunked_write


@torch.library.custom_op("groundthink::chunked_write_backward", mutates_args=())
def chunked_write_backward(
    d_out: Tensor | None,
    d_final: Tensor | None,
    d_pseudo: Tensor | None,
    d_states: Tensor | None,
    keys: Tensor,
    values: Tensor,
    queries: Tensor | None,
    log_decay: Tensor,
    beta: Tensor,
    documents: Tensor | None,
    states: Tensor,
    raw: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of keys, values, queries (empty if nothing was read), log_decay, beta and the initial state.

    Without `d_out` the queries count for nothing. Later reads have left theirs in `d_pseudo` and `d_states`.
    """
    backward = _Backward(d_out, d_pseudo, d_states, keys, values, queries, log_decay, beta, documents, raw, scale)
    d_state = torch.zeros_like(states[0]) if d_final is None else d_final.to(states.dtype, copy=True)
    d_state = d_state.contiguous()
    for block in reversed(backward.text.blocks):
        backward.step(block, states[block.chunks, block.rows].view(-1, *states.shape[-2:]), d_state[block.rows])
    d_gamma, length = backward.d_gamma, keys.shape[1]
    if raw:
        d_gamma[..., :-1] += backward.d_eta[..., 1:]
    else:
        d_gamma += backward.d_eta
    return (
        backward.dk,
        backward.dv,
        backward.dq,
        gamma_to_log_decay(d_gamma, length),
        by_token(backward.d_beta, length),
        d_state,
    )


class _BackwardRoom(Room):
    """And what backward alone needs."""

    def __init__(self, text: Chunks, shape: tuple[int, int, int]) -> None:
        super().__init__(text, shape)
        c, key_dim, value_dim = shape[2], self.rows.shape[-1], text.value_dim
        self.recalled, self.de, self.dy = map(self.value_buffer, ("recalled", "de", "dy"))
        self.d = self.scratch("d", self.m, self.top + c, value_dim)
        self.d_read, self.d_write = self.d[:, : self.top], self.d[:, self.top :]
        self.reach, self.d_rows = (self.scratch(name, *self.rows.shape) for name in ("reach", "d_rows"))
        self.d_rows_low = self.d_rows[:, self.top :]
        self.d_scores = self.scratch("d_scores", *self.scores.shape)
        self.dk, self.product = (self.scratch(name, self.m, c, key_dim) for name in ("dk", "product"))
        self.d_end = self.scratch("d_end", self.m, key_dim, value_dim)
        self.shared_de, self.shared_dy, self.shared_d_read = (
            share(x, shape, text.heads) for x in (self.de, self.dy, self.d_read)
        )
        self.shared_dk = share(self.dk, shape, text.keys_shape[2])
        self.shared_dq = share(self.d_rows[:, : self.top], shape, text.queries_heads) if self.top else None
        changing = (self.left, self.de, self.dy, self.d_write, self.d, self.reach.mT, self.d_end)
        self.steps = list(zip(*map(self.each, changing), strict=True))


class _Backward:
    """The gradients on their way, and one block's part of them."""

    def __init__(
        self,
        d_out: Tensor | None,
        d_pseudo: Tensor | None,
        d_states: Tensor | None,
        keys: Tensor,
        values: Tensor,
        queries: Tensor | None,
        log_decay: Tensor,
        beta: Tensor,
        documents: Tensor | None,
        raw: bool,
        scale: float,
    ) -> None:
        queries = None if d_out is None else queries
        stacks = queries is not None
        self.text = Chunks(keys, queries, log_decay, beta, documents, raw, values.shape[-1], stacks=stacks)
        self.d_states, self.scale, chunk = d_states, scale, self.text.chunk
        self.d_out, self.d_pseudo = (None if x is None else Tiles(x, chunk) for x in (d_out, d_pseudo))
        self.dk, self.dv = keys.new_empty(keys.shape), values.new_empty(values.shape)
        self.dq = keys.new_empty(0) if queries is None else queries.new_empty(queries.shape)
        self.values, self.dk_tiles, self.dv_tiles = (Tiles(x, chunk) for x in (values, self.dk, self.dv))
        self.dq_tiles = None if queries is None else Tiles(self.dq, chunk)
        self.d_gamma, self.d_eta, self.d_beta = (torch.zeros_like(self.text.beta) for _ in range(3))
        self.rooms: dict[tuple[int, int, int], _BackwardRoom] = {}

    def step(self, block: Block, start: Tensor, d_state: Tensor) -> None:
        """Add a block's gradients.

        Args:
            block: the one before the last one done.
            start: [M,K,V] first states of its chunks.
            d_state: [B,HV,K,V] gradient of the state after it; on return of the state before it.
        """
        if block.shape not in self.rooms:
            self.rooms[block.shape] = _BackwardRoom(self.text, block.shape)
        x = self.rooms[block.shape]
        self.text.load(block, x)
        x.shared_values.copy_(self.values.of(block))
        torch.bmm(x.keys, start, out=x.recalled)
        torch.bmm(x.inverse, x.values.addcmul_(x.enter[:, x.top :], x.recalled, value=-1), out=x.e)  # as in forward
        torch.mul(x.rows, x.enter, out=x.reach)
        of_kept = self._from_reads(block, x)
        self._scan(block, x, d_state)

        torch.bmm(x.d, x.e.mT, out=x.d_scores)
        x.scores.mul_(x.d_scores)  # gradient of the exponents, but for beta_j; the scores are not needed any more
        of_rows, of_columns = torch.bmm(x.scores, x.beta).squeeze(-1), x.scores.sum(1)
        x.d_scores.mul_(x.pairs)
        torch.bmm(x.d, start.mT, out=x.d_rows).mul_(x.enter)
        of_rows += torch.mul(x.d_rows, x.rows, out=x.reach).sum(-1)
        x.d_rows.baddbmm_(x.d_scores, torch.mul(x.keys, x.beta, out=x.product))
        torch.bmm(x.e, x.d_end.mT, out=x.dk).mul_(x.out)
        at_end = torch.mul(x.dk, x.keys, out=x.product).sum(-1)
        x.dk.baddbmm_(x.d_scores.mT, x.rows).mul_(x.beta).add_(x.d_rows_low)
        self.dk_tiles.store(block, x.shared_dk)
        if self.dq_tiles is not None and x.shared_dq is not None:
            self.dq_tiles.store(block, x.shared_dq)
        self.dv_tiles.store(block, x.shared_dy)

        beta, d_beta = x.beta.squeeze(-1), of_columns + at_end
        d_gamma = beta * -d_beta
        d_gamma[:, -1] += (beta * at_end).sum(-1) + x.d_end.mul_(start).sum((1, 2)) * x.through.flatten()
        block.put(d_gamma + of_rows[:, : x.top] if x.top else d_gamma, self.d_gamma)
        block.put(of_rows[:, x.top :], self.d_eta)
        block.put(d_beta if of_kept is None else d_beta + (of_kept * x.e).sum(-1), self.d_beta)

    def _from_reads(self, block: Block, x: _BackwardRoom) -> Tensor | None:
        """What reads in this block send to `de` and `d`; and the part of it that later reads have sent to P."""
        of_kept = None
        if self.d_pseudo is not None:
            x.shared_de.copy_(self.d_pseudo.of(block))
            of_kept = x.de.clone()
        if self.d_out is not None and x.top:
            torch.mul(self.d_out.of(block), self.scale, out=x.shared_d_read)
            torch.baddbmm(x.de, x.scores_top.mT, x.d_read, beta=int(of_kept is not None), out=x.de)
        elif of_kept is None:
            x.de.zero_()
        x.de.mul_(x.beta)
        return of_kept

    def _scan(self, block: Block, x: _BackwardRoom, d_state: Tensor) -> None:
        """The serial part: `dy`, `d`, and the gradient of the state after each chunk."""
        d_state = d_state.view(-1, *d_state.shape[-2:])
        factors = zip(x.each(x.inverse.mT), x.each(x.through), strict=True)
        for i, (step, (inverse_t, through)) in reversed(list(enumerate(zip(x.steps, factors, strict=True)))):
            left, de, dy, d_write, d, reach_t, d_end = step
            d_end.copy_(d_state)
            torch.bmm(inverse_t, de.baddbmm_(left, d_state), out=dy)
            torch.neg(dy, out=d_write)
            d_state.mul_(through).baddbmm_(reach_t, d)
            if self.d_states is not None:
                d_state += self.d_states[block.chunks.start + i, block.rows].reshape(d_state.shape)


@chunked_write_backward.register_fake
def _(
    d_out: Tensor | None,
    d_final: Tensor | None,
    d_pseudo: Tensor | None,
    d_states: Tensor | None,
    keys: Tensor,
    values: Tensor,
    queries: Tensor | None,
    log_decay: Tensor,
    beta: Tensor,
    documents: Tensor | None,
    states: Tensor,
    raw: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return (
        keys.new_empty(keys.shape),
        values.new_empty(values.shape),
        keys.new_empty(0) if queries is None or d_out is None else queries.new_empty(queries.shape),
        beta.new_empty(beta.shape),
        beta.new_empty(beta.shape),
        states.new_empty(states.shape[1:]),
    )


def _context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    keys, values, queries, log_decay, beta, initial_state, documents, ctx.raw, ctx.scale, _, _ = inputs
    ctx.save_for_backward(keys, values, queries, log_decay, beta, documents, output[3])
    ctx.state_dtype = None if initial_state is None else initial_state.dtype
    ctx.set_materialize_grads(False)  # an output that nobody used costs no zeros


def _backward(ctx, d_out, d_final, d_pseudo, d_states):  # type: ignore[no-untyped-def]
    given = [None if d is None or d.numel() == 0 else d for d in (d_out, d_final, d_pseudo, d_states)]
    with torch.autocast(ctx.saved_tensors[0].device.type, enabled=False):  # `backward()` may be called inside autocast
        dk, dv, dq, dg, db, d_initial = torch.ops.groundthink.chunked_write_backward(
            *given, *ctx.saved_tensors, ctx.raw, ctx.scale
        )
    dq = dq if dq.numel() else None
    d_initial = None if ctx.state_dtype is None else d_initial.to(ctx.state_dtype)
    return dk, dv, dq, dg, db, d_initial, None, None, None, None, None


chunked_write.register_autograd(_backward, setup_context=_context)
