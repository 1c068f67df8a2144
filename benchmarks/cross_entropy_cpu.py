"""How long does the loss over a vocabulary take on this CPU, forward and backward, beside torch's own?

    python benchmarks/cross_entropy_cpu.py --output benchmarks/results/cross_entropy_cpu_<hardware>_<date>.json

Gradients of all implementations first pass the accuracy gate against float64; a red gate prints no speed and ends with
code 1. Runs are interleaved and minima reported. torch's chunked form exists from 2.13 on.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from groundthink.ops import linear_cross_entropy
from groundthink.records import provenance, to_json, write_whole

BARS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}  # RMS(error) / RMS(truth); products of numbers of 24 and of 8 bits
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def plain(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """All logits at once."""
    return F.cross_entropy(F.linear(hidden, weight).float(), labels, reduction="sum")


def implementations(chunk: int | None = None) -> dict[str, Loss]:
    """Ours (in chunks of so many tokens, or as it chooses), torch's and, where torch has it, torch's in chunks."""
    found: dict[str, Loss] = {"groundthink": functools.partial(linear_cross_entropy, chunk=chunk), "torch": plain}
    if hasattr(F, "linear_cross_entropy"):
        options = torch.nn.LinearCrossEntropyOptions()
        found["torch, chunks"] = lambda h, w, labels: F.linear_cross_entropy(
            h, w, labels, reduction="sum", options=options
        )
    return found


def inputs(tokens: int, width: int, vocabulary: int, *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden [M,D] and weight [vocabulary,D] as a model's, with gradients, and labels [M]."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, generator=generator).requires_grad_()
    weight = (0.05 * torch.randn(vocabulary, width, generator=generator)).requires_grad_()
    return hidden, weight, torch.randint(0, vocabulary, (tokens,), generator=generator)


def slopes(loss: Loss, hidden: Tensor, weight: Tensor, labels: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Gradients of hidden and weight; below float32 under autocast, as in training."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        total = loss(hidden, weight, labels)
    return torch.autograd.grad(total, [hidden, weight])


def errors(dtype: torch.dtype) -> dict[str, float]:
    """Larger of both gradients' errors on a small vocabulary; ours in three chunks."""
    hidden, weight, labels = inputs(300, 64, 2000, seed=1)
    truth = slopes(plain, *(x.detach().double().requires_grad_() for x in (hidden, weight)), labels, torch.float64)
    return {
        name: max(
            float((got.double() - exact).norm() / exact.norm())
            for got, exact in zip(slopes(loss, hidden, weight, labels, dtype), truth, strict=True)
        )
        for name, loss in implementations(chunk=100).items()
    }


def main() -> int:
    """Gate, then times, for both dtypes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(8192, 256, 50257), metavar=("TOKENS", "WIDTH", "VOCAB"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--output", type=Path)
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    record = {"shape": flags.shape, "threads": flags.threads, "runs": flags.runs, "provenance": provenance()}
    given = inputs(*flags.shape)
    for dtype, bar in BARS.items():
        found = errors(dtype)
        print(f"{dtype}: relative error against float64: {', '.join(f'{k} {v:.1e}' for k, v in found.items())}")
        if found["groundthink"] > bar:
            print(f"the accuracy gate is red (bar {bar}): no speed")
            return 1
        times: dict[str, list[float]] = {name: [] for name in implementations()}
        for _ in range(flags.runs):
            for name, loss in implementations().items():
                started = time.perf_counter()
                slopes(loss, *given, dtype)
                times[name].append(time.perf_counter() - started)
        for name, seconds in times.items():
            print(f"{name:14} {min(seconds):6.2f} s forward + backward")
        record[str(dtype).removeprefix("torch.")] = {"error": found, "all_s": times}
    if flags.output:
        write_whole(flags.output, to_json(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
