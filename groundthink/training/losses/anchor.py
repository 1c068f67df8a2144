"""What a model said before a training, it should go on saying: KL(p || q) in nats, a mean over positions.

p is what the model said as the training began, q what it says now; both see the same rows. Held on to are the items of
a mix whose `loss_weight` is 0: their rows are there for this alone, and those of the others count 0. Learning without
forgetting (1606.09282, section 3), with the old model as its own teacher: its gradient starts at zero and carries no
noise of the labels. The logits of the rows are held twice in float32: with a large vocabulary cut the step by
`accumulate`.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from groundthink.training.losses.loss import Heard, Loss, mean_where, wide

FINAL_NORM = "norm"


def of_rows(heard: Heard) -> Tensor:
    """[B]: see the module."""
    if heard.anchor is None:
        return wide(heard.outputs[FINAL_NORM][0]).new_zeros(len(heard.tokens))
    now = F.log_softmax(wide(heard.outputs[FINAL_NORM][0]) @ heard.head.mT, -1)[:, :-1]
    before = F.log_softmax(wide(heard.anchor[0]) @ wide(heard.anchor[1]).mT, -1)[:, :-1]
    apart = (before.exp() * (before - now)).sum(-1)
    return mean_where(apart, heard.same_document(slice(1, None), slice(None, -1)))


LOSS = Loss("anchor", (FINAL_NORM,), of_rows)
