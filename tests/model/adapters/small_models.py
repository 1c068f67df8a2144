"""A tiny model of every family, built from its config class: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM, logging
from transformers.models.falcon_mamba.configuration_falcon_mamba import FalconMambaConfig
from transformers.models.jamba.configuration_jamba import JambaConfig
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.mamba.configuration_mamba import MambaConfig
from transformers.models.mamba2.configuration_mamba2 import Mamba2Config
from transformers.models.mistral.configuration_mistral import MistralConfig
from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5TextConfig
from transformers.models.qwen3_next.configuration_qwen3_next import Qwen3NextConfig
from transformers.models.recurrent_gemma.configuration_recurrent_gemma import RecurrentGemmaConfig

logging.set_verbosity_error()  # a hint per family that faster kernels are not installed
VOCAB = 256
_BODY: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2,
    "num_key_value_heads": 1,
}  # fmt: skip
_DELTA: dict[str, Any] = {
    "head_dim": 16, "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}  # fmt: skip
_EXPERTS: dict[str, Any] = {
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
}  # fmt: skip
_STATES: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}

# name -> config; every entry of the registry but fla's, whose kernels need a GPU, has one or more
CONFIGS: dict[str, Callable[[], Any]] = {
    "qwen3_next": lambda: Qwen3NextConfig(**_BODY, **_DELTA, **_EXPERTS, num_hidden_layers=4),
    "qwen3_5": lambda: Qwen3_5TextConfig(**_BODY, **_DELTA, num_hidden_layers=4),
    "qwen3_5_pure": lambda: Qwen3_5TextConfig(
        **_BODY, **_DELTA, num_hidden_layers=2, layer_types=["linear_attention"] * 2
    ),
    "mamba2": lambda: Mamba2Config(**_STATES, num_heads=4, head_dim=16, n_groups=1, chunk_size=16),
    "mamba": lambda: MambaConfig(**_STATES),
    "falcon_mamba": lambda: FalconMambaConfig(**_STATES),
    "jamba": lambda: JambaConfig(
        **_BODY, num_hidden_layers=2, attn_layer_period=2, attn_layer_offset=1, num_experts=2,
        num_experts_per_tok=1, mamba_d_state=8,
    ),
    "recurrent_gemma": lambda: RecurrentGemmaConfig(
        vocab_size=VOCAB, hidden_size=32, lru_width=32, intermediate_size=64, num_hidden_layers=3,
        num_attention_heads=2, attention_window_size=8,
    ),
    "llama": lambda: LlamaConfig(**_BODY, num_hidden_layers=2),
    "mistral": lambda: MistralConfig(**_BODY, num_hidden_layers=2, sliding_window=8),
}  # fmt: skip
RECURRENT = [name for name in CONFIGS if name not in ("llama", "mistral")]
# Releases in which several tokens that continue a cache start from an empty state (seen in 5.17 and 5.23).
BREAKS = ("mamba", "falcon_mamba", "jamba", "recurrent_gemma")


def build(name: str, *, dtype: torch.dtype = torch.float32, spread: float = 5.0) -> Any:
    """A model in evaluation mode whose matrices are `spread` times as large as at the start, so that all moves."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name](), dtype=dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1 and not any(parameter is p for n, p in model.named_parameters() if "A_log" in n):
                parameter.mul_(spread)
    return model
