"""More layers on a trained model: what it says stays the same to the bit until they have learned something.

A memory can be added to a model that was trained without needing one (a retrofit): the given layers are frozen, the new
ones begin by adding nothing to the residual stream, as new blocks of a pretrained model do in LLaMA Pro (2401.02415,
section 3.2), and only they are trained.
"""

from __future__ import annotations

import dataclasses

import torch

from groundthink.errors import ConfigError
from groundthink.model.config import expand_pattern
from groundthink.model.hybrid import HybridForCausalLM


@torch.no_grad()
def grow(model: HybridForCausalLM, layers: str) -> HybridForCausalLM:
    """The model with new layers on top that add nothing yet; only they are trainable.

    Args:
        model: stays as it is; its parameters are copied.
        layers: letters of the new layers, such as `GS`, from the bottom up. An S reads the nearest G below it, which
            may be a new one. Their other options are those of the model's config.

    Returns:
        A model on the same device whose logits and snapshots of the old layers are those of `model`, to the bit.

    Raises:
        ConfigError: there is no new layer, or the whole pattern is none.
    """
    new = expand_pattern(layers)
    if not new:
        raise ConfigError("there is no layer to grow by", where="grow", fix="name layers, such as GS")
    sizes = dataclasses.replace(model.sizes, pattern=model.sizes.layers + new)
    grown = HybridForCausalLM(sizes)
    grown.to(model.embed.weight.device)  # type: ignore[arg-type]
    own = model.state_dict()
    first = len(model.blocks)
    for name, value in grown.state_dict(keep_vars=True).items():
        if name in own:
            value.copy_(own[name])
            value.requires_grad_(False)
        elif name.endswith((".out.weight", ".down.weight")):  # what writes into the residual stream
            value.zero_()
    assert all(p.requires_grad for p in grown.blocks[first:].parameters())
    return grown.train(model.training)
