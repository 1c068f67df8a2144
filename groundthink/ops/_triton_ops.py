"""The Triton backend as PyTorch operators: write (with or without its own read) and read, explicit tensors throughout.

A write keeps the chunk-start states and the errors E (pseudo-values are beta * E) for later reads and for its own
backward; with `keep=False` its backward computes them again. Reads give back gradients of errors and states, and the
write's backward adds them to its scan.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from groundthink.errors import BackendError
from groundthink.ops import _triton_launch as launch
from groundthink.ops import _triton_step as step
from groundthink.ops._fused import custom_operator, on_their_device
from groundthink.ops._shapes import WriteInputs, expand_heads

WriteOutput = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


@on_their_device
def _write(
    keys: Tensor,
    values: Tensor,
    queries: Tensor | None,
    log_decay: Tensor,
    beta: Tensor,
    initial_state: Tensor | None,
    documents: Tensor | None,
    raw: bool,
    scale: float,
    keep: bool,
) -> WriteOutput:
    """(out, final_state, errors, states, inverse, scores, gamma, gates).

    out and scores are empty without queries, errors and states unless kept. Contiguous rows, one dtype (bf16 or
    float32), float32 gates and state, int32 documents.
    """
    inverse, scores, gamma, gates = launch.prepare(keys, queries, log_decay, beta, documents, raw=raw, scale=scale)
    out, errors, states, final = launch.scan(
        keys, values, queries, inverse, scores, gates, initial_state, scale=scale, keep=keep
    )
    return out, final, errors, states, inverse, scores, gamma, gates


triton_write = custom_operator("triton_write", _write)


@triton_write.register_fake
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
    keep: bool,
) -> WriteOutput:
    batch, length, heads, value_dim = values.shape
    n, key_dim = launch.n_chunks(length), keys.shape[-1]
    wide = torch.float64 if keys.dtype == torch.float32 else torch.float32
    return (
        values.new_empty(values.shape if queries is not None else (0,)),
        log_decay.new_empty(batch, heads, key_dim, value_dim),
        values.new_empty(values.shape if keep else (0,)),
        values.new_empty((batch, n, heads, key_dim, value_dim) if keep else (0,)),
        keys.new_empty(batch, heads, n, launch.CHUNK, launch.CHUNK),
        keys.new_empty((batch, heads, n, launch.CHUNK, launch.CHUNK) if queries is not None else (0,)),
        log_decay.new_empty(batch, heads, n, launch.CHUNK, dtype=wide),
        log_decay.new_empty(batch, heads, n, 6, launch.CHUNK),
    )


@on_their_device
def _write_gradients(
    d_out: Tensor | None,
    d_final: Tensor | None,
    d_errors: Tensor | None,
    d_states: Tensor | None,
    keys: Tensor,
    values: Tensor,
    queries: Tensor | None,
    initial_state: Tensor | None,
    documents: Tensor | None,
    errors: Tensor,
    states: Tensor,
    inverse: Tensor,
    scores: Tensor,
    gamma: Tensor,
    gates: Tensor,
    raw: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of keys, values, queries, log_decay, beta and the initial state; empty for what was not there."""
    if errors.numel() == 0:
        _, errors, states, _ = launch.scan(
            keys, values, None, inverse, scores, gates, initial_state, scale=scale, keep=True
        )
    dk, dv, dq, dg, db, d_initial = launch.write_backward(
        d_out, d_errors, d_states, d_final, keys, queries, errors, states, inverse, scores, gamma, gates, documents,
        raw=raw, scale=scale, has_initial=initial_state is not None,
    )  # fmt: skip
    nothing = gates.new_empty(0)
    return dk, dv, keys.new_empty(0) if dq is None else dq, dg, db, nothing if d_initial is None else d_initial


triton_write_backward = custom_operator("triton_write_backward", _write_gradients)


@triton_write_backward.register_fake
def _(
    d_out: Tensor | None,
    d_final: Tensor | None,
    d_errors: Tensor | None,
    d_states: Tensor | None,
    keys: Tensor,
    values: Tensor,
    queries: Tensor | None,
    initial_state: Tensor | None,
    documents: Tensor | None,
    errors: Tensor,
    states: Tensor,
    inverse: Tensor,
    scores: Tensor,
    gamma: Tensor,
    gates: Tensor,
    raw: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, length, heads, value_dim = values.shape
    return (
        keys.new_empty(keys.shape),
        values.new_empty(values.shape),
        keys.new_empty(0 if queries is None or d_out is None else queries.shape),
        gates.new_empty(batch, length, heads),
        gates.new_empty(batch, length, heads),
        gates.new_empty((0,) if initial_state is None else (batch, heads, keys.shape[-1], value_dim)),
    )


def _write_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    keys, values, queries, _, _, initial_state, documents, ctx.raw, ctx.scale, _ = inputs
    _, _, errors, states, inverse, scores, gamma, gates = output
    ctx.has_initial = initial_state is not None
    ctx.set_materialize_grads(False)  # an output nobody read costs no zeros
    ctx.save_for_backward(
        keys, values, queries, initial_state, documents, errors, states, inverse, scores, gamma, gates
    )


def _write_backward(ctx, d_out, d_final, d_errors, d_states, *internal, gradients=triton_write_backward):  # type: ignore[no-untyped-def]
    del internal  # the inverse and the gates are kept for these functions alone
    given = [None if d is None or d.numel() == 0 else d.contiguous() for d in (d_out, d_final, d_errors, d_states)]
    dk, dv, dq, dg, db, d_initial = gradients(*given, *ctx.saved_tensors, ctx.raw, ctx.scale)
    dq = None if dq.numel() == 0 else dq
    return dk, dv, dq, dg, db, d_initial if ctx.has_initial else None, None, None, None, None


torch.library.register_autograd("groundthink::triton_write", _write_backward, setup_context=_write_context)


@on_their_device
def _read(
    queries: Tensor,
    keys: Tensor,
    errors: Tensor,
    states: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    gamma: Tensor,
    gates: Tensor,
    documents: Tensor | None,
    scale: float,
) -> Tensor:
    """[B,T,HV,V]. log_decay and beta receive gradients; gamma and gates hold the same numbers, ready for kernels."""
    return launch.read(queries, keys, errors, states, gamma, gates, documents, scale=scale)


triton_read = custom_operator("triton_read", _read)


@triton_read.register_fake
def _(
    queries: Tensor,
    keys: Tensor,
    errors: Tensor,
    states: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    gamma: Tensor,
    gates: Tensor,
    documents: Tensor | None,
    scale: float,
) -> Tensor:
    return errors.new_empty(errors.shape)


@on_their_device
def _read_gradients(
    d_out: Tensor,
    queries: Tensor,
    keys: Tensor,
    errors: Tensor,
    states: Tensor,
    gamma: Tensor,
    gates: Tensor,
    documents: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of queries, keys, errors, states, log_decay and beta."""
    return launch.read_backward(d_out, queries, keys, errors, states, gamma, gates, documents, scale=scale)


triton_read_backward = custom_operator("triton_read_backward", _read_gradients)


@triton_read_backward.register_fake
def _(
    d_out: Tensor,
    queries: Tensor,
    keys: Tensor,
    errors: Tensor,
    states: Tensor,
    gamma: Tensor,
    gates: Tensor,
    documents: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, length, heads, _ = errors.shape
    return (
        queries.new_empty(queries.shape),
        keys.new_empty(keys.shape),
        errors.new_empty(errors.shape),
        states.new_empty(states.shape),
        gates.new_empty(batch, length, heads),
        gates.new_empty(batch, length, heads),
    )


def _read_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    del output
    queries, keys, errors, states, _, _, gamma, gates, documents, ctx.scale = inputs
    ctx.save_for_backward(queries, keys, errors, states, gamma, gates, documents)


def _read_backward(ctx, d_out, gradients=triton_read_backward):  # type: ignore[no-untyped-def]
    dq, dk, de, ds, dg, db = gradients(d_out.contiguous(), *ctx.saved_tensors, ctx.scale)
    return dq, dk, de, ds, dg, db, None, None, None, None


torch.library.register_autograd("groundthink::triton_read", _read_backward, setup_context=_read_context)


class _EagerWrite(torch.autograd.Function):
    """`triton_write` without the operator's dispatch, which costs more time than the kernels of a small shape.

    Autograd's bookkeeping of every output costs too: gamma and gates leave through the list `aside`.
    """

    @staticmethod
    def forward(ctx, aside, *inputs):  # type: ignore[no-untyped-def]
        output = _write(*inputs)
        _write_context(ctx, inputs, output)
        aside += output[6:]
        return output[:4]

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):  # type: ignore[no-untyped-def]
        return None, *_write_backward(ctx, *grads, gradients=_write_gradients)


class _EagerRead(torch.autograd.Function):
    """`triton_read` without the operator's dispatch."""

    @staticmethod
    def forward(ctx, *inputs):  # type: ignore[no-untyped-def]
        _read_context(ctx, inputs, None)
        return _read(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, d_out):  # type: ignore[no-untyped-def]
        return _read_backward(ctx, d_out, gradients=_read_gradients)


STEP_SIZES = (16, 32, *launch.WIDTHS)


def _width(size: int, name: str) -> int:
    """The narrowest tile that holds heads of this size.

    Raises:
        BackendError: there is none.
    """
    for width in launch.WIDTHS:
        if size <= width:
            return width
    raise BackendError(
        f"the kernels have no {name} of size {size}",
        where="backend triton",
        fix=f"choose at most {launch.WIDTHS[-1]}, or backend chunked",
    )


def _widen(x: Tensor, *sizes: int) -> Tensor:
    """x with zeros after its last dimensions, up to `sizes`: they change no sum."""
    missing = [size - now for size, now in zip(sizes, x.shape[-len(sizes) :], strict=True)]
    return F.pad(x, [n for m in reversed(missing) for n in (0, m)])


def _kernel_dtype(keys: Tensor) -> torch.dtype:
    """bf16 stays; half precision is computed in float32 (its range does not hold a state).

    Raises:
        BackendError: float64, which the kernels would round.
    """
    if keys.dtype == torch.float64:
        raise BackendError(
            "the kernels compute in float32 at most", where="backend triton", fix="choose backend chunked for float64"
        )
    return keys.dtype if keys.dtype == torch.bfloat16 else torch.float32


def write_and_read(
    inputs: WriteInputs, queries: Tensor | None, *, scale: float, keep: bool = True
) -> tuple[tuple[Tensor | None, ...], Tensor, Tensor | None]:
    """Write, and where queries are given read in the same kernel.

    Args:
        inputs: keys [B,T,H,K] and values [B,T,HV,V], K and V at most 256, in bfloat16, half precision or float32.
        queries: [B,T,H or HV,K] or None.
        scale: factor of what is read.
        keep: errors and states are stored for later reads. Where gradients are on and keep is False they are computed
            again by backward: less memory, about a forward pass more time.

    Returns:
        (parts for `read`, final state [B,HV,K,V] float32, [B,T,HV,V] in the values' dtype or None).

    Raises:
        BackendError: a key or value size that has no kernel.
    """
    keys, values, raw = inputs.keys, inputs.values, inputs.raw
    key_dim, value_dim = keys.shape[-1], values.shape[-1]
    wide = _width(key_dim, "keys"), _width(value_dim, "values")
    dtype = _kernel_dtype(keys)
    k, v = (launch.rows_contiguous(x.to(dtype)) for x in (keys, values))
    q = None if queries is None else launch.rows_contiguous(queries.to(dtype))
    g, b = inputs.log_decay.float().contiguous(), inputs.beta.float().contiguous()
    s = None if inputs.initial_state is None else inputs.initial_state.float().contiguous()
    ids = None if inputs.documents is None else inputs.documents.to(torch.int32).contiguous()
    differentiated = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (k, v, q, g, b, s))
    if keys.shape[1] == 1 and not differentiated and key_dim in STEP_SIZES and value_dim in STEP_SIZES:
        state = g.new_zeros(*v.shape[:1], *v.shape[2:3], k.shape[3], v.shape[3]) if s is None else s
        new = torch.empty_like(state)
        out = step.launch_step(k, v, q, g, b, state, new, raw=raw, scale=scale)
        return (new,) if keep else (), new, None if out is None else out.to(values.dtype)
    given = (k, v, q, g, b, s, ids, raw, scale, keep)
    narrow = wide != (key_dim, value_dim)
    if narrow:
        wide_q, wide_s = None if q is None else _widen(q, wide[0]), None if s is None else _widen(s, *wide)
        given = (_widen(k, wide[0]), _widen(v, wide[1]), wide_q, g, b, wide_s, ids, raw, scale, keep)
    if torch.compiler.is_compiling():  # the compiler sees the operator; without it the same functions run directly
        out, final, errors, states, _, _, gamma, gates = triton_write(*given)
    elif differentiated:
        aside: list[Tensor] = []
        out, final, errors, states = _EagerWrite.apply(aside, *given)
        gamma, gates = aside
    else:
        out, final, errors, states, _, _, gamma, gates = _write(*given)
    if narrow:
        out, final = out[..., :value_dim], final[..., :key_dim, :value_dim]
        if keep:
            errors, states = errors[..., :value_dim], states[..., :key_dim, :value_dim]
    parts = (k, errors, states, g, b, gamma, gates, ids) if keep else ()
    return parts, final, None if q is None else out.to(values.dtype)


def write(inputs: WriteInputs, *, keep: bool = True) -> tuple[tuple[Tensor | None, ...], Tensor]:
    """`write_and_read` without the read: (parts, final state)."""
    return write_and_read(inputs, None, scale=1.0, keep=keep)[:2]


def read(parts: tuple[Tensor | None, ...], queries: Tensor, *, scale: float) -> Tensor:
    """`Backend.read`: [B,T,HV,V]."""
    if len(parts) == 1:  # a decode step's state
        (state,) = parts
        assert state is not None
        q = expand_heads(queries, state.shape[1]).float()
        return scale * torch.einsum("bhkv,bthk->bthv", state, q)
    k, errors, states, g, b, gamma, gates, ids = parts
    assert k is not None
    assert errors is not None
    assert states is not None
    q = launch.rows_contiguous(queries.to(k.dtype))
    call = triton_read if torch.compiler.is_compiling() else _EagerRead.apply
    value_dim = errors.shape[-1]
    wide = _width(k.shape[-1], "keys"), _width(value_dim, "values")
    if wide == (k.shape[-1], value_dim):
        return call(q, k, errors, states, g, b, gamma, gates, ids, scale)
    q, k, errors, states = _widen(q, wide[0]), _widen(k, wide[0]), _widen(errors, wide[1]), _widen(states, *wide)
    return call(q, k, errors, states, g, b, gamma, gates, ids, scale)[..., :value_dim]
