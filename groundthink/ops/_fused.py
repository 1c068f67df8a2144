"""Which fused kernels run, and how a pair of kernels becomes one differentiable operator.

The choice is made by device and dtype alone: CUDA runs the kernels, everything else (and float64 everywhere) the plain
torch next to each face, which is also the judge of the kernels.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from groundthink.errors import BackendError

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
Save = Callable[[tuple[Any, ...], tuple[Tensor, ...]], tuple[tuple[Tensor | None, ...], tuple[Any, ...]]]


def runs_kernels(x: Tensor) -> bool:
    """Whether x's device and dtype are what the kernels are for."""
    return x.device.type == "cuda" and x.dtype in DTYPES


def kernels(name: str) -> Any:
    """The kernel file `_triton_<name>`, imported when first used, so that nothing else needs Triton.

    The imports are spelled out because torch.compile follows an import statement, and breaks at `importlib`.

    Raises:
        BackendError: Triton is not installed.
    """
    try:
        if name == "conv":
            from groundthink.ops import _triton_conv as module
        elif name == "norms":
            from groundthink.ops import _triton_norms as module  # type: ignore[no-redef]
        elif name == "pointwise":
            from groundthink.ops import _triton_pointwise as module  # type: ignore[no-redef]
        elif name == "gates":
            from groundthink.ops import _triton_gates as module  # type: ignore[no-redef]
        else:
            from groundthink.ops import _triton_cross_entropy as module  # type: ignore[no-redef]
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        raise BackendError(
            "Triton is not installed", where="fused kernels on CUDA", fix="install triton, or run on the CPU"
        ) from error
    return module


def on_their_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with the device of its first tensor current: Triton launches on the current device, whatever it is
    given, and on another one than the tensors' a kernel would not wait for what torch queued there."""

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        device = next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)).device
        if device.type != "cuda" or device.index == torch.cuda.current_device():
            return function(*args, **kwargs)
        with torch.cuda.device(device):
            return function(*args, **kwargs)

    return guarded


def custom_operator(name: str, function: Callable[..., Any]) -> Any:
    """`function` as operator `groundthink::name`, with the annotations of where it was written, not wrapped."""
    schema = torch.library.infer_schema(inspect.unwrap(function), mutates_args=())
    return torch.library.custom_op(f"groundthink::{name}", function, mutates_args=(), schema=schema)


def output_dtype(x: Tensor) -> torch.dtype:
    """Under autocast what the matrix product that follows would cast to, else x's own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def float32_product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b [M,N], summed and returned in float32."""
    if a.device.type == "cuda" and a.dtype != torch.float32:
        return torch.mm(a, b, out_dtype=torch.float32)
    return torch.mm(a.float(), b.float())


@dataclasses.dataclass(frozen=True)
class Operator:
    """A forward and a backward function, called directly in eager mode and as custom operators under torch.compile.

    A custom operator's dispatch costs more host time than most of these kernels take, and torch.compile cannot look
    into a kernel launch: so each way gets what it needs, from the same two functions.
    """

    eager: Callable[..., Any]
    compiled: Callable[..., Any]
    public: int

    def __call__(self, *inputs: Any) -> tuple[Tensor, ...]:
        """The forward function's differentiable outputs."""
        if torch.compiler.is_compiling():
            return tuple(self.compiled(*inputs)[: self.public])
        return self.eager(*inputs)  # type: ignore[no-any-return]


def operator(
    name: str,
    forward: Callable[..., tuple[Tensor, ...]],
    backward: Callable[..., Any],
    *,
    fake: Callable[..., Any],
    fake_backward: Callable[..., Any],
    save: Save,
    gradients: Callable[[tuple[Any, ...], Any], tuple[Tensor | None, ...]],
    public: int = 1,
    passes: int | None = None,
    told: int | None = None,
) -> Operator:
    """Register `forward` and `backward` as custom operators and wrap them for eager mode.

    Args:
        name: of the operator in the namespace `groundthink`.
        forward: annotated for torch.library; explicit inputs to a tuple of tensors.
        backward: (gradients of the public outputs or None, saved tensors, constants) to a tuple of tensors.
        fake, fake_backward: the same without numbers: shapes and dtypes.
        save: (inputs, outputs) to (tensors to keep, constants to keep).
        gradients: (constants, backward's results) to one gradient or None per input.
        public: how many outputs are differentiable; the others are for `save`.
        passes: in eager mode an empty last public output is replaced by this input, so that a gradient reaching the
            input by another way is added inside the backward kernel instead of by a pass of its own.
        told: how many constants `backward` is told; the others are for `gradients` alone.
    """
    forward, backward = on_their_device(forward), on_their_device(backward)
    custom = custom_operator(name, forward)
    custom.register_fake(fake)
    custom_backward = custom_operator(f"{name}_backward", backward)
    custom_backward.register_fake(fake_backward)

    def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        tensors, ctx.constants = save(inputs, output)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)

    def differentiate(ctx: Any, grads: tuple[Tensor | None, ...], run: Callable[..., Any]) -> Any:
        given = [None if g is None or g.numel() == 0 else g.contiguous() for g in grads[:public]]
        return gradients(ctx.constants, run(*given, *ctx.saved_tensors, *ctx.constants[:told]))

    def through_operator(ctx: Any, *grads: Tensor | None) -> Any:
        return differentiate(ctx, grads, custom_backward)

    custom.register_autograd(through_operator, setup_context=keep)

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
            output = forward(*inputs)
            keep(ctx, inputs, output)
            output = output[:public]
            if passes is not None and output[-1].numel() == 0:
                output = (*output[:-1], inputs[passes])
            return output

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, *grads: Tensor | None) -> Any:
            return differentiate(ctx, grads, backward)

    return Operator(Eager.apply, custom, public)
