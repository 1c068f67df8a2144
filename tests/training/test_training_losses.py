"""Losses beside those of the tokens: values known by hand, gradients, silence, cutting, refusals."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training_stand_ins import Batch, Head, TinyModel, config, sources

from groundthink.errors import ConfigError
from groundthink.model import HybridForCausalLM, ModelConfig
from groundthink.training import LOSSES, read_events, train
from groundthink.training.config import OptimizerConfig
from groundthink.training.losses import Auxiliary, Heard, Loss, listen
from groundthink.training.losses.key_orthogonality import compared_positions
from groundthink.training.losses.lasting_writes import HORIZON
from groundthink.training.mixture import Part
from groundthink.training.optimizer import build_optimizer
from groundthink.training.step import Stepper

VOCABULARY = 32


def small(pattern: str = "GS") -> HybridForCausalLM:
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_ff": 16, "n_heads": 2, "head_dim": 4, "value_dim": 4, "window_size": 4}
    return HybridForCausalLM(ModelConfig(pattern=pattern, vocab_size=VOCABULARY, **sizes))  # type: ignore[arg-type]


def rows(n: int = 4, length: int = 12) -> Batch:
    tokens = torch.randint(VOCABULARY, (n, length), generator=torch.Generator().manual_seed(3))
    documents = (torch.arange(length) >= length // 2).int().expand(n, -1)
    return Batch(tokens, tokens.clone(), documents)


def heard(tokens: list[list[int]], documents: list[list[int]] | None = None, **outputs: Any) -> Heard:
    """Outputs are named by the last word of their pattern."""
    patterns = {pattern for loss in LOSSES.values() for pattern in loss.hears}
    named = {pattern: outputs[pattern.split(".")[-1]] for pattern in patterns if pattern.split(".")[-1] in outputs}
    ids = None if documents is None else torch.tensor(documents)
    return Heard(torch.tensor(tokens), ids, outputs.get("model", nn.Module()), named)


def half(angle: float) -> list[float]:
    return [math.cos(angle), math.sin(angle)]


# --- values known by hand ----------------------------------------------------------------------------------

# Keys at 0, 60 and 180 degrees, of any length: |cos| is 0.5, 0.5 and 1.
KEYS = torch.tensor([[half(0.0), [3 * x for x in half(math.pi / 3)], half(math.pi)]])[:, :, None]


def test_keys_by_hand() -> None:
    of_rows = LOSSES["key_orthogonality"].of_rows
    assert of_rows(heard([[7, 8, 9]], hook_k=(KEYS,))).tolist() == pytest.approx([2 / 3])
    # tokens 0 and 2 are the same token: their pair, of 1, is not asked
    assert of_rows(heard([[7, 8, 7]], hook_k=(KEYS,))).tolist() == pytest.approx([0.5])
    # the last one is of another document: only the first pair is left
    assert of_rows(heard([[7, 8, 9]], [[0, 0, 1]], hook_k=(KEYS,))).tolist() == pytest.approx([0.5])
    assert of_rows(heard([[7, 7, 7]], hook_k=(KEYS,))).tolist() == [0.0]  # nothing to hold apart
    # a second layer whose keys are orthogonal; two heads count the same
    apart = torch.tensor([[half(0.0), half(math.pi / 2), half(math.pi)]])[:, :, None]
    assert of_rows(heard([[7, 8, 9]], hook_k=(KEYS, apart))).tolist() == pytest.approx([(2 / 3 + 1 / 3) / 2])
    both = torch.cat([KEYS, apart], 2)
    assert of_rows(heard([[7, 8, 9]], hook_k=(both,))).tolist() == pytest.approx([0.5])


def test_beta_by_hand() -> None:
    beta = torch.tensor([[[0.2, 0.4], [0.6, 0.0]], [[1.0, 1.0], [1.0, 1.0]]])
    of_rows = LOSSES["beta_sparsity"].of_rows
    assert of_rows(heard([[1, 2], [3, 4]], hook_beta=(beta,))).tolist() == pytest.approx([0.3, 1.0])
    assert of_rows(heard([[1, 2], [3, 4]], hook_beta=(beta, 0 * beta))).tolist() == pytest.approx([0.15, 0.5])


def test_lasting_writes_by_hand() -> None:
    of_rows = LOSSES["lasting_writes"].of_rows
    beta = torch.tensor([[[0.2, 0.4], [0.6, 0.0]]])  # means 0.4 and 0.2
    forever, gone = torch.zeros(1, 2, 1), torch.full((1, 2, 1), -1.0)
    one = heard([[1, 2]], hook_beta=(beta,), hook_log_decay=(torch.cat([forever, gone], -1),))
    assert of_rows(one).tolist() == pytest.approx([0.4])  # the head that forgets may write what it likes
    # A half-life of 4,096 tokens counts half as much as none; a second layer's heads are among the others.
    halved = torch.full((1, 2, 1), -math.log(2) / HORIZON)
    decays = (torch.cat([forever, halved], -1), torch.cat([gone, gone], -1))
    two = heard([[1, 2]], hook_beta=(beta, beta + 0.1), hook_log_decay=decays)
    assert of_rows(two).tolist() == pytest.approx([(0.4 + 0.2 / 2) / 1.5])
    # Heads that all forget are still told apart: the slowest counts.
    both = heard([[1, 2]], hook_beta=(beta,), hook_log_decay=(torch.cat([2 * gone, gone], -1),))
    assert of_rows(both).tolist() == pytest.approx([0.2])


def test_lasting_writes_pay_for_writing_and_not_for_lasting() -> None:
    beta = torch.full((1, 3, 2), 0.5, requires_grad=True)
    decay = torch.tensor([[[0.0, -1e-4]] * 3], requires_grad=True)
    LOSSES["lasting_writes"].of_rows(heard([[1, 2, 3]], hook_beta=(beta,), hook_log_decay=(decay,))).sum().backward()
    assert decay.grad is None
    assert beta.grad is not None
    assert bool((beta.grad > 0).all())


def wrote(state: Tensor) -> SimpleNamespace:
    return SimpleNamespace(memory=SimpleNamespace(final_state=state))


def test_states_by_hand() -> None:
    # one head, two keys, values (3, 4) and (0, 0): norms 5 and 0, mean 2.5, squared distance from 5 is 6.25
    state = torch.tensor([[[[3.0, 4.0], [0.0, 0.0]]]])
    of_rows = LOSSES["state_stability"].of_rows
    assert of_rows(heard([[1]], mixer=(wrote(state),))).tolist() == [6.25]
    silent = SimpleNamespace(memory=None)
    assert of_rows(heard([[1]], mixer=(wrote(state), silent, wrote(2 * state)))).tolist() == [6.25 + 0]
    with pytest.raises(ConfigError, match=r"no layer of this model writes a memory.*put a G into model\.pattern"):
        of_rows(heard([[1]], mixer=(silent,)))


def test_outputs_by_hand() -> None:
    # logits W h with W = [[1, 0], [0, 2], [0, 0]]: steps (3, 0) and (0, 2) change them by 3 and 4
    model = Head(torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]))
    hidden = torch.tensor([[[0.0, 0.0], [3.0, 0.0], [3.0, 2.0]]])
    of_rows = LOSSES["output_consistency"].of_rows
    assert of_rows(heard([[1, 2, 3]], norm=(hidden,), model=model)).tolist() == pytest.approx([3.5])
    assert of_rows(heard([[1, 2, 3]], [[0, 0, 1]], norm=(hidden,), model=model)).tolist() == pytest.approx([3.0])


def test_outputs_are_those_of_the_logits_written_out() -> None:
    model, batch = small(), rows()
    with Auxiliary(model, {"output_consistency": 1.0}).listen() as outputs:
        logits = model(batch.tokens, documents=batch.documents).logits.double()
    [value] = Auxiliary(model, {"output_consistency": 1.0}).sums(outputs, batch.tokens, batch.documents).values()
    norms = (logits[:, 1:] - logits[:, :-1]).norm(dim=-1)
    norms[:, 5] = 0  # the border of the documents
    assert value.item() == pytest.approx((norms.sum(1) / 10).sum().item(), rel=1e-5)  # float32 by another formula


def test_memories_by_hand() -> None:
    bank = torch.tensor([[half(0.0), half(math.pi / 3)]], requires_grad=True)
    wkv = torch.tensor([[[2.0, 0.0], [5.0, 0.0]]], requires_grad=True)  # cosines 1 and 0.5
    value = LOSSES["memory_consistency"].of_rows(heard([[1, 2]], hook_bank=(bank,), hook_wkv=(wkv,)))
    assert value.tolist() == pytest.approx([0.25])
    value.sum().backward()
    assert wkv.grad is None  # the state is the teacher
    assert bank.grad is not None
    assert bank.grad[0, 1].abs().sum() > 0


# --- gradients ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["key_orthogonality", "beta_sparsity", "state_stability", "output_consistency"])
def test_following_the_gradient_lowers_the_loss(name: str) -> None:
    """Of the whole model, heard through its hooks: the slope along the gradient is that of finite differences."""
    model, batch = small().double().eval(), rows()
    auxiliary = Auxiliary(model, {name: 1.0})

    def value() -> Tensor:
        with auxiliary.listen() as outputs:
            model.loss(batch.tokens, batch.labels, documents=batch.documents)
        return auxiliary.sums(outputs, batch.tokens, batch.documents)[name]

    parameters = list(model.parameters())
    found = torch.autograd.grad(value(), parameters, allow_unused=True)
    gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
    assert norm > 0
    size, ends = 2e-5 / norm, []
    for sign in (1.0, -2.0):  # there, and back to the other side
        with torch.no_grad():
            for p, g in zip(parameters, gradients, strict=True):
                p.add_(g, alpha=sign * size)
        ends.append(value().item())
    # central differences in float64, off by the square of their step: measured 7e-6 at most
    assert (ends[0] - ends[1]) / (2 * size) == pytest.approx(norm**2, rel=1e-4)


def test_a_gradient_that_is_half_cut_off_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted fault: the value is right, half of what it depends on is detached."""

    def half_cut(given: Heard) -> Tensor:
        value = LOSSES["beta_sparsity"].of_rows(given)
        return value / 2 + (value / 2).detach()

    monkeypatch.setattr(listen, "LOSSES", {"beta_sparsity": Loss("beta_sparsity", ("*.hook_beta",), half_cut)})
    with pytest.raises(AssertionError):
        test_following_the_gradient_lowers_the_loss("beta_sparsity")


def test_memory_consistency_learns_from_a_bank_alone() -> None:
    class Grounded(TinyModel):
        def __init__(self) -> None:
            super().__init__(dropout=0.0)
            self.layer = nn.ModuleDict({"hook_bank": nn.Identity(), "hook_wkv": nn.Identity()})

        def hidden(self, tokens: Tensor, snapshot: Any) -> Any:
            h, after = super().hidden(tokens, snapshot)
            self.layer["hook_bank"](self.mix(self.embed(tokens)))
            self.layer["hook_wkv"](h)
            return h, after

    model, batch = Grounded(), Batch(torch.arange(12).reshape(2, 6), torch.arange(12).reshape(2, 6))
    taken = stepper(model)
    values = [
        taken.take([Part("a", batch, 1.0, False)], {}, **STEP, auxiliary=Auxiliary(model, {"memory_consistency": 9.0}))
        for _ in range(40)
    ]
    first, last = (values[i][0].auxiliary_losses["memory_consistency"] for i in (0, -1))
    assert last < 0.7 * first


# --- the step ----------------------------------------------------------------------------------------------

STEP: dict[str, Any] = {"learning_rate": 0.01, "accumulate": 1, "normalise": "source"}


def stepper(model: Any) -> Stepper:
    return Stepper(
        model=model,
        loss=model.loss,
        optimizer=build_optimizer(model, OptimizerConfig()),
        device=torch.device("cpu"),
        precision="float32",
        clip_norm=1e9,
    )


def gradients(
    model: Any, weights: dict[str, float], accumulate: int = 1, factors: tuple[dict[str, float], ...] = ({}, {})
) -> tuple[Any, dict[str, Tensor]]:
    taken, kept = stepper(model), {}

    def keep(*_: Any) -> None:
        kept.update({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})

    taken.optimizer.register_step_pre_hook(keep)
    parts = [Part("a", rows(5), 1.0, False, factors[0]), Part("b", rows(3), 1.0, False, factors[1])]
    options = {**STEP, "learning_rate": 0.0, "accumulate": accumulate}
    return taken.take(parts, {}, **options, auxiliary=Auxiliary(model, weights))[0], kept


ALL = {"key_orthogonality": 0.5, "beta_sparsity": 0.3, "state_stability": 0.1, "output_consistency": 0.01}


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_the_objective_is_the_weighted_sum_however_it_is_cut(accumulate: int) -> None:
    plain, without = gradients(small().eval(), {})
    whole, expected = gradients(small().eval(), ALL)
    report, found = gradients(small().eval(), ALL, accumulate)
    assert set(report.auxiliary_losses) == set(ALL)
    for name, value in whole.auxiliary_losses.items():
        assert report.auxiliary_losses[name] == pytest.approx(value, rel=1e-5)  # float32 sums in another order
    beside = sum(ALL[name] * value for name, value in report.auxiliary_losses.items())
    assert report.loss == pytest.approx(plain.loss + beside, rel=1e-6)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)
    assert any(not torch.allclose(gradient, without[name], atol=1e-4) for name, gradient in expected.items())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_factor_of_an_item_is_of_its_rows_alone(accumulate: int) -> None:
    """Free in one item's rows: the objective and its gradient are those of the other item's, which count twice."""

    def taken(*factors: dict[str, float]) -> tuple[Any, dict[str, Tensor]]:
        return gradients(small().eval(), {"beta_sparsity": 0.5}, accumulate, factors)

    name = "beta_sparsity"
    (both, everywhere), (none, nowhere) = taken({}, {}), taken({name: 0}, {name: 0})
    (first, of_first), (second, of_second) = taken({name: 1}, {name: 0}), taken({name: 0}, {name: 2})
    assert none.auxiliary_losses == {name: 0}
    shares = first.auxiliary_losses[name], second.auxiliary_losses[name] / 2
    assert sum(shares) == pytest.approx(both.auxiliary_losses[name], rel=1e-5)
    assert first.loss == pytest.approx(none.loss + 0.5 * shares[0], rel=1e-6)
    assert second.loss == pytest.approx(none.loss + 1.0 * shares[1], rel=1e-6)
    for key, gradient in everywhere.items():
        expected = of_first[key] + (of_second[key] - nowhere[key]) / 2
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_nothing_is_heard_or_computed_where_no_loss_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit the step without; no hook is set, no value computed; a weight of 0 is the same as no loss."""
    report, expected = gradients(small(), {})
    assert report.auxiliary_losses == {}

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("nobody asked")

    loud = {name: dataclasses.replace(loss, of_rows=refuse) for name, loss in LOSSES.items()}
    monkeypatch.setattr(listen, "LOSSES", loud)
    monkeypatch.setattr(nn.Identity, "register_forward_hook", refuse)
    again, found = gradients(small(), dict.fromkeys(ALL, 0.0))
    assert again == report
    assert all(torch.equal(gradient, found[name]) for name, gradient in expected.items())
    with pytest.raises(AssertionError, match="nobody asked"):  # planted: the refusal is live
        gradients(small(), {"beta_sparsity": 1.0})


def test_hooks_are_gone_after_the_step_even_after_a_fault() -> None:
    model = small()
    auxiliary = Auxiliary(model, ALL)
    during = []

    def fails() -> None:
        with auxiliary.listen():
            during.append(any(module._forward_hooks for module in model.modules()))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert during == [True]
    assert not any(module._forward_hooks for module in model.modules())


def test_a_loss_that_is_not_finite_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(given: Heard) -> Tensor:
        return LOSSES["beta_sparsity"].of_rows(given) / 0

    monkeypatch.setattr(listen, "LOSSES", {"beta_sparsity": Loss("beta_sparsity", ("*.hook_beta",), broken)})
    report, found = gradients(small(), {"beta_sparsity": 1.0})
    assert "loss of losses.beta_sparsity is not finite" in (report.fault or "")
    assert found == {}  # no step was taken


# --- planted faults: each of these wrong losses gives itself away by the values above ------------------------


def signed_keys(given: Heard) -> Tensor:
    keys = nn.functional.normalize(given.outputs["*.hook_k"][0], dim=-1)[:, :, 0]
    products = keys @ keys.mT
    return products.triu(1).sum((1, 2)) / 3


def keys_with_themselves(given: Heard) -> Tensor:
    keys = nn.functional.normalize(given.outputs["*.hook_k"][0], dim=-1)[:, :, 0]
    return (keys @ keys.mT).abs().mean((1, 2))


@pytest.mark.parametrize("wrong", [signed_keys, keys_with_themselves])
def test_wrong_key_losses_miss_the_value(monkeypatch: pytest.MonkeyPatch, wrong: Callable[[Heard], Tensor]) -> None:
    monkeypatch.setitem(globals(), "LOSSES", {**LOSSES, "key_orthogonality": Loss("k", ("*.hook_k",), wrong)})
    with pytest.raises(AssertionError):
        test_keys_by_hand()


@pytest.mark.parametrize(
    ("name", "wrong", "test"),
    [
        ("beta_sparsity", lambda h: h.outputs["*.hook_beta"][0].flatten(1).sum(1), test_beta_by_hand),
        (
            "lasting_writes",  # every head alike
            lambda h: torch.cat(h.outputs["*.hook_beta"], -1).mean((1, 2)),
            test_lasting_writes_by_hand,
        ),
        (
            "state_stability",
            lambda h: (h.outputs["blocks.*.mixer"][0].memory.final_state.norm() - 5).square()[None],
            test_states_by_hand,
        ),
        ("output_consistency", lambda h: h.outputs["norm"][0].diff(dim=1).norm(dim=-1).mean(1), test_outputs_by_hand),
        (
            "memory_consistency",
            lambda h: (
                1 - nn.functional.cosine_similarity(h.outputs["*.hook_bank"][0], h.outputs["*.hook_wkv"][0], -1).mean(1)
            ),
            test_memories_by_hand,
        ),
    ],
)
def test_wrong_losses_miss_the_value(
    monkeypatch: pytest.MonkeyPatch, name: str, wrong: Callable[[Heard], Tensor], test: Callable[[], None]
) -> None:
    monkeypatch.setitem(globals(), "LOSSES", {**LOSSES, name: Loss(name, LOSSES[name].hears, wrong)})
    with pytest.raises(AssertionError):
        test()


# --- long rows ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 255, 256, 257, 300, 2048, 5000])
def test_compared_positions_are_distinct_and_spread(length: int) -> None:
    at = compared_positions(length)
    assert len(at) == min(length, 256)
    assert (at.diff() > 0).all()
    assert at[0] >= 0
    assert at[-1] < length
    if length > 256:
        assert (at.diff() < 2 * length / 256 + 1).all()  # one in each stretch
        for period in (2, 3):  # a text that alternates is not met in one phase
            shares = torch.bincount(at % period, minlength=period) / len(at)
            assert (shares - 1 / period).abs().max() < 0.1


# --- configuration and runs --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("losses", "told"),
    [
        ({"key_orth": 1.0}, r"phases\[0\]\.losses has no loss 'key_orth': there are key_orthogonality, beta_sparsity"),
        ({"beta_sparsity": -1}, r"phases\[0\]\.losses\.beta_sparsity is -1, it must be a weight of at least 0"),
        ({"beta_sparsity": "much"}, "is 'much', it must be a weight"),
        ({"beta_sparsity": True}, "is True, it must be a weight"),
    ],
)
def test_bad_losses_are_named(losses: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        config({"losses": losses})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("factors", "told"),
    [
        ({"beta_sparsity": -1}, r"mix\[0\]\.loss_factors\.beta_sparsity is -1, it must be a weight of at least 0"),
        ({"beta": 1}, r"mix\[0\]\.loss_factors has no loss 'beta'"),
        ({"lasting_writes": 0}, r"loss_factors\.lasting_writes is a factor of nothing: phases\[0\]\.losses has no"),
    ],
)
def test_bad_factors_are_named(factors: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        config({"losses": {"beta_sparsity": 1.0}, "mix": [{"loss_factors": factors}]})


def test_compile_and_losses_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match=r"compile and phases\[1\]\.losses exclude each other"):
        config({}, {"losses": {"beta_sparsity": 1.0}}, compile=True)


def test_a_model_without_what_a_loss_hears_is_refused_before_anything_is_written(tmp_path: Any) -> None:
    run = config({}, {"losses": {"memory_consistency": 0.05, "beta_sparsity": 1.0}})
    with pytest.raises(ConfigError, match=r"phases\[1\]\.losses: no layer.*hook_bank.*hook_wkv.*hook_beta"):
        train(run, tmp_path / "r", model=TinyModel(), sources=sources)
    assert not (tmp_path / "r").exists()


def test_losses_belong_to_their_phase_and_are_logged(tmp_path: Any) -> None:
    run = config({"steps": 2}, {"steps": 2, "losses": {"beta_sparsity": 5.0}}, {"steps": 1}, optimizer={})
    train(run, tmp_path / "r", model=small(), sources=sources)
    steps = [event for event in read_events(tmp_path / "r") if event["event"] == "step"]
    assert ["auxiliary_losses" in event for event in steps] == [False, False, True, True, False]
    for event in steps[2:4]:
        beta = event["auxiliary_losses"]["beta_sparsity"]
        assert 0 < beta < 1
        assert event["loss"] == pytest.approx(event["source_losses"]["text"] + 5 * beta, rel=1e-5)
