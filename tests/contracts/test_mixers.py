"""One contract for every entry of MIXERS, and broken mixers that it must reject."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, ClassVar

import mixer_contract as contract
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from groundthink.layers import MIXERS, Context, LayerConfig, Mixed, Mixer, State, freeze, gated_delta_net
from groundthink.layers.gated_delta_net import GatedDeltaNet
from groundthink.model import PRESETS, block, hybrid
from groundthink.model import config as model_config

SMALL = {"vocab_size": 23, "d_model": 16, "n_heads": 2, "head_dim": 8, "value_dim": 6, "window_size": 5}
STANDINGS: dict[str, contract.Factory] = {
    "G": contract.factory_of("G"),
    "GS": contract.factory_of("GS"),
    "A": contract.factory_of("A"),
    "F": contract.factory_of("F"),
    "GFGAS": contract.factory_of("GFGAS"),
    "GGS all": contract.factory_of("GGS", read_sources="all"),
    "raw": contract.factory_of("GS", error="raw"),
    "key query": contract.factory_of("GS", query="key", read_query_activation="relu"),
    "mamba": contract.factory_of("GS", decay="mamba", beta_bias=-2.0, tie_embeddings=False, start="plain"),
    "sigmoid": contract.factory_of("GS", decay="sigmoid", decay_bias=2.0, start="mimetic"),
    "context start": contract.factory_of("GGS", start="context", query_norm=False),
    "grouped values": contract.factory_of("GGS", n_value_heads=4, read_sources="all", conv_width=1),
    "negative": contract.factory_of("GS", allow_negative_eigenvalues=True, read_query_activation="none"),
    "drops": contract.factory_of("GSGS", local_drop_prob=0.5, own_read_drop_prob=0.5, window_size=1),
    "bare": contract.factory_of(
        "GS",
        conv_width=0,
        qkv_activation="none",
        query_norm=False,
        own_read_scale=1.0,
        output_norm=False,
        output_gate=False,
        read_norm=False,
        read_query_norm=False,
        read_query_std=0.3,
        read_scale=1.0,
        read_gate="mean",
        read_gate_bias=1.0,
        rope=False,
    ),
    "half bare": contract.factory_of("GS", conv_width=0, output_norm=False, ff_expansion=4.0, beta_floor=0.3),
    "always written": contract.factory_of(
        "GS", beta_floor=1.0, output_gate=False, embedding_norm=True, local_scale=0.3, local_drop_prob=0.5
    ),
    "lasting": contract.factory_of("GGS", n_value_heads=4, lasting_heads=1, least_forgetting=0.02),
    "lasting below too": contract.factory_of("GGS", lasting_heads=1, lasting_layers="all", least_forgetting_below=0.05),
    "shifted": contract.factory_of("GGS", shifted_value=True, n_value_heads=4, read_sources="sum"),
    "shifted raw": contract.factory_of("GS", shifted_value=True, error="raw", query="key", conv_width=0),
    "context keys": contract.factory_of("GGS", key_conv_width=3, start="plain", read_sources="weighted"),
    "slots": contract.factory_of(
        "GS", slot_tokens=(7, 3, 11), shifted_value=True, key_conv_width=2, query="key", decay="mamba"
    ),
    "shared query": contract.factory_of("GGS", read_query="shared", read_sources="all", slot_tokens=(5,)),
    **{f"preset {name}": contract.factory_of(**{**PRESETS[name], **SMALL}) for name in PRESETS},
}


def test_every_mixer_stands_somewhere() -> None:
    assert set("".join(factory().sizes.layers for factory in STANDINGS.values())) == set(MIXERS)


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("name", STANDINGS)
def test_contract(name: str, check: Callable[[contract.Factory], None]) -> None:
    check(STANDINGS[name])


@pytest.mark.parametrize("name", STANDINGS)
@settings(deadline=None, max_examples=4, derandomize=True, database=None)
@given(cuts=st.sets(st.integers(1, contract.LENGTH - 1), min_size=1, max_size=3))
def test_any_split(name: str, cuts: set[int]) -> None:
    contract.check_split(STANDINGS[name], cuts)


def test_compiled_gradients_are_the_plain_ones() -> None:
    """Through the custom operators' fake kernels and backward, with the loss that training uses."""
    model, ids = STANDINGS["GGS all"](), contract.tokens(70)

    def loss() -> Tensor:
        total, valid, _ = model.loss(ids, ids, keep_state=True)
        return total / valid

    names = [n for n, _ in model.named_parameters()]
    plain = torch.autograd.grad(loss(), list(model.parameters()))
    torch.compiler.reset()
    with contract.quiet_dynamo():
        total = torch.compile(loss, fullgraph=True, backend="aot_eager")()
    compiled = torch.autograd.grad(total, list(model.parameters()))
    for name, got, want in zip(names, compiled, plain, strict=True):
        contract.assert_close(got, want, name)


# --- broken on purpose ---------------------------------------------------------------------------------------


class Honest(Mixer):
    """Passes: a causal running sum with a carried state. The broken ones below differ from it in one thing each."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.into = nn.Linear(config.d_model, config.d_model, bias=False)

    @classmethod
    def reach(cls, config: LayerConfig) -> float:
        del config
        return 0

    def state_shapes(self) -> dict[str, tuple[int | None, ...]]:
        return {"memory": (self.into.out_features,)}

    def forward(self, x: Tensor, state: State | None, context: Context) -> Mixed:
        u = self.into(x)
        before = torch.zeros_like(u[:, 0]) if state is None else state["memory"].to(u.dtype)
        outs = []
        for t in range(u.shape[1]):
            if context.documents is not None and t:
                same = context.documents[:, t] == context.documents[:, t - 1]
                before = before * same[:, None]
            before = torch.tanh(0.5 * before + u[:, t])
            outs.append(before)
        return Mixed(torch.stack(outs, 1), freeze(memory=before.float()))


class ReadsFinalState(GatedDeltaNet):
    """The sources' leak: every position sees the state of the whole sequence."""

    def forward(self, x: Tensor, state: State | None, context: Context) -> Mixed:
        mixed = super().forward(x, state, context)
        summary = mixed.memory.final_state.flatten(1)[:, : x.shape[-1]]
        return mixed._replace(y=mixed.y + summary[:, None].to(x.dtype))


class ReadsFinalStateInTraining(ReadsFinalState):
    """The same, in training mode alone."""

    def forward(self, x: Tensor, state: State | None, context: Context) -> Mixed:
        return super().forward(x, state, context) if self.training else GatedDeltaNet.forward(self, x, state, context)


class BlockMean(Honest):
    """Each token sees the mean of its block of four."""

    def forward(self, x: Tensor, state: State | None, context: Context) -> Mixed:
        padded = nn.functional.pad(x, (0, 0, 0, -x.shape[1] % 4)).unflatten(1, (-1, 4))
        means = padded.mean(2, keepdim=True).expand_as(padded).flatten(1, 2)[:, : x.shape[1]]
        mixed = super().forward(x, state, context)
        return mixed._replace(y=mixed.y + means)


class OffByOne(Honest):
    """Each token sees the next."""

    def forward(self, x: Tensor, state: State | None, context: Context) -> Mixed:
        mixed = super().forward(x, state, context)
        return mixed._replace(y=mixed.y.roll(-1, 1))


class DropsState(Honest):
    """Each segment starts anew."""

    def forward(self, x: Tensor, state: State | None, context: Context) -> Mixed:
        return super().forward(x, None, context)


class CrossesDocuments(Honest):
    """Document boundaries are ignored."""

    def forward(self, x: Tensor, state: State | None, context: Context) -> Mixed:
        return super().forward(x, state, dataclasses.replace(context, documents=None))


class MixesRows(Honest):
    """A mean over the batch."""

    def forward(self, x: Tensor, state: State | None, context: Context) -> Mixed:
        mixed = super().forward(x, state, context)
        return mixed._replace(y=mixed.y + x.mean(0, keepdim=True))


class WritesIntoState(Honest):
    """The state handed in is updated in place, as stock caches do."""

    def forward(self, x: Tensor, state: State | None, context: Context) -> Mixed:
        mixed = super().forward(x, state, context)
        if state is not None:
            state["memory"].copy_(mixed.state["memory"])
        return mixed


class NoRole(Honest):
    """A parameter that no role claims."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__(config)
        self.scale = nn.Parameter(torch.ones(config.d_model))

    def forward(self, x: Tensor, state: State | None, context: Context) -> Mixed:
        return super().forward(x * self.scale, state, context)


class DeadParameter(Honest):
    """A parameter that nothing depends on."""

    roles: ClassVar = {"scale": "gate"}

    def __init__(self, config: LayerConfig) -> None:
        super().__init__(config)
        self.scale = nn.Parameter(torch.ones(config.d_model))


class HalfState(Honest):
    """The state is carried in bfloat16."""

    def forward(self, x: Tensor, state: State | None, context: Context) -> Mixed:
        mixed = super().forward(x, state, context)
        return mixed._replace(state=freeze(memory=mixed.state["memory"].bfloat16()))


class BreaksTheGraph(Honest):
    """A number is looked at in the middle of forward."""

    def forward(self, x: Tensor, state: State | None, context: Context) -> Mixed:
        return super().forward(x if float(x.sum()) != 12345 else -x, state, context)


class OtherBackend(GatedDeltaNet):
    """The backends differ."""

    def forward(self, x: Tensor, state: State | None, context: Context) -> Mixed:
        mixed = super().forward(x, state, context)
        return mixed._replace(y=mixed.y * (1.001 if self.config.backend == "reference" else 1))


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Callable[[type[Mixer]], contract.Factory]:
    """Registers a mixer as the letter Z, for one test."""

    def plant(mixer: type[Mixer], **options: Any) -> contract.Factory:
        table = MappingProxyType({**MIXERS, "Z": mixer})
        monkeypatch.setattr(block, "MIXERS", table)
        monkeypatch.setattr(model_config, "MIXERS", table)
        monkeypatch.setitem(model_config.LAYER_TYPES, "Z", "linear_attention")
        return contract.factory_of("Z", **options)

    return plant


def test_a_broken_shift_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    shifted, real = STANDINGS["shifted"], gated_delta_net.shift
    monkeypatch.setattr(gated_delta_net, "shift", lambda now, before, documents: real(now, before, None))
    with pytest.raises(AssertionError, match="document of"):
        contract.check_packed(shifted)
    monkeypatch.setattr(gated_delta_net, "shift", lambda now, before, documents: real(now, None, documents))
    with pytest.raises(AssertionError, match="relative difference"):
        contract.check_step_by_step(shifted)


def test_slots_of_later_tokens_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    real = hybrid.slots_of
    monkeypatch.setattr(hybrid, "slots_of", lambda tokens, slots: real(tokens.roll(-1, 1), slots))
    with pytest.raises(AssertionError, match="moves earlier logits"):
        contract.check_causal(STANDINGS["slots"])


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda c: c.__name__)
def test_an_honest_newcomer_passes_untouched(planted: Any, check: Callable[[contract.Factory], None]) -> None:
    check(planted(Honest))


@pytest.mark.parametrize(
    ("mixer", "check", "message"),
    [
        (ReadsFinalState, contract.check_causal, "moves earlier logits"),
        (ReadsFinalStateInTraining, contract.check_causal, "training=True"),
        (BlockMean, contract.check_causal, "moves earlier logits"),
        (OffByOne, contract.check_causal, "moves earlier logits"),
        (DropsState, contract.check_step_by_step, "relative difference"),
        (BlockMean, contract.check_step_by_step, "relative difference"),
        (CrossesDocuments, contract.check_packed, "document of"),
        (MixesRows, contract.check_rows, "another row"),
        (WritesIntoState, contract.check_state_is_a_value, "snapshot|in place"),
        (NoRole, contract.check_parameters, "no role for"),
        (DeadParameter, contract.check_parameters, "scale: (no gradient|gradient is zero)"),
        (HalfState, contract.check_precision, "bfloat16"),
        (BreaksTheGraph, contract.check_compiles, "graph break"),
        (OtherBackend, contract.check_backends, "chunked against reference"),
    ],
    ids=lambda v: getattr(v, "__name__", None),
)
def test_a_broken_mixer_is_rejected(planted: Any, mixer: type[Mixer], check: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check(planted(mixer))
