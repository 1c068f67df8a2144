"""The diagnostics on mechanisms that are known, and on planted faults that each of them has to see."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from groundthink import report
from groundthink.cli import main
from groundthink.errors import DataError, StateError
from groundthink.model import HybridForCausalLM, save_model
from groundthink.probes import DIAGNOSTICS, ROWS, ask_row, gradient_report, gradient_result, make_bench
from groundthink.probes.cuts import hooked, layers_with
from groundthink.probes.diagnostics.cost import bytes_for_backward, carried_bytes
from groundthink.probes.diagnostics.gates import bias_drift
from groundthink.probes.diagnostics.recall import answer_ranks, confusion, median_interval
from groundthink.probes.diagnostics.state import signal_to_noise
from groundthink.probes.heard import BETA, KEYS, LOG_DECAY, VALUES, heard
from groundthink.probes.mechanics import (
    error_curve,
    errors,
    expected_similarity,
    orthonormal_keys,
    random_keys,
    similarity,
    write_all,
    write_sizes,
)
from groundthink.probes.statistics import mean_interval
from groundthink.records import ProbeResult, to_json
from groundthink.tasks import Vocabulary
from groundthink.tasks.needle import Needle
from tests.probes.mechanisms import Gated

N, PAIRS = 96, 6
Hybrid = Callable[..., HybridForCausalLM]


def asked(name: str, model: Any, vocabulary: Vocabulary, **options: Any) -> dict[str, ProbeResult]:
    chosen = {"vocabulary": vocabulary, "n_pairs": PAIRS, "n": N, "seed": 1, **options}
    return {row.name: row for row in ask_row(make_bench(model, {}, **chosen), name)}


def verdicts(found: dict[str, ProbeResult]) -> dict[str, str]:
    return {name: row.verdict for name, row in found.items()}


@contextlib.contextmanager
def forced(model: Any, path: str, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While inside, what a module passes on is replaced in every layer that has one."""
    with hooked(model, path, layers_with(model, path), lambda _layer, x: change(x)):
        yield


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- the memory by itself -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", ["decayed", "raw"])
def test_64_orthogonal_writes_come_back(error: Any) -> None:
    keys = orthonormal_keys(3, 64, 64, generator=generator())
    values = torch.randn(3, 64, 64, generator=generator(1))
    assert float(errors(write_all(keys, values, error=error), keys, values).max()) < 1e-5  # float32 over 64 terms
    with pytest.raises(ValueError, match="65 orthonormal keys"):
        orthonormal_keys(1, 65, 64, generator=generator())


def test_random_keys_interfere_as_their_expectation_says() -> None:
    keys = random_keys(6, 400, 64, generator=generator())
    # 79,800 pairs a row; the mean of |cos| has a standard error below 0.001. The formula is that of large K.
    assert float(similarity(keys[:, :, None]).mean()) == pytest.approx(expected_similarity(64), abs=0.002)
    values = torch.randn(6, 128, 64, generator=generator(1))
    curve = {n: e.mean(0) for n, e in error_curve(keys, values, [1, 8, 32, 64, 128]).items()}
    assert float(curve[1].max()) < 1e-5
    first = [float(e[0]) for e in curve.values()]
    assert first == sorted(first), "the first pair only loses"
    assert float(curve[64][-1]) < 1e-5, "the last write is exact with beta 1"
    # The error of a pair follows a product of projections: after n - 1 random writes about sqrt((n - 1) / K) of a
    # value of the same size has come in, for n far below K.
    assert float(curve[8][0]) == pytest.approx(math.sqrt(7 / 64), rel=0.25)  # six memories, 64 values each


def test_a_second_identical_write_changes_nothing_and_an_additive_memory_is_seen() -> None:
    key, value = random_keys(4, 1, 16, generator=generator()), torch.randn(4, 1, 16, generator=generator(1))
    once, twice = write_all(key, value), write_all(key.repeat(1, 2, 1), value.repeat(1, 2, 1))
    assert float((twice - once).abs().max()) < 1e-6
    ones = torch.ones(4, 2, 1)

    def sizes(beta: float) -> Tensor:
        both = key.repeat(1, 2, 1)[:, :, None], value.repeat(1, 2, 1)[:, :, None]
        return write_sizes(*both, log_decay=0 * ones, beta=beta * ones, error="decayed")

    assert float(sizes(1.0)[:, 1].max()) < 1e-6
    half = sizes(0.25)
    torch.testing.assert_close(half[:, 1] / half[:, 0], torch.full((4, 1), 0.75, dtype=torch.float64))
    # Keys of length 0.01 correct nothing: the second write is as large as the first, as in an additive memory.
    tiny = write_sizes(
        0.01 * key.repeat(1, 2, 1)[:, :, None], value.repeat(1, 2, 1)[:, :, None],
        log_decay=0 * ones, beta=ones, error="decayed",
    )  # fmt: skip
    assert float((tiny[:, 1] / tiny[:, 0]).min()) > 0.999


def test_write_sizes_are_those_of_the_operator(hybrid: Hybrid) -> None:
    """The last state is the sum of the writes; here of the first alone, decayed."""
    model, ids = hybrid("G"), torch.randint(64, (3, 1), generator=generator())
    x = heard(model, ids, (KEYS, VALUES, BETA, LOG_DECAY))[0]
    put = write_sizes(x[KEYS], x[VALUES], log_decay=x[LOG_DECAY], beta=x[BETA], error="decayed")
    with torch.no_grad():
        memory = model.prefill(ids)[1].layers[0]["memory"]
    torch.testing.assert_close(put[:, 0].float(), memory.flatten(2).norm(dim=-1), rtol=1e-5, atol=1e-7)


# --- rows on models of known mechanism ----------------------------------------------------------------------------


def test_every_diagnostic_answers_for_every_kind_of_model(
    hybrid: Hybrid, oracle: Callable, vocabulary: Vocabulary
) -> None:
    """A hybrid, a mechanism with gates, and one that shows nothing at all: a record each, never a fault of ours."""
    text = {split: np.random.default_rng(0).integers(0, 16, 300) for split in ("train", "valid", "test")}
    needle = Needle(vocabulary, text=text, length=40, n_needles=2)
    for model in (hybrid("GS"), Gated("memory", vocabulary), oracle("no_memory")):
        bench = make_bench(model, {}, vocabulary=vocabulary, n_pairs=3, n=40, seed=0, needle=needle)
        slow = {"memory_use", "speed"} if not isinstance(model, HybridForCausalLM) else set()
        for name in set(DIAGNOSTICS) - slow:
            results = list(ask_row(bench, name))
            assert results, name
            json.loads(to_json(results))
            for row in results:
                assert row.name.split("/")[0] == name
                assert row.meaning.endswith("."), row.meaning
                if row.verdict != "info":
                    assert row.threshold is not None, row.name
                if row.low is not None and row.high is not None:
                    assert row.low <= row.value <= row.high or math.isnan(row.value), row.name
        if isinstance(model, HybridForCausalLM):
            assert not any(module._forward_hooks for module in model.modules())
    assert set(DIAGNOSTICS) <= set(ROWS)


def test_gates_that_open_at_facts_pass_and_gates_that_do_not_fail(hybrid: Hybrid, vocabulary: Vocabulary) -> None:
    row = asked("gate_spread", Gated("memory", vocabulary), vocabulary)["gate_spread/layer0"]
    # Written at the value of a pair alone: one of the two tokens of a fact, and no filler.
    assert (row.verdict, row.value, row.details["beta"]["kinds"]["filler"]) == ("pass", 0.5, 0.0)
    assert row.details["beta"]["kinds"]["value"] == row.details["beta"]["most"] == 1.0
    assert row.details["decay"]["mean"] == 1.0
    model = hybrid("GS")
    with forced(model, BETA, lambda x: torch.full_like(x, 0.3)):
        flat = asked("gate_spread", model, vocabulary)["gate_spread/layer0"]
    assert flat.verdict == "fail"
    assert flat.details["beta"]["spread"] < 1e-6


def test_the_drift_of_a_bias_is_what_was_added(hybrid: Hybrid) -> None:
    model = hybrid("GS")
    assert bias_drift(model, 0) == pytest.approx({"beta": 0.0, "decay": 0.0}, abs=1e-6)
    with torch.no_grad():
        model.blocks[0].mixer.gates.beta_bias.add_(0.5)
    assert bias_drift(model, 0)["beta"] == pytest.approx(0.5, abs=1e-6)


def test_retention_is_the_product_of_the_decays(hybrid: Hybrid, vocabulary: Vocabulary) -> None:
    model = hybrid("GS")
    for decay, verdict in ((0.0, "pass"), (-0.001, "pass"), (-0.01, "fail")):
        with forced(model, LOG_DECAY, lambda x, decay=decay: torch.full_like(x, decay)):
            row = asked("retention", model, vocabulary)["retention/layer0"]
        length = 8 * 18 + 0  # 8 R tokens since the last pair, less none: R = 15 + 3
        assert row.value == pytest.approx(math.exp(decay * length), rel=0.02)  # the cue's tokens count too
        assert row.verdict == verdict
        if decay:
            assert row.details["half_life"][0] == pytest.approx(math.log(0.5) / decay, rel=1e-4)


def test_keys_that_are_apart_and_keys_that_collapsed(hybrid: Hybrid, vocabulary: Vocabulary) -> None:
    apart = asked("key_similarity", Gated("memory", vocabulary), vocabulary)["key_similarity/pairs"]
    assert (apart.value, apart.verdict) == (0.0, "pass")
    model = hybrid("GS")
    with forced(model, KEYS, torch.ones_like):
        collapsed = asked("key_similarity", model, vocabulary)
    assert {row.verdict for row in collapsed.values()} == {"fail"}
    assert all(row.value == pytest.approx(1, abs=1e-6) for row in collapsed.values())
    noise = generator(3)
    with forced(model, KEYS, lambda x: torch.randn(x.shape, generator=noise)):
        drawn = asked("key_similarity", model, vocabulary)["key_similarity/tokens"]
    assert drawn.verdict == "pass"
    assert drawn.chance == expected_similarity(8)
    assert drawn.value == pytest.approx(drawn.chance, rel=0.05)  # at K = 8 the formula of large K is 3 % high


def test_keys_of_one_token_need_a_convolution_to_differ(hybrid: Hybrid, vocabulary: Vocabulary) -> None:
    seen = asked("marker_keys", hybrid("GS", conv_width=4, start="plain"), vocabulary)["marker_keys/layer0"]
    blind = asked("marker_keys", hybrid("GS", conv_width=1, start="plain"), vocabulary)["marker_keys/layer0"]
    assert (seen.verdict, blind.verdict) == ("pass", "fail")
    assert blind.value == pytest.approx(1, abs=1e-6)


def test_a_stored_pair_is_signal_and_an_empty_or_full_memory_is_not(hybrid: Hybrid, vocabulary: Vocabulary) -> None:
    held = asked("state_content", Gated("memory", vocabulary), vocabulary)["state_content/layer0"]
    assert held.verdict == "pass"
    assert held.value >= 1e5  # orthogonal keys: no noise
    memory, keys = torch.randn(8, 1, 4, 4, generator=generator()), torch.randn(8, 1, 4, generator=generator(1))
    strange = ~torch.eye(8, dtype=torch.bool)
    same = signal_to_noise(memory, keys[:1].expand(8, -1, -1), strange)
    torch.testing.assert_close(same, torch.zeros_like(same), atol=1e-6, rtol=0)
    assert not signal_to_noise(torch.zeros_like(memory), keys, strange).any()
    model = hybrid("GS")
    with forced(model, BETA, torch.zeros_like):
        empty = asked("state_content", model, vocabulary)["state_content/layer0"]
    assert (empty.verdict, empty.value) == ("fail", 1.0)


def test_the_rank_is_that_of_the_writes(hybrid: Hybrid, vocabulary: Vocabulary) -> None:
    row = asked("state_rank", Gated("memory", vocabulary), vocabulary)["state_rank/layer0"]
    # Six orthogonal pairs of different values: six singular values of 1.
    assert row.value == pytest.approx(PAIRS, abs=1e-4)
    ends = [ranks[0] for ranks in row.details["effective_rank"]]
    assert ends[0] == 0
    assert ends == sorted(ends)
    model = hybrid("GS")
    with forced(model, KEYS, lambda x: torch.ones_like(x) / math.sqrt(x.shape[-1])):
        collapsed = asked("state_rank", model, vocabulary)["state_rank/layer0"]
    assert collapsed.verdict == "fail"
    assert collapsed.value == pytest.approx(1, abs=1e-3)  # float32 leaves singular values of 1e-8


def test_interference_sees_a_memory_that_loses_the_first(oracle: Callable, vocabulary: Vocabulary) -> None:
    kept = asked("interference", Gated("memory", vocabulary), vocabulary)["interference"]
    assert (kept.verdict, kept.value) == ("pass", 1.0)
    lost = asked("interference", oracle("window"), vocabulary, n_pairs=8)["interference"]
    assert lost.verdict == "fail"
    # Its table forgets after 16 tokens: 7 to the question, 2 for every pair behind the first.
    rates = {int(n): p["rate"] for n, p in lost.details["points"].items()}
    assert rates[1] == rates[2] == 1.0
    assert rates[8] == rates[16] == 0.0


def test_capacity_by_kind_of_key(hybrid: Hybrid, vocabulary: Vocabulary) -> None:
    found = asked("memory_capacity", Gated("memory", vocabulary), vocabulary)
    assert verdicts(found) == {
        "memory_capacity/orthogonal": "pass", "memory_capacity/random": "info", "memory_capacity/own": "pass"
    }  # fmt: skip
    assert found["memory_capacity/own"].value < 1e-5, "its keys are orthogonal"
    assert found["memory_capacity/random"].value > 0.3
    model = hybrid("GS")
    with forced(model, KEYS, torch.ones_like):
        collapsed = asked("memory_capacity", model, vocabulary)["memory_capacity/own"]
    assert collapsed.verdict == "fail"
    assert collapsed.value > 1  # all but the last value are another's


def test_redundancy_of_a_hybrid(hybrid: Hybrid, vocabulary: Vocabulary) -> None:
    model = hybrid("GS")
    with forced(model, LOG_DECAY, torch.zeros_like), forced(model, KEYS, lambda x: torch.eye(x.shape[-1])[0] + 0 * x):
        with forced(model, BETA, torch.ones_like), forced(model, VALUES, torch.ones_like):
            same = asked("redundancy", model, vocabulary)
        with forced(model, VALUES, lambda x: (-1.0) ** torch.arange(x.shape[1])[:, None, None] + 0 * x):
            turned = asked("redundancy", model, vocabulary, seed=1)
    assert verdicts(same) == {"redundancy/memory": "pass", "redundancy/layer0": "pass"}
    assert same["redundancy/layer0"].value < 1e-6
    # Every token asks for the opposite of the one before it under one key: nothing is ever suppressed. The pair
    # stands an even number of tokens apart, so its values agree and only what came between is corrected.
    assert turned["redundancy/layer0"].verdict == "fail"


def test_one_token_gives_its_value_back(hybrid: Hybrid, vocabulary: Vocabulary) -> None:
    model = hybrid("GSG")
    found = asked("self_retrieval", model, vocabulary)
    assert {found[f"self_retrieval/layer{i}"].verdict for i in (0, 2)} == {"pass"}
    with forced(model, BETA, lambda x: torch.full_like(x, 0.25)):
        quarter = asked("self_retrieval", model, vocabulary)["self_retrieval/layer0"]
    assert quarter.details["size"] == pytest.approx([0.25, 0.25], rel=1e-4)
    with forced(model, KEYS, torch.zeros_like):  # nothing is written anywhere
        nothing = asked("self_retrieval", model, vocabulary)
    assert nothing["self_retrieval/layer0"].verdict == "fail"


def test_confusion_counts_whose_value_is_said(oracle: Callable, vocabulary: Vocabulary) -> None:
    bench = make_bench(oracle("memory"), {}, vocabulary=vocabulary, n_pairs=PAIRS, n=N, seed=1)
    questions = bench.asked(bench.points[1])
    right = confusion(questions.answers, questions)
    assert int(right.sum()) == int(right.diagonal().sum()) == N
    always_first = confusion(questions.stored[:, 0], questions)
    assert int(always_first[:, 0].sum()) == N
    nowhere = confusion(torch.full((N,), -1), questions)
    assert int(nowhere[:, -1].sum()) == N
    for kind, verdict in (("memory", "pass"), ("window", "fail")):  # a window names no stored value at all
        row = asked("needle_confusion", oracle(kind), vocabulary)["needle_confusion"]
        assert (row.verdict, row.chance) == (verdict, (PAIRS - 1) / PAIRS)


def test_the_answer_is_first_where_it_is_known(oracle: Callable, vocabulary: Vocabulary) -> None:
    known = asked("answer_rank", oracle("memory"), vocabulary)
    assert set(verdicts(known).values()) == {"pass"}
    assert {row.value for name, row in known.items() if "rank@" in name} == {1.0}
    wrong = asked("answer_rank", oracle("wrong"), vocabulary)
    assert "pass" not in verdicts(wrong).values()
    bench = make_bench(oracle("memory"), {}, vocabulary=vocabulary, n_pairs=PAIRS, n=8, seed=1)
    rank, ratio = answer_ranks(bench.model, bench.asked(bench.points[0]), seed=0)
    assert (len(rank), len(ratio)) == (8, 8)
    assert float(ratio.max()) <= 1 / math.log(10) + 1e-6  # a logit of 1 against at least 0


def test_state_against_window(hybrid: Hybrid, vocabulary: Vocabulary) -> None:
    found = asked("state_window", hybrid("GS"), vocabulary)
    assert verdicts(found) == {"state_window/state": "fail", "state_window/window": "info"}
    assert set(found["state_window/state"].details) == {"whole", "state cut", "window cut", "pictures"}


def test_needles_by_depth_and_length(hybrid: Hybrid, oracle: Callable, vocabulary: Vocabulary) -> None:
    assert "not_run" in asked("needle_grid", oracle("memory"), vocabulary)["needle_grid"].details
    text = {split: np.random.default_rng(0).integers(0, 16, 300) for split in ("train", "valid", "test")}
    needle = Needle(vocabulary, text=text, length=40, n_needles=2)
    known = asked("needle_grid", oracle("memory"), vocabulary, needle=needle)["needle_grid"]
    assert (known.verdict, known.value) == ("pass", 1.0)
    near = asked("needle_grid", oracle("window"), vocabulary, needle=needle)["needle_grid"]
    assert near.verdict == "fail"
    assert near.details["rates"][0][-1] == 0.0


# --- gradients, memory, statistics --------------------------------------------------------------------------------


def test_gradients_of_a_sound_model_are_in_order_and_left_as_they_were(hybrid: Hybrid, vocabulary: Vocabulary) -> None:
    model = hybrid("GS")
    model.norm.weight.grad = torch.full_like(model.norm.weight, 7.0)
    assert asked("gradients", model, vocabulary)["gradients"].verdict == "pass"
    assert float(model.norm.weight.grad.min()) == 7.0
    assert model.embed.weight.grad is None


@pytest.mark.parametrize(
    ("value", "kind"), [(math.nan, "nan"), (math.inf, "infinite"), (0.0, "zero"), (None, "missing")]
)
def test_planted_gradients_are_named(hybrid: Hybrid, value: float | None, kind: str) -> None:
    model, name = hybrid("GS"), "blocks.0.mixer.gates.beta_bias"
    with pytest.raises(StateError, match="no parameter has a gradient"):
        gradient_report(model)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e30)  # its square overflows float32
    sound = gradient_report(model)
    count = sum(p.numel() for p in model.parameters())
    assert sound.faults == {}
    assert sound.total == pytest.approx(1e30 * math.sqrt(count), rel=1e-5)
    planted = model.get_parameter(name)
    if value is None:
        planted.grad = None
    else:
        assert planted.grad is not None
        planted.grad[:] = value
    found = gradient_report(model)
    assert getattr(found, kind) == (name,)
    row = gradient_result(found)
    assert (row.verdict, row.value) == ("fail", 1.0)
    assert name in row.meaning
    json.loads(to_json(row))


def test_what_is_carried_stops_growing_with_a_window_and_not_without(hybrid: Hybrid, vocabulary: Vocabulary) -> None:
    found = asked("memory_use", hybrid("GS"), vocabulary)
    assert found["memory_use/carried"].verdict == "pass"
    assert found["memory_use/backward"].details["exponent"] == pytest.approx(
        1, abs=0.15
    )  # a fixed part, one that grows
    model = hybrid("F")
    with torch.no_grad():
        short, long = (carried_bytes(model.prefill(torch.zeros(1, n, dtype=torch.int64))[1]) for n in (20, 40))
    assert long == 2 * short
    ids = torch.zeros(2, 16, dtype=torch.int64)
    kept = bytes_for_backward(model, ids)
    assert bytes_for_backward(model, ids.repeat(2, 1)) == pytest.approx(2 * kept, rel=0.2)
    assert kept >= ids.numel() * 32 * 4, "at least one activation of the residual stream"


def test_speed_is_measured_after_it_is_right(
    hybrid: Hybrid, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = hybrid("GS", head_dim=16, value_dim=16)
    found = asked("speed", model, vocabulary, n=1)
    assert found["speed/right"].verdict == "pass"
    assert all(row.value > 0 for row in found.values())
    broken = {"read": 1.0, "again": math.nan, "state": 0.0, "dk dv dq": 0.0, "dbeta dlog_decay": 0.0}
    monkeypatch.setattr("groundthink.ops.measure.accuracy", lambda *a, **k: broken)
    wrong = asked("speed", model, vocabulary, n=1)
    assert wrong["speed/right"].verdict == "fail"
    assert "read, again" in wrong["speed/right"].meaning
    assert "speed/operator" not in wrong


def test_a_diagnostic_is_asked_from_the_command_line_and_drawn(
    hybrid: Hybrid, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(hybrid("GS", vocab_size=Vocabulary(text=16).size), tmp_path)
    assert main.main(["probe", "key_similarity", str(tmp_path), "--n", "8"]) == 0
    assert "key_similarity/pairs: Keys of the pairs" in capsys.readouterr().out
    record = json.loads((tmp_path / "records" / "probe_key_similarity.json").read_text())
    assert [r["name"] for r in record["results"]] == ["key_similarity/tokens", "key_similarity/pairs"]
    page = report.build(tmp_path).read_text()
    assert "<h3>key_similarity</h3>" in page
    assert page.count("<figure>") == 4
    assert main.main(["probe"]) == 0
    listed = capsys.readouterr().out
    assert all(f"\n{name} " in listed for name in DIAGNOSTICS)


def test_intervals() -> None:
    mean, low, high = mean_interval([1.0, 2.0, 3.0, 4.0])
    assert (mean, high - mean) == pytest.approx((2.5, 1.96 * math.sqrt(5 / 3 / 4)), rel=1e-3)
    assert mean_interval([2.0]) == (2.0, 2.0, 2.0)
    assert low == pytest.approx(5 - high)
    for bad in ([], [1.0, math.nan]):
        with pytest.raises(DataError, match="no interval"):
            mean_interval(bad)
    assert median_interval([3.0]) == (3.0, 3.0, 3.0)
    assert median_interval([float(i) for i in range(100)]) == (49.5, 40.0, 60.0)  # ranks 40 to 60 of 100


def test_a_result_can_be_written_with_its_pictures(hybrid: Hybrid, vocabulary: Vocabulary) -> None:
    for row in asked("state_rank", hybrid("GS"), vocabulary).values():
        assert [p["kind"] for p in row.details["pictures"]] == ["lines", "grid", "grid"]
        assert json.loads(to_json(row))["details"]["pictures"][0]["series"][0]["x"] == row.details["times"]
        assert dataclasses.replace(row).verdict == row.verdict
