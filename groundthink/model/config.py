"""ModelConfig: a whole model in one frozen value, without transformers."""

from __future__ import annotations

import dataclasses
import math
import re
from types import MappingProxyType
from typing import Any, Self

from groundthink.errors import ConfigError
from groundthink.layers import MIXERS, LayerConfig
from groundthink.model.presets import PRESETS

LAYER_TYPES = {
    "G": "linear_attention",
    "S": "sliding_attention",
    "A": "sliding_attention",
    "F": "full_attention",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(LayerConfig):
    """A model: its layer pattern, its vocabulary, and the sizes of its layers (see `LayerConfig`).

    Attributes:
        pattern: one letter per layer: G gated delta net, S window attention that reads the memory of the nearest G
            below, A window attention alone, F full attention. `GGS*4` or `(GGS)*4` repeats the whole.
        vocab_size: tokens.
        max_length: longest text this model was told about, in tokens; longer input is refused. None means no limit:
            no layer but F keeps more for a longer text.
        tie_embeddings: the output head is the embedding.
        embedding_norm: RMSNorm after the embedding: layers see inputs of one size though the tied head sets its own.
        init_std: standard deviation of matrices and embeddings at the start.
    """

    pattern: str
    vocab_size: int
    max_length: int | None = None
    tie_embeddings: bool = True
    embedding_norm: bool = False
    init_std: float = 0.02

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Self:
        """A model of the sources (`PRESETS`) with these fields changed.

        Raises:
            ConfigError: there is no such preset, or as for `from_dict`.
        """
        return cls.from_dict({**changes, "preset": name})

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Self:
        """Build from plain values; `preset` names the fields to start from (`PRESETS`), the others change them.

        Raises:
            ConfigError: there is no such preset; every field that does not exist or is missing; every problem.
        """
        if "preset" in raw:
            name = raw["preset"]
            if not isinstance(name, str) or name not in PRESETS:
                known = ", ".join(PRESETS)
                raise ConfigError(f"there is no preset {name!r}", where="model config", fix=f"presets: {known}")
            raw = {**PRESETS[name], **{field: value for field, value in raw.items() if field != "preset"}}
        return super().from_dict(raw)

    @property
    def layers(self) -> str:
        """The pattern written out, one letter per layer."""
        return expand_pattern(self.pattern)

    @property
    def layer_types(self) -> list[str]:
        """The layers in the names that transformers validates."""
        return [LAYER_TYPES[letter] for letter in self.layers]

    @property
    def horizon(self) -> float:
        """Receptive horizon R in tokens: how far back anything but a memory reaches. inf with full attention."""
        return sum(MIXERS[letter].reach(self) for letter in self.layers)

    def read_sources_of(self, layer: int) -> int:
        """How many memories the S layer at this index reads."""
        below = self.layers[:layer].count("G")
        return min(below, 1) if self.read_sources == "nearest" else below

    def at(self, layer: int) -> LayerConfig:
        """What the layer at this index is built from: a G under another may lack lasting heads and forget faster."""
        if self.layers[layer : layer + 2] != "GG":
            return self
        lasting = self.lasting_heads if self.lasting_layers == "all" else 0
        forgetting = max(self.least_forgetting, self.least_forgetting_below)
        return dataclasses.replace(self, lasting_heads=lasting, least_forgetting=forgetting)

    def _problems(self) -> list[str]:
        problems = super()._problems()
        if any(problem.startswith(("pattern", "vocab_size", "max_length")) for problem in problems):
            return problems
        for name in ("vocab_size", *(["max_length"] if self.max_length is not None else [])):
            if getattr(self, name) < 1:
                problems.append(f"{name} is {getattr(self, name)}, it must be at least 1")
        outside = [token for token in self.slot_tokens if token >= self.vocab_size > 0]
        if outside:
            problems.append(f"slot_tokens has {outside[0]}, vocab_size {self.vocab_size} has no such id")
        return problems + pattern_problems(self.pattern)


def expand_pattern(pattern: str) -> str:
    """`GGS*2` -> `GGSGGS`; parentheses round what is repeated are allowed."""
    match = re.fullmatch(r"\(?([A-Za-z]+)\)?(?:\*(\d+))?", pattern)
    return match[1] * int(match[2] or 1) if match else pattern


def pattern_problems(pattern: str) -> list[str]:
    """What is wrong with a layer pattern."""
    letters = expand_pattern(pattern)
    if not letters:
        return ["pattern is empty, it needs at least one layer"]
    unknown = sorted(set(letters) - set(MIXERS))
    if unknown:
        return [f"pattern {pattern!r} has unknown letters {''.join(unknown)!r}; known are {''.join(MIXERS)}"]
    orphans = [i for i, letter in enumerate(letters) if letter == "S" and "G" not in letters[:i]]
    return [f"pattern {pattern!r}: the S at layer {i} has no G below it to read" for i in orphans]


def no_read_twin(config: ModelConfig) -> ModelConfig:
    """The same model with A for S: the G layers keep their own reads, no later layer asks their memory.

    What the reads' projections took in parameters goes to SwiGLU, so the sizes differ by well under 2 %.
    """
    return _twin(config, config.layers.replace("S", "A"))


def g_only_twin(config: ModelConfig) -> ModelConfig:
    """G everywhere: memory without windows."""
    return _twin(config, "G" * len(config.layers))


def window_only_twin(config: ModelConfig) -> ModelConfig:
    """A everywhere: recall beyond the horizon is chance by theorem, so it tests the harness.

    Its windows share the original's horizon evenly, so that both are asked at the same distances.
    """
    layers = "A" * len(config.layers)
    window = config.window_size if math.isinf(config.horizon) else int(config.horizon) // len(layers) + 1
    return _twin(dataclasses.replace(config, window_size=window), layers, of=config)


def full_twin(config: ModelConfig) -> ModelConfig:
    """F everywhere: full attention, the baseline whose state grows with the text."""
    return _twin(config, "F" * len(config.layers))


TWINS = MappingProxyType(
    {"no-read": no_read_twin, "G-only": g_only_twin, "window-only": window_only_twin, "full": full_twin}
)


def _twin(config: ModelConfig, layers: str, *, of: ModelConfig | None = None) -> ModelConfig:
    """Another pattern with the hidden size of SwiGLU that brings its parameters closest to the original's."""
    twin = dataclasses.replace(config, pattern=layers)
    per_unit = 3 * config.d_model * len(layers)
    missing = parameter_count(config if of is None else of) - parameter_count(twin)
    return dataclasses.replace(twin, d_ff=max(1, twin.ff_dim + round(missing / per_unit)))


def parameter_count(config: ModelConfig) -> int:
    """Parameters of a model of this config, from the formulas; a test holds it against the model itself."""
    d, heads, values = config.d_model, config.n_heads, config.value_heads
    key, value = heads * config.head_dim, values * config.value_dim
    qkv = key * (2 if config.query == "own" else 1) + value
    gates = values * (d + 1) * (1 if config.beta_is_constant else 2) + values * (config.decay == "mamba")
    delta = d * qkv + qkv * config.conv_width + d * d * config.key_conv_width + gates
    delta += d * value * (2 if config.output_gate else 1) + config.value_dim * config.output_norm
    window = 4 * d * key
    total = config.vocab_size * d * (1 if config.tie_embeddings else 2) + d * (2 if config.embedding_norm else 1)
    for i, letter in enumerate(config.layers):
        total += 2 * d + 3 * d * config.ff_dim
        total += delta if letter == "G" else window
        if letter == "S":
            n = config.read_sources_of(i)
            total += n * d * key * (config.read_query == "dedicated")
            total += d * value + config.value_dim * config.read_norm  # output, norm
            total += d * values + values + (n if n > 1 and config.read_sources == "all" else 0)  # gate, mix
    return total
