"""What the certificate says of mechanisms that are known."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from groundthink.errors import StateError, TaskError
from groundthink.model import HybridForCausalLM
from groundthink.probes import ask, certify, judge, recall, result_json
from groundthink.probes.transplant import boundary, least_distance
from groundthink.records import Certificate, ProbeResult, certificate_from_dict
from groundthink.tasks import Vocabulary
from groundthink.tasks.kv_recall import KvRecall

N = 60  # the lower Wilson bound of 60 of 60 is 0.94, the upper one of 0 is 0.06: enough for every threshold


def certified(model: object, vocabulary: Vocabulary, **options: object) -> Certificate:
    chosen = {"rows": "core", **options}
    return certify(model, vocabulary=vocabulary, n=N, **chosen)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "verdict", "says"),
    [
        ("memory", "CERTIFIED", "answers from that one"),
        ("elsewhere", "REFUTED", "keeps the old answer"),
        ("half", "PARTIAL", "follows the memory; below the thresholds"),
        ("attribute", "INVALID", "after another text"),
        ("window", "NOT-PROVEN", "not above chance"),
        ("no_memory", "REFUTED", "no layer carries a memory"),
        ("future", "INVALID", "earlier logits"),
        ("deaf", "INVALID", "empty"),
        ("wrong", "TASK-FAIL", "even inside the window"),
    ],
)
def test_every_oracle_gets_its_verdict(
    oracle: Callable, vocabulary: Vocabulary, kind: str, verdict: str, says: str
) -> None:
    found = certified(oracle(kind), vocabulary)
    assert found.verdict == verdict, found.sentence
    assert found.sentence.startswith(f"{verdict}.")
    assert says in found.sentence
    assert found.sentence.endswith("Twin: not supplied.")


def test_the_rows_of_a_certified_model(oracle: Callable, vocabulary: Vocabulary) -> None:
    heard: list[str] = []
    found = certified(
        oracle("memory"),
        vocabulary,
        twin={"window-only": oracle("blind", horizon=15), "no-read": oracle("memory")},
        language={"difference": -0.01, "low": -0.02, "high": 0.0, "n": 30, "against": "no-read"},
        on_event=lambda kind, row: heard.append(f"{kind} {row['name']}") if kind == "probe" else None,
    )
    assert found.verdict == "CERTIFIED", found.sentence
    assert found.horizon == 15, "the larger one"
    assert heard == [f"probe {row.name}" for row in found.results]
    for point, distance in (("R+1", 16), ("2R", 30), ("8R", 120)):  # of the last pair; 15 pairs lie before it
        asked = found.result(f"recall@{point}").details["distances"]
        assert distance <= asked["least"] <= asked["greatest"] <= distance + 30
    for row in found.results:
        assert row.verdict != "fail", row
        if row.n is not None and row.name.startswith(("recall", "follow", "keep")):
            assert row.n == N
            assert row.chance == 1 / 16
    assert found.result("recall@8R").details["chance"] == {
        "vocabulary": 1 / vocabulary.size, "value_range": 1 / 64, "in_context": 1 / 16,
    }  # fmt: skip
    assert found.result("follow/values@8R").value == found.result("follow/deranged@8R").value == 1
    assert found.result("keep/values@8R").value == found.result("keep/deranged@8R").value == 0
    assert found.result("transplant/sham@8R").value == found.result("transplant/complete@8R").value == 0
    assert found.result("harness/window-only@8R").verdict == "pass"
    assert found.result("language/no-read").verdict == "pass"
    assert "window-only twin 0.000" in found.sentence
    assert "not supplied" not in found.sentence
    assert certificate_from_dict(json.loads(result_json(found))).verdict == "CERTIFIED"


def test_a_rerun_is_the_same_to_the_byte(oracle: Callable, vocabulary: Vocabulary) -> None:
    first, second = (result_json(certified(oracle("half"), vocabulary, seed=3)) for _ in range(2))
    assert first == second
    assert result_json(certified(oracle("half"), vocabulary, seed=4)) != first


def test_a_blind_twin_that_recalls_breaks_the_harness(oracle: Callable, vocabulary: Vocabulary) -> None:
    found = certified(oracle("memory"), vocabulary, twin={"window-only": oracle("no_memory")})
    assert found.verdict == "INVALID"
    assert "must be at chance" in found.sentence


def test_the_larger_horizon_counts(oracle: Callable, vocabulary: Vocabulary) -> None:
    found = certified(
        oracle("memory"),
        vocabulary,
        twin={"wide": oracle("memory", horizon=9), "full": oracle("memory", horizon=math.inf)},
    )
    assert found.horizon == 9
    assert 10 <= found.result("recall@R+1").details["distances"]["least"] < 20
    assert found.result("horizon").details["reaches"] == {"model": 4, "wide": 9, "full": None}


def test_without_a_horizon_nothing_is_proven(oracle: Callable, vocabulary: Vocabulary) -> None:
    found = certified(oracle("memory", horizon=math.inf), vocabulary)
    assert found.verdict == "NOT-PROVEN"
    assert found.horizon is None
    assert "full attention" in found.sentence
    assert found.result("recall@8R").verdict == "info"


def test_an_untrained_hybrid_fails_the_task(hybrid: Callable, vocabulary: Vocabulary) -> None:
    model = hybrid("GS")
    found = certified(model, vocabulary, twin={"no-read": hybrid("GA")})
    assert found.verdict == "TASK-FAIL", found.sentence
    assert found.result("causality/suffix").value == 0
    assert found.result("transplant/sham@8R").verdict == found.result("transplant/complete@8R").verdict == "pass"
    names = {row.name for row in found.results}
    for arm in ("", "/S-reads-cut", "/own-reads-cut", "/twin:no-read"):
        assert {f"recall@{point}{arm}" for point in ("near", "R+1", "2R", "8R")} <= names
    assert not any(module._forward_hooks for module in model.modules())
    assert certified(hybrid("A"), vocabulary).verdict == "TASK-FAIL"


def test_a_leaking_hybrid_is_invalid_and_nothing_more_is_asked(hybrid: Callable, vocabulary: Vocabulary) -> None:
    model = hybrid("GS")
    model.blocks[0].register_forward_hook(
        lambda _m, _i, out: out._replace(y=out.y + 1e-3 * out.y.mean(1, keepdim=True))
    )
    found = certified(model, vocabulary)
    assert found.verdict == "INVALID"
    assert not any(row.name.startswith("recall") for row in found.results)
    assert "not supplied" in found.sentence


def test_an_inconsistent_hybrid_is_invalid_with_its_gap(hybrid: Callable, vocabulary: Vocabulary) -> None:
    class Forgetful(HybridForCausalLM):
        def resume(self, snapshot, ids, *, documents=None):  # type: ignore[no-untyped-def]
            return super().resume(snapshot.replace(0, conv=torch.zeros_like(snapshot.layers[0]["conv"])), ids)

    model = hybrid("GS")
    model.__class__ = Forgetful
    found = certified(model, vocabulary)
    assert found.verdict == "INVALID"
    assert found.result("parity").value > 1e-3
    assert f"{found.result('parity').value:.2g}" in found.sentence


def test_the_boundary_is_beyond_the_horizon_on_both_sides(vocabulary: Vocabulary) -> None:
    for horizon in (0, 3, 18):
        distance = least_distance(horizon)
        for extra in (0, 1, 40):
            task = KvRecall(vocabulary, n_pairs=5, distance=f"fixed:{distance + extra}")
            questions = ask(task, n=3, seed=0)
            at = boundary(questions, horizon)
            last, query = 2 * 5, questions.prompts.shape[1] - 2
            assert at - 1 - last >= horizon + 1, "filler tokens after the last pair"
            assert query - at >= horizon, "tokens before the question"
        with pytest.raises(TaskError, match="no boundary"):
            boundary(
                ask(task.with_options(distance=f"fixed:{max(2, distance - 1)}"), n=3, seed=0), horizon + (horizon == 0)
            )


def test_answers_are_not_in_the_prompt(vocabulary: Vocabulary) -> None:
    task = KvRecall(vocabulary, distance="fixed:9")
    questions = ask(task, n=20, seed=1)
    for episode, prompt, answer, distance in zip(
        questions.episodes, questions.prompts, questions.answers, questions.distances, strict=True
    ):
        assert torch.equal(prompt, torch.from_numpy(episode.tokens)[: len(prompt)])
        assert len(episode.tokens) == len(prompt) + 1
        assert episode.tokens[-1] == answer
        assert (prompt == answer).nonzero().flatten().tolist() == [len(prompt) - 1 - distance]


def test_confusion_adds_up(oracle: Callable, vocabulary: Vocabulary) -> None:
    questions = ask(KvRecall(vocabulary, distance="fixed:9"), n=40, seed=1)
    found = recall(oracle("window"), questions)
    assert found.right.hits + found.other_in_context + found.other == 40
    near = int((questions.distances < 16).sum())
    assert found.right.hits == near > 0

    class Guess:
        """Says the first stored value."""

        sizes = oracle("memory").sizes
        horizon = 0

        def prefill(self, ids: Tensor) -> tuple[Tensor, None]:
            logits = torch.zeros(*ids.shape, vocabulary.size)
            logits[torch.arange(len(ids)), -1, ids[:, 2]] = 1
            return logits, None

    guessed = recall(Guess(), questions)  # type: ignore[arg-type]
    assert guessed.right.hits + guessed.other_in_context == 40
    assert guessed.other_in_context > 30


def test_an_absence_of_logits_is_no_answer(hybrid: Callable, vocabulary: Vocabulary) -> None:
    model = hybrid()
    with torch.no_grad():
        model.norm.weight.fill_(float("nan"))
    found = recall(model, ask(KvRecall(vocabulary, distance="fixed:9"), n=10, seed=1))
    assert (found.right.hits, found.other) == (0, 10)


def test_bad_input_is_one_line(oracle: Callable, hybrid: Callable, vocabulary: Vocabulary) -> None:
    few = dataclasses.replace(vocabulary, n_values=63)
    with pytest.raises(TaskError, match="63 values are too few"):
        certify(oracle("memory"), vocabulary=few)
    with pytest.raises(TaskError, match="the model has"):
        certify(hybrid(vocab_size=64), vocabulary=vocabulary)
    with pytest.raises(StateError, match="longer than this model was told"):
        certify(hybrid(max_length=40), vocabulary=vocabulary, n=4)


def row(name: str, rate: float, verdict: str = "pass", **details: object) -> ProbeResult:
    accuracy = {"accuracy": {"rate": 1.0}, "share": rate, **details}
    return ProbeResult(
        name, rate, verdict, "x.", low=rate - 0.02, high=rate + 0.02, n=400, chance=1 / 16, details=accuracy
    )


GOOD = [
    row("causality/suffix", 0.0), row("parity", 0.0), row("recall@near", 1.0), row("recall@R+1", 1.0),
    row("recall@2R", 1.0), row("recall@8R", 1.0), row("follow/values@8R", 1.0), row("keep/values@8R", 0.0),
]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ([], "CERTIFIED"),
        ([row("parity", 0.1, "fail")], "INVALID"),
        ([row("transplant/complete@8R", 0.1, "fail")], "INVALID"),
        ([row("parity", 0.1, "fail"), row("recall@near", 0.1, "fail")], "INVALID"),
        ([row("recall@near", 0.5, "fail"), row("recall@8R", 0.1, "fail")], "TASK-FAIL"),
        ([row("recall@8R", 0.08, "fail")], "NOT-PROVEN"),
        ([row("recall@2R", 0.85, "fail")], "PARTIAL"),
        ([row("follow/values@8R", 0.5, "fail"), row("keep/values@8R", 0.5, "fail")], "PARTIAL"),
        ([row("follow/values@8R", 0.05, "fail"), row("keep/values@8R", 0.95, "fail")], "REFUTED"),
        ([row("follow/values@8R", 0.05, "fail"), row("keep/values@8R", 0.05)], "NOT-PROVEN"),
    ],
)
def test_the_logic_of_verdicts(changes: list[ProbeResult], verdict: str) -> None:
    rows = {r.name: r for r in [*GOOD, *changes]}
    assert judge(list(rows.values()), finite=True).verdict == verdict
    assert judge(list(rows.values()), finite=False).verdict in ("INVALID", "TASK-FAIL", "NOT-PROVEN")


@pytest.mark.parametrize("missing", [r.name for r in GOOD if r.name.startswith(("recall", "follow"))])
def test_a_missing_row_never_certifies(missing: str) -> None:
    assert judge([r for r in GOOD if r.name != missing], finite=True).verdict != "CERTIFIED"
