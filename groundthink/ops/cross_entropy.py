"""Cross-entropy through the vocabulary head, without all logits in memory at once."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from groundthink.ops import _fused

IGNORE = -100
ROWS = 4096  # tokens whose logits exist at the same time, where the kernels do not choose


class _LinearCrossEntropy(torch.autograd.Function):
    """The gradient of softmax cross-entropy is known as soon as the logits are, so it is formed in the forward
    pass, chunk by chunk, and scaled in the backward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int) -> Tensor:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        d_hidden = torch.zeros_like(hidden) if wants_hidden else None
        d_weight = torch.zeros_like(weight) if wants_weight else None
        total = torch.zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
        for start in range(0, hidden.shape[0], chunk):
            rows = slice(start, start + chunk)
            logits = (hidden[rows] @ weight.T).to(total.dtype)
            kept = labels[rows] != IGNORE
            target = labels[rows].clamp_min(0)
            log_probs = F.log_softmax(logits, -1)
            total -= (log_probs.gather(-1, target[:, None]).squeeze(-1) * kept).sum()
            if d_hidden is None and d_weight is None:
                continue
            slope = log_probs.exp_()
            slope.scatter_add_(-1, target[:, None], -torch.ones_like(target[:, None], dtype=slope.dtype))
            slope = (slope * kept[:, None]).to(hidden.dtype)
            if d_hidden is not None:
                d_hidden[rows] = slope @ weight
            if d_weight is not None:
                d_weight.addmm_(slope.T, hidden[rows])
        ctx.save_for_backward(d_hidden, d_weight)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (d_total,) = grads
        d_hidden, d_weight = ctx.saved_tensors
        scaled = [None if g is None else g * d_total.to(g.dtype) for g in (d_hidden, d_weight)]
        return scaled[0], scaled[1], None, None


def linear_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor, *, chunk: int | None = None) -> Tensor:
    """Sum over tokens of -log softmax(hidden weight^T)[label].

    Args:
        hidden: [M,D].
        weight: [vocabulary,D]; cast to what hidden is computed in, its gradient comes back in its own dtype.
        labels: [M] int64; tokens labelled -100 do not count.
        chunk: tokens whose logits exist at the same time; None: 4,096, on CUDA as many as fill 1 GiB in bfloat16.

    Returns:
        Scalar, at least float32.

    Raises:
        ValueError: a label outside the vocabulary (checked on the CPU; on a GPU it would stall the queue, and the
            loss is NaN).
    """
    if labels.device.type == "cpu" and not torch.compiler.is_compiling() and labels.numel():
        highest = int(labels.max())
        if highest >= weight.shape[0] or bool(((labels < 0) & (labels != IGNORE)).any()):
            raise ValueError(f"a label lies outside the vocabulary of {weight.shape[0]}: {highest}")
    if _fused.runs_kernels(hidden):
        total: Tensor = _fused.kernels("cross_entropy").linear_cross_entropy(
            hidden, weight, labels, chunk=chunk or 0, dtype=_fused.output_dtype(hidden)
        )
        return total
    counted = labels != IGNORE
    # Recall tasks label one token in thirty: the others' logits are not computed.
    if not torch.compiler.is_compiling() and not bool(counted.all()):
        hidden, labels = hidden[counted], labels[counted]
    weight = weight.to(hidden.dtype)
    result: Tensor = _LinearCrossEntropy.apply(hidden, weight, labels, chunk or ROWS)  # type: ignore[no-untyped-call]
    return result


def next_token_loss(hidden: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the losses of a language model's predictions, and how many tokens it sums.

    Args:
        hidden: [B,T,D]; position t predicts the token at t + 1.
        weight: [vocabulary,D].
        labels: [B,T] int64 on the index of their own token; -100 does not count, nor does a row's first.

    Returns:
        (scalar as `linear_cross_entropy`, int64 scalar).
    """
    targets = labels[:, 1:]
    count = (targets != IGNORE).sum()
    if _fused.runs_kernels(hidden):
        # the last position predicts nothing: that costs less than a copy of all the others
        shifted = F.pad(targets, (0, 1), value=IGNORE)
        return linear_cross_entropy(hidden.flatten(0, 1), weight, shifted.flatten()), count
    return linear_cross_entropy(hidden[:, :-1].reshape(-1, hidden.shape[-1]), weight, targets.reshape(-1)), count
