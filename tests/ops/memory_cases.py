"""Inputs, runs and the one comparison that judges every backend of the memory operator."""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import Tensor

from groundthink import ops

# Where the reference is exactly 0 a relative bound means nothing; inputs are of order 1, so this is a few roundings.
ZERO_BOUND = {torch.float64: 1e-14, torch.float32: 1e-6}
# Sums of at most 130 products of order 1: float64 leaves 1e-13, float32 (design.md section 2) 1e-5.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


@dataclasses.dataclass(frozen=True)
class Case:
    """One situation.

    `gates` is random, forgetful (log_decay from -20 to 0), shut (beta 0), identical (same keys, beta 1, nothing
    forgotten), or cliff (half a chunk forgets at -20 a token, so the sums are near -640 where the rest hardly forgets).
    """

    length: int
    error: str = "decayed"
    value_heads: int = 2
    key_heads: int = 2
    initial: bool = False
    documents: str = "none"
    gates: str = "random"
    batch: int = 2
    key_dim: int = 6
    value_dim: int = 5

    def __str__(self) -> str:
        default = Case(0)
        return "-".join(
            f"{f.name}={getattr(self, f.name)}"
            for f in dataclasses.fields(self)
            if getattr(self, f.name) != getattr(default, f.name)
        )


def document_ids(kind: str, batch: int, length: int) -> Tensor | None:
    """[B,T] ids: none, each token its own, or random boundaries."""
    if kind == "none":
        return None
    if kind == "each":
        return torch.arange(length, dtype=torch.int32).expand(batch, length).contiguous()
    generator = torch.Generator().manual_seed(length)
    return (torch.rand(batch, length, generator=generator) < 0.05).cumsum(1).to(torch.int32)


def make(case: Case, seed: int = 0) -> dict[str, Tensor | None]:
    """Float32 inputs of a case; the float64 judge gets exactly these numbers."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    b, t, hk, hv = case.batch, case.length, case.key_heads, case.value_heads
    keys = torch.nn.functional.normalize(normal(b, t, hk, case.key_dim), dim=-1)
    log_decay = -torch.rand(b, t, hv, generator=g) * 0.3
    beta = torch.rand(b, t, hv, generator=g)
    if case.gates == "forgetful":
        log_decay = -20 * torch.rand(b, t, hv, generator=g)
    elif case.gates == "cliff":
        log_decay = torch.where(torch.arange(t)[None, :, None] < 32, -20.0, log_decay * 0.01)
    elif case.gates == "shut":
        beta = torch.zeros(b, t, hv)
    elif case.gates == "identical":
        keys = keys[:, :1].expand_as(keys).contiguous()
        beta, log_decay = torch.ones(b, t, hv), torch.zeros(b, t, hv)
    return {
        "keys": keys,
        "values": normal(b, t, hv, case.value_dim),
        "queries": normal(b, t, hk, case.key_dim),
        "second": normal(b, t, hv, case.key_dim),
        "log_decay": log_decay,
        "beta": beta,
        "initial_state": normal(b, hv, case.key_dim, case.value_dim) if case.initial else None,
    }


def run(
    case: Case, given: dict[str, Tensor | None], backend: str, dtype: torch.dtype, *, fused: bool = False
) -> dict[str, Tensor]:
    """Both reads, the final state, and the gradient of every input under fixed random cotangents.

    `fused`: the first read is the writer's own, in one call with the write.
    """
    x = {name: None if v is None else v.to(dtype).requires_grad_() for name, v in given.items()}
    write = functools.partial(
        ops.write_and_read if fused else ops.write,
        x["keys"],
        x["values"],
        *([x["queries"]] if fused else []),
        log_decay=x["log_decay"],
        beta=x["beta"],
        initial_state=x["initial_state"],
        error=case.error,
        documents=document_ids(case.documents, case.batch, case.length),
        backend=backend,
    )
    memory, first = write() if fused else (memory := write(), memory.read(x["queries"]))
    out = {"y": first, "z": memory.read(x["second"], scale=0.7), "final": memory.final_state}
    generator = torch.Generator().manual_seed(7)
    loss = sum((v * torch.randn(v.shape, generator=generator).to(dtype)).sum() for v in out.values())
    leaves = {name: v for name, v in x.items() if v is not None}
    grads = torch.autograd.grad(loss, list(leaves.values()))
    return {name: v.detach() for name, v in out.items()} | {
        f"d {name}": g for name, g in zip(leaves, grads, strict=True)
    }


def assert_matches(actual: dict[str, Tensor], judge: dict[str, Tensor], dtype: torch.dtype) -> None:
    """RMS(error) / RMS(judge) of every tensor within the tolerance of this dtype; an absolute bound where it is 0."""
    assert actual.keys() == judge.keys()
    for name, truth in judge.items():
        got = actual[name].double()
        assert got.shape == truth.shape, f"{name}: {tuple(got.shape)} instead of {tuple(truth.shape)}"
        assert bool(got.isfinite().all()), f"{name} is not finite"
        scale = float(truth.pow(2).mean().sqrt())
        error = float((got - truth).pow(2).mean().sqrt())
        if scale == 0:
            assert error <= ZERO_BOUND[dtype], f"{name}: {error:.2e} where the judge is 0"
        else:
            assert error <= TOLERANCE[dtype] * scale, f"{name}: relative error {error / scale:.2e}"
