"""Curves, heat map, gates and the language rule."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch

from groundthink.errors import ConfigError, DataError
from groundthink.probes import cut_reads, gate_statistics, language, needle_map, paired_bootstrap, recall_curves
from groundthink.probes.curves import curve_distances, token_kinds
from groundthink.records import to_json
from groundthink.tasks import Vocabulary
from groundthink.tasks.kv_recall import KvRecall
from groundthink.tasks.needle import Needle


def test_a_curve_shows_where_the_window_ends(oracle: Callable, vocabulary: Vocabulary) -> None:
    found = recall_curves(
        {"memory": (oracle("memory"), None), "window": (oracle("window"), None)},
        vocabulary=vocabulary, n=12, distances=[2, 9, 15, 16, 17, 40],
    )  # fmt: skip
    rates = {c["name"]: {p["distance"]: p["rate"] for p in c["points"]} for c in found["curves"]}
    assert set(rates["memory"].values()) == {1.0}
    # The oracle's window shows what is fewer than 16 tokens old.
    assert rates["window"] == {2: 1.0, 9: 1.0, 15: 1.0, 16: 0.0, 17: 0.0, 40: 0.0}
    assert (found["horizon"], found["window"], found["chance"]) == (4, 16, 1 / 16)
    point = found["curves"][0]["points"][0]
    assert set(point) == {"distance", "hits", "n", "rate", "low", "high"}
    assert point["n"] == 12
    assert json.loads(to_json(found)) == found


def test_default_distances_surround_the_horizon() -> None:
    points = curve_distances(18, 16)
    assert {2, 16, 18, 19, 36, 144} <= set(points)
    assert points == sorted(set(points))
    with pytest.raises(ConfigError, match="no curve"):
        recall_curves({}, vocabulary=Vocabulary())


def test_a_cut_arm_is_cut_and_healed(hybrid: Callable, vocabulary: Vocabulary) -> None:
    model = hybrid()
    recall_curves({"cut": (model, cut_reads)}, vocabulary=vocabulary, n=4, distances=[5])
    assert not any(module._forward_hooks for module in model.modules())


def test_the_needle_map_has_its_form(hybrid: Callable, vocabulary: Vocabulary) -> None:
    text = {split: np.random.default_rng(0).integers(0, 16, 300) for split in ("train", "valid", "test")}
    task = Needle(vocabulary, text=text, n_needles=3)
    found = needle_map(hybrid(), task, depths=[0.0, 0.5, 1.0], lengths=[32, 64], n=5)
    assert (found["depths"], found["lengths"], found["n"]) == ([0.0, 0.5, 1.0], [32, 64], 5)
    assert [len(r) for r in found["rates"]] == [2, 2, 2]
    assert all(0 <= rate <= 1 for r in found["rates"] for rate in r)
    assert found["chance"] == 1 / 3


def test_gates_are_averaged_by_kind(hybrid: Callable, vocabulary: Vocabulary) -> None:
    model = hybrid("GSG")
    task = KvRecall(vocabulary, n_pairs=4, distance="fixed:20")
    tokens = torch.stack([torch.from_numpy(e.tokens) for e in task.episodes(0, "test", 5)])
    found = gate_statistics(model, tokens, vocabulary)
    assert [layer["layer"] for layer in found["layers"]] == [0, 2]
    for layer in found["layers"]:
        assert set(layer["beta"]) == set(layer["decay"]) == {"key", "value", "filler", "query"}
        assert all(0 < mean < 1 for gate in ("beta", "decay") for mean in layer[gate].values())
    # The first layer's gates by hand: they see the normed embedding of the token alone.
    block = model.blocks[0]
    with torch.no_grad():
        log_decay, beta = block.mixer.gates(block.mixer_norm(model.embed(tokens)))
    for kind, mask in token_kinds(tokens, vocabulary).items():
        if mask.any():
            assert found["layers"][0]["beta"][kind] == pytest.approx(float(beta[mask].mean()), rel=1e-5)
            assert found["layers"][0]["decay"][kind] == pytest.approx(float(log_decay[mask].exp().mean()), rel=1e-5)
    assert not any(module._forward_hooks for module in model.modules())


def test_no_worse_is_the_upper_bound() -> None:
    assert language(0.01, 0.0, 0.02, n=9, against="no-read").verdict == "pass"
    assert language(0.01, 0.0, 0.021, n=9, against="no-read").verdict == "fail"
    with pytest.raises(DataError, match="no interval"):
        language(0.01, 0.2, 0.1, n=9, against="x")
    with pytest.raises(DataError, match="no interval"):
        language(float("nan"), 0.0, 0.1, n=9, against="x")


def test_the_bootstrap_is_paired() -> None:
    """Documents differ far more than models do; only pairing sees the difference."""
    generator = np.random.default_rng(0)
    theirs = generator.normal(2.0, 0.5, 200)
    ours = theirs + 0.05 + generator.normal(0, 0.01, 200)
    mean, low, high = paired_bootstrap(ours.tolist(), theirs.tolist(), seed=1)
    assert low < mean < high
    assert mean == pytest.approx(0.05, abs=0.003)  # four standard errors of 0.01 / sqrt(200)
    assert high - low < 0.004
    assert paired_bootstrap(ours.tolist(), theirs.tolist(), seed=1) == (mean, low, high)
    weighted = paired_bootstrap([1.0, 3.0], [0.0, 0.0], weights=[3.0, 1.0])
    assert weighted[0] == pytest.approx(1.5)
    for bad in ([1.0], [1.0, 2.0, 3.0], [1.0, float("nan")]):
        with pytest.raises(DataError):
            paired_bootstrap(bad, [1.0, 2.0])


def test_the_bootstrap_interval_is_the_normal_one_and_covers() -> None:
    """Mean +- 1.96 standard errors; over 60 worlds it covers the truth about 95 times in 100."""
    generator, hits = np.random.default_rng(2), 0
    for seed in range(60):
        drawn = generator.normal(0.1, 1.0, 40)
        _, low, high = paired_bootstrap(drawn.tolist(), [0.0] * 40, seed=seed)
        hits += low <= 0.1 <= high
    assert hits >= 51  # 57 expected; 51 is 4 binomial standard errors of 1.7 below, less rounding
    half = 1.96 * drawn.std() / 40**0.5
    assert high - low == pytest.approx(2 * half, rel=0.05)  # Monte Carlo error of the quantiles
