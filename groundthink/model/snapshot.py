"""Snapshot: everything a model carries from one segment of a text to the next, as one immutable value."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from groundthink.errors import StateError
from groundthink.layers import State, freeze


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """What every layer carries on, and where each row stands.

    Attributes:
        layers: per layer its named tensors (first dimension: rows of the batch), in the order of the pattern.
        position: [B] int64, tokens seen by each row.
    """

    layers: tuple[State, ...]
    position: Tensor

    @property
    def batch_size(self) -> int:
        """Rows."""
        return self.position.shape[0]

    def map(self, function: Callable[[Tensor], Tensor]) -> Snapshot:
        """A snapshot with `function` applied to every tensor."""
        return Snapshot(
            tuple(freeze(**{name: function(x) for name, x in layer.items()}) for layer in self.layers),
            function(self.position),
        )

    def detach(self) -> Snapshot:
        """The same values without their history."""
        return self.map(Tensor.detach)

    def to(self, device: torch.device | str) -> Snapshot:
        """The same values on another device."""
        return self.map(lambda x: x.to(device))

    def select(self, rows: Tensor) -> Snapshot:
        """The snapshot of these rows, in this order; a row may occur more than once."""
        return self.map(lambda x: x.index_select(0, rows.to(x.device)))

    def replace(self, layer: int, **tensors: Tensor) -> Snapshot:
        """A snapshot in which these tensors of one layer are others of the same shape.

        Raises:
            StateError: the layer has no such tensor, or it has another shape.
        """
        old = dict(self.layers[layer])
        for name, tensor in tensors.items():
            if name not in old:
                raise StateError(f"layer {layer} carries no {name!r}", fix=f"it carries {', '.join(old) or 'nothing'}")
            if old[name].shape != tensor.shape:
                raise StateError(f"{name!r} of layer {layer} is {tuple(old[name].shape)}, not {tuple(tensor.shape)}")
        new = freeze(**{**old, **tensors})
        return Snapshot((*self.layers[:layer], new, *self.layers[layer + 1 :]), self.position)

    def where(self, keep: Tensor, other: Snapshot) -> Snapshot:
        """Row by row: this snapshot where `keep` [B] is true, the other elsewhere. Shapes must agree."""

        def choose(mine: Tensor, theirs: Tensor) -> Tensor:
            return torch.where(keep.to(mine.device).view(-1, *[1] * (mine.dim() - 1)), mine, theirs.to(mine.dtype))

        layers = tuple(
            freeze(**{name: choose(x, theirs[name]) for name, x in mine.items()})
            for mine, theirs in zip(self.layers, other.layers, strict=True)
        )
        return Snapshot(layers, choose(self.position, other.position))

    def check_shapes(self, shapes: list[dict[str, tuple[int | None, ...]]]) -> None:
        """Compare with what the layers of a model carry (see `Mixer.state_shapes`).

        Raises:
            StateError: naming the first tensor that does not fit.
        """
        for i, (layer, wanted) in enumerate(zip(self.layers, shapes, strict=True)):
            if layer.keys() != wanted.keys():
                names = f"{', '.join(layer) or 'nothing'} instead of {', '.join(wanted)}"
                raise StateError(f"layer {i} carries {names}: the snapshot is of another model")
            for name, tensor in layer.items():
                shape = (self.batch_size, *wanted[name])
                sizes = zip(tensor.shape, shape, strict=False)
                if tensor.dim() != len(shape) or any(s not in (size, None) for size, s in sizes):
                    have = tuple(tensor.shape)
                    raise StateError(f"{name!r} of layer {i} is {have}, not {shape}: the snapshot is of another model")

    def tensors(self) -> dict[str, Tensor]:
        """Flat names to tensors, as they are saved."""
        named = {f"layers.{i}.{name}": x for i, layer in enumerate(self.layers) for name, x in layer.items()}
        return {**named, "position": self.position, "n_layers": torch.tensor(len(self.layers))}

    @classmethod
    def from_tensors(cls, named: dict[str, Tensor]) -> Snapshot:
        """The inverse of `tensors`.

        Raises:
            StateError: names that are not those of a snapshot.
        """
        try:
            layers: list[dict[str, Tensor]] = [{} for _ in range(int(named["n_layers"]))]
            for key, tensor in named.items():
                if key not in ("position", "n_layers"):
                    _, index, name = key.split(".")
                    if not index.isdigit():
                        raise ValueError(f"there is no layer {index}")
                    layers[int(index)][name] = tensor
            return cls(tuple(freeze(**layer) for layer in layers), named["position"])
        except (KeyError, ValueError, IndexError, RuntimeError) as error:
            raise StateError(f"not a snapshot: {error}") from error

    def save(self, path: Path | str) -> None:
        """Write the snapshot to a safetensors file, whole or not at all."""
        write_whole(Path(path), save({name: x.detach().contiguous().cpu() for name, x in self.tensors().items()}))

    @classmethod
    def load(cls, path: Path | str) -> Snapshot:
        """Read a snapshot written by `save`.

        Raises:
            StateError: the file is missing, damaged, or holds no snapshot.
        """
        try:
            return cls.from_tensors(load_file(str(path)))
        except (OSError, SafetensorError) as error:
            raise StateError(
                f"cannot be read: {error}", where=str(path), fix="give a file that save() wrote"
            ) from error


def write_whole(path: Path, data: bytes) -> None:
    """Write beside the file and rename, so that a full disk leaves the earlier file as it was."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
