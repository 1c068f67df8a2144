"""Cuts of a trained model: forward hooks on its named identity modules, always taken off again.

A reader's output projection has no bias, so zeros at `hook_read` or `hook_own_read` are zeros in the residual stream.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from groundthink.errors import ConfigError
from groundthink.probes.face import Model

S_READ, OWN_READ = "mixer.reader.hook_read", "mixer.hook_own_read"


def layers_with(model: Model, path: str) -> tuple[int, ...]:
    """Indices of the blocks that have a module of this name; empty for a model without blocks."""
    blocks = getattr(model, "blocks", ())
    return tuple(i for i, block in enumerate(blocks) if _find(block, path) is not None)


@contextlib.contextmanager
def hooked(
    model: Model, path: str, layers: Iterable[int], hook: Callable[[int, Tensor], Tensor | None]
) -> Iterator[None]:
    """While inside, `hook(layer, output)` hears the module `blocks.<layer>.<path>` and may replace what it returns.

    Raises:
        ConfigError: a layer has no such module; then nothing was hooked.
    """
    modules = []
    for layer in layers:
        blocks: Any = getattr(model, "blocks", ())
        module = _find(blocks[layer], path) if 0 <= layer < len(blocks) else None
        if module is None:
            found = layers_with(model, path)
            raise ConfigError(f"layer {layer} has no {path}", fix=f"layers that have one: {list(found) or 'none'}")
        modules.append((layer, module))
    with contextlib.ExitStack() as stack:
        for layer, module in modules:
            handle = module.register_forward_hook(lambda _m, _i, output, layer=layer: hook(layer, output))
            stack.callback(handle.remove)
        yield


@contextlib.contextmanager
def cut_reads(model: Model, layers: Iterable[int] | None = None) -> Iterator[None]:
    """S layers get nothing from the memories that they read; None means all of them."""
    chosen = layers_with(model, S_READ) if layers is None else layers
    with hooked(model, S_READ, chosen, _zeros):
        yield


@contextlib.contextmanager
def cut_own_reads(model: Model, layers: Iterable[int] | None = None) -> Iterator[None]:
    """G layers write as ever but get nothing from their own memory; None means all of them."""
    chosen = layers_with(model, OWN_READ) if layers is None else layers
    with hooked(model, OWN_READ, chosen, _zeros):
        yield


def _zeros(_layer: int, output: Tensor) -> Tensor:
    return torch.zeros_like(output)


def _find(block: nn.Module, path: str) -> nn.Module | None:
    try:
        return block.get_submodule(path)
    except AttributeError:
        return None
