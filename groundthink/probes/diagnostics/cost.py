"""D16 and D17: memory use by batch and length, and the speed of the operator and of the model."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from groundthink.model import Snapshot
from groundthink.ops import measure
from groundthink.ops.backends import automatic
from groundthink.probes import drawn
from groundthink.probes.bench import Bench, Point, random_tokens
from groundthink.probes.cuts import layers_with
from groundthink.probes.diagnostics.recall import median_interval
from groundthink.probes.face import Model, device_of, mode
from groundthink.probes.heard import KEYS
from groundthink.probes.recall import rows_per_pass
from groundthink.probes.row import Row, not_run
from groundthink.records import ProbeResult

BATCHES = (1, 4)
LONGEST = 1024  # tokens beyond which a CPU is not asked, unless the window is larger
RUNS = 5
MIB = 2**20


def run_memory(bench: Bench, point: Point | None) -> Iterator[ProbeResult]:
    """Bytes carried on, and bytes kept for backward, by batch and length."""
    window = bench.model.sizes.window_size
    longest = min(max(LONGEST, 2 * window), getattr(bench.model.sizes, "max_length", None) or math.inf)
    lengths = sorted({max(2, int(longest) >> i) for i in range(5)})
    carried: dict[int, dict[int, float]] = {}
    saved: dict[int, dict[int, float]] = {}
    batches = [rows for rows in BATCHES if rows <= max(1, rows_per_pass(bench.model, lengths[-1]))]
    for rows in batches:
        for length in lengths:
            tokens = random_tokens(bench, f"memory {rows} {length}", rows, length).to(device_of(bench.model))
            with mode(bench.model, training=False), torch.no_grad():
                carried.setdefault(rows, {})[length] = carried_bytes(bench.model.prefill(tokens)[1]) / MIB
            saved.setdefault(rows, {})[length] = bytes_for_backward(bench.model, tokens) / MIB
            bench.progress("memory use")
    one = carried[BATCHES[0]]
    growth = one[lengths[-1]] - one[lengths[-2]]
    pictures = [
        drawn.lines([drawn.series(f"batch {rows}", x) for rows, x in found.items()], title=title,
                    x_label="length of the text (tokens, doubling scale)", y_label="MiB", log_x=True)
        for title, found in (("Memory carried from token to token", carried), ("Memory kept for backward", saved))
    ]  # fmt: skip
    yield ProbeResult(
        "memory_use/carried", one[lengths[-1]], "pass" if growth == 0 else "fail",
        f"After {lengths[-1]} tokens a text carries {one[lengths[-1]]:.3g} MiB on, {growth:+.3g} MiB against"
        f" {lengths[-2]} tokens.",
        n=len(lengths) * len(batches), threshold=one[lengths[-2]],
        details={"MiB": {str(b): {str(k): v for k, v in x.items()} for b, x in carried.items()}, "pictures": pictures},
    )  # fmt: skip
    last, before = saved[BATCHES[0]][lengths[-1]], saved[BATCHES[0]][lengths[-2]]
    grows = math.log(last / before) / math.log(lengths[-1] / lengths[-2]) if before > 0 and last > 0 else math.nan
    yield ProbeResult(
        "memory_use/backward", last, "info",
        f"Backward keeps {last:.3g} MiB of {lengths[-1]} tokens"
        + ("." if math.isnan(grows) else f"; it grows as length to the {grows:.2f}."),
        n=len(lengths) * len(batches),
        details={"MiB": {str(b): {str(k): v for k, v in x.items()} for b, x in saved.items()}, "exponent": grows},
    )  # fmt: skip


def carried_bytes(snapshot: Snapshot) -> int:
    """Bytes of everything that a snapshot holds."""
    return sum(x.numel() * x.element_size() for layer in snapshot.layers for x in layer.values())


def bytes_for_backward(model: Model, tokens: Tensor) -> int:
    """Bytes of the different pieces of memory that a forward pass keeps for its backward, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()} if isinstance(model, torch.nn.Module) else set()
    held: dict[int, Tensor] = {}  # keeps the pieces alive, or an address would be counted once for two of them

    def pack(x: Tensor) -> Tensor:
        place = x.untyped_storage().data_ptr()
        if place not in own:
            held[place] = x
        return x

    with mode(model, training=False), torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        model.prefill(tokens)
    return sum(x.untyped_storage().nbytes() for x in held.values())


def run_speed(bench: Bench, point: Point | None) -> Iterator[ProbeResult]:
    """Tokens a second of reading and of continuing; milliseconds of the operator, if it proved right first."""
    device, length = device_of(bench.model), min(LONGEST, max(p.length for p in bench.points))
    tokens = random_tokens(bench, "speed", 1, length + 1).to(device)
    with mode(bench.model, training=False), torch.no_grad():
        snapshot = bench.model.prefill(tokens[:, :length])[1]
        early = bench.model.prefill(tokens[:, :2])[1]
        whole = _seconds(lambda: bench.model.prefill(tokens[:, :length]), device)
        step = _seconds(lambda: bench.model.resume(snapshot, tokens[:, length:]), device)
        first = _seconds(lambda: bench.model.resume(early, tokens[:, length:]), device)
    reading = median_interval([length / x for x in whole])
    steps = {2: first, length: step}
    yield ProbeResult(
        "speed/read", reading[0], "info", f"It reads {reading[0]:.4g} tokens a second in a text of {length}.",
        low=reading[1], high=reading[2], n=RUNS,
    )  # fmt: skip
    going = {at: median_interval([1e3 * x for x in found]) for at, found in steps.items()}
    last = going[length]
    yield ProbeResult(
        "speed/continue", last[0], "info",
        f"One more token takes {last[0]:.3g} ms after {length} tokens and {going[2][0]:.3g} ms after 2.",
        low=last[1], high=last[2], n=RUNS,
        details={"pictures": [drawn.lines(
            [drawn.series("one more token", {at: x[0] for at, x in going.items()},
                          low={at: x[1] for at, x in going.items()}, high={at: x[2] for at, x in going.items()})],
            title="Time of one more token", x_label="tokens before it (doubling scale)", y_label="milliseconds",
            log_x=True)]},
    )  # fmt: skip
    yield from _operator(bench.model, length)


def _operator(model: Model, length: int) -> Iterator[ProbeResult]:
    layers = layers_with(model, KEYS)
    config: Any = getattr(model.blocks[layers[0]].mixer, "config", None) if layers else None  # type: ignore[attr-defined]
    if config is None:
        yield not_run("speed/operator", "the model has no memory operator of ours")
        return
    device = device_of(model).type
    backend = automatic(device)[0] if config.backend == "auto" else config.backend
    sizes = measure.Sizes(
        key_dim=config.head_dim, value_dim=config.value_dim, heads=config.n_heads, value_heads=config.value_heads,
        dtype=torch.bfloat16 if device == "cuda" else torch.float32, error=config.error,
    )  # fmt: skip
    errors, bars = measure.accuracy(sizes, device=device, backend=backend), measure.BARS[sizes.dtype]
    missed = measure.red(errors, sizes.dtype)
    share = max(errors[kind] / bars[kind] for kind in errors)
    yield ProbeResult(
        "speed/right", share if math.isfinite(share) else math.nan, "fail" if missed else "pass",
        f"The memory operator ({backend}, {str(sizes.dtype).removeprefix('torch.')}) is "
        + (f"wrong here ({', '.join(missed)}), so it is not timed." if missed else
           f"right here: its largest error is {share:.2f} of what is allowed."),
        threshold=1.0, details={"errors": errors, "bars": bars},
    )  # fmt: skip
    if missed:
        return
    found = measure.milliseconds(sizes, rows=1, length=length, device=device, backend=backend, runs=RUNS)
    told = ", ".join(f"{name} {x:.3g} ms" for name, x in found.items())
    yield ProbeResult(
        "speed/operator", found["forward"], "info", f"Over {length} tokens the memory operator takes: {told}.",
        n=RUNS, details={"milliseconds": found, "backend": backend},
    )  # fmt: skip


def _seconds(work: Callable[[], object], device: torch.device) -> list[float]:
    """Of `RUNS` runs after one to warm up."""
    found = []
    for _ in range(RUNS + 1):
        begun = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - begun)
    return found[1:]


MEMORY_USE = Row("D16", "Memory use", "Does what a text carries on stop growing with its length?", "diagnostic",
                 run_memory)  # fmt: skip
SPEED = Row("D17", "Speed", "How fast are the memory operator and the model here?", "diagnostic", run_speed)
