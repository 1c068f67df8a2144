"""Run-time knobs of the layers: numbers that a phase may set and the next phase gets back as they were."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from groundthink.errors import ConfigError


class Knobs:
    """Sets attributes such as `own_read_drop_prob` on every module that has one.

    Args:
        model: as its config built it; what it holds now is what each phase starts from.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.original: list[tuple[nn.Module, str, Any]] = []

    def apply(self, options: Mapping[str, float | int | bool], where: str) -> None:
        """Undo the last call, then set these.

        Raises:
            ConfigError: no layer has such a knob, or it is of another kind.
        """
        for module, name, value in self.original:
            setattr(module, name, value)
        self.original.clear()
        for name, value in options.items():
            owners = [m for m in self.model.modules() if isinstance(vars(m).get(name), (bool, float))]
            if not owners:
                raise ConfigError(
                    f"no layer of this model has a run-time knob {name!r}",
                    where=f"{where}.model_options",
                    fix="name one such as own_read_drop_prob or local_drop_prob; sizes belong into model",
                )
            if name.endswith("_prob") and not 0 <= value <= 1:
                raise ConfigError(f"{name} is {value}, it must be in [0, 1]", where=f"{where}.model_options")
            for module in owners:
                self.original.append((module, name, vars(module)[name]))
                setattr(module, name, type(vars(module)[name])(value))
