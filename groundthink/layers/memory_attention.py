"""S: looks at a short window exactly and asks the memory of a layer below for the rest."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundthink.layers.attention import WindowAttention
from groundthink.layers.config import LayerConfig
from groundthink.layers.mixer import Context, Mixed, State, row_dropout
from groundthink.layers.norms import RMSNorm


class MemoryReader(nn.Module):
    """Causal questions of one layer to the memories written below it.

    Each memory gets its own query projection; the reads are normed per head, weighted by `mix` (started at 1 for the
    nearest memory and 0.5 for the others), summed, gated and projected back.
    """

    roles: ClassVar = {"mix": "gate"}
    QUERY_STD: ClassVar = 0.02  # spec: a dedicated query starts small; its L2 norm makes only the direction matter

    def __init__(self, config: LayerConfig, sources: int) -> None:
        super().__init__()
        self.config, self.sources = config, sources
        channels = config.value_heads * config.value_dim
        self.query = nn.Linear(config.d_model, sources * config.n_heads * config.head_dim, bias=False)
        self.norm = RMSNorm(config.value_dim, config.norm_eps)
        self.gate = nn.Linear(config.d_model, config.value_heads)
        self.out = nn.Linear(channels, config.d_model, bias=False)
        if sources > 1:
            self.mix = nn.Parameter(torch.full((sources,), 0.5))
            with torch.no_grad():
                self.mix[-1] = 1.0
        self.hook_query, self.hook_read = nn.Identity(), nn.Identity()

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[B,T,D]: what the memories answer to x [B,T,D]."""
        activation = {"none": lambda q: q, "relu": F.relu, "silu": F.silu}[self.config.read_query_activation]
        queries = activation(self.query(x)).unflatten(-1, (self.sources, self.config.n_heads, -1))
        queries = F.normalize(queries.float() if queries.dtype != torch.float64 else queries, dim=-1)
        queries = self.hook_query(queries.to(x.dtype))
        read: Tensor | None = None
        for i, memory in enumerate(context.memories[-self.sources :]):
            part = self.norm(memory.read(queries[:, :, i]))
            part = part * self.mix[i].to(part.dtype) if self.sources > 1 else part
            read = part if read is None else read + part
        assert read is not None
        gate = torch.sigmoid(self.gate(x))[..., None]
        return self.out(self.hook_read((read * gate).flatten(2)))


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
