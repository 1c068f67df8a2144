"""S: looks at a short window exactly and asks the memory of a layer below for the rest."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundthink.layers.addressing import address
from groundthink.layers.attention import WindowAttention
from groundthink.layers.config import LayerConfig
from groundthink.layers.mixer import Context, Mixed, State, row_dropout
from groundthink.layers.norms import RMSNorm


class MemoryReader(nn.Module):
    """Causal questions of one layer to the memories written below it.

    Each memory gets its own query projection, or the one that made its keys; the reads are normed per head, weighted
    (by a learned `mix`, started at 1 for the nearest memory and 0.5 for the others, or by fixed numbers), summed, gated
    and projected back.
    """

    roles: ClassVar = {"mix": "gate"}

    def __init__(self, config: LayerConfig, sources: int) -> None:
        super().__init__()
        self.config, self.sources = config, sources
        channels = config.value_heads * config.value_dim
        channels_k = config.n_heads * config.head_dim
        dedicated = config.read_query == "dedicated"
        self.query = nn.Linear(config.d_model, sources * channels_k, bias=False) if dedicated else None
        self.norm = RMSNorm(config.value_dim, config.norm_eps) if config.read_norm else nn.Identity()
        self.gate = nn.Linear(config.d_model, config.value_heads)
        self.out = nn.Linear(channels, config.d_model, bias=False)
        self.mix = nn.Parameter(torch.empty(sources)) if sources > 1 and config.read_sources == "all" else None
        # a sum that grows with the depth, or one in which the first memory stays ahead (source 000)
        self.fixed = [1.0] * sources if config.read_sources != "weighted" else [1.0] + [0.5] * (sources - 1)
        self.reset_parameters()
        self.hook_query, self.hook_read = nn.Identity(), nn.Identity()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start of what is the reader's own: query, gate bias and mix."""
        if self.query is not None:
            nn.init.normal_(self.query.weight, std=self.config.read_query_std)
        nn.init.constant_(self.gate.bias, self.config.read_gate_bias)
        if self.mix is not None:
            nn.init.constant_(self.mix, 0.5)
            self.mix[-1] = 1.0

    def queries(self, x: Tensor, context: Context) -> Tensor:
        """[B,T,memories,H,K]: what is asked of each memory."""
        activation = {"none": lambda q: q, "relu": F.relu, "silu": F.silu}[self.config.read_query_activation]
        shared = context.key_weights[-self.sources :]
        raw = F.linear(x, torch.cat(shared)) if self.query is None else self.query(x)
        queries = activation(raw).unflatten(-1, (self.sources, self.config.n_heads, -1))
        if self.config.read_query_norm:
            queries = F.normalize(queries.float() if queries.dtype != torch.float64 else queries, dim=-1)
        return address(queries.to(x.dtype), context.slots)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[B,T,D]: what the memories answer to x [B,T,D]."""
        queries = self.hook_query(self.queries(x, context))
        read: Tensor | None = None
        for i, memory in enumerate(context.memories[-self.sources :]):
            part = self.norm(memory.read(queries[:, :, i], scale=self.config.read_scale))
            if self.mix is not None:
                part = part * self.mix[i].to(part.dtype)
            elif self.fixed[i] != 1:
                part = part * self.fixed[i]
            read = part if read is None else read + part
        assert read is not None
        gate = torch.sigmoid(self.gate(x))
        if self.config.read_gate == "mean":
            gate = gate.mean(-1, keepdim=True)
        return self.out(self.hook_read((read * gate[..., None]).flatten(2)))


class MemoryAttention(WindowAttention):
    """S: window attention plus memory reads, each with its own output projection. State: that of the window."""

    def __init__(self, config: LayerConfig, sources: int = 1) -> None:
        super().__init__(config)
        self.reader = MemoryReader(config, sources)
        self.local_drop_prob = config.local_drop_prob

    def forward(self, x: Tensor, state: State | None, context: Context) -> Mixed:
        """See `Mixer`; `context.memories` holds at least as many memories as this layer reads."""
        local, kept = self.attend(x, state, context)
        local = row_dropout(local, self.local_drop_prob, training=self.training, rescale=True)
        y = self.out(self.hook_local(local)) + self.reader(x, context)
        return Mixed(y, kept if context.keep_state else None)
