"""Predictions should not jump: mean norm of the difference of neighbouring logits (source 004: 0.01).

Neighbours across the border of two documents do not count. With a vocabulary of 50,000 the norm is so large that 0.01
times it outweighs the cross-entropy: the weight has to fall with the vocabulary.
"""

from __future__ import annotations

from torch import Tensor

from groundthink.training.losses.loss import Heard, Loss, mean_where, wide

FINAL_NORM = "norm"
TINY = 1e-12  # below it the square root has no usable slope


def of_rows(heard: Heard) -> Tensor:
    """[B]: see the module. |W d|^2 = d^T (W^T W) d, so the logits themselves are never held."""
    hidden = wide(heard.outputs[FINAL_NORM][0])
    step = hidden[:, 1:] - hidden[:, :-1]
    squares = ((step @ (heard.head.mT @ heard.head)) * step).sum(-1)
    return mean_where(squares.clamp_min(TINY).sqrt(), heard.same_document(slice(1, None), slice(None, -1)))


LOSS = Loss("output_consistency", (FINAL_NORM,), of_rows)
