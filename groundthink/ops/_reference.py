"""The gated delta rule one token at a time: the slow truth that judges every faster backend.

Source: Yang, Kautz, Hatamizadeh, "Gated Delta Networks" (2412.06464), eq. 10, for `error="decayed"`; the form in
which the error is taken before the decay is `error="raw"`. Any floating dtype; float64 is the judge. Every S_t is
kept, so memory is B*T*H*K*V: for tests and small shapes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from groundthink.ops._shapes import expand_heads


def write(
    keys: Tensor,
    values: Tensor,
    *,
    log_decay: Tensor,
    beta: Tensor,
    initial_state: Tensor | None,
    documents: Tensor | None,
    raw: bool,
) -> tuple[tuple[Tensor | None, ...], Tensor]:
    """All states after each token, [B,T,H,K,V], and the last one. Arguments as in `ops.write`."""
    batch, length, heads, value_dim = values.shape
    keys_BTHK = expand_heads(keys, heads)
    decay = log_decay.exp()
    if initial_state is None:
        initial_state = values.new_zeros(batch, heads, keys.shape[-1], value_dim)
    state_BHKV = initial_state.to(values.dtype)
    states = []
    for t in range(length):
        if documents is not None and t > 0:
            same_document = documents[:, t] == documents[:, t - 1]
            state_BHKV = torch.where(same_document[:, None, None, None], state_BHKV, 0.0)
        key_BHK, a, b = keys_BTHK[:, t], decay[:, t, :, None], beta[:, t, :, None]
        recalled_BHV = torch.einsum("bhkv,bhk->bhv", state_BHKV, key_BHK)
        error_BHV = values[:, t] - (recalled_BHV if raw else a * recalled_BHV)
        state_BHKV = a[..., None] * state_BHKV + torch.einsum("bhk,bhv->bhkv", key_BHK, b * error_BHV)
        states.append(state_BHKV)
    return (torch.stack(states, 1),), state_BHKV


def read(parts: tuple[Tensor | None, ...], queries: Tensor, *, scale: float) -> Tensor:
    """o_t = scale * S_t^T q_t: a read at t sees the write at t and never a later one. [B,T,H,V]."""
    (states_BTHKV,) = parts
    assert states_BTHKV is not None
    queries_BTHK = expand_heads(queries, states_BTHKV.shape[2])
    return scale * torch.einsum("bthkv,bthk->bthv", states_BTHKV, queries_BTHK.to(states_BTHKV.dtype))
