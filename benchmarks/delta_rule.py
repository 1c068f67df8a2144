"""How long does the gated delta rule take on this GPU, forward, forward and backward, and read a second time?

    python benchmarks/delta_rule.py --peers --output benchmarks/results/delta_rule_<hardware>_<date>.json

Every shape first passes the accuracy gate (random inputs against the float64 token loop, outputs and gradients); a
shape whose gate is red gets no speed and the command ends with code 1. With --peers, fla (and FlashQLA through it),
transformers' torch fallback and dense masked attention run on the same inputs after us, and fla's errors stand beside
ours, which may be at most 1.1 times as large. A peer that is not installed or refuses a shape says why.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import delta_rule_peers as peers
import torch
import triton
from torch import Tensor
from triton.testing import do_bench

from groundthink.ops import _reference, _triton_ops
from groundthink.ops._shapes import WriteInputs
from groundthink.records import command_line

# B, T, H, K, V
SHAPES = ((8, 4096, 16, 128, 128), (4, 2048, 8, 64, 128), (32, 2048, 8, 64, 64), (1, 65536, 16, 128, 128))
# RMS(error) / RMS(truth) for bf16: rounding operands to 8 bits gives 2e-3 to 4e-3; gate gradients are differences.
BARS = {"out": 0.005, "again": 0.005, "state": 0.005, "dk": 0.008, "dv": 0.008, "dq": 0.008, "dg": 0.015, "db": 0.015}


def inputs(batch: int, length: int, heads: int, key_dim: int, value_dim: int, seed: int) -> dict[str, Tensor]:
    """Random bf16 keys, values and queries and float32 gates, drawn on the GPU."""
    g = torch.Generator("cuda").manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, device="cuda")

    k, q = (torch.nn.functional.normalize(normal(batch, length, heads, key_dim), dim=-1).bfloat16() for _ in range(2))
    return {
        "k": k,
        "v": normal(batch, length, heads, value_dim).bfloat16(),
        "q": q,
        "g": torch.nn.functional.logsigmoid(normal(batch, length, heads) + 3),
        "b": torch.rand(batch, length, heads, generator=g, device="cuda"),
    }


def outcome(x: dict[str, Tensor], dtype: torch.dtype | None, weights: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Outputs and gradients of a write with its read and a second read; dtype float64 asks the token loop."""
    x = {n: (t if dtype is None else t.to(dtype)).detach().requires_grad_() for n, t in x.items()}
    scale = x["k"].shape[-1] ** -0.5
    gates = {"log_decay": x["g"], "beta": x["b"], "initial_state": None, "documents": None, "raw": False}
    if dtype is None:
        parts, state, out = _triton_ops.write_and_read(WriteInputs(x["k"], x["v"], **gates), x["q"], scale=scale)
        again = _triton_ops.read(parts, x["k"], scale=scale)
    else:
        parts, state = _reference.write(x["k"], x["v"], **gates)
        out, again = _reference.read(parts, x["q"], scale=scale), _reference.read(parts, x["k"], scale=scale)
    loss = (out * weights[0].to(out.dtype)).sum() + (again * weights[1].to(out.dtype)).sum() + state.sum()
    grads = torch.autograd.grad(loss, list(x.values()))
    return {"out": out, "again": again, "state": state} | {f"d{n}": d for n, d in zip(x, grads, strict=True)}


def gate(key_dim: int, value_dim: int) -> dict[str, float]:
    """RMS errors over RMS of the truth at B 1, T 200, H 2: three chunks and a ragged one."""
    x = inputs(1, 200, 2, key_dim, value_dim, seed=0)
    weights = tuple(torch.randn_like(x["v"]) for _ in range(2))
    found, truth = outcome(x, None, weights), outcome(x, torch.float64, weights)  # type: ignore[arg-type]
    return {n: relative(found[n], t) for n, t in truth.items()}


def ours(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    """The write with its own read, in the face of the peers."""
    out = _triton_ops.write_and_read(WriteInputs(k, v, log_decay=g, beta=beta), q, scale=k.shape[-1] ** -0.5)[2]
    assert out is not None
    return out


def one_read_errors(call: peers.Peer, key_dim: int, value_dim: int) -> dict[str, float]:
    """Errors of one write with one read on the inputs of `gate`, for us and for a peer alike."""
    x = {n: t.requires_grad_() for n, t in inputs(1, 200, 2, key_dim, value_dim, seed=0).items()}
    d_out = torch.randn(x["v"].shape, generator=torch.Generator("cuda").manual_seed(1), device="cuda")
    out = call(*(x[n] for n in "qkvgb"))
    found = (out, *torch.autograd.grad(out, list(x.values()), d_out.to(out.dtype)))
    y = {n: t.detach().double().requires_grad_() for n, t in x.items()}
    parts, _ = _reference.write(
        y["k"], y["v"], log_decay=y["g"], beta=y["b"], initial_state=None, documents=None, raw=False
    )
    out = _reference.read(parts, y["q"], scale=key_dim**-0.5)
    truth = (out, *torch.autograd.grad(out, list(y.values()), d_out.to(torch.bfloat16).double()))
    return {n: relative(f, t) for n, f, t in zip(("out", *(f"d{n}" for n in x)), found, truth, strict=True)}


def relative(found: Tensor, truth: Tensor) -> float:
    """RMS(error) / RMS(truth)."""
    return float((found.detach().double() - truth.detach()).norm() / truth.detach().norm())


def milliseconds(fn: object) -> float:
    return float(do_bench(fn, warmup=25, rep=150, return_mode="median"))


def measure_peer(name: str, shape: tuple[int, int, int, int, int]) -> dict[str, float | str]:
    """Milliseconds of a peer, its compilation outside; what went wrong, in its own first words."""
    x = inputs(*shape, seed=0)
    d_out = torch.randn_like(x["v"])
    given = [x[n] for n in "qkvgb"]
    result: dict[str, float | str] = {}
    try:
        with torch.no_grad():
            result["forward"] = milliseconds(lambda: peers.PEERS[name](*given))
        for t in given:
            t.requires_grad_()
        asked = given[:3] if name == "dense_masked_attention" else given

        def train() -> None:
            torch.autograd.grad(peers.PEERS[name](*given), asked, d_out)

        result["forward_backward"] = milliseconds(train)
        with torch.autograd.set_multithreading_enabled(False):
            result["forward_backward_one_thread"] = milliseconds(train)
    except Exception as error:  # a peer may fail in any way: that is what the table then says
        result["failed"] = f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"
    return result


def measure(shape: tuple[int, int, int, int, int]) -> dict[str, float]:
    """Milliseconds and MiB, eager, gates' activations outside."""
    x = inputs(*shape, seed=0)
    scale = shape[3] ** -0.5
    d_out = torch.randn_like(x["v"])

    def write(keep: bool) -> tuple[tuple[Tensor | None, ...], Tensor, Tensor | None]:
        return _triton_ops.write_and_read(
            WriteInputs(x["k"], x["v"], log_decay=x["g"], beta=x["b"]), x["q"], scale=scale, keep=keep
        )

    with torch.no_grad():
        result = {"forward": milliseconds(lambda: write(False))}
        parts = write(True)[0]
        result["second_read"] = milliseconds(lambda: _triton_ops.read(parts, x["q"], scale=scale))
    for t in x.values():
        t.requires_grad_()

    def train() -> None:
        out = write(True)[2]
        assert out is not None
        torch.autograd.grad(out, list(x.values()), d_out)

    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    train()
    result["peak_MiB"] = (torch.cuda.max_memory_allocated() - before) / 2**20
    result["forward_backward"] = milliseconds(train)
    with torch.autograd.set_multithreading_enabled(False):  # spares a small shape the way to autograd's thread
        result["forward_backward_one_thread"] = milliseconds(train)
    return result


def commit() -> str:
    answer = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "unknown"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="where the results go, as JSON")
    parser.add_argument("--commit", default=commit(), help="the commit measured, where git cannot say")
    parser.add_argument("--peers", action="store_true", help="ask fla, transformers and dense attention too")
    parser.add_argument(
        "--only", type=int, nargs="+", default=range(len(SHAPES)), choices=range(len(SHAPES)), metavar="N",
        help="numbers of shapes, from 0 up",
    )  # fmt: skip
    arguments = parser.parse_args()
    rows, red = [], False
    for shape in [SHAPES[n] for n in arguments.only]:
        errors = gate(*shape[3:])
        row: dict[str, object] = {"shape_BTHKV": shape, "errors": errors}
        broken = [n for n, bar in BARS.items() if not errors[n] < bar]
        if arguments.peers:
            try:
                theirs = one_read_errors(peers.fla, *shape[3:])
                mine = one_read_errors(ours, *shape[3:])
                row["errors_of_one_read"] = {"ours": mine, "fla": theirs}
                broken += [f"{n}, beside fla" for n in mine if mine[n] > 1.1 * theirs[n]]
            except Exception as error:  # as in measure_peer
                row["errors_of_one_read"] = f"{type(error).__name__}: {error}"[:160]
        if broken:
            red = True
            print(shape, "accuracy gate is red, no speed:", broken, row, flush=True)
        else:
            row["milliseconds"] = measure(shape)
            print(shape, {n: round(x, 4) for n, x in row["milliseconds"].items()}, flush=True)
            if arguments.peers:
                row["peers"] = {name: measure_peer(name, shape) for name in peers.PEERS}
                for name, times in row["peers"].items():
                    print(
                        "   ",
                        name,
                        {n: round(x, 4) if isinstance(x, float) else x for n, x in times.items()},
                        flush=True,
                    )
        rows.append(row)
    record = {
        "what": "gated delta rule, bf16, eager, median of do_bench, gates' activations outside",
        "hardware": torch.cuda.get_device_name(),
        "versions": {"torch": torch.__version__, "triton": triton.__version__, "python": sys.version.split()[0]}
        | peers.versions(),
        "commit": arguments.commit,
        "command": command_line(),
        "date": time.strftime("%Y-%m-%d"),
        "rows": rows,
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(record, indent=1))
    return int(red)


if __name__ == "__main__":
    sys.exit(main())
