"""What every mixer is built from: sizes and options, frozen, checked all at once."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

from groundthink.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerConfig:
    """Sizes and options of the layers. Lengths in tokens, sizes in channels.

    Attributes:
        d_model: width of the residual stream.
        n_heads: query and key heads.
        n_value_heads: value heads of G, a multiple of `n_heads`; None means the same number.
        head_dim: size K of keys and queries; even, because rotary embedding turns pairs.
        value_dim: size V of values in the memory.
        d_ff: hidden size of SwiGLU; None means 8/3 of d_model, rounded up to a multiple of 64.
        window_size: tokens an S or A layer sees, the present one included.
        conv_width: taps of G's short convolution on q, k, v.
        error: form of the delta rule, "decayed" (the papers) or "raw".
        allow_negative_eigenvalues: beta in [0, 2] instead of [0, 1]; the decayed form only.
        decay: "sigmoid" (sigmoid(x + decay_bias)) or "mamba" (exp(-exp(A_log) softplus(x + dt_bias))), see
            docs/decisions/0004.
        beta_bias, decay_bias: start of the gates' biases; decay_bias is used by "sigmoid" alone.
        start: "mimetic": queries start as the writer's keys and the convolution as the mean of two tokens, so that a
            key names the token before its value from the first step on; "plain": random.
        query: G's own query: its own projection ("own") or the key ("key", sources 001 and 003).
        read_sources: memories an S layer reads: of the nearest G below, or of all below, weighted.
        read_query_activation: applied to an S layer's memory query before its L2 norm.
        read_gate_bias: start of the bias of the gate on memory reads.
        own_read_drop_prob: in training, share of rows in which a G layer does not read its own memory.
        local_drop_prob: in training, share of rows in which an S layer's window is dropped (kept rows are scaled
            up, so the expectation is the same at inference).
        rope_base: base of the rotary embedding inside the window.
        norm_eps: added to mean squares.
        backend: memory operator backend by name, "auto" by device.
    """

    d_model: int = 256
    n_heads: int = 4
    n_value_heads: int | None = None
    head_dim: int = 64
    value_dim: int = 64
    d_ff: int | None = None
    window_size: int = 64
    conv_width: int = 4
    error: Literal["decayed", "raw"] = "decayed"
    allow_negative_eigenvalues: bool = False
    decay: Literal["sigmoid", "mamba"] = "sigmoid"
    beta_bias: float = 0.0
    decay_bias: float = 5.0
    start: Literal["mimetic", "plain"] = "mimetic"
    query: Literal["own", "key"] = "own"
    read_sources: Literal["nearest", "all"] = "nearest"
    read_query_activation: Literal["none", "relu", "silu"] = "silu"
    read_gate_bias: float = 0.0
    own_read_drop_prob: float = 0.0
    local_drop_prob: float = 0.0
    rope_base: float = 10_000.0
    norm_eps: float = 1e-6
    backend: str = "auto"

    def __post_init__(self) -> None:
        problems = self._problems()
        if problems:
            raise ConfigError("; ".join(problems), where="model config", fix="change the fields named")

    @property
    def value_heads(self) -> int:
        """Number of value heads."""
        return self.n_heads if self.n_value_heads is None else self.n_value_heads

    @property
    def ff_dim(self) -> int:
        """Hidden size of SwiGLU."""
        return -(-self.d_model * 8 // (3 * 64)) * 64 if self.d_ff is None else self.d_ff

    def _problems(self) -> list[str]:
        """Everything wrong with this config; subclasses add to it."""
        problems = type_problems(self)
        if problems:
            return problems  # comparisons below need the right types
        positive = ["d_model", "n_heads", "head_dim", "value_dim", "window_size", "conv_width", "rope_base", "norm_eps"]
        for name in [*positive, *(n for n in ("n_value_heads", "d_ff") if getattr(self, n) is not None)]:
            if getattr(self, name) <= 0:
                problems.append(f"{name} is {getattr(self, name)}, it must be at least 1")
        if self.head_dim % 2:
            problems.append(f"head_dim is {self.head_dim}, it must be even")
        if self.n_heads > 0 and self.value_heads % self.n_heads:
            problems.append(f"n_value_heads {self.value_heads} is not a multiple of n_heads {self.n_heads}")
        if self.error == "raw" and self.allow_negative_eigenvalues:
            problems.append("error 'raw' and allow_negative_eigenvalues exclude each other: above beta 1 raw explodes")
        for name in ("own_read_drop_prob", "local_drop_prob"):
            if not 0 <= getattr(self, name) <= 1:
                problems.append(f"{name} is {getattr(self, name)}, it must be in [0, 1]")
        if self.local_drop_prob == 1:
            problems.append("local_drop_prob is 1, the window would never be trained: use a value below 1")
        return problems

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Self:
        """Build from plain values, refusing fields that do not exist.

        Raises:
            ConfigError: naming every unknown field and every problem.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        required = {
            f.name
            for f in dataclasses.fields(cls)
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        }
        problems = [f"unknown field {name!r}" for name in sorted(set(raw) - known)]
        problems += [f"field {name!r} is missing" for name in sorted(required - set(raw))]
        if problems:
            raise ConfigError(
                "; ".join(problems), where="model config", fix=f"the fields are {', '.join(sorted(known))}"
            )
        return cls(**raw)


def type_problems(config: Any) -> list[str]:
    """Fields of a dataclass whose value is not of the declared type (int counts as float, bool as neither)."""
    problems = []
    for name, hint in get_type_hints(type(config)).items():
        if typing.get_origin(hint) is typing.ClassVar:
            continue
        value = getattr(config, name)
        if not _fits(value, hint):
            allowed = " or ".join(map(repr, get_args(hint))) if get_origin(hint) is Literal else _name(hint)
            problems.append(f"{name} is {value!r}, it must be {allowed}")
    return problems


def _name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_args(hint):  # a union
        return any(_fits(value, option) for option in get_args(hint))
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)
