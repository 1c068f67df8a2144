"""States should keep their size: (mean norm of the state's rows - 5)^2, summed over the layers (source 004: 0.1).

The norm is taken along the values, its mean over keys and heads, of the state after the last token. The target is
the source's. A state that is normalised at every token has its norm by construction: the loss is then a constant.
"""

from __future__ import annotations

import torch
from torch import Tensor

from groundthink.errors import ConfigError
from groundthink.training.losses.loss import Heard, Loss, wide

MIXERS = "blocks.*.mixer"
TARGET = 5.0


def of_rows(heard: Heard) -> Tensor:
    """[B]: see the module.

    Raises:
        ConfigError: no layer of the model writes a memory.
    """
    memories = [mixed.memory for mixed in heard.outputs[MIXERS] if mixed.memory is not None]
    if not memories:
        raise ConfigError(
            "no layer of this model writes a memory, so there is no state to hold",
            where="losses.state_stability",
            fix="take the loss out, or put a G into model.pattern",
        )
    norms = [torch.linalg.vector_norm(wide(memory.final_state), dim=-1) for memory in memories]
    return torch.stack([(norm.flatten(1).mean(1) - TARGET).square() for norm in norms]).sum(0)


LOSS = Loss("state_stability", (MIXERS,), of_rows)
