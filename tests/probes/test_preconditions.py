"""Causality and parity pass for every pattern, and each planted fault is caught."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from zoo.leaks import FIVE, STRENGTH, mix_into, plant

from groundthink.layers import Context, Mixed
from groundthink.layers.memory_attention import MemoryReader
from groundthink.model import HybridForCausalLM, Snapshot
from groundthink.probes import causality, parity
from groundthink.probes.causality import edge_positions, gradient_leak, shortest_text, suffix_change
from groundthink.probes.face import read_on
from groundthink.probes.parity import compare, splits, steps
from groundthink.records import ProbeResult

Hybrid = Callable[..., HybridForCausalLM]
LENGTH = shortest_text(16) + 5


def texts(length: int = LENGTH) -> Tensor:
    return torch.randint(64, (3, length), generator=torch.Generator().manual_seed(2))


def rows_of(model: HybridForCausalLM) -> dict[str, ProbeResult]:
    return {row.name: row for row in causality(model, texts())}


@pytest.mark.parametrize("pattern", ["GS", "GGS", "GA", "F"])
def test_real_models_are_causal_to_the_bit(hybrid: Hybrid, pattern: str) -> None:
    model = hybrid(pattern)
    before = [(module, module.training) for module in model.modules()]
    rows = rows_of(model)
    assert {row.verdict for row in rows.values()} == {"pass"}, rows
    assert rows["causality/suffix"].value == 0
    assert rows["causality/gradient"].value == 0
    assert rows["causality/rows"].value == 0
    assert all(module.training == was for module, was in before), "a mode was left behind"
    assert not any(module._forward_hooks for module in model.modules())


def test_the_probe_looks_at_edges_and_modes(hybrid: Hybrid) -> None:
    details = rows_of(hybrid())["causality/suffix"].details
    assert details["positions"] == [1, 15, 16, 17, 63, 64, 65, 128, LENGTH - 1]
    assert details["rows"] > 1
    assert details["documents"]
    assert edge_positions(10, window=4) == [1, 3, 4, 5, 9]


class FinalStateReader(MemoryReader):
    """The leak of the sources: an S layer reads the final state at every position."""

    def forward(self, x: Tensor, context: Context) -> Tensor:
        queries = self.query(x).unflatten(-1, (self.config.n_heads, -1))
        read = torch.einsum("bthk,bhkv->bthv", queries, context.memories[-1].final_state)
        return self.out(self.hook_read((self.norm(read) * torch.sigmoid(self.gate(x))[..., None]).flatten(2)))


def planted(model: HybridForCausalLM, leak: str) -> HybridForCausalLM:
    """Put one leak into a model."""
    if leak == "final state":
        model.blocks[1].mixer.reader.__class__ = FinalStateReader
        return model
    if leak == "beyond 100 tokens":
        return mix_into(model, lambda y: y + (y.shape[1] > 100) * STRENGTH * y[:, -1:])
    if leak == "training only":
        return mix_into(model, lambda y: y + (model.training * STRENGTH) * y.mean(1, keepdim=True))
    return plant(model, leak)


LEAKS = [*FIVE, "final state", "beyond 100 tokens", "training only"]


@pytest.mark.parametrize("leak", LEAKS)
def test_a_planted_leak_is_caught_twice(hybrid: Hybrid, leak: str) -> None:
    model, training = planted(hybrid(), leak), leak == "training only"
    positions = edge_positions(LENGTH, window=16)
    for found in (
        suffix_change(model, texts(), positions=positions, training=training),
        gradient_leak(model, texts(), positions=positions, training=training),
    ):
        assert found is not None
        assert not found.passed
        assert found.leak > 0
        assert found.where.startswith("p = ")
    if training:
        assert suffix_change(model, texts(), positions=[1, 64]).passed


def test_rows_that_mix_are_caught(hybrid: Hybrid) -> None:
    model = hybrid()
    model.blocks[0].register_forward_hook(
        lambda _m, _i, out: Mixed(out.y + 1e-3 * out.y.mean(0, keepdim=True), out.state, out.memory)
    )
    rows = rows_of(model)
    assert rows["causality/suffix"].verdict == "pass"
    assert rows["causality/rows"].verdict == "fail"


def test_documents_that_mix_are_caught(hybrid: Hybrid) -> None:
    model = hybrid()
    prefill = model.prefill
    model.prefill = lambda ids, documents=None: prefill(ids)  # type: ignore[method-assign]
    rows = rows_of(model)
    assert rows["causality/documents"].verdict == "fail"
    assert rows["causality/suffix"].verdict == "pass"


def test_a_constant_is_no_causal_model(hybrid: Hybrid) -> None:
    model = hybrid()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    rows = rows_of(model)
    assert rows["causality/suffix"].verdict == "pass"
    assert rows["causality/sensitivity"].verdict == "fail"


def test_nan_never_passes(hybrid: Hybrid) -> None:
    model = hybrid()
    with torch.no_grad():
        model.norm.weight[0] = float("nan")
    assert rows_of(model)["causality/suffix"].verdict == "fail"
    assert parity(model, texts())[0].verdict == "fail"


@pytest.mark.parametrize("pattern", ["GS", "GGS", "GF"])
def test_real_models_have_parity(hybrid: Hybrid, pattern: str) -> None:
    (row,) = parity(hybrid(pattern), texts())
    assert row.verdict == "pass", row
    assert row.details["agreement"] == 1
    names = {way["name"] for way in row.details["ways"]}
    assert {"step by step", "from a saved snapshot", "left-padded"} <= names
    assert len(names) >= 10


@pytest.mark.parametrize(("layer", "name"), [(0, "conv"), (0, "memory"), (1, "keys"), (1, "valid")])
def test_a_snapshot_that_forgets_is_caught(hybrid: Hybrid, layer: int, name: str) -> None:
    model = hybrid()
    resume = model.resume

    def forgetful(snapshot: Snapshot, ids: Tensor) -> tuple[Tensor, Snapshot]:
        return resume(snapshot.replace(layer, **{name: torch.zeros_like(snapshot.layers[layer][name])}), ids)

    model.resume = forgetful  # type: ignore[method-assign, assignment]
    (row,) = parity(model, texts(80))
    assert row.verdict == "fail"
    assert row.value > 1e-3, "the gap is measured"


def test_a_last_token_that_is_another_alone_is_caught(hybrid: Hybrid) -> None:
    """Recall is asked of the last logits alone, so they must be those of the whole."""
    model = hybrid()
    prefill = model.prefill

    def early(ids: Tensor, *, logits_to_keep: int = 0, **named: Tensor) -> tuple[Tensor, Snapshot]:
        logits, after = prefill(ids, **named)  # type: ignore[arg-type]
        return (logits[:, -2:-1] if logits_to_keep else logits), after

    model.prefill = early  # type: ignore[method-assign, assignment]
    (row,) = parity(model, texts(80))
    assert row.verdict == "fail"
    assert [way["name"] for way in row.details["ways"] if way["relative"] > 1e-5] == ["the last token alone"]


@pytest.mark.parametrize("takes", ["both", "prefill", "neither"])
def test_last_logits_are_asked_of_whoever_can_give_them_alone(hybrid: Hybrid, takes: str) -> None:
    model, ids = hybrid(), texts(40)
    prefill, resume = model.prefill, model.resume
    with torch.no_grad():
        whole = prefill(ids)[0]
        if takes != "both":
            model.resume = lambda snapshot, ids: resume(snapshot, ids)  # type: ignore[method-assign, assignment]
        if takes == "neither":
            model.prefill = lambda ids: prefill(ids)  # type: ignore[method-assign, assignment]
        first, snapshot = read_on(model, ids[:, :25])
        last, _ = read_on(model, ids[:, 25:], snapshot)
    assert torch.allclose(first, whole[:, 24], atol=1e-5)  # rounding of sums in another order
    assert torch.allclose(last, whole[:, -1], atol=1e-5)
    with torch.no_grad():
        assert prefill(ids, logits_to_keep=3)[0].shape == (*whole[:, -3:].shape,)


def test_a_state_that_goes_wrong_at_an_edge_or_far_from_the_start_is_stepped_into() -> None:
    for length, window in ((3, 16), (130, 16), (512, 16), (512, 200)):
        found = steps(length, window=window)
        assert found == sorted(set(found))
        assert set(found) >= {t for t in (1, 63, 64, 65, 128, window, window + 1, length - 1) if 0 < t < length}
        assert set(found) >= set(range(max(1, length - 66), length)), "more than a chunk at the end"


def test_a_state_outside_the_snapshot_is_caught(oracle: Callable) -> None:
    row = parity(oracle("attribute"), episode_texts(oracle("attribute")))[0]
    assert row.verdict == "fail"
    failed = [way["name"] for way in row.details["ways"] if way["relative"] > 1e-5]
    assert failed
    assert all(name.startswith("after another text") for name in failed)


def episode_texts(model: object) -> Tensor:
    from groundthink.tasks.kv_recall import KvRecall

    task = KvRecall(model.vocabulary, n_pairs=4, distance="fixed:20", n_queries=3)  # type: ignore[attr-defined]
    return torch.stack([torch.from_numpy(e.tokens) for e in task.episodes(0, "test", 3)])


def test_ties_do_not_count_as_disagreement() -> None:
    reference = torch.tensor([[[1.0, 1.0 - 1e-7, 0.0], [1.0, 0.5, 0.0]]])
    other = torch.tensor([[[1.0 - 1e-7, 1.0, 0.0], [0.5, 1.0, 0.0]]])
    assert compare("tie", other[:, :1], reference[:, :1]).agreement == 1
    assert compare("no tie", other, reference).agreement == 0.5


def test_splits_rise_and_fit() -> None:
    for length in (3, 16, 64, 65, 200):
        for cut in splits(length, window=16):
            assert cut[0] > 0
            assert cut[-1] < length
            assert list(cut) == sorted(set(cut))
