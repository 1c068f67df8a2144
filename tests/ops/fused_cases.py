"""What the tests of all fused kernels share: Triton's interpreter, poisoned outputs and the comparison with float64."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from groundthink.ops import _fused


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Float32 on the CPU takes the kernels, run by the interpreter; float64 stays with plain torch."""
    interpreter = importlib.import_module("triton.runtime.interpreter")
    patch = interpreter._patch_lang_tensor

    def patch_index(tensor: Any, scope: Any) -> None:
        # NumPy >= 2.4 no longer turns an array of one element into an int, which Triton 3.6 relies on
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patch_index)
    monkeypatch.setattr(_fused, "runs_kernels", lambda x: x.dtype in _fused.DTYPES)
    real = torch.Tensor.new_empty

    def poisoned(self: Tensor, *size: Any, **options: Any) -> Tensor:
        x = real(self, *size, **options)
        return x.fill_(float("nan")) if x.is_floating_point() and not torch.compiler.is_compiling() else x

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
    return


Function = Callable[..., tuple[Tensor, ...]]


def outcome(function: Function, inputs: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Outputs and the gradient of every floating input, of a random weighting of all outputs."""
    given = {n: x.to(dtype).detach().requires_grad_() if x.is_floating_point() else x for n, x in inputs.items()}
    outputs = function(**given)
    g = torch.Generator().manual_seed(3)
    loss = sum((y * torch.randn(y.shape, generator=g, dtype=torch.float64).to(y.dtype)).sum() for y in outputs)
    leaves = {n: x for n, x in given.items() if x.requires_grad}
    grads = torch.autograd.grad(loss, list(leaves.values()))  # type: ignore[arg-type]
    found = {f"out{i}": y.detach() for i, y in enumerate(outputs)}
    return found | {f"d_{n}": d for n, d in zip(leaves, grads, strict=True)}


def errors(found: dict[str, Tensor], truth: dict[str, Tensor]) -> dict[str, float]:
    """RMS(difference) / RMS(truth); the absolute RMS where the truth is 0; shapes must agree."""
    result = {}
    for name, t in truth.items():
        x = found[name]
        assert x.shape == t.shape, (name, x.shape, t.shape)
        if not t.numel():
            continue
        size = float(t.pow(2).mean().sqrt())
        result[name] = float((x.double() - t).pow(2).mean().sqrt()) / (size or 1.0)
    return result


def assert_close(function: Function, inputs: dict[str, Tensor], bar: float) -> None:
    """The kernels in float32 against plain torch in float64."""
    found, truth = outcome(function, inputs, torch.float32), outcome(function, inputs, torch.float64)
    worst = errors(found, truth)
    assert all(e < bar for e in worst.values()), worst
