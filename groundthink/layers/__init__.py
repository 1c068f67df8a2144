"""Sequence mixers, one family per file, behind one interface."""

from types import MappingProxyType

from groundthink.layers.attention import FullAttention, WindowAttention
from groundthink.layers.config import LayerConfig
from groundthink.layers.feed_forward import SwiGLU
from groundthink.layers.gated_delta_net import GatedDeltaNet
from groundthink.layers.memory_attention import MemoryAttention
from groundthink.layers.mixer import ROLES, Context, Mixed, Mixer, State, freeze
from groundthink.layers.norms import RMSNorm

MIXERS: MappingProxyType[str, type[Mixer]] = MappingProxyType(
    {"G": GatedDeltaNet, "S": MemoryAttention, "A": WindowAttention, "F": FullAttention}
)

__all__ = [
    "MIXERS",
    "ROLES",
    "Context",
    "LayerConfig",
    "Mixed",
    "Mixer",
    "RMSNorm",
    "State",
    "SwiGLU",
    "freeze",
]
