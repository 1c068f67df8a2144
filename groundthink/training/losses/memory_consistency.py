"""The slow bank should agree with the fast state: mean of 1 - cos(o_bank, o_wkv), where o_wkv is not moved.

For layers that read both an explicit bank (`hook_bank`) and a recurrent state (`hook_wkv`), [B,T,...,d] each; weight
0.05 in source 004. Only the bank's side gets a gradient: otherwise the state could learn to be as dull as the bank.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from groundthink.training.losses.loss import Heard, Loss, mean_of, wide

BANK, STATE = "*.hook_bank", "*.hook_wkv"


def of_rows(heard: Heard) -> Tensor:
    """[B]: see the module."""
    pairs = zip(heard.outputs[BANK], heard.outputs[STATE], strict=True)
    return mean_of(
        [1 - F.cosine_similarity(wide(bank), wide(wkv.detach()), dim=-1).flatten(1).mean(1) for bank, wkv in pairs]
    )


LOSS = Loss("memory_consistency", (BANK, STATE), of_rows)
