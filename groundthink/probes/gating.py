"""What is written and forgotten, token by token: gates set by hand while a text is read.

Only G layers' `hook_beta` and `hook_log_decay` are replaced, so the kernels run as ever. Windows and convolutions still
see every token.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from groundthink.errors import StateError
from groundthink.probes.cuts import hooked, layers_with
from groundthink.probes.face import Model

BETA, LOG_DECAY = "mixer.hook_beta", "mixer.hook_log_decay"


@contextlib.contextmanager
def block_writes(
    model: Model, tokens: Tensor, *, layers: Iterable[int] | None = None, heads: Iterable[int] | None = None
) -> Iterator[None]:
    """Nothing is written at these tokens (beta = 0 there); the memory decays as ever.

    Args:
        model: with blocks.
        tokens: [B,T] bool of every text that is read inside.
        layers: that write; None means all of them.
        heads: of values; None means all of them.

    Raises:
        ConfigError: a layer that writes no memory.
        StateError: no token is named; inside: a text of another shape, or a head that does not exist.
    """
    with _gates_at(model, tokens, (BETA,), layers, heads):
        yield


@contextlib.contextmanager
def freeze_memory(
    model: Model, tokens: Tensor, *, layers: Iterable[int] | None = None, heads: Iterable[int] | None = None
) -> Iterator[None]:
    """The memory stays to the bit what it was at these tokens: nothing written, nothing forgotten.

    Arguments and errors as in `block_writes`.
    """
    with _gates_at(model, tokens, (BETA, LOG_DECAY), layers, heads):
        yield


def span(like: Tensor, start: int, stop: int) -> Tensor:
    """[B,T] bool: tokens start .. stop - 1 of every row of the ids `like` [B,T].

    Raises:
        StateError: the span is empty or leaves the text.
    """
    if not 0 <= start < stop <= like.shape[1]:
        raise StateError(f"tokens {start} to {stop - 1} are no span of a text of {like.shape[1]}")
    positions = torch.arange(like.shape[1], device=like.device)
    return ((positions >= start) & (positions < stop)).expand(like.shape[0], -1)


@contextlib.contextmanager
def _gates_at(
    model: Model, tokens: Tensor, paths: tuple[str, ...], layers: Iterable[int] | None, heads: Iterable[int] | None
) -> Iterator[None]:
    if tokens.dtype != torch.bool or tokens.dim() != 2 or not tokens.any():
        raise StateError(f"{tokens.dtype} {tuple(tokens.shape)} names no tokens", fix="give bool [B,T], some true")
    chosen_heads = None if heads is None else tuple(heads)

    def zero(_layer: int, gate: Tensor) -> Tensor:
        if gate.shape[:2] != tokens.shape:
            raise StateError(f"the tokens are {tuple(tokens.shape)}, the text is {tuple(gate.shape[:2])}")
        which = torch.ones(gate.shape[2], dtype=torch.bool)
        if chosen_heads is not None:
            if not chosen_heads or not all(0 <= head < gate.shape[2] for head in chosen_heads):
                raise StateError(f"there are {gate.shape[2]} heads, not {list(chosen_heads)}")
            which = torch.zeros_like(which)
            which[list(chosen_heads)] = True
        return gate.masked_fill(tokens.to(gate.device)[..., None] & which.to(gate.device), 0.0)

    chosen = layers_with(model, BETA) if layers is None else tuple(layers)
    if not chosen:
        raise StateError("no layer writes a memory, so no write can be blocked")
    with contextlib.ExitStack() as stack:
        for path in paths:
            stack.enter_context(hooked(model, path, chosen, zero))
        yield
