"""A device that is not there: real numbers on the CPU which behave, towards torch, as if they lay elsewhere.

`with pretend() as device:` lends a torch.device. A tensor made on it or moved to it says that it is there, and
computes as on the CPU, to the bit. What a GPU refuses, it refuses: an op that meets a CPU tensor (of no dimension
is allowed, and so are indices of `x[i]`), `numpy()`, a generator of another device. So a tensor forgotten on the CPU
is found where no GPU is.

Python sees the device, torch's C++ sees the CPU: autograd and composite ops take the paths of the CPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_map

DEVICE = torch.device("xpu:0")  # any kind but the CPU and CUDA for which torch knows autocast
M = TypeVar("M", bound=nn.Module)

_aten = torch.ops.aten
_INDEXED = {  # ops whose indices may lie on the CPU
    _aten.index.Tensor, _aten._unsafe_index.Tensor, _aten.index_put.default, _aten.index_put_.default,
    _aten._index_put_impl_.default, _aten._unsafe_index_put.default,
}  # fmt: skip
_ACROSS = {_aten.copy_.default}  # ops that may go from one device to another
_NO_SCALARS = {_aten.stack.default, _aten.cat.default}  # ops to which even a CPU tensor without dimensions is one
_MIXED = "Expected all tensors to be on the same device, but found at least two devices, {} and cpu! (in {})"


class PretendTensor(Tensor):
    """A tensor on the pretended device; `held` holds its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, real: Tensor) -> PretendTensor:
        out = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, real.shape, strides=real.stride(), storage_offset=real.storage_offset(), dtype=real.dtype,
            layout=real.layout, device=real.device, requires_grad=False,
        )  # fmt: skip
        out.held = real.detach()
        return out

    @property  # type: ignore[misc]
    def device(self) -> torch.device:  # type: ignore[override]
        """Where it says it is."""
        return DEVICE

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        """Never."""
        return False

    def untyped_storage(self) -> torch.UntypedStorage:
        """Where its numbers lie."""
        return self.held.untyped_storage()

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Pretend({self.held!r})"

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _call(func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        _refuse_mixed(func, args, kwargs)
        with torch.no_grad():
            out = func(*map(_unwrap, args), **{name: _unwrap(x) for name, x in kwargs.items()})
        if func in _ACROSS:
            return args[0]
        return return_and_correct_aliasing(func, args, kwargs, tree_map(_wrap, out))


def _wrap(x: Any) -> Any:
    return PretendTensor(x) if isinstance(x, Tensor) and not isinstance(x, PretendTensor) else x


def _unwrap(x: Any) -> Any:
    if isinstance(x, (list, tuple)):
        return [_unwrap(y) for y in x]
    return x.held if isinstance(x, PretendTensor) else x


def _leaves(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
    """Arguments of an op, those in lists one by one."""
    for x in (*args, *kwargs.values()):
        yield from x if isinstance(x, (list, tuple)) else (x,)


def _refuse_mixed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise what CUDA raises where a CPU tensor comes with tensors of the device.

    A CPU tensor without dimensions may come, but may not be written to.
    """
    if func in _ACROSS:
        return
    if func in _INDEXED:
        args = (args[0], *args[2:])
    tensors = [x for x in _leaves(args, kwargs) if isinstance(x, Tensor)]
    written = isinstance(args[0], Tensor) and func._schema.is_mutable
    strangers = [
        x for x in tensors
        if not isinstance(x, PretendTensor) and (x.dim() or func in _NO_SCALARS or (written and x is args[0]))
    ]  # fmt: skip
    if strangers:
        raise RuntimeError(_MIXED.format(DEVICE, func))


class _Arrive(torch.autograd.Function):
    """CPU to device: a copy, as every transfer is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return PretendTensor(x.clone())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return _unwrap(grad).clone()


class _Leave(torch.autograd.Function):
    """Device to CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _unwrap(x).clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return PretendTensor(grad.clone())


def _is_here(device: Any) -> bool:
    """Whether it names the pretended device."""
    return torch.device(device).type == DEVICE.type


def _cross(x: Tensor, here: bool) -> Tensor:
    """The tensor on the device (`here`) or on the CPU; itself where it is there already."""
    if isinstance(x, PretendTensor) == here:
        return x
    return _Arrive.apply(x) if here else _Leave.apply(x)  # type: ignore[no-untyped-call]


def _target(given: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, torch.dtype | None, dict[str, Any]]:
    """Device, dtype and the rest of what `to` was given: a tensor that has both, or either of them or none."""
    rest, named = list(given), dict(named)
    device, dtype, other = (named.pop(name, None) for name in ("device", "dtype", "other"))
    if rest and isinstance(rest[0], Tensor):
        other = rest.pop(0)
    if other is not None:
        device, dtype = other.device, other.dtype
    if rest and (rest[0] is None or isinstance(rest[0], (torch.device, str))):
        device = rest.pop(0)
    if rest and (rest[0] is None or isinstance(rest[0], torch.dtype)):
        dtype = rest.pop(0)
    return device, dtype, {**dict(zip(("non_blocking", "copy"), rest, strict=False)), **named}


def _to(x: Tensor, *given: Any, **named: Any) -> Tensor:
    """`Tensor.to`."""
    device, dtype, rest = _target(given, named)
    moved = x if device is None else _cross(x, _is_here(device))
    return moved.to(moved.dtype if dtype is None else dtype, **rest)


def _call(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a torch function for a tensor or a device of ours."""
    x = args[0] if args else None
    if func is Tensor.to:
        with torch._C.DisableTorchFunctionSubclass():
            return _to(*args, **kwargs)
    if func in (Tensor.cpu, Tensor.numpy, Tensor.tolist, Tensor.__array__) and isinstance(x, PretendTensor):
        if func is Tensor.cpu:
            return _cross(x, here=False)
        if func is Tensor.tolist:
            return x.held.tolist()
        raise TypeError(f"can't convert {DEVICE} device type tensor to numpy. Use Tensor.cpu() to copy it first.")
    asked = kwargs.get("device")
    here = asked is not None and _is_here(asked)
    generator = kwargs.get("generator")
    if generator is not None and isinstance(generator, PretendGenerator) != (
        here or (asked is None and any(isinstance(y, PretendTensor) for y in _leaves(args, kwargs)))
    ):
        raise RuntimeError(f"Expected a {DEVICE.type!r} device type for generator but found {generator.device!r}")
    if asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu") if here else asked}
    with torch._C.DisableTorchFunctionSubclass():
        out = func(*args, **kwargs)
    if asked is None or not isinstance(out, Tensor) or isinstance(out, PretendTensor) == here:
        return out
    return (_wrap(out.detach()) if here else out.held).requires_grad_(out.requires_grad)  # type: ignore[attr-defined]


class PretendMode(TorchFunctionMode):
    """Sees every call of torch, so that `torch.zeros(3, device=device)` finds its device."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _call(func, args, kwargs or {})


class PretendGenerator(torch.Generator):
    """A generator of the device: the numbers of the CPU's."""

    def __new__(cls, device: Any = "cpu") -> Any:
        """One of the device asked for."""
        return super().__new__(cls, "cpu") if _is_here(device) else _Generator(device)

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Where it says it is."""
        return DEVICE


_Generator = torch.Generator
_module_to = nn.Module.to


def _module_to_device(module: nn.Module, *given: Any, **named: Any) -> nn.Module:
    """`nn.Module.to`: what is tied stays tied, as on a real device."""
    device, dtype, rest = _target(given, named)
    if device is not None and _is_here(device):
        return moved(module) if dtype is None else _module_to(moved(module), dtype, **rest)
    return _module_to(module, *given, **named)


@contextlib.contextmanager
def pretend() -> Iterator[torch.device]:
    """While inside, there is a device."""
    with pytest.MonkeyPatch.context() as patch, PretendMode():
        patch.setattr(torch, "Generator", PretendGenerator)
        patch.setattr(nn.Module, "to", _module_to_device)
        yield DEVICE


def moved(model: M) -> M:
    """The model with its parameters and buffers on the device, in place; what is tied stays tied."""
    seen: dict[int, Tensor] = {}

    def once(x: Tensor, make: Callable[[Tensor], Tensor]) -> Tensor:
        return seen.setdefault(id(x), make(x))

    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and not isinstance(parameter, PretendTensor):
                needs = parameter.requires_grad
                module._parameters[name] = once(  # type: ignore[assignment]
                    parameter, lambda p, needs=needs: nn.Parameter(_cross(p.detach(), here=True), needs)
                )
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = once(buffer, lambda b: _cross(b, here=True))
    return model
