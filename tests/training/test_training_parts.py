"""Schedule, optimizer groups, mixtures, knobs and the single step."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from training_stand_ins import VOCABULARY, Batch, TinyModel, TinySnapshot, TinySource, phase, sources

from groundthink.errors import ConfigError, DataError
from groundthink.training.config import OptimizerConfig
from groundthink.training.knobs import Knobs
from groundthink.training.mixture import Mixture, Part, derive, divide_rows
from groundthink.training.optimizer import build_optimizer, named_moments, restore_moments, role_of_each
from groundthink.training.schedule import learning_rate
from groundthink.training.step import Stepper, autocast, reset_rows

MANY = settings(deadline=None, max_examples=80, derandomize=True, database=None)


# --- schedule ----------------------------------------------------------------------------------------------


def test_warm_up_then_cosine_to_the_floor() -> None:
    p = phase(steps=30, warmup_steps=10, learning_rate_scale=0.5, floor=0.1)
    rates = [learning_rate(2.0, p, step) for step in range(30)]
    assert rates[0] == pytest.approx(0.1)  # a tenth of the way up to 2.0 * 0.5
    assert rates[9] == rates[10] == 1.0
    assert rates[-1] == pytest.approx(0.1)
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    middle = learning_rate(2.0, phase(steps=21, floor=0.0), 10)
    assert middle == pytest.approx(1.0)  # half of the peak half way down


def test_constant_and_degenerate_phases() -> None:
    assert {learning_rate(1.0, phase(steps=9, schedule="constant"), s) for s in range(9)} == {1.0}
    assert learning_rate(1.0, phase(steps=1), 0) == 1.0
    assert learning_rate(1.0, phase(steps=5, warmup_steps=9), 4) == pytest.approx(5 / 9)


def test_a_wall_clock_budget_brings_the_rate_down_in_time() -> None:
    p = phase(steps=1000, max_seconds=60.0)
    assert learning_rate(1.0, p, 3, spent=1.0) == pytest.approx(0.1)
    assert learning_rate(1.0, p, 3, spent=0.0) > 0.99


# --- optimizer ---------------------------------------------------------------------------------------------


def test_groups_follow_the_roles_and_tied_parameters_count_once() -> None:
    optimizer = build_optimizer(TinyModel(), OptimizerConfig(weight_decay=0.3))
    names = {group["weight_decay"]: set(group["names"]) for group in optimizer.param_groups}
    assert names == {0.3: {"embed.weight", "mix.weight"}, 0.0: {"mix.bias", "norm.weight", "norm.bias"}}


def test_embeddings_may_have_a_rate_of_their_own() -> None:
    """Of one step with equal gradients an embedding takes the said share; at 0 it stays what it was drawn."""
    moved = {}
    for scale in (1.0, 0.25, 0.0):
        torch.manual_seed(0)
        model = TinyModel()
        optimizer = build_optimizer(model, OptimizerConfig(embedding_scale=scale, weight_decay=0.0))
        assert sum(len(group["names"]) for group in optimizer.param_groups) == len(role_of_each(model))
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * group["scale"]
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        moved[scale] = {n: float((p.detach() - before[n]).abs().mean()) for n, p in model.named_parameters()}
        assert moved[scale]["mix.weight"] == pytest.approx(0.1, rel=1e-4)
        assert moved[scale]["embed.weight"] == pytest.approx(0.1 * scale, rel=1e-4)


@pytest.mark.parametrize(
    ("roles", "told"),
    [
        ({"mix.bias": None}, "parameter 'mix.bias' has no role"),
        ({"mix.bias": "odd"}, "unknown role 'odd'"),
        ({"ghost": "bias"}, "role of 'ghost', which is no parameter"),
        ({"head.weight": "matrix"}, r"roles \['embedding', 'matrix'\]"),
    ],
)
def test_roles_that_do_not_fit(roles: dict[str, str | None], told: str) -> None:
    model = TinyModel()
    wrong = {**TinyModel().parameter_roles(), **roles}
    model.parameter_roles = lambda: {k: v for k, v in wrong.items() if v}  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match=told):
        role_of_each(model)


def test_frozen_parameters_are_left_out() -> None:
    model = TinyModel()
    model.mix.weight.requires_grad_(False)
    assert "mix.weight" not in role_of_each(model)
    build_optimizer(model, OptimizerConfig())


def test_moments_come_back_and_foreign_ones_do_not() -> None:
    model = TinyModel()
    optimizer = build_optimizer(model, OptimizerConfig())
    model(torch.zeros(1, 3, dtype=torch.int64)).sum().backward()
    optimizer.step()
    moments = {name: x.clone() for name, x in named_moments(optimizer).items()}
    assert restore_moments(optimizer, moments) == []
    assert all(torch.equal(x, moments[name]) for name, x in named_moments(optimizer).items())
    wrong = {**moments, "exp_avg/ghost": torch.zeros(1), "exp_avg/mix.bias": torch.zeros(2)}
    del wrong["step/norm.bias"]
    assert len(restore_moments(optimizer, wrong)) == 4  # ghost, shape, and two incomplete sets
    assert all(torch.equal(x, moments[name]) for name, x in named_moments(optimizer).items())


# --- mixtures ----------------------------------------------------------------------------------------------


@MANY
@given(
    st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6),
    st.integers(1, 70),
    st.none() | st.integers(0, 10**7),
)
def test_rows_sum_up_and_stay_within_one_of_the_share(weights: list[float], rows: int, step: int | None) -> None:
    counts = divide_rows(weights, rows, step)
    assert sum(counts) == rows
    for count, weight in zip(counts, weights, strict=True):
        assert abs(count - rows * weight / math.fsum(weights)) < 1 + 1e-9  # the share itself is rounded here


def test_a_small_weight_gets_its_share_over_the_steps() -> None:
    counts = [divide_rows([0.97, 0.03], 4, step) for step in range(1000)]
    assert sum(c[1] for c in counts) == pytest.approx(120, abs=3)  # golden-ratio sequences are off by log(n)/2
    assert len({divide_rows([0.97, 0.03], 4, None) for _ in range(5)}) == 1


def test_the_step_alone_places_the_data() -> None:
    p = phase(mix=[{"weight": 3}, {"source": "kv_recall", "loss_weight": 2.0}])
    made = [
        Mixture(seed=seed, index=index, phase=p, sources={i.label: sources(i) for i in p.mix})
        for seed, index in ((0, 0), (0, 0), (1, 0), (0, 1))
    ]
    for step in (5, 0, 5):  # in any order
        first, again, other_seed, other_phase = (m.parts(step) for m in made)
        assert [part.name for part in first] == ["text", "kv_recall"]
        assert [part.loss_weight for part in first] == [1.0, 2.0]
        for a, b in zip(first, again, strict=True):
            assert torch.equal(a.batch.tokens, b.batch.tokens)
        for other in (other_seed, other_phase):
            assert not torch.equal(first[0].batch.tokens, other[0].batch.tokens)
    assert not torch.equal(made[0].parts(0)[0].batch.tokens, made[0].parts(1)[0].batch.tokens)


def test_batches_of_another_shape_are_refused() -> None:
    class Short(TinySource):
        def batch(self, *, seed: int, step: int, rows: int, length: int) -> Batch:
            return super().batch(seed=seed, step=step, rows=rows, length=length - 1)

    with pytest.raises(DataError, match=r"'text' is \(6, 11\), it should be \(6, 12\)"):
        Mixture(seed=0, index=0, phase=phase(), sources={"text": Short()}).parts(0)


def test_streams_need_rows_in_every_step() -> None:
    p = phase(rows=2, state_passing=True, mix=[{"weight": 0.01}, {"source": "kv_recall", "weight": 1.0}])
    with pytest.raises(DataError, match="gets none of the 2 rows"):
        Mixture(seed=0, index=0, phase=p, sources={i.label: sources(i) for i in p.mix}).parts(0)


def test_seeds_are_the_same_in_every_process() -> None:
    assert derive(0, "train", 1, "text") == 110989534745318  # another number: every old run is another run
    assert len({derive(1, 23), derive(12, 3), derive("1", "2", 3)}) == 3


# --- knobs -------------------------------------------------------------------------------------------------


def test_knobs_are_set_and_given_back() -> None:
    model = TinyModel(dropout=0.3)
    knobs = Knobs(model)
    knobs.apply({"drop_prob": 1}, "phases[0]")
    assert model.drop_prob == 1.0
    assert isinstance(model.drop_prob, float)
    knobs.apply({}, "phases[1]")
    assert model.drop_prob == 0.3
    with pytest.raises(ConfigError, match="knob 'width'"):
        knobs.apply({"width": 3}, "phases[0]")
    with pytest.raises(ConfigError, match=r"drop_prob is 1\.5"):
        knobs.apply({"drop_prob": 1.5}, "phases[0]")


# --- one step ----------------------------------------------------------------------------------------------


def stepper(model: nn.Module, precision: str = "float32", clip: float = 1e9) -> Stepper:
    optimizer = build_optimizer(model, OptimizerConfig())
    loss: Any = model.loss
    device = torch.device("cpu")
    return Stepper(model=model, loss=loss, optimizer=optimizer, device=device, precision=precision, clip_norm=clip)


def parts(weights: tuple[float, float] = (1.0, 3.0)) -> list[Part]:
    dense = TinySource().batch(seed=0, step=0, rows=5, length=9)
    sparse = TinySource(stride=5, every=4).batch(seed=1, step=0, rows=3, length=9)
    return [Part("a", dense, weights[0], False), Part("b", sparse, weights[1], False)]


OPTIONS: dict[str, Any] = {"learning_rate": 0.0, "accumulate": 1, "normalise": "source"}


def gradients(model: TinyModel, given: list[Part], **options: Any) -> tuple[float, dict[str, Tensor]]:
    """Objective and gradient, caught before the step throws it away."""
    taken, kept = stepper(model), {}

    def keep(*_: Any) -> None:
        kept.update({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})

    taken.optimizer.register_step_pre_hook(keep)
    report, _ = taken.take(given, {}, **{**OPTIONS, **options})
    return report.loss, kept


@pytest.mark.parametrize("normalise", ["source", "token"])
@pytest.mark.parametrize("accumulate", [1, 2, 3, 5])
def test_the_objective_is_what_the_config_says(normalise: str, accumulate: int) -> None:
    """Cut or not, the gradient is that of the objective written out by hand."""
    model = TinyModel(dropout=0.0)
    a, b = (model.loss(p.batch.tokens, p.batch.labels) for p in parts())
    by_hand = (a[0] / a[1] + 3 * b[0] / b[1]) / 4 if normalise == "source" else (a[0] + 3 * b[0]) / (a[1] + 3 * b[1])
    expected = torch.autograd.grad(by_hand, list(model.parameters()))
    loss, found = gradients(model, parts(), normalise=normalise, accumulate=accumulate)
    assert loss == pytest.approx(by_hand.item(), rel=1e-5)
    for (name, _), gradient in zip(model.named_parameters(), expected, strict=True):
        # float32 sums in another order
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


def test_reports_of_each_source() -> None:
    model = TinyModel(dropout=0.0)
    report, _ = stepper(model).take(parts(), {}, **OPTIONS)
    for part in parts():
        total, valid, _ = model.loss(part.batch.tokens, part.batch.labels)
        assert report.source_losses[part.name] == pytest.approx(total.item() / valid.item(), rel=1e-6)
    assert report.tokens == 8 * 9
    assert report.fault is None


def test_clipping_bounds_the_whole_gradient() -> None:
    model = TinyModel()
    taken, norms = stepper(model, clip=1e-3), []
    taken.optimizer.register_step_pre_hook(
        lambda *_: norms.append(math.sqrt(sum(p.grad.square().sum().item() for p in model.parameters())))
    )
    report, _ = taken.take(parts(), {}, **OPTIONS)
    assert report.grad_norm > 1e-2
    assert norms == [pytest.approx(1e-3, rel=1e-2)]  # torch divides by norm + 1e-6


def poison(model: TinyModel, where: str) -> None:
    if where == "loss":
        model.loss = (
            lambda *a, **k: (  # type: ignore[method-assign]
                TinyModel.loss(model, *a, **k)[0] * float("nan"),
                *TinyModel.loss(model, *a, **k)[1:],
            )
        )
    if where == "gradient":
        model.mix.bias.register_hook(lambda g: g * float("inf"))
    if where == "parameter":
        with torch.no_grad():
            model.norm.bias[2] = float("nan")


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("loss", "loss of a, b is not finite; first in the gradient of embed.weight"),
        ("gradient", "gradient is not finite; first in the gradient of mix.bias"),
        ("parameter", "parameter norm.bias itself is not finite"),
    ],
)
def test_a_fault_is_named_and_nothing_is_updated(where: str, told: str) -> None:
    model = TinyModel()
    poison(model, where)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    taken = stepper(model)
    report, _ = taken.take(parts(), {}, **{**OPTIONS, "learning_rate": 1.0})
    assert report.fault is not None
    assert told in report.fault
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[name], rtol=0, atol=0, equal_nan=True)
    assert named_moments(taken.optimizer) == {}


def test_nothing_to_learn_from_is_an_error() -> None:
    given = [dataclasses.replace(p, batch=Batch(p.batch.tokens, p.batch.labels * 0 - 100)) for p in parts()]
    with pytest.raises(DataError, match="no token of this step is labelled"):
        stepper(TinyModel()).take(given, {}, **OPTIONS)
    report, _ = stepper(TinyModel()).take([parts()[0], given[1]], {}, **OPTIONS)
    assert report.source_losses["b"] == 0.0


def test_a_model_that_counts_otherwise_is_caught() -> None:
    """Planted fault: a loss that normalises by something else than the labels."""
    model = TinyModel()
    model.loss = lambda *a, **k: (TinyModel.loss(model, *a, **k)[0], 5, None)  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="the model counted 10 labels"):
        stepper(model).take(parts(), {}, **OPTIONS)


def test_bfloat16_computes_in_half_and_keeps_parameters_and_moments() -> None:
    model = TinyModel(dropout=0.0)
    seen = set()
    model.mix.register_forward_hook(lambda module, inputs, out: seen.add(out.dtype))
    taken = stepper(model, precision="bfloat16")
    report, _ = taken.take(parts(), {}, **OPTIONS)
    assert seen == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {x.dtype for x in named_moments(taken.optimizer).values()} == {torch.float32}
    exact, _ = stepper(model).take(parts(), {}, **OPTIONS)
    assert report.loss == pytest.approx(exact.loss, rel=0.02)  # bfloat16 carries 8 bits


def test_fresh_rows_start_from_the_empty_state() -> None:
    snapshot = TinySnapshot(torch.ones(3, 2), torch.tensor([5, 6, 7]))
    after = reset_rows(snapshot, torch.tensor([False, True, False]))
    assert after.position.tolist() == [5, 0, 7]
    assert after.state[:, 0].tolist() == [1, 0, 1]
    assert reset_rows(snapshot, torch.zeros(3, dtype=torch.bool)) is snapshot


def test_a_stream_sees_the_segment_before() -> None:
    """A carried row has the losses of the text in one piece, a fresh row those of a text of its own."""
    model = TinyModel(dropout=0.0).eval()
    tokens = torch.randint(VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(0))
    halves = [tokens[:, :6], tokens[:, 6:]]
    batches = [Batch(half, half, fresh=torch.tensor([step == 0, True])) for step, half in enumerate(halves)]
    carry: dict[str, Any] = {}
    for batch in batches:
        report, carry = stepper(model).take([Part("text", batch, 1.0, True)], carry, **OPTIONS)
    joined = tokens.clone()
    joined[:, :7] = -100
    first = model.loss(tokens[:1], joined[:1])[0]
    second = model.loss(halves[1][1:], halves[1][1:])[0]
    assert report.loss * 10 == pytest.approx((first + second).item(), rel=1e-5)
    assert carry["text.0"].position.tolist() == [12, 6]
    assert not carry["text.0"].state.requires_grad


@pytest.mark.parametrize(
    ("device", "precision", "half"),
    [("cuda", "auto", True), ("cpu", "auto", False), ("cuda", "float32", False), ("cpu", "bfloat16", True)],
)
def test_precision_follows_the_device_unless_named(
    device: str, precision: str, half: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(torch, "autocast", lambda kind, **options: asked.update(options, kind=kind))  # no CUDA here
    autocast(torch.device(device), precision)
    assert asked == {"kind": device, "dtype": torch.bfloat16, "enabled": half}
