"""What every mixer is built from: sizes and options, frozen, checked all at once."""

from __future__ import annotations

import dataclasses
import math
import typing
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

from groundthink.errors import ConfigError

_COUNTS = ("d_model", "n_heads", "head_dim", "value_dim", "window_size")
_POSITIVE = ("ff_expansion", "rope_base", "norm_eps", "local_scale", "read_query_std")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerConfig:
    """Sizes and options of the layers. Lengths in tokens, sizes in channels. The sources' own: `model.PRESETS`.

    Attributes:
        d_model: width of the residual stream.
        n_heads: query and key heads.
        n_value_heads: value heads of G, a multiple of `n_heads`; None means the same number.
        head_dim: size K of keys and queries; even, because rotary embedding turns pairs.
        value_dim: size V of values in the memory.
        ff_expansion: hidden size of SwiGLU over d_model, rounded up to a multiple of 64.
        d_ff: that hidden size itself, whatever `ff_expansion` says; None means by `ff_expansion`.
        window_size: tokens an S or A layer sees, the present one included.
        rope: rotary positions in attention: order inside the window; without, the window is a bag of tokens.
        rope_base: base of the rotary embedding inside the window.
        conv_width: taps of G's short depthwise convolution on q, k, v: a key can name its neighbours; 0 for none.
        qkv_activation: after that convolution: "silu" (the papers) or "none", so that keys keep their sign.
        key_conv_width: tokens of a dense convolution under the key projection: the same marker gets another key in
            another context; 0 for none.
        slot_tokens: tokens with a key and query of their own, row i of a fixed orthonormal basis: up to head_dim
            slots that never disturb each other. A marker before its value wants `shifted_value` too.
        shifted_value: the key and gates of the token before write the value of this one: a marker keys what follows.
        error: form of the delta rule, "decayed" (the papers) or "raw".
        allow_negative_eigenvalues: beta in [0, 2] instead of [0, 1]; the decayed form only.
        decay: "sigmoid" (sigmoid(x + decay_bias)) or "mamba" (exp(-exp(A_log) softplus(x + dt_bias))), see
            docs/decisions/0004.
        beta_bias, decay_bias: start of the gates' biases: -2 and +4 make a gatekeeper that writes little and keeps
            long; decay_bias is used by "sigmoid" alone.
        lasting_heads: value heads of G that never forget: what no later write covers stays there at any length, where
            a decay that a short training liked may not.
        lasting_layers: which G layers have them: those that the next layer is not a G ("top": what slowly fills a
            memory under another changes the keys of the other, far beyond the training's lengths) or "all" (more
            room, for lengths that were trained).
        least_forgetting: subtracted from the log decay of all other heads: none of them remembers much longer than
            1 / least_forgetting tokens, so what is to last is left to the `lasting_heads`.
        least_forgetting_below: the same in a G that the next layer is a G, where it is the larger: what such a memory
            remembers of the last facts decides what is written of the next one in the memory above.
        beta_floor: smallest beta: at 1 every token is written and forgetting is left to the decay.
        start: "mimetic": queries start as the writer's keys and the convolution as the mean of two tokens, so that a
            key names the token before its value from the first step on; "context": the same with large random taps,
            alike for queries and keys, so that names farther back are found too; "plain": random.
        query: G's own query: its own projection ("own") or the key ("key": it recites what it stored).
        query_norm: whether an own query is L2-normalised, so that a read is no larger than what was written.
        own_read_scale: factor of G's own read; None means head_dim ** -0.5, which matters without `output_norm` alone.
        output_norm, output_gate: norm per head and SiLU gate on G's own read: each helps language in the papers.
        read_sources: memories an S layer reads, each with a query of its own: of the nearest G below ("nearest"), or
            of all below, with learned weights that start at 1 for the nearest and 0.5 for the others ("all"), added
            ("sum"), or 1 for the first and 0.5 for later ones, fixed ("weighted").
        read_query: an S layer's memory query: a projection of its own ("dedicated": reading is learned apart from
            writing) or the writer's key projection ("shared": aligned from the first step).
        read_query_std: start of the dedicated projection; small, so that an unnormalised read starts near nothing.
        read_query_activation: applied to an S layer's memory query before its norm; "relu" makes it sparse.
        read_query_norm: whether that query is L2-normalised: only its direction matters then.
        read_scale: factor of an S layer's reads; None means head_dim ** -0.5, which matters without `read_norm` alone.
        read_norm: norm per head on what was read: memories grow, their reads do not.
        read_gate: gate on memory reads, one per head ("head") or the mean over heads ("mean").
        read_gate_bias: start of that gate's bias: 1 starts open.
        own_read_drop_prob: in training, share of rows in which a G layer does not read its own memory.
        local_scale: factor of what a window says: below 1 the memory has to carry more. In A as in S, so that a no-read
            twin lacks the reads and nothing else.
        local_drop_prob: in training, share of rows in which an S layer's window is dropped (kept rows are scaled
            up, so the expectation is the same at inference).
        norm_eps: added to mean squares.
        backend: memory operator backend by name, "auto" by device.
    """

    d_model: int = 256
    n_heads: int = 4
    n_value_heads: int | None = None
    head_dim: int = 64
    value_dim: int = 64
    ff_expansion: float = 8 / 3
    d_ff: int | None = None
    window_size: int = 64
    rope: bool = True
    rope_base: float = 10_000.0
    conv_width: int = 4
    qkv_activation: Literal["silu", "none"] = "silu"
    key_conv_width: int = 0
    slot_tokens: tuple[int, ...] = ()
    shifted_value: bool = False
    error: Literal["decayed", "raw"] = "decayed"
    allow_negative_eigenvalues: bool = False
    decay: Literal["sigmoid", "mamba"] = "sigmoid"
    beta_bias: float = 0.0
    decay_bias: float = 5.0
    lasting_heads: int = 0
    lasting_layers: Literal["top", "all"] = "top"
    least_forgetting: float = 0.0
    least_forgetting_below: float = 0.0
    beta_floor: float = 0.0
    start: Literal["mimetic", "context", "plain"] = "mimetic"
    query: Literal["own", "key"] = "own"
    query_norm: bool = True
    own_read_scale: float | None = None
    output_norm: bool = True
    output_gate: bool = True
    read_sources: Literal["nearest", "all", "sum", "weighted"] = "nearest"
    read_query: Literal["dedicated", "shared"] = "dedicated"
    read_query_std: float = 0.02
    read_query_activation: Literal["none", "relu", "silu"] = "silu"
    read_query_norm: bool = True
    read_scale: float | None = None
    read_norm: bool = True
    read_gate: Literal["head", "mean"] = "head"
    read_gate_bias: float = 0.0
    own_read_drop_prob: float = 0.0
    local_scale: float = 1.0
    local_drop_prob: float = 0.0
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
        return -(-int(self.d_model * self.ff_expansion) // 64) * 64 if self.d_ff is None else self.d_ff

    @property
    def beta_range(self) -> float:
        """Largest write strength."""
        return 2.0 if self.allow_negative_eigenvalues else 1.0

    @property
    def beta_is_constant(self) -> bool:
        """Whether the floor leaves beta nothing to decide."""
        return self.beta_floor == self.beta_range

    def _problems(self) -> list[str]:
        """Everything wrong with this config; subclasses add to it."""
        problems = type_problems(self)
        if problems:
            return problems  # comparisons below need the right types
        for name in [*_COUNTS, *(n for n in ("n_value_heads", "d_ff") if getattr(self, n) is not None)]:
            if getattr(self, name) < 1:
                problems.append(f"{name} is {getattr(self, name)}, it must be at least 1")
        for name in [*_POSITIVE, *(n for n in ("own_read_scale", "read_scale") if getattr(self, n) is not None)]:
            if not 0 < getattr(self, name) < math.inf:
                problems.append(f"{name} is {getattr(self, name)}, it must be above 0 and finite")
        for name, width in (("conv_width", self.conv_width), ("key_conv_width", self.key_conv_width)):
            if width < 0:
                problems.append(f"{name} is {width}, it must be at least 0")
        if not 0 <= self.lasting_heads <= self.value_heads:
            problems.append(f"lasting_heads is {self.lasting_heads}, it must be in [0, {self.value_heads}]")
        for name in ("least_forgetting", "least_forgetting_below"):
            if not 0 <= getattr(self, name) < math.inf:
                problems.append(f"{name} is {getattr(self, name)}, it must be at least 0 and finite")
        if self.head_dim % 2:
            problems.append(f"head_dim is {self.head_dim}, it must be even")
        if self.n_heads > 0 and self.value_heads % self.n_heads:
            problems.append(f"n_value_heads {self.value_heads} is not a multiple of n_heads {self.n_heads}")
        for name in ("own_read_drop_prob", "local_drop_prob", "beta_floor"):
            most = self.beta_range if name == "beta_floor" else 1
            if not 0 <= getattr(self, name) <= most:
                problems.append(f"{name} is {getattr(self, name)}, it must be in [0, {most:g}]")
        if self.local_drop_prob == 1:
            problems.append("local_drop_prob is 1, the window would never be trained: use a value below 1")
        return problems + self._slot_problems() + self._conflicts()

    def _slot_problems(self) -> list[str]:
        """What is wrong with the slots."""
        slots, problems = self.slot_tokens, []
        if len(slots) > self.head_dim:
            problems.append(f"slot_tokens has {len(slots)} tokens, head_dim {self.head_dim} has room for as many slots")
        twice = sorted({token for token in slots if slots.count(token) > 1})
        if twice:
            problems.append(f"slot_tokens has {', '.join(map(str, twice))} twice")
        if any(token < 0 for token in slots):
            problems.append("slot_tokens has a negative id")
        return problems

    def _conflicts(self) -> list[str]:
        """Options that exclude each other."""
        problems = []
        if self.error == "raw" and self.allow_negative_eigenvalues:
            problems.append("error 'raw' and allow_negative_eigenvalues exclude each other: above beta 1 raw explodes")
        if self.beta_is_constant and self.beta_bias != 0:
            problems.append(
                f"beta_floor {self.beta_floor} and beta_bias {self.beta_bias} exclude each other: beta is constant at "
                "its floor (beta_bias 0)"
            )
        if self.query == "key" and not self.query_norm:
            problems.append("query 'key' and query_norm false exclude each other: keys are always normalised")
        if self.read_query == "shared" and self.read_query_std != 0.02:
            problems.append(
                f"read_query 'shared' and read_query_std {self.read_query_std} exclude each other: there is no "
                "projection to start (read_query_std 0.02)"
            )
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
        values: dict[str, Any] = {}
        for name, value in raw.items():  # files know lists, no tuples
            values[name] = tuple(value) if isinstance(value, list) else value
        return cls(**values)


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
    if get_origin(hint) is tuple:  # of one kind, any number
        return isinstance(value, tuple) and all(_fits(item, get_args(hint)[0]) for item in value)
    if get_args(hint):  # a union
        return any(_fits(value, option) for option in get_args(hint))
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)
