"""Which implementation runs an operator: by the tensor's device and by name, never by length, never by luck."""

from __future__ import annotations

import dataclasses
import logging
from types import MappingProxyType, ModuleType
from typing import Protocol

import torch
from torch import Tensor

from groundthink.errors import BackendError
from groundthink.ops import _reference
from groundthink.ops._chunked_read import chunked_read
from groundthink.ops._chunked_write_backward import chunked_write  # with its gradients
from groundthink.ops._shapes import WriteInputs

Parts = tuple[Tensor | None, ...]
log = logging.getLogger(__name__)


class Backend(Protocol):
    """One implementation of the memory operator: three functions of explicit tensors.

    `keep=False` says that nobody will call `read`: nothing is stored for it, and parts are empty.
    """

    name: str

    def write(self, inputs: WriteInputs, *, keep: bool) -> tuple[Parts, Tensor]:
        """What reads need, and the final state [B,HV,K,V]."""

    def write_and_read(
        self, inputs: WriteInputs, queries: Tensor, *, scale: float, keep: bool
    ) -> tuple[Parts, Tensor, Tensor]:
        """`write`, then what the writer's own queries read: (parts, final state, [B,T,HV,V])."""

    def read(self, parts: Parts, queries: Tensor, *, scale: float) -> Tensor:
        """[B,T,HV,V] for queries [B,T,H or HV,K]."""


class Reference:
    """Token by token, any floating dtype: the judge."""

    name = "reference"

    def write(self, inputs: WriteInputs, *, keep: bool) -> tuple[Parts, Tensor]:
        """See `Backend`."""
        parts, final = _reference.write(**inputs.arguments())
        return parts if keep else (), final

    def write_and_read(
        self, inputs: WriteInputs, queries: Tensor, *, scale: float, keep: bool
    ) -> tuple[Parts, Tensor, Tensor]:
        """See `Backend`."""
        parts, final = self.write(inputs, keep=True)
        return parts if keep else (), final, self.read(parts, queries, scale=scale)

    def read(self, parts: Parts, queries: Tensor, *, scale: float) -> Tensor:
        """See `Backend`."""
        return _reference.read(parts, queries, scale=scale)


class Chunked(Reference):
    """Batched matrix products over chunks of 64 tokens with a hand-written backward: the path on the CPU."""

    name = "chunked"

    def write(self, inputs: WriteInputs, *, keep: bool) -> tuple[Parts, Tensor]:
        """The decode step is one token of the recurrence; longer texts go through chunks."""
        keys, dtype = inputs.keys, inputs.beta.dtype
        if keys.shape[1] == 1:
            token = dataclasses.replace(inputs, keys=keys.to(dtype), values=inputs.values.to(dtype), documents=None)
            return super().write(token, keep=keep)
        return _write_chunks(inputs, None, scale=1.0, keep=keep)[:2]

    def write_and_read(
        self, inputs: WriteInputs, queries: Tensor, *, scale: float, keep: bool
    ) -> tuple[Parts, Tensor, Tensor]:
        """One operator; a single token is written and then read."""
        if inputs.keys.shape[1] == 1:
            return super().write_and_read(inputs, queries, scale=scale, keep=keep)
        return _write_chunks(inputs, queries, scale=scale, keep=keep)

    def read(self, parts: Parts, queries: Tensor, *, scale: float) -> Tensor:
        """Reads of a decode step and of chunks differ in what the write kept."""
        if len(parts) == 1:
            return super().read(parts, queries, scale=scale)
        keys, pseudo, states, log_decay, documents = parts
        return chunked_read(queries, keys, pseudo, states, log_decay, documents, scale)


def _write_chunks(
    inputs: WriteInputs, queries: Tensor | None, *, scale: float, keep: bool
) -> tuple[Parts, Tensor, Tensor]:
    """Parts for reads, the final state, and what the queries read (empty without any)."""
    given = (inputs.keys, inputs.values, queries, inputs.log_decay, inputs.beta, inputs.initial_state)
    differentiated = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in given)
    out, final, pseudo, states = chunked_write(
        *given, inputs.documents, inputs.raw, scale, keep, keep or differentiated
    )
    parts = (inputs.keys, pseudo, states, inputs.log_decay, inputs.documents) if keep else ()
    return parts, final, out


class Triton:
    """Kernels of our own for CUDA devices; loaded when first used, so that nothing else needs Triton.

    bfloat16 keys are computed in bfloat16, all others in float32.
    """

    name = "triton"

    def write(self, inputs: WriteInputs, *, keep: bool) -> tuple[Parts, Tensor]:
        """See `Backend`."""
        return _triton().write(inputs, keep=keep)

    def write_and_read(
        self, inputs: WriteInputs, queries: Tensor, *, scale: float, keep: bool
    ) -> tuple[Parts, Tensor, Tensor]:
        """See `Backend`."""
        return _triton().write_and_read(inputs, queries, scale=scale, keep=keep)

    def read(self, parts: Parts, queries: Tensor, *, scale: float) -> Tensor:
        """See `Backend`."""
        return _triton().read(parts, queries, scale=scale)


def _triton() -> ModuleType:
    """The kernel module.

    Raises:
        BackendError: Triton is not installed.
    """
    try:
        from groundthink.ops import _triton_ops  # torch.compile follows an import statement, and breaks at importlib
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        raise BackendError(
            "Triton is not installed", where="backend triton", fix="install triton, or choose backend chunked"
        ) from error
    return _triton_ops


_ALL: tuple[Backend, ...] = (Reference(), Chunked(), Triton())
BACKENDS: MappingProxyType[str, Backend] = MappingProxyType({backend.name: backend for backend in _ALL})
_said: set[tuple[str, str]] = set()


def choose(name: str, device: torch.device) -> Backend:
    """The backend called `name`, or for "auto" the one for this device, said once in the log.

    Raises:
        BackendError: no backend has that name.
    """
    if name == "auto":
        name = automatic(device.type)[0]
        if (name, device.type) not in _said:
            _said.add((name, device.type))
            log.info("memory operator: backend %s on %s", name, device.type)
    if name not in BACKENDS:
        raise BackendError(
            f"there is no backend {name!r}", where="backend", fix=f"choose one of auto, {', '.join(BACKENDS)}"
        )
    return BACKENDS[name]


def automatic(device_type: str) -> tuple[str, str]:
    """What "auto" means on a device type, and why."""
    if device_type == "cuda":
        return "triton", "kernels of our own, judged by `make test-gpu`"
    return "chunked", f"plain torch is the fastest backend this version has on {device_type}"


def describe_backends() -> list[dict[str, str]]:
    """For `groundthink doctor`: device, backend and reason for each kind of device present."""
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    return [dict(zip(("device", "backend", "reason"), (d, *automatic(d)), strict=True)) for d in devices]
