"""Is the memory operator right here, and how fast is it: on this machine, at given sizes."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from groundthink.ops.memory import DeltaMemory, ErrorForm, write_and_read

# RMS(error) / RMS(truth). float32 keeps 1e-5 over chunks; bf16 rounds operands to 8 bits, 2e-3 to 4e-3 after products,
# and gradients of gates are differences of such numbers.
BARS = {
    torch.float32: {"read": 1e-5, "again": 1e-5, "state": 1e-5, "dk dv dq": 1e-5, "dbeta dlog_decay": 1e-5},
    torch.bfloat16: {"read": 0.005, "again": 0.005, "state": 0.005, "dk dv dq": 0.008, "dbeta dlog_decay": 0.015},
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
GATE_LENGTH = 200  # three chunks and a ragged one


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """What kernels are compiled for.

    Attributes:
        key_dim, value_dim: K and V.
        heads, value_heads: of keys and of values.
        dtype: of keys, values and queries.
        error: form of the delta rule.
    """

    key_dim: int
    value_dim: int
    heads: int
    value_heads: int
    dtype: torch.dtype
    error: ErrorForm = "decayed"


def inputs(sizes: Sizes, *, rows: int, length: int, device: str, seed: int = 0) -> dict[str, Tensor]:
    """Random keys, values, queries and gates."""
    g = torch.Generator().manual_seed(seed)

    def normal(heads: int, *size: int) -> Tensor:
        return torch.randn(rows, length, heads, *size, generator=g)

    keys, queries = (torch.nn.functional.normalize(normal(sizes.heads, sizes.key_dim), dim=-1) for _ in range(2))
    x = {name: t.to(sizes.dtype) for name, t in (("keys", keys), ("queries", queries))}
    x["values"] = normal(sizes.value_heads, sizes.value_dim).to(sizes.dtype)
    x["log_decay"] = torch.nn.functional.logsigmoid(normal(sizes.value_heads) + 3)
    x["beta"] = torch.rand(rows, length, sizes.value_heads, generator=g)
    return {name: t.to(device) for name, t in x.items()}


def call(x: dict[str, Tensor], sizes: Sizes, backend: str, *, keep: bool = True) -> tuple[DeltaMemory, Tensor]:
    """The operator on what `inputs` drew."""
    return write_and_read(
        x["keys"],
        x["values"],
        x["queries"],
        log_decay=x["log_decay"],
        beta=x["beta"],
        initial_state=x.get("initial_state"),
        documents=x.get("documents"),
        error=sizes.error,
        keep=keep,
        backend=backend,
    )


def _outcome(x: dict[str, Tensor], sizes: Sizes, backend: str) -> dict[str, list[Tensor]]:
    x = {name: t.detach().requires_grad_() for name, t in x.items()}
    memory, read = call(x, sizes, backend)
    again = memory.read(x["keys"])
    g = torch.Generator().manual_seed(1)
    parts = (read, again, memory.final_state)
    loss = sum((y.double() * torch.randn(y.shape, generator=g).to(y.device)).sum() for y in parts)
    assert isinstance(loss, Tensor)
    grads = dict(zip(x, torch.autograd.grad(loss, list(x.values())), strict=True))
    return {
        "read": [read.detach()],
        "again": [again.detach()],
        "state": [memory.final_state.detach()],
        "dk dv dq": [grads[name] for name in ("keys", "values", "queries")],
        "dbeta dlog_decay": [grads[name] for name in ("beta", "log_decay")],
    }


def accuracy(sizes: Sizes, *, device: str, backend: str = "auto") -> dict[str, float]:
    """The largest RMS(error) / RMS(truth) of each kind of result, against the token loop in float64."""
    x = inputs(sizes, rows=1, length=GATE_LENGTH, device=device)
    found = _outcome(x, sizes, backend)
    truth = _outcome({name: t.double() for name, t in x.items()}, sizes, "reference")
    return {
        kind: max(float((f.double() - t).norm() / t.norm()) for f, t in zip(found[kind], truth[kind], strict=True))
        for kind in found
    }


def red(errors: dict[str, float], dtype: torch.dtype) -> list[str]:
    """The kinds of results that miss their bar; NaN misses it."""
    return [kind for kind, bar in BARS[dtype].items() if not errors[kind] < bar]


def milliseconds(sizes: Sizes, *, rows: int, length: int, device: str, backend: str, runs: int) -> dict[str, float]:
    """Median of `runs` after one to warm up: forward, forward and backward, a second read."""
    x = inputs(sizes, rows=rows, length=length, device=device)
    with torch.no_grad():
        memory, read = call(x, sizes, backend)
        d_read = torch.randn_like(read)
        found = {
            "forward": _median(lambda: call(x, sizes, backend, keep=False), device, runs),
            "a second read": _median(lambda: memory.read(x["keys"]), device, runs),
        }
    given = {name: t.requires_grad_() for name, t in x.items()}

    def train() -> None:
        torch.autograd.grad(call(given, sizes, backend, keep=False)[1], list(given.values()), d_read)

    return {**found, "forward + backward": _median(train, device, runs)}


def _median(fn: Callable[[], object], device: str, runs: int) -> float:
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    times = []
    for _ in range(runs + 1):
        wait()
        start = time.perf_counter()
        fn()
        wait()
        times.append((time.perf_counter() - start) * 1e3)
    return median(times[1:])
