"""A and F: attention inside a window, and full attention as the baseline."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundthink import ops
from groundthink.layers.config import LayerConfig
from groundthink.layers.mixer import Context, Mixed, Mixer, State, freeze
from groundthink.layers.rotary import rotate


class WindowAttention(Mixer):
    """A: each token attends to itself and the window - 1 tokens before it, with rotary positions or none.

    State: `keys`, `values` [B,W-1,H,K], rotated already, and `valid` [B,W-1].
    """

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.n_heads * config.head_dim
        self.qkv = nn.Linear(config.d_model, 3 * channels, bias=False)
        self.out = nn.Linear(channels, config.d_model, bias=False)
        self.hook_local = nn.Identity()

    @classmethod
    def reach(cls, config: LayerConfig) -> float:
        """The window less the present token."""
        return config.window_size - 1

    def state_shapes(self) -> dict[str, tuple[int | None, ...]]:
        """See `Mixer`."""
        tokens = self.config.window_size - 1
        heads = (self.config.n_heads, self.config.head_dim)
        return {"keys": (tokens, *heads), "values": (tokens, *heads), "valid": (tokens,)}

    def project(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys, rotated if the config has `rope`, and values, each [B,T,H,K]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.config.n_heads, -1)).unbind(2)
        if self.config.rope:
            q, k = (rotate(part, context.positions, self.config.rope_base) for part in (q, k))
        return q, k, v

    def attend(self, x: Tensor, state: State | None, context: Context) -> tuple[Tensor, State]:
        """What the window says, [B,T,H*K], and the next state."""
        past = None if state is None else ops.Past(state["keys"], state["values"], state["valid"])
        local, past = ops.window_attention(
            *self.project(x, context), window=self.config.window_size, past=past, documents=context.documents
        )
        scale, local = self.config.local_scale, local.flatten(2)
        return local if scale == 1 else local * scale, freeze(keys=past.keys, values=past.values, valid=past.valid)

    def forward(self, x: Tensor, state: State | None, context: Context) -> Mixed:
        """See `Mixer`."""
        local, kept = self.attend(x, state, context)
        return Mixed(self.out(self.hook_local(local)), kept if context.keep_state else None)


class FullAttention(WindowAttention):
    """F: every token attends to all before it. The baseline: its state grows with the text.

    State: `keys`, `values` [B,L,H,K] and `valid` [B,L] for the L tokens so far.
    """

    @classmethod
    def reach(cls, config: LayerConfig) -> float:
        """Without end."""
        del config
        return math.inf

    def state_shapes(self) -> dict[str, tuple[int | None, ...]]:
        """See `Mixer`."""
        return {name: (None, *shape[1:]) for name, shape in super().state_shapes().items()}

    def attend(self, x: Tensor, state: State | None, context: Context) -> tuple[Tensor, State]:
        """What the whole past holds, [B,T,H*K], and the next state."""
        q, k, v = self.project(x, context)
        batch, length = x.shape[:2]
        valid = torch.ones(batch, length, dtype=torch.bool, device=x.device)
        if state is not None:
            k, v = (
                torch.cat([state["keys"].to(k.dtype), k], 1),
                torch.cat([state["values"].to(v.dtype), v], 1),
            )
            valid = torch.cat([state["valid"], valid], 1)
        before = k.shape[1] - length
        mask = torch.ones(length, k.shape[1], dtype=torch.bool, device=x.device).tril(before) & valid[:, None]
        if context.documents is not None:
            ids = torch.cat([context.documents[:, :1].expand(batch, before), context.documents], 1)
            mask = mask & (ids[:, None, :] == context.documents[:, :, None])
            valid = valid & (ids == ids[:, -1:])
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask[:, None]
        )
        return out.transpose(1, 2).flatten(2), freeze(keys=k, values=v, valid=valid)
