"""Which implementation each operation has here and why, where compiled kernels are kept, and compiling them ahead."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from groundthink.errors import BackendError
from groundthink.ops.backends import describe_backends
from groundthink.ops.measure import Sizes, call, inputs
from groundthink.ops.window import automatic_window

# Operations of a layer that have fused kernels on CUDA, and how plain torch does them elsewhere.
_PLAIN = {
    "convolution": "a tap at a time, in place",
    "cross-entropy": "in chunks: the gradient is formed with the loss, and all logits never exist at once",
}


@dataclasses.dataclass(frozen=True)
class KernelCache:
    """Where Triton keeps what it compiled.

    Attributes:
        folder: the place; it need not exist yet.
        files: files in it.
        size: their bytes.
    """

    folder: Path
    files: int
    size: int

    def __str__(self) -> str:
        if not self.files:
            return f"{self.folder}: empty"
        return f"{self.folder}: {self.files} files, {self.size / 2**20:.1f} MiB"


def kernel_cache(environment: Mapping[str, str] | None = None) -> KernelCache:
    """The cache that TRITON_CACHE_DIR, else TRITON_HOME, else the home folder names."""
    given = os.environ if environment is None else environment
    named = given.get("TRITON_CACHE_DIR")
    folder = Path(named) if named else Path(given.get("TRITON_HOME") or Path.home()) / ".triton" / "cache"
    files = size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                size += (Path(place) / name).stat().st_size
            except OSError:  # another process is tidying up
                continue
            files += 1
    return KernelCache(folder, files, size)


def describe_operations() -> list[dict[str, str]]:
    """For `groundthink doctor`: operation, device, backend and reason, for each kind of device present."""
    rows = []
    for memory in describe_backends():
        device = memory["device"]
        rows.append({"operation": "memory", **memory})
        window, why = automatic_window(device)
        rows.append({"operation": "window", "device": device, "backend": window, "reason": why})
        for operation, reason in _PLAIN.items():
            fused = device == "cuda"
            backend, why = ("triton", "one kernel each way; plain torch for float64") if fused else ("torch", reason)
            rows.append({"operation": operation, "device": device, "backend": backend, "reason": why})
    return rows


def warm_steps(sizes: Sizes) -> dict[str, Callable[[], None]]:
    """What to call, by name, so that a run of these sizes finds every kernel of the memory compiled.

    No kernel is compiled for a length, so short texts do.

    Raises:
        BackendError: there is no CUDA device to compile for.
    """
    require_cuda()
    return {
        "forward": lambda: _train(sizes, keep=False, backward=False),
        "forward and backward": lambda: _train(sizes, keep=False),
        "second read and its backward": lambda: _train(sizes, keep=True),
        "documents and an initial state": lambda: _train(sizes, keep=True, carried=True),
        "initial state alone": lambda: _train(sizes, keep=True, carried=True, packed=False),
        "decode step": lambda: _train(sizes, keep=True, carried=True, packed=False, length=1, backward=False),
    }


def require_cuda() -> None:
    """Raises BackendError where there is no CUDA device."""
    if not torch.cuda.is_available():
        why = "torch was built without CUDA" if torch.version.cuda is None else "torch sees no CUDA device"
        raise BackendError(
            f"{why}, so there are no kernels to compile.",
            where="groundthink bench --warm",
            fix="run it on the machine with the GPU.",
        )


def _train(
    sizes: Sizes, *, keep: bool, carried: bool = False, packed: bool = True, length: int = 130, backward: bool = True
) -> None:
    """One call of the operator with its second read, and its backward."""
    x = inputs(sizes, rows=2, length=length, device="cuda")
    if carried:
        x["initial_state"] = torch.zeros(2, sizes.value_heads, sizes.key_dim, sizes.value_dim, device="cuda")
        if packed:
            x["documents"] = (torch.arange(length, device="cuda")[None].expand(2, -1) >= length // 2).int()
    learned = [name for name in x if name != "documents" and backward]
    for name in learned:
        x[name] = x[name].requires_grad_()
    with torch.set_grad_enabled(backward):
        memory, read = call(x, sizes, "triton", keep=keep)
        total = read.float().sum() + memory.final_state.sum()
        if keep:
            total = total + memory.read(x["queries"]).float().sum()
    if backward:
        torch.autograd.grad(total, [x[name] for name in learned])
    torch.cuda.synchronize()
