"""Interventions on what a model carries on: pure functions Snapshot -> Snapshot, each a value that can be written down.

They act at a segment boundary: prefill to t*, intervene, resume. Nothing inside a kernel is touched, so the model that
answers is the model that was trained.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor

from groundthink.errors import ConfigError, StateError
from groundthink.model import Snapshot

MEMORY = ("memory",)
EVERYTHING = ("*",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Intervention:
    """Base: which tensors of which layers are changed.

    Attributes:
        what: names of tensors; ("*",) means all of them.
        layers: indices of layers; None means every layer that carries one of them.
    """

    name: ClassVar[str] = ""
    what: tuple[str, ...] = MEMORY
    layers: tuple[int, ...] | None = None

    def __call__(self, snapshot: Snapshot, donor: Snapshot | None = None) -> Snapshot:
        """The changed snapshot; the given ones stay as they are.

        Raises:
            StateError: nothing would be changed, a layer carries no such tensor, or a donor is missing or unlike.
        """
        result, touched = snapshot, 0
        for layer in range(len(snapshot.layers)) if self.layers is None else self.layers:
            if not 0 <= layer < len(snapshot.layers):
                raise StateError(f"layer {layer} does not exist, the snapshot has {len(snapshot.layers)}")
            for tensor in self._names(snapshot, layer):
                theirs = None if donor is None else donor.layers[layer].get(tensor)
                result = result.replace(layer, **{tensor: self.change(snapshot.layers[layer][tensor], theirs)})
                touched += 1
        if not touched:
            raise StateError(f"no layer carries {' or '.join(self.what)}", where=self.name)
        return result

    def _names(self, snapshot: Snapshot, layer: int) -> Iterable[str]:
        carried = snapshot.layers[layer]
        if self.what == EVERYTHING:
            return tuple(carried)
        missing = [name for name in self.what if name not in carried]
        if missing and self.layers is not None:  # a layer that was named must have what was named
            raise StateError(f"layer {layer} carries no {' and no '.join(missing)}", where=self.name)
        return [name for name in self.what if name in carried]

    def change(self, mine: Tensor, theirs: Tensor | None) -> Tensor:
        """The tensor that takes the place of `mine`."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a record."""
        return {"intervention": self.name, **dataclasses.asdict(self)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transplant(Intervention):
    """Take the tensors of a donor."""

    name: ClassVar[str] = "transplant"

    def change(self, mine: Tensor, theirs: Tensor | None) -> Tensor:
        """The donor's tensor."""
        if theirs is None:
            raise StateError("there is no donor, or it carries other tensors", where=self.name, fix="give a donor")
        return theirs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Zero(Intervention):
    """Set the tensors to zero. Supporting evidence only: it breaks models that merely need a state of some size."""

    name: ClassVar[str] = "zero"

    def change(self, mine: Tensor, theirs: Tensor | None) -> Tensor:
        """Zeros (False for masks)."""
        return torch.zeros_like(mine)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShuffleRows(Intervention):
    """Give each row the tensors of another one; all tensors and layers move together.

    Attributes:
        seed: of the permutation, which leaves no row in its place.
    """

    name: ClassVar[str] = "shuffle_rows"
    seed: int = 0

    def change(self, mine: Tensor, theirs: Tensor | None) -> Tensor:
        """Rows in another order."""
        if mine.shape[0] < 2:
            raise StateError("one row cannot be shuffled", where=self.name, fix="give at least two rows")
        return mine[derangement(mine.shape[0], self.seed).to(mine.device)]


KINDS: dict[str, type[Intervention]] = {kind.name: kind for kind in (Transplant, Zero, ShuffleRows)}


def intervention_from_dict(raw: dict[str, Any]) -> Intervention:
    """The inverse of `to_dict`.

    Raises:
        ConfigError: an unknown intervention or field.
    """
    fields = dict(raw)
    kind = KINDS.get(str(fields.pop("intervention", None)))
    if kind is None:
        raise ConfigError(f"unknown intervention {raw.get('intervention')!r}", fix=f"use one of {', '.join(KINDS)}")
    unknown = set(fields) - {f.name for f in dataclasses.fields(kind)}
    if unknown:
        raise ConfigError(f"unknown fields {', '.join(sorted(unknown))}", where=kind.name)
    for name in ("what", "layers"):
        if fields.get(name) is not None:
            fields[name] = tuple(fields[name])
    return kind(**fields)


def derangement(n: int, seed: int) -> Tensor:
    """A permutation [n] that leaves nothing in its place: one random cycle through all."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    result = torch.empty_like(order)
    result[order] = order.roll(1)
    return result


def transplant(
    recipient: Snapshot, donor: Snapshot, *, what: Iterable[str] = MEMORY, layers: Iterable[int] | None = None
) -> Snapshot:
    """The recipient with the donor's tensors, by default the memories of every layer that has one."""
    return Transplant(what=tuple(sorted(what)), layers=_layers(layers))(recipient, donor)


def zero(snapshot: Snapshot, *, what: Iterable[str] = MEMORY, layers: Iterable[int] | None = None) -> Snapshot:
    """The snapshot with these tensors at zero."""
    return Zero(what=tuple(sorted(what)), layers=_layers(layers))(snapshot)


def shuffle_rows(
    snapshot: Snapshot, *, seed: int, what: Iterable[str] = MEMORY, layers: Iterable[int] | None = None
) -> Snapshot:
    """The snapshot in which each row has these tensors of another row."""
    return ShuffleRows(what=tuple(sorted(what)), layers=_layers(layers), seed=seed)(snapshot)


def carriers(snapshot: Snapshot, name: str = "memory") -> tuple[int, ...]:
    """Indices of the layers that carry a tensor of this name."""
    return tuple(i for i, layer in enumerate(snapshot.layers) if name in layer)


def _layers(layers: Iterable[int] | None) -> tuple[int, ...] | None:
    return None if layers is None else tuple(layers)
