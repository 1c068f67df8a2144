"""Which way of attending inside a window is the fastest on this GPU, and what does its first call cost?

    python benchmarks/window_attention.py --output benchmarks/results/window_attention_<hardware>_<date>.json

Blocks, flexible and flash attention, bf16, with and without packed documents. Each passes an accuracy gate first
(output and gradients against softmax under a dense mask in float64); a red gate prints no speed and ends with code 1.
The gate compiles; for the cost of that, run one backend with empty caches (TORCHINDUCTOR_CACHE_DIR, TRITON_CACHE_DIR)
and read the seconds of its first gate.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from triton.testing import do_bench

from groundthink.ops import window_attention
from groundthink.ops.window import WINDOW_BACKENDS, limits
from groundthink.records import provenance, to_json, write_whole

SHAPES = ((8, 4096, 16, 64), (8, 4096, 8, 128), (1, 65536, 16, 64))  # B, T, H, K
BARS = {"out": 0.005, "dq": 0.01, "dk": 0.01, "dv": 0.01}  # bf16 operands and probabilities, as tests/gpu has them


def inputs(batch: int, length: int, heads: int, size: int) -> list[Tensor]:
    g = torch.Generator("cuda").manual_seed(0)
    shape = (batch, length, heads, size)
    return [torch.randn(shape, generator=g, device="cuda").bfloat16().requires_grad_() for _ in range(3)]


def packed(batch: int, length: int) -> Tensor:
    """Documents of about 500 tokens."""
    g = torch.Generator("cuda").manual_seed(1)
    return (torch.rand(batch, length, generator=g, device="cuda") < 0.002).cumsum(1).int()


def gate(backend: str, window: int, size: int, documents: Tensor | None) -> dict[str, float]:
    """RMS errors over RMS of the truth at T 300."""
    parts = inputs(2, 300, 2, size)
    exact = [x.detach().double().requires_grad_() for x in parts]
    distance = torch.arange(300, device="cuda")[:, None] - torch.arange(300, device="cuda")
    seen = ((distance >= 0) & (distance < window))[None]
    if documents is not None:
        seen = seen & (documents[:, :, None] == documents[:, None, :])
    scores = torch.einsum("bihk,bjhk->bhij", exact[0], exact[1]) * size**-0.5
    truth = torch.einsum("bhij,bjhv->bihv", scores.masked_fill(~seen[:, None], -torch.inf).softmax(-1), exact[2])
    out, _ = window_attention(*parts, window=window, documents=documents, backend=backend)
    weight = torch.randn_like(out)
    found = [out.detach(), *torch.autograd.grad(out, parts, weight)]
    wanted = [truth.detach(), *torch.autograd.grad(truth, exact, weight.double())]
    return {n: float((f.double() - w).norm() / w.norm()) for n, f, w in zip(BARS, found, wanted, strict=True)}


def measure(backend: str, window: int, shape: tuple[int, int, int, int], documents: Tensor | None) -> dict[str, float]:
    """Milliseconds, and MiB of forward and backward."""
    parts = inputs(*shape)

    def forward() -> Tensor:
        return window_attention(*parts, window=window, documents=documents, backend=backend)[0]

    weight = torch.ones_like(forward())
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torch.autograd.grad(forward(), parts, weight)
    found = {"peak_MiB": (torch.cuda.max_memory_allocated() - before) / 2**20}
    found["forward_backward"] = float(
        do_bench(lambda: torch.autograd.grad(forward(), parts, weight), warmup=25, rep=100, return_mode="median")
    )
    with torch.no_grad():
        found["forward"] = float(do_bench(forward, warmup=25, rep=100, return_mode="median"))
    return found


def row_of(backend: str, window: int, shape: tuple[int, int, int, int], is_packed: bool) -> dict[str, Any] | None:
    """What was found; no milliseconds where the gate is red, None where the backend would leave it to the blocks."""
    documents = packed(*shape[:2]) if is_packed else None
    q = torch.empty(shape, device="meta", dtype=torch.bfloat16)
    if backend != "blocks" and limits(backend, q, q, past=None, documents=documents):
        return None
    row: dict[str, Any] = {"shape_BTHK": shape, "window": window, "backend": backend, "documents": is_packed}
    start = time.perf_counter()
    row["errors"] = gate(backend, window, shape[3], packed(2, 300) if is_packed else None)
    row["gate_seconds"] = time.perf_counter() - start
    name = f"{shape} {window} {backend} {'packed' if is_packed else 'whole'}"
    if all(row["errors"][kind] < bar for kind, bar in BARS.items()):
        row["milliseconds"] = measure(backend, window, shape, documents)
        print(name, {n: round(x, 3) for n, x in row["milliseconds"].items()}, f"gate {row['gate_seconds']:.1f} s")
    else:
        print(name, "accuracy gate is red, no speed:", row["errors"], flush=True)
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--backends", nargs="+", choices=WINDOW_BACKENDS, default=list(WINDOW_BACKENDS))
    parser.add_argument("--quick", action="store_true", help="the first shape alone")
    parser.add_argument("--output", type=Path, help="where the results go, as JSON")
    parser.add_argument("--commit", help="the commit measured, where git cannot say")
    flags = parser.parse_args()
    shapes = SHAPES[: 1 if flags.quick else None]
    settings = itertools.product(shapes, flags.windows, flags.backends, (False, True))
    found = [row_of(backend, window, shape, is_packed) for shape, window, backend, is_packed in settings]
    rows = [row for row in found if row is not None]
    if flags.output:
        record = {
            "what": "window attention, bf16, eager, medians of do_bench",
            "hardware": torch.cuda.get_device_name(),
            "date": time.strftime("%Y-%m-%d"),
            "provenance": {**provenance(), **({"commit": flags.commit} if flags.commit else {})},
            "rows": rows,
        }
        write_whole(flags.output, to_json(record))
    return int(any("milliseconds" not in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
