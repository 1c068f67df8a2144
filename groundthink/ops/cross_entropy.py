"""Cross-entropy through the vocabulary head, without all logits in memory at once."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from groundthink.ops import _fused

IGNORE = -100
LOGITS = 2**25  # numbers at the same time, where the kernels do not choose: more are slower on a CPU


class _LinearCrossEntropy(torch.autograd.Function):
    """The gradient of softmax cross-entropy is known as soon as the logits are, so it is formed in the forward
    pass, chunk by chunk, and scaled in the backward pass.

    All chunks use the same two buffers: fresh memory of that size costs more on a CPU than what is done in it.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int) -> Tensor:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        exact = torch.promote_types(hidden.dtype, torch.float32)
        d_hidden = torch.empty_like(hidden) if wants_hidden else None
        # summed over chunks, so never in half precision
        d_weight = torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, exact)) if wants_weight else None
        head = weight.to(hidden.dtype)
        total = torch.zeros((), dtype=exact, device=hidden.device)
        product = hidden.new_empty(min(chunk, hidden.shape[0]), weight.shape[0])
        costs = product if exact == hidden.dtype else torch.empty_like(product, dtype=exact)
        for start in range(0, hidden.shape[0], chunk):
            part, wanted = hidden[start : start + chunk], labels[start : start + chunk, None]
            kept, target = (wanted != IGNORE).to(exact), wanted.clamp_min(0)
            logits = torch.mm(part, head.T, out=product[: part.shape[0]])
            log_probs = logits if exact == hidden.dtype else costs[: part.shape[0]].copy_(logits)
            torch.log_softmax(log_probs, -1, out=log_probs)
            total -= (log_probs.gather(-1, target) * kept).sum()
            if d_hidden is None and d_weight is None:
                continue
            slope = log_probs.exp_().scatter_add_(-1, target, -torch.ones_like(target, dtype=exact))
            slope = slope if exact == hidden.dtype else logits.copy_(slope)
            kept = kept.to(hidden.dtype)
            if d_hidden is not None:
                d_hidden[start : start + chunk] = (slope @ head) * kept
            if d_weight is not None:
                d_weight += slope.T @ (part * kept)
        ctx.save_for_backward(d_hidden, None if d_weight is None else d_weight.to(weight.dtype))
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
        chunk: tokens whose logits exist at the same time; None: as many as have 2^25 logits, on CUDA 2^29.

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
    dtype = hidden.dtype if hidden.dtype == torch.float64 else _fused.output_dtype(hidden)
    rows = chunk or max(1, LOGITS // weight.shape[0])
    with torch.autocast(hidden.device.type, enabled=False):  # products into a buffer are not cast by it
        result: Tensor = _LinearCrossEntropy.apply(hidden.to(dtype), weight, labels, rows)  # type: ignore[no-untyped-call]
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
