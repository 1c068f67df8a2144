"""G: the gated delta net (Yang, Kautz, Hatamizadeh, 2412.06464, section 3.4): writes a memory and reads it itself."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundthink import ops
from groundthink.layers.addressing import KeyContext, Written, address, shift
from groundthink.layers.config import LayerConfig
from groundthink.layers.gates import DeltaGates
from groundthink.layers.mixer import Context, Mixed, Mixer, State, freeze, row_dropout
from groundthink.layers.norms import GatedRMSNorm, RMSNorm

# How far the convolution's taps start from the mean of two tokens, see `LayerConfig.start`. A product of two taps that
# both start near zero, of a key and of a query, has no gradient: "context" starts them large and alike.
SPREAD = {"mimetic": 0.2, "context": 0.8}


class ShortConvolution(nn.Module):
    """Weights of the depthwise causal convolution on q, k and v."""

    roles: ClassVar = {"weight": "convolution"}

    def __init__(self, channels: int, config: LayerConfig) -> None:
        super().__init__()
        self.start = config.start
        self.weight = nn.Parameter(torch.empty(channels, config.conv_width))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Uniform within 1/sqrt(width), as torch's Conv1d; else a share of that round the mean of two tokens."""
        bound = self.weight.shape[1] ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if self.start != "plain" and self.weight.shape[1] > 1:
            self.weight.mul_(SPREAD[self.start])
            self.weight[:, -2:].add_(0.5)


class GatedDeltaNet(Mixer):
    """Short convolution and SiLU on q, k, v; L2-normalised q and k; per-head norm and gate on what is read.

    Each of these can be left away, and keys may come by other ways (see `LayerConfig` and `addressing`).

    State: `memory` [B,H,K,V] float32 and `conv` [B,W-1,channels], the inputs of the convolution before the segment;
    `conv_keys` [B,W-1,D], those of the context under keys; `shift_key`, `shift_beta`, `shift_log_decay` [B,1,...] of
    the last token under `shifted_value`.
    """

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.config = config
        key_channels = config.n_heads * config.head_dim
        value_channels = config.value_heads * config.value_dim
        self.sizes = [key_channels] * (2 if config.query == "own" else 1) + [value_channels]
        self.qkv = nn.Linear(config.d_model, sum(self.sizes), bias=False)
        self.conv = ShortConvolution(sum(self.sizes), config) if config.conv_width else None
        self.key_context = KeyContext(config) if config.key_conv_width else None
        self.gates = DeltaGates(config)
        self.out_gate = nn.Linear(config.d_model, value_channels, bias=False) if config.output_gate else None
        norm = GatedRMSNorm if config.output_gate else RMSNorm
        self.out_norm = norm(config.value_dim, config.norm_eps) if config.output_norm else None
        self.out = nn.Linear(value_channels, config.d_model, bias=False)
        self.own_read_drop_prob = config.own_read_drop_prob
        self.hook_q, self.hook_k, self.hook_v = nn.Identity(), nn.Identity(), nn.Identity()
        self.hook_beta, self.hook_log_decay, self.hook_own_read = nn.Identity(), nn.Identity(), nn.Identity()

    @property
    def key_weight(self) -> Tensor:
        """The rows of the projection that make keys, [H*K,D]."""
        return self.qkv.weight[-sum(self.sizes[-2:]) : -self.sizes[-1]]

    @classmethod
    def reach(cls, config: LayerConfig) -> float:
        """Taps of the convolutions, which follow one another on keys, and the shift; the memory adds nothing."""
        return max(config.conv_width - 1, 0) + max(config.key_conv_width - 1, 0) + config.shifted_value

    def state_shapes(self) -> dict[str, tuple[int | None, ...]]:
        """See `Mixer`."""
        c = self.config
        shapes: dict[str, tuple[int | None, ...]] = {"memory": (c.value_heads, c.head_dim, c.value_dim)}
        if c.conv_width:
            shapes["conv"] = (c.conv_width - 1, sum(self.sizes))
        if c.key_conv_width:
            shapes["conv_keys"] = (c.key_conv_width - 1, c.d_model)
        if c.shifted_value:
            gate = (1, c.value_heads)
            shapes |= {"shift_key": (1, c.n_heads, c.head_dim), "shift_beta": gate, "shift_log_decay": gate}
        return shapes

    def project(
        self, x: Tensor, state: State | None, context: Context
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Queries and keys [B,T,H,K], values [B,T,HV,V], and what their convolutions carry on."""
        after: dict[str, Tensor] = {}
        if self.key_context is None:
            packed = self.qkv(x)
        else:
            before = None if state is None else state["conv_keys"]
            seen, after["conv_keys"] = self.key_context(x, before, context.documents)
            *query, key, value = self.qkv.weight.split(self.sizes)
            parts = [*(F.linear(x, w) for w in query), F.linear(seen, key), F.linear(x, value)]
            packed = torch.cat(parts, -1)
        (*queries_keys, values), conv = ops.conv_heads(
            packed,
            None if self.conv is None else self.conv.weight,
            key_parts=len(self.sizes) - 1,
            key_heads=self.config.n_heads,
            key_dim=self.config.head_dim,
            value_dim=self.config.value_dim,
            state=None if state is None else state.get("conv"),
            documents=context.documents,
            keep_state=context.keep_state,
            activation=self.config.qkv_activation,
            query_norm=self.config.query_norm,
        )
        if conv is not None:
            after["conv"] = conv
        queries, keys = (address(part, context.slots) for part in (queries_keys[0], queries_keys[-1]))
        return queries, keys, values, after

    def norm_and_gate(self, read: Tensor, x: Tensor) -> Tensor:
        """[B,T,H*V]: what was read [B,T,H,V], normed and gated as far as the config says."""
        if self.out_gate is None:
            return (read if self.out_norm is None else self.out_norm(read)).flatten(2)
        gate = self.out_gate(x)
        normed: Tensor = read.flatten(2) * F.silu(gate) if self.out_norm is None else self.out_norm(read, gate)
        return normed

    def forward(self, x: Tensor, state: State | None, context: Context) -> Mixed:
        """See `Mixer`. Any later layer may read the memory returned if the context asks to keep it."""
        queries, keys, values, after = self.project(x, state, context)
        log_decay, beta = self.gates(x)
        if self.config.shifted_value:
            now = Written(keys, beta, log_decay)
            before = None if state is None else Written(*(state[f"shift_{name}"] for name in Written._fields))
            after |= {f"shift_{name}": part[:, -1:] for name, part in now._asdict().items()}
            keys, beta, log_decay = shift(now, before, context.documents)
        memory, read = ops.write_and_read(
            self.hook_k(keys),
            self.hook_v(values),
            self.hook_q(queries),
            log_decay=self.hook_log_decay(log_decay),
            beta=self.hook_beta(beta),
            initial_state=None if state is None else state["memory"],
            error=self.config.error,
            documents=context.documents,
            scale=self.config.own_read_scale,
            keep=context.keep_memory,
            backend=self.config.backend,
        )
        read = self.norm_and_gate(read, x)
        read = row_dropout(read, self.own_read_drop_prob, training=self.training, rescale=False)
        y = self.out(self.hook_own_read(read).to(x.dtype))
        kept = freeze(memory=memory.final_state, **after) if context.keep_state else None
        return Mixed(y, kept, memory)
