"""How many writes stay, rather than how much of them: `lasting_writes` with a price that hardly grows above HALF.

A price on beta presses on what is to be kept as hard as on what is not, and in the end lines are written as faintly as
text. Here a strong write costs little more than a faint one: what is written at all may be written in full.
"""

from __future__ import annotations

from torch import Tensor

from groundthink.training.losses.lasting_writes import BETA, LOG_DECAY, where_it_lasts
from groundthink.training.losses.loss import Heard, Loss

HALF = 0.1  # the write that costs half of what any write costs at most


def of_rows(heard: Heard) -> Tensor:
    """[B]: see the module."""
    return where_it_lasts(heard, lambda beta: beta / (beta + HALF))


LOSS = Loss("lasting_count", (BETA, LOG_DECAY), of_rows)
