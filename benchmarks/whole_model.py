"""How many tokens a second does a whole model train on this GPU, and how long does its first step take?

    python benchmarks/whole_model.py --output benchmarks/results/whole_model_<hardware>_<date>.json

Forward, backward and a fused AdamW step of `G*12` at width 768 and `G*24` at width 1024, 32K tokens a step, beside
fla's GatedDeltaNetForCausalLM of the same sizes where fla is installed: warm, in turns, in the same precision, with
and without its fused linear cross-entropy. Our model must first pass an accuracy gate against float64 in plain torch;
a red gate gets no speed and the command ends with code 1. `--quick` keeps to about 90 seconds: the smaller model at
2,048 tokens, without a peer. `--profile` prints where the GPU's time goes.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

START = time.perf_counter()

import torch  # noqa: E402 (the first step's clock includes the imports)
from torch import Tensor, nn  # noqa: E402

import groundthink as gt  # noqa: E402
from groundthink.records import command_line  # noqa: E402

# layers, width, hidden size of SwiGLU
SIZES = {"G*12": (12, 768, 2048), "G*24": (24, 1024, 2752)}
LENGTHS = (2048, 4096)
TOKENS = 32768  # a step
# Loss and gradients of two layers against float64. bfloat16 rounds every activation to 8 bits, some ten in a row.
BARS = {"loss": 2e-3, "gradients": 0.03}
PEERS = {"fla": False, "fla, fused linear cross-entropy": True}


def ours(pattern: str, layers: int, width: int, hidden: int, arguments: argparse.Namespace, **change: Any) -> nn.Module:
    """Our model with the peer's form of the decay, in float32 on the CPU."""
    del layers
    heads = width // arguments.head_dim
    fields = {"backend": "triton", "vocab_size": arguments.vocabulary} | change
    return gt.HybridForCausalLM(
        gt.ModelConfig(
            pattern=pattern, d_model=width, n_heads=heads, head_dim=arguments.head_dim, value_dim=arguments.head_dim,
            d_ff=hidden, decay="mamba", **fields,
        )
    )  # fmt: skip


def peer(layers: int, width: int, hidden: int, arguments: argparse.Namespace, fused: bool) -> nn.Module:
    """fla's model of the same sizes, everything it can fuse fused."""
    from fla.models import GatedDeltaNetConfig, GatedDeltaNetForCausalLM

    return GatedDeltaNetForCausalLM(  # type: ignore[no-any-return]
        GatedDeltaNetConfig(
            hidden_size=width, num_hidden_layers=layers, num_heads=width // arguments.head_dim,
            head_dim=arguments.head_dim, expand_v=1.0, intermediate_size=hidden, vocab_size=arguments.vocabulary,
            tie_word_embeddings=True, use_cache=False, fuse_cross_entropy=not fused, fuse_linear_cross_entropy=fused,
        )
    )  # fmt: skip


def our_loss(model: Any, ids: Tensor) -> Tensor:
    total, count, _ = model.loss(ids, ids)
    return total / count  # type: ignore[no-any-return]


def peer_loss(model: Any, ids: Tensor) -> Tensor:
    return model(input_ids=ids, labels=ids).loss  # type: ignore[no-any-return]


def prepare(model: nn.Module, loss: Callable[[Any, Tensor], Tensor], precision: str) -> Callable[[Tensor], Tensor]:
    """Move a model to the GPU and return one training step on [B,T] tokens, which returns its loss."""
    model = model.cuda().train()
    if precision == "bf16":
        model = model.to(torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step(ids: Tensor) -> Tensor:
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=precision == "autocast"):
            value = loss(model, ids)
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return value.detach()

    return step


def gate(arguments: argparse.Namespace) -> dict[str, float]:
    """Relative error of loss and gradients of a small model, against the same in float64 and plain torch."""
    width = 2 * arguments.head_dim
    found = {}
    ids = torch.randint(0, 1000, (2, 300), generator=torch.Generator().manual_seed(0)).cuda()
    for exact in (False, True):
        torch.manual_seed(0)
        change = {"vocab_size": 1000} | ({"backend": "chunked"} if exact else {})
        model = ours("G*2", 2, width, 2 * width, arguments, **change).cuda()
        if not exact and arguments.precision == "bf16":
            model = model.to(torch.bfloat16)
        model = model.double() if exact else model
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=not exact and arguments.precision == "autocast"):
            value = our_loss(model, ids)
        value.backward()
        every = [p.grad.double().flatten() for p in model.parameters() if p.grad is not None]
        found[exact] = float(value.detach()), torch.cat(every)
    (loss, grads), (true_loss, true_grads) = found[False], found[True]
    return {
        "loss": abs(loss - true_loss) / true_loss,
        "gradients": float((grads - true_grads).norm() / true_grads.norm()),
    }


def milliseconds(step: Callable[[Tensor], Tensor], ids: Tensor, steps: int) -> float:
    """Wall time of a step, without a pause between steps: what the host cannot hide counts."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        step(ids)
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / steps * 1e3


def measure(pattern: str, length: int, arguments: argparse.Namespace, names: list[str]) -> dict[str, Any]:
    """Tokens a second of every model, measured in turns after warm-up, and their parameters and memory."""
    layers, width, hidden = SIZES[pattern]
    ids = torch.randint(0, arguments.vocabulary, (TOKENS // length, length), device="cuda")
    row: dict[str, Any] = {"pattern": pattern, "width": width, "length": length, "rows": len(ids), "models": {}}
    steps: dict[str, Callable[[Tensor], Tensor]] = {}
    for name in names:
        torch.manual_seed(0)
        try:
            model = (
                ours(pattern, layers, width, hidden, arguments)
                if name == "ours"
                else peer(layers, width, hidden, arguments, PEERS[name])
            )
            step = prepare(model, our_loss if name == "ours" else peer_loss, arguments.precision)
            start = time.perf_counter()
            for _ in range(3):
                loss = float(step(ids))
            warm = time.perf_counter() - start
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            step(ids)
            peak = torch.cuda.max_memory_allocated() - before
        except Exception as error:  # a peer that cannot run here is part of the answer
            if name == "ours":
                raise
            row["models"][name] = {"error": f"{type(error).__name__}: {error}"[:300]}
            torch.cuda.empty_cache()
            continue
        steps[name] = step
        row["models"][name] = {
            "parameters": sum(p.numel() for p in model.parameters()), "loss_after_3_steps": loss,
            "warm_up_seconds": warm, "peak_MiB_above_weights": peak / 2**20, "milliseconds": [],
        }  # fmt: skip
    for _ in range(arguments.rounds):
        for name, step in steps.items():
            row["models"][name]["milliseconds"].append(milliseconds(step, ids, arguments.steps))
    for name in steps:
        entry = row["models"][name]
        entry["tokens_per_second"] = TOKENS / statistics.median(entry["milliseconds"]) * 1e3
    rates = {n: m["tokens_per_second"] for n, m in row["models"].items() if "tokens_per_second" in m}
    others = [rate for name, rate in rates.items() if name != "ours"]
    row["ratio_to_best_peer"] = rates["ours"] / max(others) if others else None
    if arguments.profile:
        profile(steps["ours"], ids)
    return row


def profile(step: Callable[[Tensor], Tensor], ids: Tensor) -> None:
    """Print the 15 kernels that take most of a step, and how much of it the GPU was busy."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    wall = milliseconds(step, ids, 3)
    with torch.profiler.profile(activities=activities) as watched:
        for _ in range(3):
            step(ids)
        torch.cuda.synchronize()
    events = [e for e in watched.key_averages() if e.device_type == torch.autograd.DeviceType.CUDA]
    events.sort(key=lambda e: -e.self_device_time_total)
    busy = sum(e.self_device_time_total for e in events) / 3e3
    print(f"  step {wall:.2f} ms, kernels {busy:.2f} ms, launches {sum(e.count for e in events) // 3}")
    for e in events[:15]:
        per_step = e.self_device_time_total / 3e3
        print(f"  {per_step:8.3f} ms {per_step / busy:6.1%} {e.count // 3:5d} x {e.key[:90]}")


def first_step(pattern: str, arguments: argparse.Namespace) -> dict[str, float]:
    """In a process of its own with an empty kernel cache: seconds to import and build, of the first and second step."""
    command = [sys.executable, __file__, "--child", pattern, "--precision", arguments.precision]
    command += ["--head-dim", str(arguments.head_dim), "--vocabulary", str(arguments.vocabulary)]
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"TRITON_CACHE_DIR": folder}
        start = time.perf_counter()
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        whole = time.perf_counter() - start
    if answer.returncode:
        raise RuntimeError(answer.stderr[-2000:])
    return json.loads(answer.stdout.splitlines()[-1]) | {"whole_process": whole}


def child(pattern: str, arguments: argparse.Namespace) -> None:
    """What `first_step` starts."""
    ids = torch.randint(0, arguments.vocabulary, (TOKENS // 2048, 2048), device="cuda")
    step = prepare(ours(pattern, *SIZES[pattern], arguments), our_loss, arguments.precision)
    torch.cuda.synchronize()
    marks = [time.perf_counter()]
    for _ in range(2):
        step(ids)
        torch.cuda.synchronize()
        marks.append(time.perf_counter())
    print(
        json.dumps({"import_and_build": marks[0] - START, "first": marks[1] - marks[0], "second": marks[2] - marks[1]})
    )


def versions() -> dict[str, str]:
    found = {"torch": torch.__version__, "python": sys.version.split()[0]}
    for name in ("triton", "flash-linear-attention", "fla-core", "tilelang", "flash-qla"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    answer = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "unknown"


def show(row: dict[str, Any]) -> None:
    print(f"{row['pattern']} width {row['width']}, {row['rows']} x {row['length']} tokens a step", flush=True)
    for name, m in row["models"].items():
        if "error" in m:
            print(f"  {name}: does not run here: {m['error']}")
            continue
        times = " ".join(f"{t:.2f}" for t in m["milliseconds"])
        print(
            f"  {name}: {m['tokens_per_second']:,.0f} tokens/s ({times} ms), {m['parameters']:,} parameters, "
            f"warm-up {m['warm_up_seconds']:.1f} s, peak {m['peak_MiB_above_weights']:,.0f} MiB"
        )
    if row["ratio_to_best_peer"] is not None:
        print(f"  ours / best peer: {row['ratio_to_best_peer']:.2f}", flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="where the results go, as JSON")
    parser.add_argument("--commit", default=commit(), help="the commit measured, where git cannot say")
    parser.add_argument("--precision", choices=("autocast", "bf16"), default="autocast", help="of both models")
    parser.add_argument("--head-dim", type=int, default=128, help="K and V of every head of both models")
    parser.add_argument("--vocabulary", type=int, default=50304)
    parser.add_argument("--rounds", type=int, default=5, help="turns of every model")
    parser.add_argument("--steps", type=int, default=5, help="steps of a turn")
    parser.add_argument("--only", choices=tuple(SIZES), help="one of the two sizes")
    parser.add_argument("--no-peer", action="store_true", help="leave fla out")
    parser.add_argument("--no-cold", action="store_true", help="leave the first step with an empty cache out")
    parser.add_argument("--profile", action="store_true", help="print the 15 largest kernels of our step")
    parser.add_argument("--quick", action="store_true", help="about 90 seconds: one size, one length, no peer")
    parser.add_argument("--child", choices=tuple(SIZES), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    if arguments.child:
        child(arguments.child, arguments)
        return 0
    errors = gate(arguments)
    print("accuracy:", {n: f"{e:.1e} (bar {BARS[n]:.0e})" for n, e in errors.items()}, flush=True)
    if not all(errors[n] < bar for n, bar in BARS.items()):
        print("accuracy gate is red, no speed")
        return 1
    installed = "flash-linear-attention" in versions()
    names = ["ours", *(PEERS if installed and not (arguments.no_peer or arguments.quick) else ())]
    patterns = [arguments.only] if arguments.only else list(SIZES)[: 1 if arguments.quick else None]
    rows, cold = [], {}
    for pattern in patterns:
        for length in LENGTHS[: 1 if arguments.quick else None]:
            rows.append(measure(pattern, length, arguments, names))
            show(rows[-1])
            torch.cuda.empty_cache()
        if arguments.no_cold:
            continue
        cold[pattern] = first_step(pattern, arguments)
        print(f"{pattern} cold:", {n: f"{s:.1f} s" for n, s in cold[pattern].items()}, flush=True)
    record = {
        "what": f"training tokens a second, {TOKENS} tokens a step, AdamW fused, {arguments.precision}, eager, medians",
        "hardware": torch.cuda.get_device_name(),
        "versions": versions(),
        "commit": arguments.commit,
        "command": command_line(),
        "date": time.strftime("%Y-%m-%d"),
        "accuracy": errors,
        "rows": rows,
        "first_step_seconds": cold,
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(record, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
