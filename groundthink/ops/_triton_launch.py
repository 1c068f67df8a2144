"""Launching the Triton kernels: shapes, buffers and the fixed configuration of each kernel. No autograd here."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from groundthink.ops import _triton_backward as backward
from groundthink.ops import _triton_forward as forward

CHUNK = 64
WIDTHS = (64, 128, 256)


@dataclasses.dataclass(frozen=True)
class Config:
    """How one kernel is compiled for one (K, V, dtype): never by length, so no length ever compiles anything."""

    block: int
    warps: int
    stages: int
    registers: int | None = None


def config(kernel: str, key_dim: int, value_dim: int, dtype: torch.dtype) -> Config:
    """The fixed configuration of a kernel, measured on an H200 where the size is one of the benchmark's."""
    if dtype == torch.float32:
        return Config(min(value_dim, 32), 4, 1)
    # never a tile narrower than 64: Triton 3.6 reads transposed bfloat16 tiles of 32 columns or fewer out of bounds
    wide = key_dim > 128
    match kernel:
        case "scan_only" | "scan_backward" if key_dim == 128 and value_dim >= 128:
            return Config(128, 8, 3)
        case "scan" | "scan_only" | "scan_backward":
            return Config(64, 8 if wide else 4, 2 if key_dim > 64 else 3)
        case "rows" if not wide:
            return Config(64, 4, 2, 168 if key_dim > 64 else 128)
        case "columns" if not wide:
            return Config(64, 4, 2, 168 if key_dim == 64 else None)
        case "prepare" | "read" | "read_backward" if not wide:
            return Config(64, 4, 1 if kernel == "read" else 2)
        case _:
            return Config(64, 8, 1)


def n_chunks(length: int) -> int:
    """Chunks of 64 tokens that hold `length` tokens."""
    return -(-length // CHUNK)


def _precision(dtype: torch.dtype) -> str:
    # three tf32 products hold about 21 bits; bf16 operands ignore this
    return "tf32x3" if dtype == torch.float32 else "tf32"


def _strides(x: Tensor) -> tuple[int, int, int]:
    return x.stride(0), x.stride(1), x.stride(2)


def rows_contiguous(x: Tensor) -> Tensor:
    """Kernels take any strides but the last."""
    return x if x.stride(-1) == 1 else x.contiguous()


def prepare(
    keys: Tensor,
    queries: Tensor | None,
    log_decay: Tensor,
    beta: Tensor,
    documents: Tensor | None,
    *,
    raw: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Per chunk: inverse and scores [B,HV,N,64,64] in the keys' dtype, gamma [B,HV,N,64], gates [B,HV,N,6,64]."""
    batch, length, heads = log_decay.shape
    n, key_dim = n_chunks(length), keys.shape[-1]
    # running sums reach -20 * 64: float32 inputs are promised more digits of their differences than float32 holds
    wide = keys.dtype == torch.float32
    asked = keys if queries is None else queries
    inverse = keys.new_empty(batch, heads, n, CHUNK, CHUNK)
    scores = torch.empty_like(inverse) if queries is not None else keys.new_empty(0)
    gamma = log_decay.new_empty(batch, heads, n, CHUNK, dtype=torch.float64 if wide else torch.float32)
    gates = log_decay.new_empty(batch, heads, n, 6, CHUNK)
    c = config("prepare", key_dim, 0, keys.dtype)
    forward.prepare_kernel[(batch * n * heads,)](
        keys, asked, log_decay, beta, documents, inverse, scores, gamma, gates,
        length, n, *_strides(keys), *_strides(asked), keys.shape[2], asked.shape[2], heads, scale,
        K=key_dim, READ=queries is not None, RAW=raw, HAS_DOCS=documents is not None, WIDE=wide,
        IP=_precision(keys.dtype), MP="tf32x3" if wide else "half", num_warps=c.warps, maxnreg=c.registers,
    )  # fmt: skip
    return inverse, scores, gamma, gates


def _long(length: int, *strides: int) -> bool:
    """Whether a row's last offset, a chunk beyond its end, needs 64 bits, which cost the scans registers."""
    return (n_chunks(length) + 1) * CHUNK * max(strides) >= 2**31


def segments(programs: int, chunks: int, warps: int, device: torch.device) -> tuple[int, int]:
    """(how many segments a row's chunks are cut into, chunks of one): more than one where programs leave a GPU idle.

    A cut row is carried through twice more, to learn what each segment does to any state, so it needs four segments
    to gain, and each must be long against that.
    """
    if device.type != "cuda":
        return 1, chunks
    room = torch.cuda.get_device_properties(device).multi_processor_count * 8 // warps  # registers for eight warps each
    count = min(room // programs, chunks // 16)
    return (1, chunks) if count < 4 else (-(-chunks // -(-chunks // count)), -(-chunks // count))


def _chain(maps: Tensor, updates: Tensor, first: Tensor | None) -> Tensor:
    """States [B,HV,G,K,V] before each segment: S_{g+1} = map_g S_g + update_g."""
    states = [torch.zeros_like(updates[:, :, 0]) if first is None else first]
    for g in range(updates.shape[2] - 1):
        states.append(updates[:, :, g] + maps[:, :, g] @ states[-1])
    return torch.stack(states, 2)


def scan(
    keys: Tensor,
    values: Tensor,
    queries: Tensor | None,
    inverse: Tensor,
    scores: Tensor,
    gates: Tensor,
    initial_state: Tensor | None,
    *,
    scale: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(out [B,T,HV,V] or [0], errors [B,T,HV,V] or [0], states [B,N,HV,K,V] or [0], final [B,HV,K,V] float32)."""
    batch, length, heads, value_dim = values.shape
    key_dim, n = keys.shape[-1], n_chunks(length)
    # what is kept passes through registers: two smaller programs per multiprocessor hide that better than one
    c = config("scan" if keep else "scan_only", key_dim, value_dim, keys.dtype)
    count, span = segments(batch * heads * (value_dim // c.block), n, c.warps, keys.device)
    if count > 1:
        maps = _segment_maps(keys, values, inverse, gates, count, span)
        updates = _scan(keys, values, None, inverse, scores, gates, None, count, span, scale=scale, keep=False)[3]
        initial_state = _chain(maps, updates, initial_state)
    out, errors, states, final = _scan(
        keys, values, queries, inverse, scores, gates, initial_state, count, span, scale=scale, keep=keep
    )
    return out, errors, states, final.squeeze(2) if count == 1 else final[:, :, -1].contiguous()


def _segment_maps(keys: Tensor, values: Tensor, inverse: Tensor, gates: Tensor, count: int, span: int) -> Tensor:
    """[B,HV,G,K,K] float32: the matrix by which each segment takes the state before it to the state after it."""
    return _scan(keys, values, None, inverse, inverse, gates, None, count, span, scale=1.0, keep=False, as_map=True)[3]


def _scan(
    keys: Tensor,
    values: Tensor,
    queries: Tensor | None,
    inverse: Tensor,
    scores: Tensor,
    gates: Tensor,
    initial_state: Tensor | None,
    count: int,
    span: int,
    *,
    scale: float,
    keep: bool,
    as_map: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One pass over all segments at once; `initial_state` and the final states are [B,HV,G,K,V]."""
    batch, length, heads, value_dim = values.shape
    key_dim, n = keys.shape[-1], n_chunks(length)
    value_dim = key_dim if as_map else value_dim
    asked = keys if queries is None else queries
    out = values.new_empty(values.shape if queries is not None else (0,))
    errors = values.new_empty(values.shape if keep else (0,))
    states = values.new_empty((batch, n, heads, key_dim, value_dim) if keep else (0,))
    final = gates.new_empty(batch, heads, count, key_dim, value_dim)
    c = config("scan" if keep else "scan_only", key_dim, value_dim, keys.dtype)
    forward.scan_kernel[(batch * heads * count * (value_dim // c.block),)](
        keys, values, asked, inverse, scores, gates, initial_state, out, errors, states, final,
        length, n, count, span, *_strides(keys), *_strides(values), *_strides(asked), keys.shape[2], asked.shape[2],
        heads, scale, K=key_dim, V=value_dim, BV=c.block, READ=queries is not None, KEEP=keep,
        HAS_INITIAL=initial_state is not None, CUT=count > 1, MAP=as_map,
        LONG=_long(length, keys.stride(1), values.stride(1), asked.stride(1), heads * value_dim),
        IP=_precision(keys.dtype), STAGES=c.stages, num_warps=c.warps, maxnreg=c.registers,
    )  # fmt: skip
    return out, errors, states, final


def read(
    queries: Tensor,
    keys: Tensor,
    errors: Tensor,
    states: Tensor,
    gamma: Tensor,
    gates: Tensor,
    documents: Tensor | None,
    *,
    scale: float,
) -> Tensor:
    """[B,T,HV,V] in the errors' dtype."""
    batch, length, heads, value_dim = errors.shape
    key_dim, n = keys.shape[-1], n_chunks(length)
    out = torch.empty_like(errors)
    c = config("read", key_dim, value_dim, keys.dtype)
    forward.read_kernel[(batch * n * heads * (value_dim // c.block),)](
        queries, keys, errors, states, gamma, gates, documents, out,
        length, n, *_strides(queries), *_strides(keys), keys.shape[2], queries.shape[2], heads, scale,
        K=key_dim, V=value_dim, BV=c.block, HAS_DOCS=documents is not None, IP=_precision(keys.dtype),
        num_warps=c.warps,
    )  # fmt: skip
    return out


def _fold(x: Tensor, like: Tensor) -> Tensor:
    """Sum [B,T,HV,K] over the value heads that share a key head."""
    if x.shape[2] == like.shape[2]:
        return x
    return x.view(*like.shape[:3], -1, like.shape[3]).sum(3).to(like.dtype)


def _unfolded(like: Tensor, heads: int) -> Tensor:
    """Room for the gradient of `like` at every value head: float32 where heads are still to be summed."""
    dtype = like.dtype if like.shape[2] == heads else torch.float32
    return like.new_empty(*like.shape[:2], heads, like.shape[3], dtype=dtype)


def write_backward(
    d_out: Tensor | None,
    d_errors: Tensor | None,
    d_states: Tensor | None,
    d_final: Tensor | None,
    keys: Tensor,
    queries: Tensor | None,
    errors: Tensor,
    states: Tensor,
    inverse: Tensor,
    scores: Tensor,
    gamma: Tensor,
    gates: Tensor,
    documents: Tensor | None,
    *,
    raw: bool,
    scale: float,
    has_initial: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor, Tensor | None]:
    """Gradients of keys, values, queries, log_decay, beta and the initial state; None for what was not there."""
    batch, length, heads, value_dim = errors.shape
    key_dim, n = keys.shape[-1], n_chunks(length)
    has_read = queries is not None and d_out is not None
    asked = queries if queries is not None and has_read else keys
    dv, d_ends = torch.empty_like(errors), torch.empty_like(states)
    # a raw error knows no decay from the token before it: what cancels there needs every bit of float32
    precision = "ieee" if raw and keys.dtype == torch.float32 else _precision(keys.dtype)
    exact = {"RAW": raw, "EXACT": keys.dtype == torch.float32}
    shared = {"K": key_dim, "V": value_dim, "READ": has_read, "IP": precision}
    rest = (*_strides(keys), *_strides(asked), keys.shape[2], asked.shape[2], heads, scale)
    sizes = (length, n, *rest)
    c = config("scan_backward", key_dim, value_dim, keys.dtype)
    count, span = segments(batch * heads * (value_dim // c.block), n, c.warps, keys.device)

    long = _long(length, keys.stride(1), asked.stride(1), heads * value_dim)

    def carry(ends: Tensor | None, *, keep: bool, starts: bool) -> Tensor | None:
        """One pass over all segments, from the gradients [B,HV,G,K,V] at their ends to those at their starts."""
        d_starts = gates.new_empty(batch, heads, count, key_dim, value_dim) if starts else None
        backward.scan_backward_kernel[(batch * heads * count * (value_dim // c.block),)](
            keys, asked, inverse, scores, gates, d_out, d_errors, d_states, ends, dv, d_ends, d_starts,
            length, n, count, span, *rest, BV=c.block, HAS_D_ERRORS=d_errors is not None,
            HAS_D_STATES=d_states is not None, HAS_D_FINAL=ends is not None, HAS_INITIAL=starts,
            CUT=count > 1, KEEP=keep, LONG=long, STAGES=c.stages, num_warps=c.warps, maxnreg=c.registers, **shared,
        )  # fmt: skip
        return d_starts

    if count > 1:
        maps = _segment_maps(keys, errors, inverse, gates, count, span).transpose(-1, -2)
        own = carry(None, keep=False, starts=True)
        assert own is not None
        d_final = _chain(maps.flip(2), own.flip(2), d_final).flip(2).contiguous()
    d_starts = carry(d_final, keep=True, starts=has_initial)
    d_initial = None if d_starts is None else d_starts[:, :, 0].contiguous()
    dk = _unfolded(keys, heads)
    dq = _unfolded(asked, heads) if has_read else dk
    dg = gates.new_empty(batch, length, heads)
    db = torch.empty_like(dg)
    squares = keys.new_empty(2 if has_read else 1, batch * n * heads, CHUNK, CHUNK)
    c = config("rows", key_dim, value_dim, keys.dtype)
    backward.rows_kernel[(batch * n * heads,)](
        keys, asked, errors, dv, d_out, states, gamma, gates, documents, squares, dq, db, dg, *sizes,
        BV=c.block, HAS_DOCS=documents is not None, STAGES=c.stages, num_warps=c.warps,
        maxnreg=c.registers, **exact, **shared,
    )  # fmt: skip
    c = config("columns", key_dim, value_dim, keys.dtype)
    backward.columns_kernel[(batch * n * heads,)](
        keys, asked, errors, dv, states, d_ends, gates, squares, dk, db, dg, *sizes,
        BV=c.block, STAGES=c.stages, num_warps=c.warps, maxnreg=c.registers, **exact, **shared,
    )  # fmt: skip
    dq_folded = _fold(dq, asked) if has_read else None
    return _fold(dk, keys), dv, dq_folded, dg, db, d_initial


def read_backward(
    d_out: Tensor,
    queries: Tensor,
    keys: Tensor,
    errors: Tensor,
    states: Tensor,
    gamma: Tensor,
    gates: Tensor,
    documents: Tensor | None,
    *,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of queries, keys, errors, states, log_decay and beta."""
    batch, length, heads, value_dim = errors.shape
    key_dim, n = keys.shape[-1], n_chunks(length)
    dq, dk = _unfolded(queries, heads), _unfolded(keys, heads)
    de, ds = torch.empty_like(errors), torch.empty_like(states)
    dg = gates.new_empty(batch, length, heads)
    db = torch.empty_like(dg)
    squares = keys.new_empty(batch * n * heads, CHUNK, CHUNK)
    c = config("read_backward", key_dim, value_dim, keys.dtype)
    backward.read_backward_kernel[(batch * n * heads,)](
        d_out, queries, keys, errors, states, gamma, gates, documents, squares, dq, dk, de, ds, db, dg,
        length, n, *_strides(queries), *_strides(keys), keys.shape[2], queries.shape[2], heads, scale,
        K=key_dim, V=value_dim, BV=c.block, HAS_DOCS=documents is not None, IP=_precision(keys.dtype),
        STAGES=c.stages, num_warps=c.warps, maxnreg=c.registers,
    )  # fmt: skip
    return _fold(dq, queries), _fold(dk, keys), de, ds, dg, db
