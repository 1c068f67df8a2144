"""Shape rules that all backends of the memory operator share."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class WriteInputs:
    """What a write is told. Shapes, dtypes and meaning as in `ops.write`.

    Attributes:
        keys: [B,T,H,K].
        values: [B,T,HV,V].
        log_decay: [B,T,HV].
        beta: [B,T,HV].
        initial_state: [B,HV,K,V]; None means empty.
        documents: [B,T] ids; None means one document per row.
        raw: the error is taken before the decay.
    """

    keys: Tensor
    values: Tensor
    _: dataclasses.KW_ONLY
    log_decay: Tensor
    beta: Tensor
    initial_state: Tensor | None = None
    documents: Tensor | None = None
    raw: bool = False

    def arguments(self) -> dict[str, Any]:
        """The same as keyword arguments."""
        # spelled out, because torch.compile does not follow a look at the fields
        return {
            "keys": self.keys, "values": self.values, "log_decay": self.log_decay, "beta": self.beta,
            "initial_state": self.initial_state, "documents": self.documents, "raw": self.raw,
        }  # fmt: skip


def expand_heads(x: Tensor, heads: int) -> Tensor:
    """Repeat the heads of [B,T,H,K] so that value head h uses key head h // (heads / H)."""
    return x if x.shape[2] == heads else x.repeat_interleave(heads // x.shape[2], dim=2)


def check_write(inputs: WriteInputs) -> None:
    """Refuse shapes that do not belong together.

    Raises:
        ValueError: naming the argument and the shape it should have.
    """
    keys, values = inputs.keys, inputs.values
    if keys.dim() != 4 or values.dim() != 4 or keys.shape[:2] != values.shape[:2]:
        raise ValueError(f"keys [B,T,H,K] and values [B,T,HV,V] do not fit: {tuple(keys.shape)}, {tuple(values.shape)}")
    batch, length, heads, value_dim = values.shape
    if length == 0:
        raise ValueError("a write needs at least one token")
    if heads % keys.shape[2]:
        raise ValueError(f"{heads} value heads are not a multiple of {keys.shape[2]} key heads")
    expected = {"log_decay": (batch, length, heads), "beta": (batch, length, heads)}
    for name, gate in (("log_decay", inputs.log_decay), ("beta", inputs.beta)):
        if tuple(gate.shape) != expected[name]:
            raise ValueError(f"{name} should be {expected[name]}, is {tuple(gate.shape)}")
        if gate.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{name} should be float32, is {gate.dtype}: gates lose their meaning in half precision")
    if inputs.initial_state is not None:
        wanted = (batch, heads, keys.shape[-1], value_dim)
        if tuple(inputs.initial_state.shape) != wanted:
            raise ValueError(f"initial_state should be {wanted}, is {tuple(inputs.initial_state.shape)}")
    if inputs.documents is not None and tuple(inputs.documents.shape) != (batch, length):
        raise ValueError(f"documents should be {(batch, length)}, is {tuple(inputs.documents.shape)}")


def check_read(queries: Tensor, *, batch: int, length: int, key_heads: int, heads: int, key_dim: int) -> None:
    """Refuse queries that do not fit the memory they are put to.

    Raises:
        ValueError: naming the shape the queries should have.
    """
    fits = queries.dim() == 4 and queries.shape[2] in (key_heads, heads)
    if not fits or (queries.shape[0], queries.shape[1], queries.shape[3]) != (batch, length, key_dim):
        raise ValueError(
            f"queries should be [{batch},{length},{key_heads} or {heads},{key_dim}], are {tuple(queries.shape)}"
        )
