"""One layer of the model: mix along time, then along channels."""

from __future__ import annotations

from torch import Tensor, nn

from groundthink.layers import MIXERS, Context, Mixed, Mixer, RMSNorm, State, SwiGLU
from groundthink.layers.memory_attention import MemoryAttention
from groundthink.model.config import ModelConfig


class Block(nn.Module):
    """x + mixer(norm(x)), then x + SwiGLU(norm(x))."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        letter = config.layers[layer]
        self.mixer_norm = RMSNorm(config.d_model, config.norm_eps)
        self.mixer: Mixer = (
            MemoryAttention(config, config.read_sources_of(layer))
            if letter == "S"
            else MIXERS[letter](config.at(layer))
        )
        self.ff_norm = RMSNorm(config.d_model, config.norm_eps)
        self.ff = SwiGLU(config.d_model, config.ff_dim)

    def forward(self, x: Tensor, state: State | None, context: Context) -> Mixed:
        """[B,T,D] and the layer's state in; the same and the layer's memory out."""
        x, normed = self.mixer_norm.after(x, None)
        mixed = self.mixer(normed, state, context)
        x, normed = self.ff_norm.after(x, mixed.y)
        return Mixed(x + self.ff(normed), mixed.state, mixed.memory)
