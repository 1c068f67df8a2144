"""The world the tests live in: poisoned memory, fixed seeds, no network."""

from __future__ import annotations

import os
import socket

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Kernels run through Triton's interpreter; `make test-gpu` sets 0. Triton reads this when it is first imported.
os.environ.setdefault("TRITON_INTERPRET", "1")
# Tests are small: a second thread gains nothing, and spins away a core where others work too.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

torch.set_num_threads(1)
_real_empty = torch.empty
_real_empty_like = torch.empty_like


def _poison(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_floating_point() and tensor.device.type != "meta":
        with torch.no_grad():
            tensor.fill_(float("nan"))
    return tensor


@pytest.fixture(autouse=True)
def harsh_world(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test: `empty` holds NaN, the seed is fixed, opening a connection is an error."""
    torch.manual_seed(0)
    monkeypatch.setattr(torch, "empty", lambda *a, **k: _poison(_real_empty(*a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: _poison(_real_empty_like(*a, **k)))

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("tests do not use the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
