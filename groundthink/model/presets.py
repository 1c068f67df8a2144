"""The models of the four sources as fields of ModelConfig; docs/architecture.md says where they part from the sources.

Sizes are those that each source trained, so that a preset alone is its model: change pattern, sizes and vocabulary by
name. A field that is not named here has its default.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

# The block of all four: projections, gates, memory, nothing else; the window counts the present token too.
_BARE: dict[str, Any] = {
    "vocab_size": 50257,
    "window_size": 65,
    "conv_width": 0,
    "qkv_activation": "none",
    "output_norm": False,
    "output_gate": False,
    "read_norm": False,
    "read_scale": 1.0,
    "read_gate": "mean",
    "decay": "sigmoid",
    "start": "plain",
}
# Sources 001 to 003: a raw error, and each G layer asks its own memory with its key.
_RECITING: dict[str, Any] = {**_BARE, "error": "raw", "query": "key", "own_read_scale": 1.0, "read_gate_bias": 1.0}

PRESETS: MappingProxyType[str, MappingProxyType[str, Any]] = MappingProxyType(
    {
        "v6-gatekeeper": MappingProxyType(
            {
                **_BARE,
                "pattern": "GS",
                "d_model": 256,
                "n_heads": 8,
                "head_dim": 32,
                "value_dim": 64,
                "ff_expansion": 4.0,
                "rope": False,
                "beta_bias": -2.0,
                "decay_bias": 0.0,
                "query_norm": False,
                "read_sources": "weighted",
                "read_query_std": 0.01,
                "read_query_activation": "relu",
            }
        ),
        "v6-triton": MappingProxyType(
            {
                **_RECITING,
                "pattern": "GS",
                "d_model": 256,
                "n_heads": 8,
                "head_dim": 32,
                "value_dim": 64,
                "rope": False,
                "beta_bias": -2.0,
                "decay_bias": 4.0,
                "read_query_activation": "relu",
                "read_query_norm": False,
                "norm_eps": 1e-3,
            }
        ),
        "v7": MappingProxyType(
            {
                **_RECITING,
                "pattern": "GS",
                "d_model": 512,
                "n_heads": 8,
                "head_dim": 64,
                "value_dim": 128,
                "beta_bias": -2.0,
                "decay_bias": 2.0,
                "shifted_value": True,
                "read_query_activation": "relu",
                "read_query_norm": False,
            }
        ),
        "v7-scaling": MappingProxyType(
            {
                **_RECITING,
                "pattern": "GGGGGS",
                "d_model": 256,
                "n_heads": 4,
                "head_dim": 64,
                "value_dim": 64,
                "rope": False,
                "beta_floor": 1.0,
                "decay_bias": 2.0,
                "shifted_value": True,
                "output_norm": True,
                "embedding_norm": True,
                "read_query": "shared",
                "read_query_activation": "none",
                "local_scale": 0.3,
                "local_drop_prob": 0.7,
            }
        ),
    }
)
