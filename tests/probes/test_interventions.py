"""Interventions are values, restricted to what they name, and never silent."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from groundthink.errors import ConfigError, StateError
from groundthink.model import HybridForCausalLM, Snapshot
from groundthink.probes import Transplant, Zero, intervention_from_dict, shuffle_rows, transplant, zero
from groundthink.probes.interventions import EVERYTHING, KINDS, carriers, derangement

Hybrid = Callable[..., HybridForCausalLM]


def snapshots(model: HybridForCausalLM) -> tuple[Snapshot, Snapshot]:
    with torch.no_grad():
        return tuple(model.prefill(torch.randint(64, (3, 20)))[1] for _ in range(2))  # type: ignore[return-value]


def changed(a: Snapshot, b: Snapshot) -> set[str]:
    mine, theirs = a.tensors(), b.tensors()
    return {name for name in mine if not torch.equal(mine[name], theirs[name])}


def test_only_what_is_named_is_replaced(hybrid: Hybrid) -> None:
    a, b = snapshots(hybrid("GSGS"))
    copy = a.map(torch.clone)
    assert carriers(a) == (0, 2)
    assert changed(a, transplant(a, b)) == {"layers.0.memory", "layers.2.memory"}
    assert changed(a, transplant(a, b, layers=[2])) == {"layers.2.memory"}
    assert changed(a, transplant(a, b, what={"conv", "memory"}, layers=[0])) == {"layers.0.memory", "layers.0.conv"}
    assert changed(a, zero(a, layers=[0])) == {"layers.0.memory"}
    assert not zero(a, layers=[0]).layers[0]["memory"].any()
    assert changed(a, copy) == set(), "an intervention changed what it was given"


def test_everything_is_everything(hybrid: Hybrid) -> None:
    a, b = snapshots(hybrid("GS"))
    assert changed(b, Transplant(what=EVERYTHING)(a, b)) == set()


def test_rows_move_together(hybrid: Hybrid) -> None:
    a, _ = snapshots(hybrid("GSG"))
    b = shuffle_rows(a, seed=3)
    order = derangement(3, 3)
    for layer in (0, 2):
        assert torch.equal(b.layers[layer]["memory"], a.layers[layer]["memory"][order])


@given(n=st.integers(2, 50), seed=st.integers(0, 2**31))
@settings(deadline=None, max_examples=30, derandomize=True, database=None)
def test_a_derangement_moves_every_row(n: int, seed: int) -> None:
    order = derangement(n, seed)
    assert sorted(order.tolist()) == list(range(n))
    assert not (order == torch.arange(n)).any()


@given(
    kind=st.sampled_from(sorted(KINDS)),
    what=st.sets(st.sampled_from(["memory", "conv", "keys"]), min_size=1),
    layers=st.none() | st.lists(st.integers(0, 9), min_size=1, unique=True),
)
@settings(deadline=None, max_examples=30, derandomize=True, database=None)
def test_an_intervention_survives_json(kind: str, what: set[str], layers: list[int] | None) -> None:
    one = KINDS[kind](what=tuple(sorted(what)), layers=None if layers is None else tuple(layers))
    assert intervention_from_dict(json.loads(json.dumps(one.to_dict()))) == one


def test_nothing_is_done_silently(hybrid: Hybrid) -> None:
    a, b = snapshots(hybrid("GS"))
    with pytest.raises(StateError, match="no layer carries nonsense"):
        zero(a, what=["nonsense"])
    with pytest.raises(StateError, match="layer 1 carries no memory"):
        transplant(a, b, layers=[1])
    with pytest.raises(StateError, match="layer 7 does not exist"):
        zero(a, layers=[7])
    with pytest.raises(StateError, match="no donor"):
        Transplant()(a)
    with pytest.raises(StateError, match="one row"):
        shuffle_rows(a.select(torch.tensor([0])), seed=0)
    with pytest.raises(StateError, match="is \\(3"):
        transplant(a, b.select(torch.tensor([0, 1])))
    with pytest.raises(ConfigError, match="unknown intervention"):
        intervention_from_dict({"intervention": "pray"})
    with pytest.raises(ConfigError, match="unknown fields heads"):
        intervention_from_dict({**Zero().to_dict(), "heads": [1]})
