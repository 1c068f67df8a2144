"""Hears what the losses of a phase ask for, and adds them up."""

from __future__ import annotations

import contextlib
import fnmatch
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from groundthink.errors import ConfigError
from groundthink.training.losses import anchor as anchor_loss
from groundthink.training.losses.loss import Heard
from groundthink.training.losses.registry import LOSSES

Outputs = dict[str, list[Any]]
ANCHOR = anchor_loss.LOSS.name


class Auxiliary:
    """The losses of a phase beside its token losses. Without any, no hook is set and nothing is computed.

    Args:
        model: what to listen to.
        weights: by loss; a weight of 0 turns a loss off.
        where: field of the config that names them.
        anchor: the model as it was, for the loss of that name.

    Attributes:
        weights: of the losses that are on.

    Raises:
        ConfigError: the model has no module that a loss listens to, all of them at once; or nothing to hold on to.
    """

    def __init__(
        self,
        model: nn.Module,
        weights: Mapping[str, float],
        where: str = "losses",
        *,
        anchor: nn.Module | None = None,
    ) -> None:
        self.model, self.anchor = model, anchor
        self.weights = {name: float(weight) for name, weight in weights.items() if weight}
        patterns = {pattern: name for name in self.weights for pattern in LOSSES[name].hears}
        self.modules = {pattern: self._named(pattern) for pattern in patterns}
        deaf = [f"{name} listens to {pattern}" for pattern, name in patterns.items() if not self.modules[pattern]]
        if ANCHOR in self.weights and anchor is None:
            raise ConfigError(
                "holds on to what a trained model says, and this training starts from a new one",
                where=f"{where}.{ANCHOR}",
                fix="hand the trained model to train(..., model=...), or take the loss out",
            )
        if deaf:
            raise ConfigError(
                f"no layer of this model has what a loss needs: {'; '.join(deaf)}",
                where=where,
                fix="take those losses out, or put layers that have it into model.pattern",
            )

    def _named(self, pattern: str) -> list[nn.Module]:
        return [module for name, module in self.model.named_modules() if fnmatch.fnmatchcase(name, pattern)]

    @contextlib.contextmanager
    def listen(self) -> Iterator[Outputs]:
        """Collect what the modules return while this is open."""
        outputs: Outputs = {pattern: [] for pattern in self.modules}
        handles = [
            module.register_forward_hook(lambda _module, _inputs, out, kept=outputs[pattern]: kept.append(out))  # type: ignore[misc]
            for pattern, modules in self.modules.items()
            for module in modules
        ]
        try:
            yield outputs
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def ask_anchor(self, tokens: Tensor, documents: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """What the model as it was hands to its head, and the head; None where no loss wants it."""
        if ANCHOR not in self.weights:
            return None
        before: Any = self.anchor
        return before.hidden(tokens, documents=documents)[0], before.get_output_embeddings().weight

    def sums(
        self,
        outputs: Outputs,
        tokens: Tensor,
        documents: Tensor | None,
        *,
        anchor: tuple[Tensor, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Each loss, summed over the rows that were heard: float32 scalars with a gradient, not weighted."""
        named = {pattern: tuple(kept) for pattern, kept in outputs.items()}
        heard = Heard(tokens, documents, self.model, named, anchor)
        with torch.autocast(tokens.device.type, enabled=False):  # cosines and squares want all of float32
            return {name: LOSSES[name].of_rows(heard).sum() for name in self.weights}
