"""D15: the gradients of a model after backward: norms by parameter, and which are NaN, infinite or zero.

`gradient_report` needs a model with gradients and nothing else, so that a training loop may ask it too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from groundthink.errors import StateError
from groundthink.probes import drawn
from groundthink.probes.bench import Bench, Point
from groundthink.probes.face import device_of, mode
from groundthink.probes.row import Row, not_run
from groundthink.records import ProbeResult

EPISODES = 8
NAMED = 5  # parameters that a sentence names
FLOOR = 1e-12  # least norm that the picture tells from 0


@dataclasses.dataclass(frozen=True)
class GradientReport:
    """What backward left.

    Attributes:
        norms: L2 norm of the gradient of each parameter that has one; not finite where an entry is not.
        nan, infinite: parameters with such an entry.
        zero: parameters whose gradient is 0 everywhere.
        missing: parameters that want a gradient and have none.
    """

    norms: dict[str, float]
    nan: tuple[str, ...]
    infinite: tuple[str, ...]
    zero: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def total(self) -> float:
        """L2 norm of the whole gradient."""
        return math.sqrt(math.fsum(x * x for x in self.norms.values())) if self.finite else math.nan

    @property
    def finite(self) -> bool:
        """Whether every entry is."""
        return not self.nan and not self.infinite

    @property
    def faults(self) -> dict[str, str]:
        """Parameter -> what is wrong with its gradient."""
        kinds = {"NaN": self.nan, "infinite": self.infinite, "zero": self.zero, "missing": self.missing}
        return {name: kind for kind, names in reversed(kinds.items()) for name in names}


def gradient_report(model: nn.Module) -> GradientReport:
    """Look at the gradients that are there.

    Raises:
        StateError: no parameter has one: nothing went backward.
    """
    norms: dict[str, float] = {}
    kinds: dict[str, list[str]] = {"nan": [], "infinite": [], "zero": [], "missing": []}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.grad is None:
            kinds["missing"].append(name)
            continue
        gradient = parameter.grad.detach().float()
        largest = float(gradient.abs().max()) if gradient.numel() else 0.0  # the norm of 1e30 overflows its square
        norms[name] = largest * float((gradient / largest).norm()) if 0 < largest < math.inf else largest
        if bool(gradient.isnan().any()):
            kinds["nan"].append(name)
        elif not math.isfinite(largest):
            kinds["infinite"].append(name)
        elif largest == 0:
            kinds["zero"].append(name)
    if not norms:
        raise StateError("no parameter has a gradient", where="gradient_report", fix="call backward() first")
    return GradientReport(norms, **{kind: tuple(names) for kind, names in kinds.items()})


def gradient_result(report: GradientReport) -> ProbeResult:
    """The record of a report: how many parameters have a gradient that is no good."""
    faults = report.faults
    named = ", ".join(f"{name} ({kind})" for name, kind in list(faults.items())[:NAMED])
    more = f" and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
    told = f"not in order: {named}{more}" if faults else "none is NaN, infinite, zero or missing"
    return ProbeResult(
        "gradients", float(len(faults)), "fail" if faults else "pass",
        f"The gradients of {len(report.norms)} parameters have a norm of {report.total:.3g}; {told}.",
        n=len(report.norms) + len(report.missing), chance=0.0, threshold=0.0,
        details={"norms": report.norms, "total": report.total, "nan": list(report.nan),
                 "infinite": list(report.infinite), "zero": list(report.zero), "missing": list(report.missing),
                 "pictures": [_picture(report)]},
    )  # fmt: skip


def _picture(report: GradientReport) -> dict[str, Any]:
    """log10 of the norms, parameters of a block by layer; what is not finite stays empty."""
    cells: dict[str, dict[str, float]] = {}
    for name, norm in report.norms.items():
        match = re.fullmatch(r"(?:.*\.)?blocks\.(\d+)\.(.+)", name)
        row, column = (match[2], match[1]) if match else (name, "-")
        cells.setdefault(row, {})[column] = math.log10(max(norm, FLOOR)) if math.isfinite(norm) else math.nan
    columns = sorted({c for row in cells.values() for c in row}, key=lambda c: (c == "-", int(c) if c != "-" else 0))
    values = [[row.get(c, math.nan) for c in columns] for row in cells.values()]
    return drawn.grid(
        values, list(cells), columns, title="Gradients, log10 of the norm", x_label="layer (-: outside the layers)",
        y_label="",
    )  # fmt: skip


@contextlib.contextmanager
def kept_gradients(model: nn.Module) -> Iterator[None]:
    """No gradients inside; those that there were come back afterwards."""
    before: list[tuple[nn.Parameter, Tensor | None]] = [(p, p.grad) for p in model.parameters()]
    try:
        for parameter, _ in before:
            parameter.grad = None
        yield
    finally:
        for parameter, gradient in before:
            parameter.grad = gradient


def run_gradients(bench: Bench, point: Point | None) -> Iterator[ProbeResult]:
    """Backward through the loss of a few episodes; the model's own gradients are left as they were."""
    model, loss = bench.model, getattr(bench.model, "loss", None)
    if not isinstance(model, nn.Module) or loss is None:
        yield not_run("gradients", "the model has no loss to go backward from")
        return
    task = bench.task.with_options(distance=f"fixed:{bench.points[0].distance}", n_queries=bench.task.n_pairs)
    batch = task.batch(bench.seed, "test", 0, EPISODES, task.max_length)
    tokens, labels, documents = (x.to(device_of(bench.model)) for x in (batch.tokens, batch.labels, batch.documents))
    with mode(bench.model, training=False), kept_gradients(model), torch.enable_grad():
        total, count, _ = loss(tokens, labels, documents=documents)
        (total / count).backward()
        report = gradient_report(model)
    yield gradient_result(report)


GRADIENTS = Row("D15", "Gradients", "Does every parameter get a gradient that is in order?", "diagnostic",
                run_gradients)  # fmt: skip
