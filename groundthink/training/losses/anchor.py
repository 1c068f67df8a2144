"""What frozen layers say, a grown model should go on saying wherever no label asks for something else.

Mean over positions of KL(p || q), in nats: q is what the model predicts, p what its frozen layers alone predict (the
output of the last of the leading blocks without a trainable parameter, through the final norm and the head; see
`model.grow`). Learning without forgetting (1606.09282, section 3), with the old model inside the new one. A position
counts if the token after it has no label and belongs to the same document. All logits of the rows are held.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundthink.errors import ConfigError
from groundthink.training.losses.loss import Heard, Loss, mean_where, wide

RESIDUAL, FINAL_NORM = "blocks.*.hook_residual", "norm"
IGNORE = -100


def frozen_blocks(model: nn.Module) -> int:
    """How many of the model's first blocks have no trainable parameter.

    Raises:
        ConfigError: none, or all of them.
    """
    blocks: Any = model.blocks
    trained = [any(p.requires_grad for p in block.parameters()) for block in blocks]
    count = trained.index(True) if True in trained else len(trained)
    if not 0 < count < len(trained):
        raise ConfigError(
            f"{count} of {len(trained)} layers are frozen, so there is nothing to hold on to or nothing to hold",
            where="losses.anchor",
            fix="train a model that was grown (groundthink.model.grow), or take the loss out",
        )
    return count


def of_rows(heard: Heard) -> Tensor:
    """[B]: see the module.

    Raises:
        ConfigError: see `frozen_blocks`.
    """
    model: Any = heard.model
    head = wide(model.get_output_embeddings().weight)
    with torch.no_grad():
        before = model.norm(heard.outputs[RESIDUAL][frozen_blocks(model) - 1])
        wanted = F.log_softmax(wide(before[:, :-1]) @ head.mT, -1)
    found = F.log_softmax(wide(heard.outputs[FINAL_NORM][0][:, :-1]) @ head.mT, -1)
    apart = (wanted.exp() * (wanted - found)).sum(-1)
    free = heard.same_document(slice(1, None), slice(None, -1))
    if heard.labels is not None:
        free = free & (heard.labels[:, 1:] == IGNORE)
    return mean_where(apart, free)


LOSS = Loss("anchor", (RESIDUAL, FINAL_NORM), of_rows)
