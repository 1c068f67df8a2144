"""What an intervention is: which tensors of which layers and heads are changed, and what is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor

from groundthink.errors import ConfigError, StateError
from groundthink.model import Snapshot

MEMORY = ("memory",)
EVERYTHING = ("*",)
HEADS_AT = {"memory": 1, "keys": 2, "values": 2}  # dimension of the heads; other tensors have none


@dataclasses.dataclass(frozen=True, kw_only=True)
class Intervention:
    """Base: which tensors of which layers are changed.

    Attributes:
        what: names of tensors; ("*",) means all of them.
        layers: indices of layers; None means every layer that carries one of them.
        heads: indices of heads (of values, where a key serves several); None means all of them.
    """

    name: ClassVar[str] = ""
    only: ClassVar[tuple[str, ...] | None] = None  # what it can be done to, if not to everything
    may_do_nothing: ClassVar[bool] = False
    what: tuple[str, ...] = MEMORY
    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.only is not None and self.what != self.only:
            raise ConfigError(f"cannot be done to {', '.join(self.what)}", where=self.name, fix=f"what={self.only}")

    def __call__(self, snapshot: Snapshot, donor: Snapshot | None = None) -> Snapshot:
        """The changed snapshot; the given ones stay as they are.

        Raises:
            StateError: nothing would be changed, a layer carries no such tensor or head, or a donor is missing or
                unlike.
        """

        def change(mine: Tensor, layer: int, tensor: str) -> Tensor:
            theirs = None if donor is None else donor.layers[layer].get(tensor)
            return self.change(mine, theirs, layer=layer, tensor=tensor)

        return self._apply(snapshot, change)

    def change(self, mine: Tensor, theirs: Tensor | None, *, layer: int, tensor: str) -> Tensor:
        """The tensor that takes the place of `mine`; `layer` and `tensor` say which one that is."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a record."""
        return {"intervention": self.name, **dataclasses.asdict(self)}

    def _apply(self, snapshot: Snapshot, change: Callable[[Tensor, int, str], Tensor]) -> Snapshot:
        result, touched, moved = snapshot, False, self.may_do_nothing
        for layer in range(len(snapshot.layers)) if self.layers is None else self.layers:
            if not 0 <= layer < len(snapshot.layers):
                raise StateError(f"layer {layer} does not exist, the snapshot has {len(snapshot.layers)}")
            for tensor in self._names(snapshot, layer):
                mine = snapshot.layers[layer][tensor]
                result = result.replace(layer, **{tensor: self._on_heads(mine, change(mine, layer, tensor), tensor)})
                touched, moved = True, moved or not torch.equal(result.layers[layer][tensor], mine)
        if not touched:
            raise StateError(f"no layer carries {' or '.join(self.what)}", where=self.name)
        if not moved:
            raise StateError("changes nothing here", where=self.name, fix="ask for a change, or leave it out")
        return result

    def _on_heads(self, mine: Tensor, new: Tensor, tensor: str) -> Tensor:
        if self.heads is None or new.shape != mine.shape:  # a wrong shape is refused by `Snapshot.replace`
            return new
        dim = heads_at(mine, tensor)
        if dim is None or not self.heads or not all(0 <= head < mine.shape[dim] for head in self.heads):
            count = "no heads" if dim is None else f"{mine.shape[dim]} heads"
            raise StateError(f"{tensor!r} has {count}, not {list(self.heads)}", where=self.name)
        chosen = torch.tensor(self.heads, device=mine.device)
        return mine.index_copy(dim, chosen, new.to(mine.dtype).index_select(dim, chosen))

    def _names(self, snapshot: Snapshot, layer: int) -> Iterable[str]:
        carried = snapshot.layers[layer]
        if self.what == EVERYTHING:
            return tuple(carried)
        missing = [name for name in self.what if name not in carried]
        if missing and self.layers is not None:  # a layer that was named must have what was named
            raise StateError(f"layer {layer} carries no {' and no '.join(missing)}", where=self.name)
        return [name for name in self.what if name in carried]

    def _numbers(self, mine: Tensor, tensor: str) -> Tensor:
        if not mine.is_floating_point():
            raise StateError(f"{tensor!r} holds no real numbers", where=self.name, fix="name another tensor")
        return mine

    def _matrices(self, mine: Tensor, tensor: str) -> Tensor:
        if mine.dim() != 4:
            raise StateError(f"{tensor!r} {tuple(mine.shape)} is not [B,H,K,V]", where=self.name)
        return self._numbers(mine, tensor)


def carriers(snapshot: Snapshot, name: str = "memory") -> tuple[int, ...]:
    """Indices of the layers that carry a tensor of this name."""
    return tuple(i for i, layer in enumerate(snapshot.layers) if name in layer)


def heads_at(x: Tensor, tensor: str) -> int | None:
    """Dimension of the heads of a tensor of a snapshot; None if it has none."""
    return HEADS_AT.get(tensor) if x.dim() == 4 else None


def within_heads(x: Tensor, tensor: str) -> list[int]:
    """The dimensions inside one row and head."""
    return [dim for dim in range(1, x.dim()) if dim != heads_at(x, tensor)]
