"""What a model said before a training, it should go on saying: KL(p || q) in nats, a mean over positions.

p is what the model said as the training began, q what it says now; both see the same rows. A position counts if the
token after it belongs to the same document and no loss asks for it: all text around the questions of a task, and every
token of a mix item whose `loss_weight` is 0. Learning without forgetting (1606.09282, section 3), with the old model
as its own teacher: where text is only held on to, its gradient starts at zero and carries no noise of the labels.
The logits of the rows are held twice in float32: with a large vocabulary cut the step by `accumulate`.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from groundthink.training.losses.loss import Heard, Loss, mean_where, wide

FINAL_NORM = "norm"
IGNORE = -100  # a label that asks for nothing


def of_rows(heard: Heard) -> Tensor:
    """[B]: see the module."""
    if heard.anchor is None:
        raise RuntimeError("the anchor was not asked")  # `Auxiliary` refuses that before the first step
    now = F.log_softmax(wide(heard.outputs[FINAL_NORM][0]) @ heard.head.mT, -1)[:, :-1]
    before = F.log_softmax(wide(heard.anchor[0]) @ wide(heard.anchor[1]).mT, -1)[:, :-1]
    apart = (before.exp() * (before - now)).sum(-1)
    free = heard.same_document(slice(1, None), slice(None, -1))
    if heard.labels is not None:
        free = free & (heard.labels[:, 1:] == IGNORE)
    return mean_where(apart, free)


LOSS = Loss("anchor", (FINAL_NORM,), of_rows)
