"""Certificates at several lengths, in text, on a short budget, and of what cannot be certified."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from groundthink.errors import ConfigError, GroundThinkError, ResourceError, StateError, TaskError
from groundthink.model import Snapshot
from groundthink.probes import certify, judge, result_json
from groundthink.probes.bench import make_points
from groundthink.probes.certify import enough_memory
from groundthink.probes.prefilled import Prefilled, block_shape, read
from groundthink.probes.recall import ask
from groundthink.probes.row import Row
from groundthink.probes.verdict import BY_HORIZON, CAUSALLY, VERDICTS
from groundthink.records import Certificate, ProbeResult, certificate_from_dict
from groundthink.tasks import Vocabulary
from groundthink.tasks.kv_recall import KvRecall
from groundthink.tasks.needle import Needle
from tests.probes.mechanisms import Gated
from tests.probes.test_certify import GOOD, row

N, PAIRS = 100, 6


def certified(model: Any, vocabulary: Vocabulary, twin: Any = None, **options: Any) -> Certificate:
    return certify(model, twin, **{"vocabulary": vocabulary, "n_pairs": PAIRS, "n": N, "rows": "core", **options})


def needles(vocabulary: Vocabulary) -> Needle:
    text = np.arange(3000) % vocabulary.text
    return Needle(vocabulary, dict.fromkeys(("train", "valid", "test"), text), length=64, n_needles=4)


def test_every_length_has_a_verdict(vocabulary: Vocabulary) -> None:
    found = certified(
        Gated("memory", vocabulary),
        vocabulary,
        trained_length=30,
        multiples=(1, 4),
        needle=needles(vocabulary),
        text_multiples=(2,),
    )
    assert found.verdict == "CERTIFIED", found.sentence
    told = [(item["point"], item["length"], item["verdict"]) for item in found.lengths]
    assert told == [("1x", 30, "CERTIFIED"), ("4x", 120, "CERTIFIED"), ("text-2x", 60, "CERTIFIED")]
    for name, length in (("1x", 30), ("4x", 120), ("text-2x", 60)):
        assert found.result(f"recall@{name}").details["length"] == length
        assert found.result(f"recall@{name}").details["distances"]["least"] > found.horizon  # type: ignore[operator]
    assert {"follow/values@4x", "follow/deranged@4x", "follow/one_key@4x"} <= {r.name for r in found.results}
    assert found.result("follow/one_key@text-2x").value == 1
    assert found.result("recall@text-2x").chance == 1 / 4
    assert all(found.statements[name]["holds"] for name in (BY_HORIZON, CAUSALLY))
    assert found.setting["chance"] == {"vocabulary": 1 / vocabulary.size, "value_range": 1 / 64, "in_context": 1 / 6}
    assert max(found.setting["holm"].values()) < 0.05
    assert certificate_from_dict(json.loads(result_json(found))).lengths == found.lengths


def test_a_memory_that_fades_is_certified_for_a_while(vocabulary: Vocabulary) -> None:
    found = certified(Gated("forgets", vocabulary), vocabulary, trained_length=30, multiples=(1, 4))
    assert [item["verdict"] for item in found.lengths] == ["CERTIFIED", "NOT-PROVEN"]
    assert found.verdict == "PARTIAL"
    assert "At 1x, CERTIFIED" in found.sentence
    assert not found.statements[BY_HORIZON]["holds"]


def test_a_rerun_of_everything_is_the_same_to_the_byte(vocabulary: Vocabulary) -> None:
    options: dict[str, Any] = {"rows": "full", "n": 24, "seed": 5, "trained_length": 40, "multiples": (1,)}
    first, second = (result_json(certified(Gated("memory", vocabulary), vocabulary, **options)) for _ in range(2))
    assert first == second
    assert '"provenance": {}' in first
    assert result_json(certified(Gated("memory", vocabulary), vocabulary, **{**options, "seed": 6})) != first


def test_full_rows_of_an_honest_memory(vocabulary: Vocabulary) -> None:
    events: list[tuple[str, dict[str, Any]]] = []
    found = certified(
        Gated("memory", vocabulary), vocabulary, rows="full", on_event=lambda kind, facts: events.append((kind, facts))
    )
    assert found.verdict == "CERTIFIED", found.sentence
    assert [r.name for r in found.results if r.verdict == "fail"] == []
    assert [facts["name"] for kind, facts in events if kind == "probe"] == [r.name for r in found.results]
    asked = [facts["id"] for kind, facts in events if kind == "row"]
    assert set(asked) == set(found.setting["rows"])
    assert sum(kind == "progress" for kind, _ in events) > 20, "long rows say how they go on"
    assert all(r.details["row"] in found.setting["questions"] for r in found.results)
    assert "text: Not run: no text." in found.setting["notes"]
    assert "twin: not supplied." in found.setting["notes"]


def test_what_is_not_understood_is_not_asked_on(oracle: Callable, vocabulary: Vocabulary) -> None:
    found = certified(oracle("wrong"), vocabulary, rows="full", n=24)
    assert found.verdict == "TASK-FAIL"
    assert found.result("K5@8R").details["not_run"] == "the task is not understood"
    assert not any(s["holds"] for s in found.statements.values())


def test_few_episodes_never_make_a_good_model_invalid(oracle: Callable, vocabulary: Vocabulary) -> None:
    for seed in range(3):
        found = certified(
            Gated("memory", vocabulary), vocabulary, oracle("blind", horizon=15), n=16, seed=seed, rows=["C4", "C2"]
        )
        assert found.verdict in ("CERTIFIED", "PARTIAL", "TASK-FAIL"), found.sentence
        assert "n = 16 episodes a cell are few" in found.setting["notes"][0]
    assert certified(oracle("memory"), vocabulary, oracle("no_memory"), n=16).verdict == "INVALID", "that is evidence"


def test_one_twin_or_several(oracle: Callable, vocabulary: Vocabulary) -> None:
    one = certified(Gated("memory", vocabulary), vocabulary, oracle("blind", horizon=15))
    assert one.result("recall@8R/twin:twin").value < 0.1
    assert one.setting["twins"] == ["twin"]
    assert "Twin: not supplied" not in one.sentence


class Breaks(Gated):
    """Runs out of memory where more than four rows are longer than 150 tokens."""

    error: Exception = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    def resume(self, snapshot: Snapshot, ids: Tensor) -> tuple[Tensor, Snapshot]:
        if len(ids) > 4 and int(snapshot.position[0]) + ids.shape[1] > 150:
            raise self.error
        return super().resume(snapshot, ids)


def test_too_little_memory_is_one_line_and_keeps_its_part(vocabulary: Vocabulary) -> None:
    model, heard = Breaks("memory", vocabulary), list[str]()

    def hear(kind: str, facts: dict[str, Any]) -> None:
        if kind == "probe":
            heard.append(facts["name"])

    with pytest.raises(ResourceError, match=r"out of memory after .* Fix: ask for shorter texts") as found:
        certified(model, vocabulary, trained_length=100, multiples=(1, 2), on_event=hear, n=10)
    assert found.value.exit_code == 2
    assert "recall@8R" in heard


def test_a_lack_of_memory_is_told_from_our_faults() -> None:
    lacks = (torch.OutOfMemoryError("x"), MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    for error in lacks:
        with pytest.raises(ResourceError, match="out of memory"), enough_memory([]):
            raise error
    with pytest.raises(RuntimeError, match="a fault of ours"), enough_memory([]):
        raise RuntimeError("a fault of ours")


def test_bad_input_is_one_line(vocabulary: Vocabulary) -> None:
    model = Gated("memory", vocabulary)
    no_cache = type("Plain", (), {"sizes": model.sizes, "horizon": 3.0, "prefill": model.prefill})()
    long_values = needles(vocabulary).with_options(value_length=2)
    for wrong, words, error in (
        ({"model": no_cache}, "Plain has no resume: it cannot be read in pieces", StateError),
        ({"multiples": (2,)}, "multiples of what", ConfigError),
        ({"multiples": (1,), "trained_length": 20}, "leave no room for 6 pairs", ConfigError),
        ({"text_multiples": (2,), "trained_length": 64}, "no needles", ConfigError),
        ({"needle": long_values, "text_multiples": (1,), "trained_length": 64}, "several tokens", TaskError),
        ({"needle": needles(Vocabulary(text=16))}, "another vocabulary", TaskError),
        ({"text": [torch.tensor([5, 999])]}, "the text has id 999", TaskError),
        ({"rows": ["K77"]}, "no row K77", ConfigError),
        ({"n": 0}, "0 episodes", TaskError),
    ):
        options: dict[str, Any] = dict(wrong)
        with pytest.raises(error, match=words) as found:
            certified(options.pop("model", model), vocabulary, **options)
        assert "\n" not in str(found.value)
        assert isinstance(found.value, GroundThinkError)
        assert found.value.fix


def test_segments_change_nothing(hybrid: Callable, vocabulary: Vocabulary) -> None:
    model, ids = hybrid("GSGS"), torch.randint(64, (3, 150))
    with torch.no_grad():
        whole, after = model.prefill(ids)
        for segment in (1, 64, 77, 150):
            logits, snapshot = read(model, ids, segment)
            assert torch.allclose(logits, whole[:, -1], atol=1e-5)  # rounding of sums in another order
            assert torch.allclose(snapshot.layers[0]["memory"], after.layers[0]["memory"], atol=1e-5)
    rows, segment = block_shape(model, 10**6)
    assert rows * segment <= 2**13, "a long text is read in segments"


def test_snapshots_are_made_once(vocabulary: Vocabulary) -> None:
    """Every arm resumes from them; without room to keep them they are made again, with the same answers."""
    read_tokens = [0]

    class Counting(Gated):
        def resume(self, snapshot: Snapshot, ids: Tensor) -> tuple[Tensor, Snapshot]:
            read_tokens[0] += ids.numel()
            return super().resume(snapshot, ids)

    model = Counting("memory", vocabulary)
    questions = ask(KvRecall(vocabulary, n_pairs=PAIRS, distance="fixed:40"), n=33, seed=1)
    prefilled = Prefilled(model, questions, at=45)
    assert [len(block.prompts) for block in prefilled.blocks] == [31, 2], "nobody is alone"
    first = prefilled.base()
    once = read_tokens[0]
    assert once == 33 * 53
    for i in range(3):
        prefilled.said(f"arm {i}", lambda block: block.said(block.mine))
    assert read_tokens[0] - once == 3 * 33 * (53 - 45)
    assert torch.equal(prefilled.said("arm 0", lambda block: block.said(block.mine)), first)
    for block in prefilled.blocks:
        block.keep, block.kept = False, {}
    prefilled.blocks[0].kept = {"decided": None}  # type: ignore[dict-item]
    assert torch.equal(prefilled.said("again", lambda block: block.said(block.mine)), first)


def test_points_are_beyond_the_horizon() -> None:
    for horizon in (0, 4, 18):
        points = make_points(horizon, n_pairs=4, trained_length=128, multiples=(2, 8), text_multiples=(2,))
        assert [p.name for p in points] == ["R+1", "2R", "8R", "2x", "8x", "text-2x"]
        assert [p.cut for p in points] == [False, False, False, True, True, True]
        assert all(p.distance > horizon or p.name == "2R" for p in points)
        assert [p.length for p in points[3:]] == [256, 1024, 256]
    assert [p.cut for p in make_points(4, n_pairs=4)] == [False, False, True]


def at(point: str, **changed: ProbeResult) -> list[ProbeResult]:
    """Good rows of one length, with some in place of others."""
    names = ("recall", "follow/values", "keep/values", "factorial/phi", "factorial/leak")
    good = {n: row(f"{n}@{point}", float(n.split("/")[0] in ("recall", "follow") or n.endswith("phi"))) for n in names}
    return list({**good, **changed}.values())


@pytest.mark.parametrize(
    ("second", "verdict"),
    [
        ({}, "CERTIFIED"),
        ({"recall": row("recall@8x", 0.08, "fail")}, "PARTIAL"),
        ({"factorial/phi": row("factorial/phi@8x", 0.5, "fail")}, "PARTIAL"),
        ({"factorial/leak": row("factorial/leak@8x", 0.5, "fail")}, "PARTIAL"),
        (
            {
                "follow/values": row("follow/values@8x", 0.05, "fail"),
                "keep/values": row("keep/values@8x", 0.95, "fail"),
            },
            "REFUTED",
        ),
        ({"keep/values": row("keep/values@8x", 0.0, p=0.2)}, "PARTIAL"),
    ],
)
def test_the_overall_verdict_of_several_lengths(second: dict[str, ProbeResult], verdict: str) -> None:
    base = [r for r in GOOD if not r.name.startswith(("follow", "keep"))]
    found = judge([*base, *at("2x"), *at("8x", **second)], finite=True, cuts=("2x", "8x"), points=("2x", "8x"))
    assert found.verdict == verdict
    assert found.verdict in VERDICTS
    assert found.lengths[0]["verdict"] == "CERTIFIED"
    assert found.statements[CAUSALLY]["holds"] == (verdict == "CERTIFIED" or "recall" in second)


def test_full_attention_may_be_causally_supported(oracle: Callable, vocabulary: Vocabulary) -> None:
    found = certified(oracle("memory", horizon=math.inf), vocabulary)
    assert found.verdict == "NOT-PROVEN"
    assert not found.statements[BY_HORIZON]["holds"]
    assert found.statements[CAUSALLY]["holds"]
    none = certified(oracle("no_memory", horizon=math.inf), vocabulary)
    assert "there is no state to certify" in none.sentence
    assert not none.statements[CAUSALLY]["holds"]


def test_a_row_has_a_known_group() -> None:
    with pytest.raises(ValueError, match="no group"):
        Row("X", "x", "x?", "nowhere", lambda bench, point: iter(()))
