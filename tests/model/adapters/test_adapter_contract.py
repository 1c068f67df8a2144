"""The contract of every adapter in the registry."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_models import BREAKS, CONFIGS, RECURRENT, VOCAB, build

from groundthink.errors import StateError
from groundthink.model import Snapshot
from groundthink.model.adapters import FAMILIES, Adapter, adapt
from groundthink.probes import Noise, Transplant, WindowLimit, Zero, causality
from groundthink.probes.intervention import EVERYTHING, carriers
from groundthink.probes.parity import compare, in_pieces

# float32 sums in another order, 1e-6 of the largest logit; the released chunked delta rule takes differences of
# running sums of log decays, which costs it two digits where decays are strong.
# Mamba in plain torch: products of the scan in another order, 1.4e-5 seen on one processor and below 1e-5 on another.
ROUNDING = {"qwen3_next": 1e-3, "qwen3_5": 1e-3, "qwen3_5_pure": 1e-3, "mamba": 3e-5}
EVERY = list(CONFIGS)


def ids(rows: int = 3, length: int = 20, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def snapshot(model: Adapter, *, seed: int = 0) -> Snapshot:
    with torch.no_grad():
        return model.prefill(ids(seed=seed))[1]


def resumed(model: Adapter, at: Snapshot, length: int = 5) -> torch.Tensor:
    with torch.no_grad():
        return model.resume(at, ids(length=length, seed=9))[0]


def changed(a: Snapshot, b: Snapshot) -> set[str]:
    mine, theirs = a.tensors(), b.tensors()
    return {name for name in mine if not torch.equal(mine[name], theirs[name])}


def test_every_family_is_held_to_the_contract() -> None:
    built = {type(adapt(build(name))).family for name in EVERY}
    assert built == set(FAMILIES) - {"fla Gated DeltaNet"}


@pytest.mark.parametrize("name", EVERY)
def test_whole_is_split_is_step(name: str) -> None:
    """Through the cache as the release has it, or step by step where that is broken."""
    model, text = adapt(build(name), step=name in BREAKS), ids(length=70)
    with torch.no_grad():
        whole = model.prefill(text)[0]
        for cuts in ([1], [33], [69], [20, 21, 50], range(60, 70)):
            found = compare("", in_pieces(model, text, cuts), whole)
            assert found.relative < ROUNDING.get(name, 1e-5)
        assert model.prefill(text)[1].position.tolist() == [70] * 3


@pytest.mark.parametrize("name", EVERY)
def test_nothing_flows_backwards(name: str) -> None:
    for row in causality(adapt(build(name)), ids(rows=2, length=40)):
        assert row.verdict == "pass", row


@pytest.mark.parametrize("name", EVERY)
def test_a_snapshot_is_everything(name: str, tmp_path: Path) -> None:
    """Transplanted whole, saved and loaded, into another instance of the model: the same continuation to the bit."""
    model, other = adapt(build(name)), adapt(build(name))
    mine, theirs = snapshot(model), snapshot(model, seed=1)
    wanted = resumed(model, theirs)
    assert torch.equal(resumed(model, Transplant(what=EVERYTHING)(mine, theirs)), wanted)
    theirs.save(tmp_path / "snapshot.safetensors")
    assert torch.equal(resumed(other, Snapshot.load(tmp_path / "snapshot.safetensors")), wanted)
    rows = torch.tensor([2, 0, 0])
    with torch.no_grad():
        picked = model.resume(theirs.select(rows), ids(length=5, seed=9)[rows])[0]
    torch.testing.assert_close(picked, wanted[rows], rtol=1e-5, atol=1e-5)  # float32 rounding


@pytest.mark.parametrize("name", EVERY)
def test_a_snapshot_is_a_value(name: str) -> None:
    """Neither resuming it, nor what the model does to its own cache, changes it; nor does it hang on the model."""
    model = adapt(build(name))
    first = snapshot(model)
    copy = first.map(torch.clone)
    wanted = resumed(model, first)
    for length in (1, 1, 7):
        after = model.resume(first, ids(length=length, seed=length))[1]
        model.resume(after, ids(length=1))
    snapshot(model, seed=5)
    assert changed(first, copy) == set()
    assert torch.equal(resumed(model, first), wanted)
    with model.untouched():
        model.inner(input_ids=ids(length=1), use_cache=True, **{model._cache_argument: model._filled(first, 20)})
    assert changed(first, copy) == set()


@pytest.mark.parametrize("name", RECURRENT)
def test_memories_have_the_shape_that_probes_expect(name: str) -> None:
    model = adapt(build(name))
    found = snapshot(model)
    layers = [i for i, sight in enumerate(model.layers) if sight.memory]
    assert carriers(found) == tuple(layers)
    for i in layers:
        memory = found.layers[i]["memory"]
        assert memory.dim() == 4
        assert memory.dtype == torch.float32
        native = model.from_memory(memory)
        assert torch.equal(model.to_memory(native), memory)


@pytest.mark.parametrize("name", RECURRENT)
def test_interventions_act_by_layer_and_head(name: str) -> None:
    model = adapt(build(name), step=name in BREAKS)
    mine, theirs = snapshot(model), snapshot(model, seed=1)
    layer = carriers(mine)[-1]
    head = mine.layers[layer]["memory"].shape[1] - 1
    base = resumed(model, mine, 1)
    assert torch.equal(resumed(model, Transplant()(mine, mine), 1), base), "the sham control"
    for one, donor in ((Zero, None), (Noise, None), (Transplant, theirs)):
        for where in ({}, {"layers": (layer,)}, {"layers": (layer,), "heads": (head,)}):
            cut = one(**where)(mine, donor)
            names = {f"layers.{i}.memory" for i in (where.get("layers") or carriers(mine))}
            assert changed(mine, cut) == names
            assert not torch.equal(resumed(model, cut, 1), base), (one.name, where)


@pytest.mark.parametrize("name", ["qwen3_5", "jamba", "recurrent_gemma", "llama", "mistral"])
def test_a_window_limit_hides_what_is_older(name: str) -> None:
    """What is invalid cannot be seen: other keys there change nothing, other keys behind do."""
    model = adapt(build(name))
    mine, theirs = snapshot(model), snapshot(model, seed=1)
    layer = next(i for i, sight in enumerate(model.layers) if sight.window)
    limited = WindowLimit(tokens=4)(mine)

    def mixed(kept: int) -> Snapshot:
        old, new = limited.layers[layer], theirs.layers[layer]
        parts = {n: torch.cat([new[n][:, :-kept], old[n][:, -kept:]], 1) for n in ("keys", "values")}
        return limited.replace(layer, **parts)

    base, same, other = (resumed(model, one, 3) for one in (limited, mixed(4), mixed(3)))
    assert torch.equal(base, same)
    assert not torch.equal(base, other)
    assert not torch.equal(base, resumed(model, mine, 3))


@pytest.mark.parametrize("name", ["qwen3_5", "jamba", "llama"])
def test_a_limit_on_full_attention_gives_a_horizon(name: str) -> None:
    model = adapt(build(name), attention_window=3, step=name in BREAKS)
    free = adapt(build(name))
    assert free.horizon == float("inf")
    assert model.horizon == sum(sight.reach for sight in model.layers) < 20
    text = ids(length=70)
    with torch.no_grad():
        whole = model.prefill(text)[0]
        assert compare("", in_pieces(model, text, [33, 34]), whole).relative < ROUNDING.get(name, 1e-5)
        assert not torch.allclose(whole, free.prefill(text)[0], atol=1e-2)
        if not model.has_memory:  # without a memory nothing beyond R arrives
            far = text.clone()
            far[:, 0] = text[:, 0] % (VOCAB - 1) + 1
            after = int(model.horizon) + 1
            assert torch.equal(model.prefill(far)[0][:, after:], whole[:, after:])


@pytest.mark.parametrize("name", [n for n in EVERY if n != "recurrent_gemma"])
def test_padding_on_the_left_changes_nothing(name: str) -> None:
    """Before the text, and after it when it is resumed."""
    model, text = adapt(build(name), step=True), ids(length=20)
    padded = torch.cat([torch.zeros(3, 6, dtype=torch.int64), text], 1)
    mask = (torch.arange(26) >= 6).to(torch.int64).expand_as(padded)
    with torch.no_grad():
        plain, before = model.prefill(text)
        behind, after = model.prefill(padded, attention_mask=mask)
        assert compare("", behind[:, 6:], plain).relative < ROUNDING.get(name, 1e-5)
        assert after.position.tolist() == before.position.tolist() == [20] * 3
        found = compare("", resumed(model, after), resumed(model, before))
        assert found.relative < ROUNDING.get(name, 1e-5)
        with pytest.raises(StateError, match="not on the left"):
            model.prefill(padded, attention_mask=mask.flip(1))


@pytest.mark.parametrize("name", ["mamba2", "qwen3_5"])
def test_16_bit_weights_keep_a_float32_memory_and_say_how_exact_they_are(name: str) -> None:
    model = adapt(build(name, dtype=torch.bfloat16, spread=1.0))
    with torch.no_grad():
        logits, found = model.prefill(ids())
    assert logits.dtype == torch.bfloat16
    assert found.layers[0]["memory"].dtype == torch.float32
    assert torch.equal(resumed(model, Transplant()(found, found)), resumed(model, found))


def test_snapshots_that_do_not_fit_are_refused() -> None:
    model, other = adapt(build("mamba2")), adapt(build("mistral"))
    found = snapshot(model)
    with pytest.raises(StateError, match="of another model"):
        other.resume(found, ids(length=1))
    with pytest.raises(StateError, match="3 rows, the input 2"):
        model.resume(found, ids(rows=2, length=1))
    with pytest.raises(StateError, match="the snapshot is of 2 layers"):
        adapt(build("qwen3_5")).resume(found, ids(length=1))
