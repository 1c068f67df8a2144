"""One optimizer step: forward and backward of every part, faults found before anything is changed."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from groundthink.errors import DataError
from groundthink.training.losses import Auxiliary
from groundthink.training.mixture import Part, Rows

Carry = dict[str, Any]  # stream name and piece -> detached Snapshot


class LossFunction(Protocol):
    """`model.loss`: the sum of the token losses, how many tokens it sums, and the snapshot if asked for."""

    def __call__(
        self, tokens: Tensor, labels: Tensor, /, *, documents: Tensor | None, snapshot: Any, keep_state: bool
    ) -> tuple[Tensor, Tensor | int, Any]: ...


@dataclasses.dataclass(frozen=True)
class StepReport:
    """What a step found. Losses in nats.

    Attributes:
        loss: the objective.
        source_losses: mean per labelled token of each part.
        auxiliary_losses: mean per row of each loss of the phase beside those, times the item's factor, not weighted.
        grad_norm: L2 norm of the whole gradient before clipping.
        tokens: tokens read, labelled or not.
        fault: what was not finite, with the first parameter concerned; None if the step was taken.
    """

    loss: float
    source_losses: dict[str, float]
    auxiliary_losses: dict[str, float]
    grad_norm: float
    tokens: int
    fault: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stepper:
    """Takes optimizer steps. `accumulate` and `normalise` as in `Phase`, `precision` as in `TrainConfig`."""

    model: nn.Module
    loss: LossFunction
    optimizer: torch.optim.Optimizer
    device: torch.device
    precision: str
    clip_norm: float

    def take(
        self,
        parts: Sequence[Part],
        carry: Carry,
        *,
        learning_rate: float,
        accumulate: int,
        normalise: str,
        auxiliary: Auxiliary | None = None,
    ) -> tuple[StepReport, Carry]:
        """One step. If a loss or the gradient is not finite, nothing is updated.

        Args:
            auxiliary: losses beside those of the tokens; the objective takes their mean over all rows of the step.

        Returns:
            the report, and the states that the streams carry on.

        Raises:
            DataError: no token of the step is labelled.
        """
        scales = loss_scales(parts, normalise)
        auxiliary = Auxiliary(self.model, {}) if auxiliary is None else auxiliary
        rows = sum(part.batch.tokens.shape[0] for part in parts)
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, list[Tensor]] = {part.name: [] for part in parts}
        beside: dict[str, list[Tensor]] = {name: [] for name in auxiliary.weights}
        counted: list[Tensor | int] = []
        after: Carry = {}
        for part in parts:
            for index, piece in enumerate(_pieces(part.batch, accumulate, self.device)):
                key = f"{part.name}.{index}"
                with auxiliary.listen() as heard:
                    total, valid, snapshot = self._forward(piece, part, carry.get(key))
                with autocast(self.device, self.precision):
                    before = None if part.loss_weight else auxiliary.ask_anchor(piece.tokens, piece.documents)
                if part.streams:
                    after[key] = snapshot.detach()
                counted.append(valid)
                sums[part.name].append(total.detach().float())
                terms = [total * scales[part.name]] if scales[part.name] else []
                found = auxiliary.sums(heard, piece.tokens, piece.documents, anchor=before)
                for name, each in found.items():
                    value = each * part.loss_factors.get(name, 1.0)
                    beside[name].append(value.detach() / rows)
                    terms.append(value * (auxiliary.weights[name] / rows))
                objective = sum(terms[1:], terms[0]) if terms else None
                if objective is not None and objective.requires_grad:  # a piece may hold nothing that is asked
                    # On the calling thread: a GPU's own backward thread costs small models a few percent.
                    with torch.autograd.set_multithreading_enabled(False):
                        objective.backward()
        report = self._finish(parts, sums, counted, scales, learning_rate, beside, auxiliary.weights)
        return report, after

    def _forward(self, piece: _Piece, part: Part, snapshot: Any) -> tuple[Tensor, Tensor | int, Any]:
        if snapshot is not None and piece.fresh is not None:
            snapshot = reset_rows(snapshot, piece.fresh)
        with autocast(self.device, self.precision):
            return self.loss(
                piece.tokens,
                piece.labels,
                documents=piece.documents,
                snapshot=snapshot if part.streams else None,
                keep_state=part.streams,
            )

    def _finish(
        self,
        parts: Sequence[Part],
        sums: Mapping[str, Sequence[Tensor]],
        counted: Sequence[Tensor | int],
        scales: Mapping[str, float],
        learning_rate: float,
        beside: Mapping[str, Sequence[Tensor]],
        weights: Mapping[str, float],
    ) -> StepReport:
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        columns = [*(sums[part.name] for part in parts), *beside.values()]
        totals = torch.stack([torch.stack(list(column)).sum() for column in columns])
        *found, grad_norm = torch.cat([totals, norm.float().reshape(1)]).tolist()  # the step's one stall of a GPU
        values, auxiliary = found[: len(parts)], dict(zip(beside, found[len(parts) :], strict=True))
        expected = sum(labelled(part.batch.labels) for part in parts)
        if sum(map(int, counted)) != expected:
            raise RuntimeError(f"the model counted {sum(map(int, counted))} labels, the batches hold {expected}")
        losses = {
            part.name: value / max(1, labelled(part.batch.labels)) for part, value in zip(parts, values, strict=True)
        }
        terms = [value * scales[part.name] for part, value in zip(parts, values, strict=True)]
        objective = math.fsum([*terms, *(value * weights[name] for name, value in auxiliary.items())])
        fault = self._fault({**losses, **{f"losses.{name}": value for name, value in auxiliary.items()}}, grad_norm)
        if fault is None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.clip_norm, norm)
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate * group["scale"]
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        tokens = sum(part.batch.tokens.numel() for part in parts)
        return StepReport(objective, losses, auxiliary, grad_norm, tokens, fault)

    def _fault(self, losses: Mapping[str, float], grad_norm: float) -> str | None:
        """What is not finite and the first parameter in which it shows; None if all is well."""
        bad = [name for name, value in losses.items() if not math.isfinite(value)]
        if not bad and math.isfinite(grad_norm):
            return None
        what = f"loss of {', '.join(bad)} is not finite" if bad else "gradient is not finite"
        for name, parameter in self.model.named_parameters():
            if not torch.isfinite(parameter).all():
                return f"{what}; parameter {name} itself is not finite"
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
                return f"{what}; first in the gradient of {name}"
        return f"{what}; every single gradient is finite"


@dataclasses.dataclass(frozen=True)
class _Piece:
    tokens: Tensor
    labels: Tensor
    documents: Tensor | None
    fresh: Tensor | None


def _pieces(batch: Rows, accumulate: int, device: torch.device) -> Iterator[_Piece]:
    """Cut a batch into at most `accumulate` pieces of whole rows, on the device."""
    rows = batch.tokens.shape[0]
    pieces = min(accumulate, rows)
    bounds = [rows * i // pieces for i in range(pieces + 1)]
    for start, stop in itertools.pairwise(bounds):
        fields = (batch.tokens, batch.labels, batch.documents, batch.fresh)
        cut = [None if x is None else x[start:stop].to(device, non_blocking=True) for x in fields]
        assert cut[0] is not None
        assert cut[1] is not None
        yield _Piece(cut[0], cut[1], cut[2], cut[3])


def labelled(labels: Tensor) -> int:
    """Tokens that a loss is asked for: the first of a row never is, because the model shifts."""
    return int((labels[:, 1:] != -100).sum())


def loss_scales(parts: Sequence[Part], normalise: str) -> dict[str, float]:
    """What each part's summed loss is multiplied by, so that the sum over the parts is the objective.

    Both norms count over the whole step, all pieces together, so cutting it changes nothing.

    Raises:
        DataError: no token of the step is labelled.
    """
    counts = {part.name: labelled(part.batch.labels) for part in parts}
    weights = {part.name: part.loss_weight for part in parts if counts[part.name] and part.loss_weight}
    if not weights:
        names = ", ".join(counts)
        raise DataError(f"no token of this step is labelled (rows of {names})", fix="raise length or rows")
    if normalise == "token":
        total = math.fsum(weight * counts[name] for name, weight in weights.items())
        return {name: weights.get(name, 0.0) / total for name in counts}
    total = math.fsum(weights.values())
    return {name: weights[name] / total / counts[name] if name in weights else 0.0 for name in counts}


def reset_rows(snapshot: Any, fresh: Tensor) -> Any:
    """The snapshot with these rows [B] as before the first token: a state of zeros is the empty state."""
    if not bool(fresh.any()):
        return snapshot
    return snapshot.map(lambda x: torch.where(fresh.view(-1, *[1] * (x.dim() - 1)), torch.zeros_like(x), x))


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bfloat16 arithmetic as `TrainConfig.precision` says; parameters stay float32."""
    half = precision == "bfloat16" or (precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=half)
