"""Adapter: a causal language model of transformers with the face of ours, `prefill` and `resume`."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from groundthink.errors import CheckpointError, ConfigError, StateError
from groundthink.layers import State, freeze
from groundthink.model.adapters.masks import masked, visible
from groundthink.model.adapters.sight import (
    CountingCache,
    Sight,
    Tensors,
    read_attention,
    read_recurrent,
    set_attention,
    set_recurrent,
)
from groundthink.model.snapshot import Snapshot

# Where a model has no window: how near a pair counts as near, in tokens.
NEAR = 64
_GROWS = ("keys", "values", "valid")


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What the probes read of a model's sizes.

    Attributes:
        window_size: tokens that its widest window sees; `NEAR` where it has none.
        vocab_size: tokens.
    """

    window_size: int
    vocab_size: int


class Adapter(nn.Module):
    """Wraps a model of one family. The model stays as it is; every call works on a fresh cache.

    A family is a subclass: `family`, `model_types`, `sights`, and where its state is not what `sight` reads,
    `get_state` and `set_state`. Snapshots carry, per layer: `memory` [B,H,K,V] float32 and `conv` [B,taps or
    taps + 1,channels] of recurrent layers; `keys`, `values` [B,L,H,K], `valid` [B,L] and `seen` [B] of attention. Keys
    that are not valid cannot be seen.

    Args:
        model: the causal language model, of one of `model_types`.
        attention_window: limit full attention to this many tokens, the present one included; then the model has a
            receptive horizon, and what is certified is the model with that limit.
        step: continue token by token, as `generate` does. Some releases go wrong only where several tokens continue
            a cache; what is certified then is the model as it generates.

    Raises:
        ConfigError: `attention_window` below 1, or for a model without full attention.
        CheckpointError: the model keeps no cache, or another one than its family does.
    """

    family: ClassVar[str] = ""
    model_types: ClassVar[tuple[str, ...]] = ()

    def __init__(self, model: Any, *, attention_window: int | None = None, step: bool = False) -> None:
        super().__init__()
        self.inner = model
        self.config = model.config.get_text_config(decoder=True)
        self.step = step
        own = self.sights(self.config)
        _check_limit(attention_window, own)
        self.attention_window = attention_window
        limit = math.inf if attention_window is None else attention_window
        self.layers = tuple(dataclasses.replace(s, window=min(s.window, limit)) for s in own)
        self._limited = frozenset(i for i, s in enumerate(own) if self.layers[i].window != s.window)
        names = inspect.signature(model.forward).parameters
        found = [name for name in ("past_key_values", "cache_params") if name in names]
        if not found:
            raise CheckpointError(
                f"{type(model).__name__} takes no cache", fix="certify a model that generates with one"
            )
        self._cache_argument, self._takes_positions = found[0], "position_ids" in names
        self._dtypes, self._shapes = self._first_look()

    # --- what a family declares -----------------------------------------------------------------------------

    @classmethod
    def sights(cls, config: Any) -> tuple[Sight, ...]:
        """What each layer sees without a memory, from the text config."""
        raise NotImplementedError

    def to_memory(self, native: Tensor) -> Tensor:
        """The family's recurrent state as [B,H,K,V]: K is what is asked with, V what is answered."""
        return native

    def from_memory(self, memory: Tensor) -> Tensor:
        """The inverse of `to_memory`."""
        return memory

    def new_cache(self, *, seen: int = 0) -> Any:
        """An empty cache, of a text of which so many tokens were seen."""
        return CountingCache(self.inner.config, seen=seen)

    def get_state(self, cache: Any, layer: int, *, seen: int) -> Tensors:
        """Copies of what one layer carries, its memory as `native`.

        Raises:
            LookupError: the cache does not hold it.
        """
        sight, held = self.layers[layer], cache.layers[layer]
        found = read_recurrent(held) if sight.memory else {}
        return found | (read_attention(held, seen=seen) if sight.window else {})

    def set_state(self, cache: Any, layer: int, state: State) -> None:
        """Fill one layer of a fresh cache with copies; the memory is `native`."""
        sight, held = self.layers[layer], cache.layers[layer]
        if sight.memory:
            set_recurrent(held, state["native"], state["conv"])
        if sight.window:
            set_attention(held, state["keys"], state["values"], seen=int(state["seen"][0]))

    @contextlib.contextmanager
    def untouched(self) -> Iterator[None]:
        """Around every call: leaves what the model keeps outside its cache as it was."""
        yield

    # --- the face -------------------------------------------------------------------------------------------

    @property
    def sizes(self) -> Sizes:
        """Sizes for the probes."""
        windows = [int(s.window) for s in self.layers if s.slides]
        return Sizes(max(windows, default=NEAR), int(self.config.vocab_size))

    @property
    def horizon(self) -> float:
        """Receptive horizon R in tokens: how far back anything but a memory reaches; inf with full attention."""
        return sum(sight.reach for sight in self.layers)

    @property
    def has_memory(self) -> bool:
        """Whether any layer carries a recurrent memory."""
        return any(sight.memory for sight in self.layers)

    @property
    def embed(self) -> nn.Module:
        """The token embedding."""
        return self.inner.get_input_embeddings()

    @property
    def device(self) -> torch.device:
        """Where the model's inputs belong."""
        return self.inner.device

    def prefill(self, input_ids: Tensor, *, attention_mask: Tensor | None = None) -> tuple[Tensor, Snapshot]:
        """Logits [B,T,vocabulary] of a text and the snapshot after it.

        Args:
            input_ids: [B,T] int64.
            attention_mask: [B,T], zeros mark padding on the left.

        Raises:
            StateError: padding that is not on the left.
        """
        if attention_mask is not None:
            real = attention_mask != 0
            if real.shape != input_ids.shape or not real[:, -1].all() or (real[:, 1:] < real[:, :-1]).any():
                raise StateError("padding is not on the left", where="attention_mask", fix="pad on the left")
            attention_mask = None if bool(real.all()) else real.to(torch.int64)
        return self._run(None, input_ids, attention_mask)

    def resume(self, snapshot: Snapshot, input_ids: Tensor) -> tuple[Tensor, Snapshot]:
        """Logits of the text that follows a snapshot, and the snapshot after it. The given one stays as it is.

        Raises:
            StateError: the snapshot is of another model or batch.
        """
        if len(snapshot.layers) != len(self.layers):
            raise StateError(f"the snapshot is of {len(snapshot.layers)} layers, the model has {len(self.layers)}")
        if snapshot.batch_size != input_ids.shape[0]:
            raise StateError(f"the snapshot holds {snapshot.batch_size} rows, the input {input_ids.shape[0]}")
        snapshot.check_shapes(self._shapes)
        parts = []
        for piece in input_ids.split(1 if self.step else max(1, input_ids.shape[1]), 1):
            logits, snapshot = self._run(snapshot, piece, None)
            parts.append(logits)
        return torch.cat(parts, 1), snapshot

    def forward(self, *args: Any, **named: Any) -> Any:
        """The model's own call, for training."""
        return self.inner(*args, **named)

    # --- how --------------------------------------------------------------------------------------------------

    def _run(self, snapshot: Snapshot | None, ids: Tensor, padding: Tensor | None) -> tuple[Tensor, Snapshot]:
        rows, length = ids.shape
        before = torch.zeros(rows, dtype=torch.int64, device=ids.device) if snapshot is None else snapshot.position
        new = torch.ones_like(ids, dtype=torch.bool) if padding is None else padding != 0
        named: dict[str, Any] = {} if padding is None else {"attention_mask": padding}
        if self._takes_positions:
            named["position_ids"] = (before[:, None] + new.cumsum(1) - 1).clamp_min(0)
        seen, valid = self._past(snapshot, new)
        with self.untouched(), masked(self.inner, self._masks(snapshot, valid, length)):
            cache = self._filled(snapshot, seen)
            logits = self.inner(input_ids=ids, use_cache=True, **{self._cache_argument: cache}, **named).logits
            found = [self.get_state(cache, i, seen=seen + length) for i in range(len(self.layers))]
        layers = tuple(self._carried(tensors, valid.get(i)) for i, tensors in enumerate(found))
        # Some models return float32 logits of 16-bit weights: how exact they are is the weights' affair.
        return logits.to(self.embed.weight.dtype), Snapshot(layers, before + new.sum(1))

    def _filled(self, snapshot: Snapshot | None, seen: int) -> Any:
        cache = self.new_cache(seen=seen)
        if snapshot is not None:
            for i, state in enumerate(snapshot.layers):
                tensors = dict(state)
                if "memory" in tensors:
                    tensors["native"] = self.from_memory(tensors.pop("memory")).to(self._dtypes[i])
                self.set_state(cache, i, tensors)
        return cache

    def _carried(self, found: Tensors, valid: Tensor | None) -> State:
        tensors = dict(found)
        if "native" in tensors:
            tensors["memory"] = self.to_memory(tensors.pop("native")).float()
        if valid is not None:
            tensors["valid"] = valid[:, valid.shape[1] - tensors["keys"].shape[1] :].clone()
        return freeze(**tensors)

    def _past(self, snapshot: Snapshot | None, new: Tensor) -> tuple[int, dict[int, Tensor]]:
        """Tokens seen before, padding included, and which keys each attention layer may see, new ones among them."""
        attention = [i for i, sight in enumerate(self.layers) if sight.window]
        if snapshot is None:
            return 0, dict.fromkeys(attention, new)
        # Without attention nothing stands in the order of tokens but the text itself.
        seen = int(snapshot.layers[attention[0]]["seen"][0]) if attention else int(snapshot.position.max())
        return seen, {i: torch.cat([snapshot.layers[i]["valid"], new], 1) for i in attention}

    def _masks(self, snapshot: Snapshot | None, valid: dict[int, Tensor], queries: int) -> dict[int, Tensor]:
        """Masks of ours where the model's own would not do: a limit, or a past in which something is hidden."""
        hidden = {i for i in valid if snapshot is not None and not bool(snapshot.layers[i]["valid"].all())}
        return {
            i: visible(valid[i], queries=queries, window=self.layers[i].window) for i in sorted(hidden | self._limited)
        }

    def _first_look(self) -> tuple[dict[int, torch.dtype], list[dict[str, tuple[int | None, ...]]]]:
        """Type of each native memory, and the shapes that layers carry, from two tokens."""
        dtypes: dict[int, torch.dtype] = {}
        training = self.inner.training
        try:
            self.inner.eval()
            with torch.no_grad(), self.untouched():
                cache = self.new_cache()
                ids = torch.zeros(1, 2, dtype=torch.int64, device=self.device)
                named = {"position_ids": torch.arange(2, device=self.device)[None]} if self._takes_positions else {}
                self.inner(input_ids=ids, use_cache=True, **{self._cache_argument: cache}, **named)
                found = [self.get_state(cache, i, seen=2) for i in range(len(self.layers))]
        except (LookupError, AttributeError, TypeError) as error:
            what = " ".join(str(error).split())[:160]
            raise CheckpointError(
                f"{type(self.inner).__name__} does not carry on what the family {self.family!r} does ({what})",
                fix="certify a release whose cache holds its state",
            ) from error
        finally:
            self.inner.train(training)
        shapes: list[dict[str, tuple[int | None, ...]]] = []
        for i, tensors in enumerate(found):
            if "native" in tensors:
                dtypes[i] = tensors["native"].dtype
            valid = torch.ones(1, 2, dtype=torch.bool) if "keys" in tensors else None
            shapes.append(
                {
                    name: (None, *x.shape[2:]) if name in _GROWS else tuple(x.shape[1:])
                    for name, x in self._carried(tensors, valid).items()
                }
            )
        return dtypes, shapes


def by_layer_type(config: Any, *, taps: int = 0) -> tuple[Sight, ...]:
    """Sights from `layer_types`, for families whose layers are either recurrent with a convolution or attention.

    Raises:
        CheckpointError: a kind of layer that is neither.
    """
    window = getattr(config, "sliding_window", None)
    known = {
        "linear_attention": Sight(memory=True, taps=taps),
        "full_attention": Sight(window=math.inf),
        "sliding_attention": Sight(window=math.inf if window is None else window),
        "mlp": Sight(),
        "moe": Sight(),
    }
    types = list(config.layer_types)
    unknown = sorted(set(types) - set(known))
    if unknown:
        raise CheckpointError(f"layers of type {', '.join(unknown)}", fix=f"known are {', '.join(known)}")
    return tuple(known[name] for name in types)


def _check_limit(attention_window: int | None, sights: tuple[Sight, ...]) -> None:
    if attention_window is None:
        return
    if attention_window < 1:
        raise ConfigError(f"attention_window is {attention_window}", fix="use 1 (a token sees itself) or more")
    if not any(math.isinf(sight.window) for sight in sights):
        raise ConfigError("there is no full attention to limit", where="attention_window", fix="leave it out")
