"""Interventions on what a model carries on: pure functions Snapshot -> Snapshot, each a value that can be written down.

They act at a segment boundary: prefill to t*, intervene, resume. Nothing inside a kernel is touched, so the model that
answers is the model that was trained. What an intervention does to a tensor is in `edits`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from groundthink.errors import ConfigError, StateError
from groundthink.model import Snapshot
from groundthink.probes import edits
from groundthink.probes.face import derived_seed
from groundthink.probes.intervention import MEMORY, Intervention, within_heads

VALID = ("valid",)
MOST_BITS = 16  # finer steps than that are lost in the rounding of float32 sums


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transplant(Intervention):
    """Take the tensors of a donor. The donor may be the recipient itself: that is the sham control."""

    name: ClassVar[str] = "transplant"
    may_do_nothing: ClassVar[bool] = True

    def change(self, mine: Tensor, theirs: Tensor | None, *, layer: int, tensor: str) -> Tensor:
        """The donor's tensor."""
        if theirs is None:
            raise StateError("there is no donor, or it carries other tensors", where=self.name, fix="give a donor")
        return theirs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Zero(Intervention):
    """Set the tensors to zero. Supporting evidence only: it breaks models that merely need a state of some size."""

    name: ClassVar[str] = "zero"

    def change(self, mine: Tensor, theirs: Tensor | None, *, layer: int, tensor: str) -> Tensor:
        """Zeros (False for masks)."""
        return torch.zeros_like(mine)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mean(Intervention):
    """Give every row the mean over the rows: of the donor if there is one, else of the batch itself."""

    name: ClassVar[str] = "mean"

    def change(self, mine: Tensor, theirs: Tensor | None, *, layer: int, tensor: str) -> Tensor:
        """The mean, repeated."""
        source = self._numbers(mine if theirs is None else theirs, tensor)
        return source.mean(0, keepdim=True).expand(mine.shape[0], *source.shape[1:])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Noise(Intervention):
    """Normal noise of the norm that each row and head had.

    Attributes:
        seed: of the noise; every layer and tensor draws its own.
    """

    name: ClassVar[str] = "noise"
    seed: int = 0

    def change(self, mine: Tensor, theirs: Tensor | None, *, layer: int, tensor: str) -> Tensor:
        """The noise."""
        seed = derived_seed(self.seed, "noise", layer, tensor)
        return edits.matched_noise(self._numbers(mine, tensor), dims=within_heads(mine, tensor), seed=seed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShuffleRows(Intervention):
    """Give each row the tensors of another one; all tensors and layers move together.

    Attributes:
        seed: of the permutation, which leaves no row in its place.
    """

    name: ClassVar[str] = "shuffle_rows"
    seed: int = 0

    def change(self, mine: Tensor, theirs: Tensor | None, *, layer: int, tensor: str) -> Tensor:
        """Rows in another order."""
        if mine.shape[0] < 2:
            raise StateError("one row cannot be shuffled", where=self.name, fix="give at least two rows")
        return mine[edits.derangement(mine.shape[0], self.seed).to(mine.device)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LowRank(Intervention):
    """Keep the largest singular values of each memory.

    Attributes:
        rank: how many; fewer than a memory has rows or columns.
    """

    name: ClassVar[str] = "low_rank"
    only: ClassVar[tuple[str, ...] | None] = MEMORY
    rank: int = 1

    def change(self, mine: Tensor, theirs: Tensor | None, *, layer: int, tensor: str) -> Tensor:
        """The nearest memory of that rank."""
        full = min(self._matrices(mine, tensor).shape[-2:])
        if not 1 <= self.rank < full:
            raise StateError(f"rank {self.rank} of a memory of rank {full}", where=self.name, fix=f"1 to {full - 1}")
        return edits.low_rank(mine, self.rank)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantise(Intervention):
    """Round to 2^bits - 1 equal steps, symmetric about 0, scaled by the largest entry of each row and head.

    Attributes:
        bits: 2 to 16.
    """

    name: ClassVar[str] = "quantise"
    bits: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.bits <= MOST_BITS:
            raise ConfigError(f"{self.bits} bits", where=self.name, fix=f"use 2 to {MOST_BITS}")

    def change(self, mine: Tensor, theirs: Tensor | None, *, layer: int, tensor: str) -> Tensor:
        """The rounded tensor."""
        return edits.quantise(self._numbers(mine, tensor), self.bits, dims=within_heads(mine, tensor))


@dataclasses.dataclass(frozen=True, kw_only=True)
class WindowLimit(Intervention):
    """Let the windows forget all but the last keys that they carry. What comes after the boundary fills them again.

    Attributes:
        tokens: keys that stay; fewer than are carried.
    """

    name: ClassVar[str] = "window_limit"
    only: ClassVar[tuple[str, ...] | None] = VALID
    what: tuple[str, ...] = VALID
    tokens: int = 0

    def change(self, mine: Tensor, theirs: Tensor | None, *, layer: int, tensor: str) -> Tensor:
        """The mask with the older keys at False."""
        if mine.dtype != torch.bool or not 0 <= self.tokens < mine.shape[1]:
            raise StateError(f"{self.tokens} of {tuple(mine.shape)} {mine.dtype} cannot be kept", where=self.name)
        older = torch.arange(mine.shape[1], device=mine.device) < mine.shape[1] - self.tokens
        return mine & ~older


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeyIntervention(Intervention):
    """Base of what is done along one key of each memory. The keys come with the call: they are data, no setting."""

    only: ClassVar[tuple[str, ...] | None] = MEMORY

    def __call__(
        self,
        snapshot: Snapshot,
        donor: Snapshot | None = None,
        *,
        keys: Mapping[int, Tensor] | None = None,
        values: Mapping[int, Tensor] | None = None,
    ) -> Snapshot:
        """See `Intervention`.

        Args:
            snapshot, donor: as ever.
            keys: layer to [B,H,K], of any length but 0; without `layers`, these layers are changed.
            values: layer to [B,HV,V], for an intervention that writes.
        """
        layers = self.layers if self.layers is not None else tuple(sorted(keys or ()))
        missing = [layer for layer in layers if layer not in (keys or ())]
        if missing or not layers:
            raise StateError(f"no key for {f'layer {missing[0]}' if missing else 'any layer'}", where=self.name)
        assert keys is not None

        def change(mine: Tensor, layer: int, tensor: str) -> Tensor:
            mine = self._matrices(mine, tensor)
            theirs = None if donor is None else donor.layers[layer].get(tensor)
            return self.along(mine, keys[layer], theirs, None if values is None else values.get(layer))

        return dataclasses.replace(self, layers=layers)._apply(snapshot, change)

    def along(self, mine: Tensor, key: Tensor, theirs: Tensor | None, value: Tensor | None) -> Tensor:
        """The memory that takes the place of `mine`."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rewrite(KeyIntervention):
    """Let each memory answer another value to one key: a given one, or the donor's, with the decay that it has had."""

    name: ClassVar[str] = "rewrite"

    def along(self, mine: Tensor, key: Tensor, theirs: Tensor | None, value: Tensor | None) -> Tensor:
        """S + k (v' - S^T k)^T, where v' is the value or S_donor^T k."""
        if (theirs is None) == (value is None):
            raise StateError("needs either a donor or values", where=self.name, fix="give one of them")
        if theirs is not None and theirs.shape != mine.shape:
            raise StateError(f"the donor's memory is {tuple(theirs.shape)}, not {tuple(mine.shape)}", where=self.name)
        if value is not None and value.shape != (*mine.shape[:2], mine.shape[3]):
            raise StateError(f"values {tuple(value.shape)} do not fit {tuple(mine.shape)}", where=self.name)
        wanted = value if theirs is None else edits.answer(theirs, key)
        assert wanted is not None
        return edits.rewrite(mine, key, wanted)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Erase(KeyIntervention):
    """Let each memory answer nothing to one key."""

    name: ClassVar[str] = "erase"

    def along(self, mine: Tensor, key: Tensor, theirs: Tensor | None, value: Tensor | None) -> Tensor:
        """(I - k k^T) S."""
        if theirs is not None or value is not None:
            raise StateError("takes no donor and no values", where=self.name)
        return edits.erase(mine, key)


_ALL = (Transplant, Zero, Mean, Noise, ShuffleRows, LowRank, Quantise, WindowLimit, Rewrite, Erase)
KINDS: dict[str, type[Intervention]] = {kind.name: kind for kind in _ALL}


def intervention_from_dict(raw: dict[str, Any]) -> Intervention:
    """The inverse of `to_dict`.

    Raises:
        ConfigError: an unknown intervention or field, or a value that it cannot have.
    """
    fields = dict(raw)
    kind = KINDS.get(str(fields.pop("intervention", None)))
    if kind is None:
        raise ConfigError(f"unknown intervention {raw.get('intervention')!r}", fix=f"use one of {', '.join(KINDS)}")
    unknown = set(fields) - {f.name for f in dataclasses.fields(kind)}
    if unknown:
        raise ConfigError(f"unknown fields {', '.join(sorted(unknown))}", where=kind.name)
    for field, value in fields.items():
        inside = str if field == "what" else int
        several = isinstance(value, (list, tuple)) and all(type(item) is inside for item in value)
        if field in ("what", "layers", "heads"):
            if not several and not (value is None and field != "what"):
                raise ConfigError(f"{field} is {value!r}", where=kind.name, fix=f"give a list of {inside.__name__}")
            fields[field] = None if value is None else tuple(value)
        elif type(value) is not int:
            raise ConfigError(f"{field} is {value!r}, not an integer", where=kind.name)
    return kind(**fields)


def transplant(
    recipient: Snapshot,
    donor: Snapshot,
    *,
    what: Iterable[str] = MEMORY,
    layers: Iterable[int] | None = None,
    heads: Iterable[int] | None = None,
) -> Snapshot:
    """The recipient with the donor's tensors, by default the memories of every layer that has one."""
    return Transplant(what=tuple(sorted(what)), layers=_indices(layers), heads=_indices(heads))(recipient, donor)


def zero(snapshot: Snapshot, *, what: Iterable[str] = MEMORY, layers: Iterable[int] | None = None) -> Snapshot:
    """The snapshot with these tensors at zero."""
    return Zero(what=tuple(sorted(what)), layers=_indices(layers))(snapshot)


def shuffle_rows(
    snapshot: Snapshot, *, seed: int, what: Iterable[str] = MEMORY, layers: Iterable[int] | None = None
) -> Snapshot:
    """The snapshot in which each row has these tensors of another row."""
    return ShuffleRows(what=tuple(sorted(what)), layers=_indices(layers), seed=seed)(snapshot)


def _indices(chosen: Iterable[int] | None) -> tuple[int, ...] | None:
    return None if chosen is None else tuple(chosen)
