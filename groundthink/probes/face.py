"""What the probes need of a model, and how they call it: the same arithmetic, quietly, in either mode."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from groundthink.errors import ConfigError
from groundthink.model import Snapshot

# Rounding of float32 sums in another order is about 1e-6 of the largest logit; 16-bit types keep 8 bits.
_RELATIVE = {torch.float32: 1e-5, torch.float64: 1e-5}
_RELATIVE_16_BIT = 2e-2


class Sizes(Protocol):
    """The two sizes that the probes read."""

    @property
    def window_size(self) -> int:
        """Tokens that a window layer sees, the present one included."""

    @property
    def vocab_size(self) -> int:
        """Tokens."""


class Model(Protocol):
    """A causal language model with a snapshot. Gradients need `embed`, cuts and gate statistics need `blocks`."""

    @property
    def sizes(self) -> Sizes:
        """The model's sizes."""

    @property
    def horizon(self) -> float:
        """Receptive horizon R in tokens; inf with full attention."""

    def prefill(self, input_ids: Tensor) -> tuple[Tensor, Snapshot]:
        """Logits [B,T,vocabulary] and what the model carries on."""

    def resume(self, snapshot: Snapshot, input_ids: Tensor) -> tuple[Tensor, Snapshot]:
        """The exact continuation."""


def takes_documents(model: Model) -> bool:
    """Whether `prefill` can be told about packed documents."""
    return "documents" in inspect.signature(model.prefill).parameters


def takes_padding(model: Model) -> bool:
    """Whether `prefill` can be told about padding on the left by an `attention_mask`."""
    return "attention_mask" in inspect.signature(model.prefill).parameters


def logits_of(model: Model, ids: Tensor, documents: Tensor | None = None) -> Tensor:
    """Logits of a whole text; `documents` only for models that take them. They follow the ids to their device."""
    if documents is None:
        return model.prefill(ids)[0]
    return model.prefill(ids, documents=documents.to(ids.device))[0]  # type: ignore[call-arg]


def keeps_logits(model: Model) -> bool:
    """Whether `prefill` and `resume` can be told to make the logits of the last tokens only."""
    calls = ("prefill", "resume")  # one after the other: who only answers questions has no `resume`
    return all("logits_to_keep" in inspect.signature(getattr(model, call)).parameters for call in calls)


def read_on(model: Model, ids: Tensor, snapshot: Snapshot | None = None) -> tuple[Tensor, Snapshot]:
    """Logits [B,vocabulary] after the last token of ids [B,T] that follow a snapshot, and the snapshot there.

    The head over a large vocabulary is a third of a small model: it is spared the other tokens where that is possible.
    """
    last: dict[str, Any] = {"logits_to_keep": 1} if keeps_logits(model) else {}
    logits, after = model.prefill(ids, **last) if snapshot is None else model.resume(snapshot, ids, **last)
    return logits[:, -1], after


def device_of(model: Model) -> torch.device:
    """Where the model's inputs belong."""
    return torch.device(getattr(model, "device", "cpu"))


def on_device(model: Any, name: str) -> Any:
    """The model on the device of this name.

    Raises:
        ConfigError: torch has no such device here.
    """
    try:
        torch.zeros(1, device=name)
    except (AssertionError, RuntimeError, NotImplementedError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"{name!r} is no device here ({said[:120]})", where="device", fix="groundthink doctor shows what there is"
        ) from error
    return model.to(name)


@contextlib.contextmanager
def mode(model: Model, *, training: bool) -> Iterator[None]:
    """Put every module into one mode, and each back into its own afterwards."""
    if not isinstance(model, nn.Module):
        yield
        return
    before = [(module, module.training) for module in model.modules()]
    try:
        model.train(training)
        yield
    finally:
        for module, was in before:
            module.training = was


def predict_with(model: Model) -> Callable[[Tensor], Tensor]:
    """tokens [B,T] -> logits [B,T,vocabulary], in evaluation mode, on the model's device: they can be gigabytes."""

    def predict(tokens: Tensor) -> Tensor:
        with mode(model, training=False), torch.no_grad():
            return logits_of(model, tokens.to(device_of(model)))

    return predict


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """The same drops in every forward pass under the same seed; the generators outside are left as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def derived_seed(seed: int, *names: Any) -> int:
    """A seed for one purpose, independent of the order in which purposes are served."""
    text = "/".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")


def gap(a: Tensor, b: Tensor) -> float:
    """max |a - b|; 0 for empty tensors, inf when anything is not finite, so that NaN never passes."""
    if not a.numel():
        return 0.0
    value = float((a.detach().double() - b.detach().double()).abs().max())
    return value if math.isfinite(value) else math.inf


def exactness(logits: Tensor) -> float:
    """Largest change that still counts as none.

    0 for float32 and float64 on the CPU, where equal shapes run equal instructions; a GPU may choose another order
    of summation for every call, so fused float32 gets 1e-4 and 16-bit types two roundings of the largest logit.
    """
    if logits.dtype in (torch.float32, torch.float64):
        return 0.0 if logits.device.type == "cpu" else 1e-4
    return 2 * torch.finfo(logits.dtype).eps * float(logits.detach().abs().max())


def other_tokens(ids: Tensor, vocab_size: int, generator: torch.Generator) -> Tensor:
    """Random tokens of which none is the one it replaces.

    `generator` is on the CPU, so the same tokens are drawn for every device.
    """
    steps = torch.randint(1, vocab_size, tuple(ids.shape), generator=generator)
    return (ids + steps.to(ids.device)) % vocab_size


def tolerance_of(logits: Tensor) -> float:
    """Largest relative difference that rounding explains."""
    return _RELATIVE.get(logits.dtype, _RELATIVE_16_BIT)
