"""Triton launches on the current device, whatever it is given: the operators make their tensors' device current."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from groundthink.ops import _fused


@pytest.fixture
def entered(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Devices made current; device 0 is current outside."""
    seen: list[torch.device] = []

    @contextlib.contextmanager
    def device(which: torch.device) -> Iterator[None]:
        seen.append(which)
        yield

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", device)
    return seen


@pytest.mark.parametrize(("place", "wanted"), [("cuda:1", ["cuda:1"]), ("cuda:0", []), ("cpu", [])])
def test_only_another_device_is_made_current(entered: list[Any], place: str, wanted: list[str]) -> None:
    asked = _fused.on_their_device(lambda nothing, x, **_: x)
    with FakeTensorMode():
        x = torch.empty(2, device=place)
        assert asked(None, x, scale=1.0) is x
        assert asked(nothing=None, x=x) is x
    assert entered == [torch.device(name) for name in wanted] * 2


def test_every_operator_does_so(entered: list[Any]) -> None:
    del entered
    from groundthink.ops import _triton_ops, _triton_step

    functions = ("_write", "_write_gradients", "_read", "_read_gradients")
    for function in (*(getattr(_triton_ops, name) for name in functions), _triton_step.launch_step):
        assert function.__wrapped__ is not None
    seen = []

    def forward(x: Tensor) -> tuple[Tensor]:
        return (x + 1,)

    def backward(slope: Tensor) -> tuple[Tensor]:
        return (slope + 0,)

    guard, _fused.on_their_device = _fused.on_their_device, lambda f: seen.append(f) or f  # type: ignore[assignment,func-returns-value,return-value]
    try:
        _fused.operator(
            "guarded_for_a_test", forward, backward, fake=forward, fake_backward=backward,
            save=lambda i, o: ((), ()), gradients=lambda c, g: g,
        )  # fmt: skip
    finally:
        _fused.on_their_device = guard
    assert seen == [forward, backward]
