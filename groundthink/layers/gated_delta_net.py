"""G: the gated delta net (Yang, Kautz, Hatamizadeh, 2412.06464, section 3.4): writes a memory and reads it itself."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from groundthink import ops
from groundthink.layers.config import LayerConfig
from groundthink.layers.gates import DeltaGates
from groundthink.layers.mixer import Context, Mixed, Mixer, State, freeze, row_dropout
from groundthink.layers.norms import GatedRMSNorm


class ShortConvolution(nn.Module):
    """Weights of the depthwise causal convolution on q, k and v."""

    roles: ClassVar = {"weight": "convolution"}

    def __init__(self, channels: int, config: LayerConfig) -> None:
        super().__init__()
        self.mimetic = config.start == "mimetic" and config.conv_width > 1
        self.weight = nn.Parameter(torch.empty(channels, config.conv_width))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Uniform within 1/sqrt(width), as torch's Conv1d; mimetic: a fifth of that round the mean of two tokens."""
        bound = self.weight.shape[1] ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if self.mimetic:
            self.weight.mul_(0.2)
            self.weight[:, -2:].add_(0.5)


class GatedDeltaNet(Mixer):
    """Short convolution and SiLU on q, k, v; L2-normalised q and k; per-head norm and gate on what is read.

    State: `memory` [B,H,K,V] float32 and `conv` [B,W-1,channels], the inputs of the convolution before the segment.
    """

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.config = config
        key_channels = config.n_heads * config.head_dim
        value_channels = config.value_heads * config.value_dim
        self.sizes = [key_channels] * (2 if config.query == "own" else 1) + [value_channels]
        self.qkv = nn.Linear(config.d_model, sum(self.sizes), bias=False)
        self.conv = ShortConvolution(sum(self.sizes), config)
        self.gates = DeltaGates(config)
        self.out_gate = nn.Linear(config.d_model, value_channels, bias=False)
        self.out_norm = GatedRMSNorm(config.value_dim, config.norm_eps)
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
        """The convolution's taps; convolutions side by side count once, the memory adds nothing."""
        return config.conv_width - 1

    def state_shapes(self) -> dict[str, tuple[int | None, ...]]:
        """See `Mixer`."""
        c = self.config
        return {"memory": (c.value_heads, c.head_dim, c.value_dim), "conv": (c.conv_width - 1, sum(self.sizes))}

    def forward(self, x: Tensor, state: State | None, context: Context) -> Mixed:
        """See `Mixer`. Any later layer may read the memory returned if the context asks to keep it."""
        (*queries_keys, values), conv_state = ops.conv_heads(
            self.qkv(x),
            self.conv.weight,
            key_parts=len(self.sizes) - 1,
            key_heads=self.config.n_heads,
            key_dim=self.config.head_dim,
            value_dim=self.config.value_dim,
            state=None if state is None else state["conv"],
            documents=context.documents,
            keep_state=context.keep_state,
        )
        queries, keys = self.hook_q(queries_keys[0]), self.hook_k(queries_keys[-1])
        values = self.hook_v(values)
        log_decay, beta = self.gates(x)
        memory, read = ops.write_and_read(
            keys,
            values,
            queries,
            log_decay=self.hook_log_decay(log_decay),
            beta=self.hook_beta(beta),
            initial_state=None if state is None else state["memory"],
            error=self.config.error,
            documents=context.documents,
            keep=context.keep_memory,
            backend=self.config.backend,
        )
        read = self.out_norm(read, self.out_gate(x))
        read = row_dropout(read, self.own_read_drop_prob, training=self.training, rescale=False)
        y = self.out(self.hook_own_read(read).to(x.dtype))
        kept = None if conv_state is None else freeze(memory=memory.final_state, conv=conv_state)
        return Mixed(y, kept, memory)
