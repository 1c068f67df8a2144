"""What transformers needs around the model: its config class, its cache class, its masks."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedConfig

from groundthink.errors import ConfigError, StateError
from groundthink.model.config import ModelConfig
from groundthink.model.snapshot import Snapshot

# Written by save_pretrained beside the fields of PreTrainedConfig; all of them follow from `model`.
_DERIVED = {
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "head_dim",
    "sliding_window",
    "layer_types",
    "max_position_embeddings",
    "tie_word_embeddings",
    "model_type",
    "use_cache",
    "name_or_path",
}


@functools.cache
def _transformers_fields() -> frozenset[str]:
    """Names that the installed transformers itself puts into a config."""
    declared = {f.name for f in dataclasses.fields(PreTrainedConfig)}
    return frozenset(declared | PreTrainedConfig().to_dict().keys())


class GroundThinkConfig(PreTrainedConfig):
    """Holds a ModelConfig where transformers looks for a config; everything else in it is derived.

    Args:
        model: the fields of a ModelConfig.
        kwargs: transformers' own fields. Others are refused: a misspelt option must not pass.

    Raises:
        ConfigError: unknown fields, or a model config with problems.
    """

    model_type = "groundthink"

    def __init__(self, model: dict[str, Any] | None = None, **kwargs: Any) -> None:
        known = _transformers_fields() | _DERIVED
        leftovers = [k for k in kwargs if k not in known and not k.startswith(("_", "transformers"))]
        if leftovers:
            raise ConfigError(
                f"unknown fields {', '.join(map(repr, sorted(leftovers)))}",
                where="GroundThinkConfig",
                fix="put model options into `model`, spelt as in ModelConfig",
            )
        # transformers builds an empty config to compare defaults with; it is never used to build a model.
        self.model = model if model is not None else ModelConfig(pattern="G", vocab_size=1).to_dict()
        sizes = self.model_config
        derived = {
            "vocab_size": sizes.vocab_size,
            "hidden_size": sizes.d_model,
            "num_hidden_layers": len(sizes.layers),
            "num_attention_heads": sizes.n_heads,
            "head_dim": sizes.head_dim,
            "sliding_window": sizes.window_size,
            "layer_types": sizes.layer_types,
        }
        for name, value in derived.items():
            setattr(self, name, value)
        kept = {k: v for k, v in kwargs.items() if k not in _DERIVED}
        super().__init__(**kept, tie_word_embeddings=sizes.tie_embeddings)  # type: ignore[call-arg]

    @property
    def model_config(self) -> ModelConfig:
        """The config of the model, checked."""
        return ModelConfig.from_dict(self.model)

    @classmethod
    def of(cls, config: ModelConfig) -> GroundThinkConfig:
        """The holder of a ModelConfig."""
        return cls(model=config.to_dict())


class SnapshotCache(Cache):
    """Carries a Snapshot through `generate`. It is never changed: every forward call returns a new one."""

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__(layers=[])
        self.snapshot = snapshot

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen so far."""
        del layer_idx
        return int(self.snapshot.position.max())

    @property
    def is_compileable(self) -> bool:
        """No: transformers would put static buffers in its place."""
        return False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Refused: a snapshot is a value; the model's `_reorder_cache` returns a new one."""
        raise StateError("a SnapshotCache is not reordered in place", fix="use snapshot.select(rows)")


def documents_from_mask(attention_mask: Tensor, *, resumes: bool, continues: bool) -> Tensor | None:
    """Document ids in which every stretch of padding is a document of its own.

    Args:
        attention_mask: [B,T], zeros mark padding.
        resumes: whether a state is carried in.
        continues: whether the state after the last token will be carried on.

    Raises:
        StateError: padding would end up in a state that is carried on, or cut a text off from its own past.
    """
    if attention_mask.dim() != 2:
        raise StateError(f"attention_mask should be [B,T], is {tuple(attention_mask.shape)}")
    real = attention_mask != 0
    if bool(real.all()):
        return None
    if resumes:
        raise StateError(
            "there is padding after a text that is being continued, which would cut the text off from its past",
            where="attention_mask",
            fix="pad on the left, before the first call",
        )
    if continues and not bool(real[:, -1].all()):
        raise StateError(
            "the last token of a row is padding, so its state cannot be carried on",
            where="attention_mask",
            fix="pad on the left, or call with use_cache=False",
        )
    change = torch.zeros_like(attention_mask, dtype=torch.int32)
    change[:, 1:] = (real[:, 1:] != real[:, :-1]).to(torch.int32)
    return change.cumsum(1, dtype=torch.int32)
