"""Interventions are values, restricted to what they name, and never silent."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from groundthink.errors import ConfigError, StateError
from groundthink.layers import freeze
from groundthink.model import HybridForCausalLM, Snapshot
from groundthink.probes import (
    Erase,
    Intervention,
    LowRank,
    Mean,
    Noise,
    Quantise,
    Rewrite,
    ShuffleRows,
    Transplant,
    WindowLimit,
    Zero,
    intervention_from_dict,
    shuffle_rows,
    transplant,
    zero,
)
from groundthink.probes.edits import answer, derangement, low_rank, spectrum
from groundthink.probes.intervention import EVERYTHING, carriers
from groundthink.probes.interventions import KINDS

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
    heads=st.none() | st.lists(st.integers(0, 9), min_size=1, unique=True),
    number=st.integers(2, 9),
)
@settings(deadline=None, max_examples=60, derandomize=True, database=None)
def test_an_intervention_survives_json(
    kind: str, what: set[str], layers: list[int] | None, heads: list[int] | None, number: int
) -> None:
    fields: dict = {"layers": layers and tuple(layers), "heads": heads and tuple(heads)}
    if KINDS[kind].only is None:
        fields["what"] = tuple(sorted(what))
    own = {f.name for f in dataclasses.fields(KINDS[kind])} & {"seed", "rank", "bits", "tokens"}
    one = KINDS[kind](**fields, **dict.fromkeys(own, number))
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
    with pytest.raises(ConfigError, match="unknown fields rank"):
        intervention_from_dict({**Zero().to_dict(), "rank": 1})
    for field, value in (("heads", 1), ("layers", ["1"]), ("what", None), ("heads", [True])):
        with pytest.raises(ConfigError, match=field):
            intervention_from_dict({**Zero().to_dict(), field: value})
    with pytest.raises(ConfigError, match="not an integer"):
        intervention_from_dict({**Noise().to_dict(), "seed": "1"})


KEYS = {0: torch.tensor([[[1.0] + [0.0] * 7] * 2] * 3)}


@pytest.mark.parametrize(
    ("one", "says"),
    [
        (Zero(heads=(2,)), "has 2 heads, not"),
        (Zero(heads=()), "has 2 heads, not"),
        (Zero(what=("conv",), heads=(0,)), "has no heads"),
        (Mean(what=("valid",)), "no real numbers"),
        (LowRank(rank=8), "rank 8 of a memory of rank 8"),
        (LowRank(rank=0), "rank 0"),
        (WindowLimit(tokens=15), "15 of"),
        (WindowLimit(tokens=-1), "-1 of"),
        (Rewrite(), "no key for any layer"),
        (partial(Rewrite(layers=(0, 2)), keys=KEYS), "no key for layer 2"),
        (partial(Rewrite(), keys=KEYS), "either a donor or values"),
        (partial(Rewrite(), keys={1: KEYS[0]}, values=KEYS), "layer 1 carries no memory"),
        (partial(Rewrite(), keys=KEYS, values={0: torch.zeros(3, 2, 7)}), "do not fit"),
        (partial(Erase(), keys={0: KEYS[0][:2]}), "do not fit"),
        (partial(Erase(), keys={0: 0 * KEYS[0]}), "without direction"),
    ],
)
def test_what_does_not_fit_is_refused(hybrid: Hybrid, one: Callable[[Snapshot], Snapshot], says: str) -> None:
    with pytest.raises(StateError, match=says):
        one(snapshots(hybrid("GSG"))[0])


def test_what_changes_nothing_is_refused(hybrid: Hybrid) -> None:
    a, _ = snapshots(hybrid("GS"))
    empty = zero(a)
    for one in (Zero(), Mean(), Noise(), LowRank(), Quantise(), ShuffleRows(), partial(Erase(), keys=KEYS)):
        with pytest.raises(StateError, match="changes nothing"):
            one(empty)
    cut = WindowLimit(tokens=3)(a)
    with pytest.raises(StateError, match="changes nothing"):
        WindowLimit(tokens=3)(cut)
    assert changed(a, Transplant()(a, a)) == set(), "the sham control must stay possible"
    with pytest.raises(ConfigError, match="cannot be done to conv"):
        LowRank(what=("conv",))
    for bits in (1, 17):
        with pytest.raises(ConfigError, match="bits"):
            Quantise(bits=bits)


MANY: list[Intervention] = [
    Transplant(),
    Zero(),
    Mean(),
    Noise(seed=3),
    ShuffleRows(),
    LowRank(rank=2),
    Quantise(bits=4),
]


@pytest.mark.parametrize("one", MANY, ids=lambda one: one.name)
def test_heads_and_layers_restrict(hybrid: Hybrid, one: Intervention) -> None:
    """Restricted to one head of one layer, it is what it is unrestricted there, and nothing elsewhere."""
    a, b = snapshots(hybrid("GSG"))
    donor = b if isinstance(one, Transplant) else None
    copy = a.map(torch.clone)
    whole, part = one(a, donor), dataclasses.replace(one, layers=(2,), heads=(1,))(a, donor)
    assert changed(a, part) == {"layers.2.memory"}
    assert torch.equal(part.layers[2]["memory"][:, 1], whole.layers[2]["memory"][:, 1])
    assert torch.equal(part.layers[2]["memory"][:, 0], a.layers[2]["memory"][:, 0])
    assert not torch.equal(whole.layers[0]["memory"], a.layers[0]["memory"])
    assert changed(a, copy) == set(), "an intervention changed what it was given"


def test_heads_of_windows(hybrid: Hybrid) -> None:
    a, b = snapshots(hybrid("GS"))
    part = transplant(a, b, what=["keys", "values"], heads=[0])
    assert changed(a, part) == {"layers.1.keys", "layers.1.values"}
    assert torch.equal(part.layers[1]["keys"][:, :, 0], b.layers[1]["keys"][:, :, 0])
    assert torch.equal(part.layers[1]["keys"][:, :, 1], a.layers[1]["keys"][:, :, 1])


def test_the_numbers_are_right(hybrid: Hybrid) -> None:
    a, b = snapshots(hybrid("GS"))
    memory = a.layers[0]["memory"]
    close = {"rtol": 1e-5, "atol": 1e-6}  # float32 sums of 64 numbers of size 1
    noise = Noise(seed=1)(a).layers[0]["memory"]
    torch.testing.assert_close(noise.norm(dim=(2, 3)), memory.norm(dim=(2, 3)), **close)
    assert (torch.cosine_similarity(noise.flatten(1), memory.flatten(1)).abs() < 0.4).all()  # 128 numbers: 4.5 sigma
    assert torch.equal(noise, Noise(seed=1)(a).layers[0]["memory"])
    assert not torch.equal(noise, Noise(seed=2)(a).layers[0]["memory"])
    torch.testing.assert_close(Mean()(a).layers[0]["memory"], memory.mean(0).expand_as(memory), **close)
    torch.testing.assert_close(Mean()(a, b).layers[0]["memory"][0], b.layers[0]["memory"].mean(0), **close)
    low = LowRank(rank=3)(a).layers[0]["memory"]
    assert (torch.linalg.matrix_rank(low, rtol=1e-5) == 3).all()
    lost = torch.linalg.svdvals(memory)[..., 3:].square().sum(-1).sqrt()  # Eckart, Young
    torch.testing.assert_close((low - memory).norm(dim=(2, 3)), lost, **close)
    for bits in (2, 4, 8):
        rounded = Quantise(bits=bits)(a).layers[0]["memory"]
        step = memory.abs().amax((2, 3), keepdim=True) / (2 ** (bits - 1) - 1)
        assert ((rounded - memory).abs() <= step * 0.5001).all()  # half a step, and the rounding of the division
        assert all(len(head.unique()) <= 2**bits - 1 for row in rounded for head in row)


def test_a_window_limit_is_a_shorter_past(hybrid: Hybrid) -> None:
    """What is invalid cannot be seen: other keys there change nothing, other keys behind do."""
    model = hybrid("A")
    a, b = snapshots(model)
    limited, rest = WindowLimit(tokens=4)(a), torch.randint(64, (3, 1))
    assert limited.layers[0]["valid"].sum(1).tolist() == [4] * 3
    assert changed(a, limited) == {"layers.0.valid"}

    def mixed(kept: int) -> Snapshot:
        old, new = limited.layers[0]["keys"], b.layers[0]["keys"]
        return limited.replace(0, keys=torch.cat([new[:, :-kept], old[:, -kept:]], 1))

    with torch.no_grad():
        base, same, other = (model.resume(s, rest)[0] for s in (limited, mixed(4), mixed(3)))
    assert torch.equal(base, same)
    assert not torch.equal(base, other)


@given(seed=st.integers(0, 2**31), heads=st.sampled_from([1, 2, 4]))
@settings(deadline=None, max_examples=20, derandomize=True, database=None)
def test_one_key_is_rewritten_and_no_other(seed: int, heads: int) -> None:
    """Along the key the new value, orthogonal to it nothing; keys of any length; several value heads to a key."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    memory, donor, key, value, other = (
        draw(2, 4, 8, 5),
        draw(2, 4, 8, 5),
        draw(2, heads, 8),
        draw(2, 4, 5),
        draw(2, 4, 8),
    )
    wide = torch.nn.functional.normalize(key.repeat_interleave(4 // heads, 1), dim=-1)
    other = other - wide * (other * wide).sum(-1, keepdim=True)
    before = Snapshot((freeze(memory=memory),), torch.zeros(2))
    after = {
        "direct": Rewrite()(before, keys={0: key}, values={0: value}),
        "donor": Rewrite()(before, Snapshot((freeze(memory=donor),), torch.zeros(2)), keys={0: key}),
        "erase": Erase()(before, keys={0: 7 * key}),
    }
    wanted = {"direct": value, "donor": answer(donor, wide), "erase": torch.zeros_like(value)}
    for kind, snapshot in after.items():
        new = snapshot.layers[0]["memory"]
        # float64 sums of 8 products
        torch.testing.assert_close(answer(new, wide), wanted[kind], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(answer(new, other), answer(memory, other), rtol=1e-12, atol=1e-12)
    one_head = Erase(heads=(3,))(before, keys={0: 7 * key}).layers[0]["memory"]
    assert torch.equal(one_head[:, :3], memory[:, :3])
    assert torch.equal(one_head[:, 3], after["erase"].layers[0]["memory"][:, 3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_spectrum_serves_every_rank(dtype: torch.dtype) -> None:
    memory = torch.randn(3, 2, 8, 5, generator=torch.Generator().manual_seed(0), dtype=dtype)
    threads = torch.get_num_threads()
    parts = spectrum(memory)
    assert torch.get_num_threads() == threads
    for rank in range(1, 6):
        found = low_rank(memory, rank, parts)
        assert found.dtype == dtype
        assert torch.equal(found, low_rank(memory, rank))
    torch.testing.assert_close(found, memory, rtol=1e-6, atol=1e-6)  # all of it: float32 rounding at most
