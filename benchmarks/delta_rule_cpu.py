"""How long does the gated delta rule take on this CPU, forward and backward, beside transformers' torch fallback?

    python benchmarks/delta_rule_cpu.py --output benchmarks/results/delta_rule_cpu_<hardware>_<date>.json

Both implementations first pass the accuracy gate (outputs and gradients against the float64 token loop); a red gate
prints no speed and ends with code 1. Runs are interleaved and minima reported, because a shared machine only ever
adds time. Peak memory is that of one forward and backward in a fresh process, less the same process with its inputs.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

from groundthink.ops import write_and_read
from groundthink.records import provenance, to_json, write_whole

BAR = 1e-5  # RMS(error) / RMS(truth) in float32, outputs and gradients
NAMES = ("keys", "values", "queries", "log_decay", "beta")


def inputs(batch: int, length: int, heads: int, key_dim: int, value_dim: int, *, seed: int = 0) -> dict[str, Tensor]:
    """Random float32 inputs with gradients; keys and queries are L2-normalised."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    keys, queries = (torch.nn.functional.normalize(normal(batch, length, heads, key_dim), dim=-1) for _ in range(2))
    log_decay = torch.nn.functional.logsigmoid(normal(batch, length, heads) + 3)
    beta = torch.rand(batch, length, heads, generator=generator)
    given = (keys, normal(batch, length, heads, value_dim), queries, log_decay, beta)
    return {name: x.requires_grad_() for name, x in zip(NAMES, given, strict=True)}


def ours(x: dict[str, Tensor], backend: str = "chunked") -> Tensor:
    """The chunked backend, in a layer whose memory no later one reads: what the other does too."""
    gates = {"log_decay": x["log_decay"], "beta": x["beta"]}
    return write_and_read(x["keys"], x["values"], x["queries"], **gates, keep=False, backend=backend)[1]


def fallback(x: dict[str, Tensor]) -> Tensor:
    """What transformers runs where no kernel is installed."""
    return torch_chunk_gated_delta_rule(x["queries"], x["keys"], x["values"], g=x["log_decay"], beta=x["beta"])[0]


IMPLEMENTATIONS: dict[str, Callable[[dict[str, Tensor]], Tensor]] = {"groundthink": ours, "transformers": fallback}


def step(run: Callable[[dict[str, Tensor]], Tensor], x: dict[str, Tensor]) -> list[Tensor]:
    """Output and gradients of all inputs."""
    out = run(x)
    weight = torch.linspace(-1, 1, out.shape[-1], dtype=out.dtype)
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), [x[name] for name in NAMES])]


def gate() -> dict[str, float]:
    """Largest relative RMS error of each implementation over outputs and gradients, T 200."""
    x = inputs(2, 200, 2, 64, 64, seed=1)
    truth = step(lambda y: ours(y, "reference"), {n: t.detach().double().requires_grad_() for n, t in x.items()})
    return {
        name: max(float((a.double() - b).norm() / b.norm()) for a, b in zip(step(run, x), truth, strict=True))
        for name, run in IMPLEMENTATIONS.items()
    }


def peak_mib(name: str, shape: tuple[int, ...]) -> float:
    """Memory one forward and backward adds to a process that holds its inputs, in MiB."""
    command = [sys.executable, __file__, "--peak", name, "--shape", *map(str, shape)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def measure_peak(name: str, shape: tuple[int, ...]) -> float:
    """In the child (Linux): high-water mark of the step, less what the process held before it."""
    step(IMPLEMENTATIONS[name], inputs(1, 64, 1, 16, 16))  # loads what is loaded once
    x = inputs(*shape)  # type: ignore[arg-type]
    Path("/proc/self/clear_refs").write_text("5")  # resets the mark, which importing has pushed up
    before = _status_kib("VmRSS")
    step(IMPLEMENTATIONS[name], x)
    return (_status_kib("VmHWM") - before) / 1024


def _status_kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def main() -> int:
    """Gate, then times, then memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=5, default=(4, 2048, 8, 64, 64), metavar=tuple("BTHKV"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--peak", choices=list(IMPLEMENTATIONS), help=argparse.SUPPRESS)
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    if flags.peak:
        print(measure_peak(flags.peak, tuple(flags.shape)))
        return 0
    errors = gate()
    print("relative RMS error against float64:", {name: f"{error:.1e}" for name, error in errors.items()})
    if max(errors.values()) > BAR:
        print(f"the accuracy gate is red (bar {BAR}): no speed")
        return 1
    x, times = inputs(*flags.shape), {name: [] for name in IMPLEMENTATIONS}  # type: ignore[var-annotated]
    for _ in range(flags.runs):
        for name, run in IMPLEMENTATIONS.items():
            started = time.perf_counter()
            step(run, x)
            times[name].append(time.perf_counter() - started)
    best = {name: min(found) for name, found in times.items()}
    memory = {name: peak_mib(name, tuple(flags.shape)) for name in IMPLEMENTATIONS}
    for name in IMPLEMENTATIONS:
        print(f"{name:14} {1e3 * best[name]:8.1f} ms forward + backward, {memory[name]:8.0f} MiB")
    print(f"{best['transformers'] / best['groundthink']:.2f} times as fast")
    if flags.output:
        record = {"shape_BTHKV": flags.shape, "threads": flags.threads, "runs": flags.runs, "minimum_s": best}
        record |= {"all_s": times, "peak_MiB": memory, "error": errors, "provenance": provenance()}
        write_whole(flags.output, to_json(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
