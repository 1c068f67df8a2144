"""The memory operator: written once, read as often as anybody likes, never the future.

S_t = a_t S_{t-1} + k_t p_t^T with p_t = beta_t (v_t - f_t S_{t-1}^T k_t) and a_t = exp(log_decay_t); the error factor
f_t is a_t for `error="decayed"` (Gated DeltaNet, 2412.06464, eq. 10) and 1 for `error="raw"`. A read at t returns
scale * S_t^T q_t: it sees the write at t and never a later one.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from torch import Tensor

from groundthink.errors import StateError
from groundthink.ops import backends
from groundthink.ops._shapes import WriteInputs, check_read, check_write

ErrorForm = Literal["decayed", "raw"]


@dataclasses.dataclass(frozen=True)
class DeltaMemory:
    """What a write leaves behind: the state after every token, in the form its backend keeps it.

    Attributes:
        final_state: [B,H,K,V] state after the last token, float32 (float64 for float64 gates).
    """

    final_state: Tensor
    _backend: backends.Backend = dataclasses.field(repr=False)
    _parts: tuple[Tensor | None, ...] = dataclasses.field(repr=False)
    _length: int = 0
    _key_heads: int = 0

    def read(self, queries: Tensor, *, scale: float | None = None) -> Tensor:
        """Read the state after each token with that token's query.

        Args:
            queries: [B,T,H,K] with the key heads' or the value heads' number; any floating dtype.
            scale: factor of the result; None means K^-0.5.

        Returns:
            [B,T,HV,V] in the queries' dtype. Gradients reach queries, keys, values, gates and the initial state.

        Raises:
            ValueError: the queries do not fit the memory.
            StateError: it was written with `keep=False`.
        """
        if not self._parts:
            raise StateError(
                "this memory keeps its final state alone and cannot be read again",
                where="DeltaMemory.read",
                fix="write it with keep=True",
            )
        batch, heads, key_dim, _ = self.final_state.shape
        check_read(
            queries,
            batch=batch,
            length=self._length,
            key_heads=self._key_heads,
            heads=heads,
            key_dim=key_dim,
        )
        scale = key_dim**-0.5 if scale is None else scale
        with torch.autocast(queries.device.type, enabled=False):
            return self._backend.read(self._parts, queries, scale=scale).to(queries.dtype)


def write(
    keys: Tensor,
    values: Tensor,
    *,
    log_decay: Tensor,
    beta: Tensor,
    initial_state: Tensor | None = None,
    error: ErrorForm = "decayed",
    documents: Tensor | None = None,
    backend: str = "auto",
) -> DeltaMemory:
    """Write every token into a fixed-size memory by the gated delta rule.

    Args:
        keys: [B,T,H,K], L2-normalised by the caller.
        values: [B,T,HV,V]; HV is a multiple of H, value head h uses key head h // (HV / H).
        log_decay: [B,T,HV] float32, <= 0: natural logarithm of what is kept of the state before the write.
        beta: [B,T,HV] float32 write strength, in [0, 1], or [0, 2] for the decayed form with negative eigenvalues.
        initial_state: [B,HV,K,V] state that the first document of each row continues; None means empty.
        error: where the delta rule's error is taken: after the decay ("decayed") or before it ("raw").
        documents: [B,T] integer ids, non-decreasing in a row; the memory is empty at each new id.
        backend: "auto" (by the device of `keys`) or a name of `ops.BACKENDS`.

    Raises:
        ValueError: shapes or dtypes that do not belong together.
        BackendError: a backend that does not exist or cannot run here.
    """
    inputs = WriteInputs(
        keys,
        values,
        log_decay=log_decay,
        beta=beta,
        initial_state=initial_state,
        documents=documents,
        raw=_is_raw(error),
    )
    check_write(inputs)
    chosen = backends.choose(backend, keys.device)
    with torch.autocast(keys.device.type, enabled=False):  # the state is float32 whatever the model runs in
        parts, final_state = chosen.write(inputs, keep=True)
    return DeltaMemory(final_state, chosen, parts, keys.shape[1], keys.shape[2])


def write_and_read(
    keys: Tensor,
    values: Tensor,
    queries: Tensor,
    *,
    log_decay: Tensor,
    beta: Tensor,
    initial_state: Tensor | None = None,
    error: ErrorForm = "decayed",
    documents: Tensor | None = None,
    scale: float | None = None,
    keep: bool = True,
    backend: str = "auto",
) -> tuple[DeltaMemory, Tensor]:
    """`write` and the writer's own `read` in one call, which a backend may fuse.

    Args:
        keys, values, log_decay, beta, initial_state, error, documents, backend: as in `write`.
        queries: [B,T,H,K] with the key heads' or the value heads' number.
        scale: factor of what is read; None means K^-0.5.
        keep: whether the memory will be read again; if not, nothing is stored for that and its `read` raises.

    Returns:
        The memory and what was read, [B,T,HV,V] in the queries' dtype.

    Raises:
        ValueError: shapes or dtypes that do not belong together.
        BackendError: a backend that does not exist or cannot run here.
    """
    inputs = WriteInputs(
        keys,
        values,
        log_decay=log_decay,
        beta=beta,
        initial_state=initial_state,
        documents=documents,
        raw=_is_raw(error),
    )
    check_write(inputs)
    (batch, length, key_heads, key_dim), heads = keys.shape, values.shape[2]
    check_read(queries, batch=batch, length=length, key_heads=key_heads, heads=heads, key_dim=key_dim)
    chosen = backends.choose(backend, keys.device)
    scale = key_dim**-0.5 if scale is None else scale
    with torch.autocast(keys.device.type, enabled=False):  # as in `write`
        parts, final_state, read = chosen.write_and_read(inputs, queries, scale=scale, keep=keep)
    return DeltaMemory(final_state, chosen, parts, length, key_heads), read.to(queries.dtype)


def _is_raw(error: str) -> bool:
    if error not in ("decayed", "raw"):
        raise ValueError(f"error should be 'decayed' or 'raw', is {error!r}")
    return error == "raw"
