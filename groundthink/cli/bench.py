"""`groundthink bench`: compile the kernels ahead, or time the memory operator here once it has proved right."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any, Literal

from groundthink.errors import ConfigError

DEVICES = ("auto", "cpu", "cuda")


@dataclasses.dataclass(frozen=True)
class Flags:
    """Time the memory operator on this machine, or compile its kernels ahead (--warm)."""

    warm: bool = False
    """Compile every kernel for these sizes, so that a run starts at once; needs a CUDA device."""
    recipe: str = ""
    """Take the sizes from this recipe (name or YAML file) instead; with --warm its whole model is run once."""
    head_dim: int = 64
    """Size K of keys."""
    value_dim: int = 64
    """Size V of values."""
    heads: int = 4
    """Key heads."""
    value_heads: int = 0
    """Value heads; 0 means as many as key heads."""
    error: Literal["decayed", "raw"] = "decayed"
    """Form of the delta rule."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of keys and values; auto is bfloat16 on a GPU and float32 elsewhere."""
    rows: int = 1
    """Texts at a time."""
    length: int = 2048
    """Tokens of a text."""
    runs: int = 10
    """Runs of which the median is shown."""
    backend: str = "auto"
    """Implementation, see groundthink doctor."""


def run(flags: Flags) -> int:
    """Warm up or time; 0 when done, 1 when the accuracy gate is red and nothing was timed."""
    small = [name for name in ("head_dim", "value_dim", "heads", "rows", "length", "runs") if getattr(flags, name) < 1]
    if small or flags.value_heads < 0:
        raise ConfigError(
            f"{', '.join(small) or 'value_heads'} must be positive.",
            where="groundthink bench",
            fix="give other values.",
        )
    import torch

    from groundthink.ops import warm

    if flags.warm:
        warm.require_cuda()
    config = _model_config(flags.recipe) if flags.recipe else None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = _sizes(flags, config, device)
    return _warm(sizes, config) if flags.warm else _time(flags, sizes, device)


def _model_config(recipe: str) -> Any:
    from groundthink.model import ModelConfig
    from groundthink.training import load_recipe

    return ModelConfig.from_dict(load_recipe(recipe).model)


def _sizes(flags: Flags, config: Any, device: str) -> Any:
    from groundthink.ops.measure import DTYPES, Sizes

    name = flags.dtype if flags.dtype != "auto" else "bfloat16" if device == "cuda" else "float32"
    of = flags if config is None else config
    heads = flags.heads if config is None else config.n_heads
    value_heads = (flags.value_heads or heads) if config is None else config.value_heads
    if value_heads % heads:
        raise ConfigError(
            f"{value_heads} value heads are not a multiple of {heads} key heads.",
            where="groundthink bench",
            fix="give another --value-heads.",
        )
    return Sizes(
        key_dim=of.head_dim,
        value_dim=of.value_dim,
        heads=heads,
        value_heads=value_heads,
        dtype=DTYPES[name],
        error=of.error,
    )


def _warm(sizes: Any, config: Any) -> int:
    """Call everything once under a progress bar, and say what the cache holds then."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from groundthink.ops import warm

    steps: dict[str, Callable[[], None]] = warm.warm_steps(sizes)
    if config is not None:
        steps["the whole model"] = lambda: _run_model(config, sizes.dtype)
    columns = (TextColumn("{task.description}", markup=False), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=len(steps))
        for name, step in steps.items():
            progress.update(task, description=name)
            step()
            progress.advance(task)
    print(f"kernel cache  {warm.kernel_cache()}")
    return 0


def _run_model(config: Any, dtype: Any) -> None:
    """A step of training and four tokens of a stream: what a run of this model compiles."""
    import torch

    import groundthink
    from groundthink.model import HybridForCausalLM

    model: Any = HybridForCausalLM(config)
    model.to("cuda")
    ids = torch.randint(0, config.vocab_size, (2, 130), device="cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        total, count, _ = model.loss(ids, ids)
    (total / count).backward()
    for _ in groundthink.stream(model.to(dtype).eval(), ids[:1], max_new_tokens=4):
        pass


def _time(flags: Flags, sizes: Any, device: str) -> int:
    """The accuracy gate, and only then the times."""
    from groundthink.ops import measure
    from groundthink.ops.backends import automatic

    backend = automatic(device)[0] if flags.backend == "auto" else flags.backend
    errors = measure.accuracy(sizes, device=device, backend=backend)
    missed = measure.red(errors, sizes.dtype)
    bars = measure.BARS[sizes.dtype]
    if missed:
        said = ", ".join(f"{kind} {errors[kind]:.1e} (bar {bars[kind]:g})" for kind in missed)
        print(f"groundthink bench: the accuracy gate is red, so no speed: {said}", file=sys.stderr)
        return 1
    shape = f"B {flags.rows}, T {flags.length}, H {sizes.heads}, HV {sizes.value_heads}"
    print(f"backend {backend} on {device}, {shape}, K {sizes.key_dim}, V {sizes.value_dim}, {sizes.error}")
    print(f"{sizes.dtype}, median of {flags.runs}".removeprefix("torch."))
    for kind, error in errors.items():
        print(f"{'error of ' + kind:<26} {error:.1e}, bar {bars[kind]:g}")
    found = measure.milliseconds(
        sizes, rows=flags.rows, length=flags.length, device=device, backend=backend, runs=flags.runs
    )
    for name, milliseconds in found.items():
        print(f"{name:<26} {milliseconds:.2f} ms")
    return 0
