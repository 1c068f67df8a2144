"""Which adapter a model gets. A new family is one file and one entry in `FAMILIES`; contract tests then apply to it."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from groundthink.errors import CheckpointError
from groundthink.model.adapters.attention import PlainAttention
from groundthink.model.adapters.base import Adapter
from groundthink.model.adapters.fla import FlaGatedDeltaNet
from groundthink.model.adapters.gdn import QwenHybrid
from groundthink.model.adapters.jamba import Jamba, Mamba
from groundthink.model.adapters.mamba2 import Mamba2
from groundthink.model.adapters.recurrent_gemma import RecurrentGemma

FAMILIES: MappingProxyType[str, type[Adapter]] = MappingProxyType(
    {kind.family: kind for kind in (QwenHybrid, Mamba2, Mamba, Jamba, RecurrentGemma, FlaGatedDeltaNet, PlainAttention)}
)
_BY_TYPE = {name: kind for kind in FAMILIES.values() for name in kind.model_types}
_ATTENTION = {"full_attention", "sliding_attention", "mlp", "moe"}
# Model types that keep a state under other names than `layer_types`; each needs an adapter before it can be certified.
_SIZES = ("ssm", "mamba", "linear_conv", "recurrent")  # in names of config fields
_STATEFUL = ("rwkv", "mamba", "hyena", "retnet", "ssm", "xlstm", "griffin", "delta", "lfm", "recurrent")


def family_of(model_type: str, config: Any) -> type[Adapter]:
    """The adapter of a model type.

    Args:
        model_type: as its config names it.
        config: the config, whose layers are looked at where the type has no adapter of its own.

    Raises:
        CheckpointError: it carries a state that no adapter can get and set.
    """
    if model_type in _BY_TYPE:
        return _BY_TYPE[model_type]
    text = config.get_text_config(decoder=True)
    if text.model_type in _BY_TYPE:
        return _BY_TYPE[text.model_type]
    layers = set(getattr(text, "layer_types", None) or _ATTENTION)
    # State-space sizes in a config mean a state, whatever its layers are called.
    sized = any(word in name for name in text.to_dict() for word in _SIZES)
    if layers <= _ATTENTION and not sized and not any(word in model_type for word in _STATEFUL):
        return PlainAttention
    raise CheckpointError(
        f"there is no adapter for models of type {model_type!r}",
        fix=f"families: {', '.join(FAMILIES)}; a new one is a subclass of groundthink.model.adapters.Adapter"
        " that gets and sets its state, and an entry in FAMILIES",
    )


def adapt(model: Any, *, attention_window: int | None = None, step: bool = False) -> Adapter:
    """A causal language model of transformers with the face of ours; see `Adapter`.

    Raises:
        CheckpointError: there is no adapter for it.
    """
    kind = family_of(model.config.model_type, model.config)
    if kind is PlainAttention and getattr(model, "_is_stateful", False):
        raise CheckpointError(
            f"there is no adapter for {type(model).__name__}, which keeps a state",
            fix=f"families: {', '.join(FAMILIES)}",
        )
    return kind(model, attention_window=attention_window, step=step)
