"""Every row of the certificate says pass of an honest mechanism and catches a planted fault."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from groundthink.errors import ConfigError
from groundthink.model import HybridForCausalLM, ModelConfig, Snapshot
from groundthink.probes import DIAGNOSTICS, ROWS, Bench, LowRank, ask_row, make_bench
from groundthink.probes.prefilled import Block, Prefilled
from groundthink.probes.recall import Recalled, ask
from groundthink.probes.row_beside import harness_row
from groundthink.probes.row_distance import narrowed
from groundthink.probes.row_rank import effective_rank
from groundthink.probes.row_text import gains
from groundthink.probes.rows import chosen_rows
from groundthink.records import ProbeResult, Proportion
from groundthink.tasks import Episode, Vocabulary
from groundthink.tasks.kv_recall import KvRecall
from tests.probes.mechanisms import Gated

N, PAIRS = 120, 6  # the upper bound of no change in 120 pairs is 2.3 points: enough for every threshold


def bench_of(model: Any, vocabulary: Vocabulary, **options: Any) -> Bench:
    return make_bench(model, {}, **{"vocabulary": vocabulary, "n_pairs": PAIRS, "n": N, "seed": 1, **options})


def rows_of(name: str, model: Any, vocabulary: Vocabulary, **options: Any) -> dict[str, ProbeResult]:
    return {row.name: row for row in ask_row(bench_of(model, vocabulary, **options), name)}


def verdicts(found: dict[str, ProbeResult], names: Sequence[str] = ()) -> set[str]:
    return {row.verdict for name, row in found.items() if not names or name.startswith(tuple(names))}


def test_the_registry_is_whole() -> None:
    ids = [row.id for row in ROWS.values()]
    assert len(set(ids)) == len(ids)
    evals = {
        "C0",
        "C0n",
        "C1",
        "C2",
        "C3",
        "C4",
        *(f"B{i}" for i in range(1, 6)),
        *(f"K{i}" for i in range(1, 10)),
        "N1",
    }
    assert evals <= set(ids)
    assert all(row.question.endswith("?") and row.title for row in ROWS.values())
    core = {row.id for row in chosen_rows("core")}
    assert {"C0", "C1", "C2", "C3", "B1", "K1", "K2"} <= core < set(ids)
    assert {row.id for row in chosen_rows(["core", "K5", "rank"])} == core | {"K5", "K8"}
    diagnostics = {row.id for row in ROWS.values() if row.group == "diagnostic"}
    assert {row.id for row in chosen_rows("full")} == set(ids) - diagnostics, "a diagnostic moves no certificate"
    assert len(diagnostics) == len(DIAGNOSTICS)
    with pytest.raises(ConfigError, match="no row K99"):
        chosen_rows(["K99"])
    with pytest.raises(ConfigError, match="no row"):
        list(ask_row(SimpleNamespace(points=()), "nothing"))  # type: ignore[arg-type]


def test_a_leak_of_a_hundredth_of_a_logit_costs_nats(oracle: Callable, vocabulary: Vocabulary) -> None:
    long = {"trained_length": 100, "multiples": (2,)}
    honest = rows_of("leak", oracle("memory"), vocabulary, **long)["leak/episodes"]
    assert honest.verdict == "pass"
    assert abs(honest.value) < 1e-6  # rounding of logits near 1
    assert honest.n is not None
    assert honest.n >= 50_000 * N // 400
    leaking = rows_of("leak", oracle("future"), vocabulary)["leak/episodes"]
    assert leaking.verdict == "fail"
    assert 0.005 < leaking.value < 0.02


class FixedMap(KvRecall):
    """Planted: every key has one value for ever."""

    def episode(self, generator: np.random.Generator, split: str) -> Episode:
        episode = super().episode(generator, split)
        keys = episode.tokens[1 : 1 + 2 * self.n_pairs : 2].tolist()
        return self._rebind(episode, {key: self._value(key) for key in keys})

    def _value(self, key: int) -> int:
        return self.vocabulary.values.start + key - self.vocabulary.keys.start


class Memorised:
    """Answers by the map of `FixedMap`, without looking."""

    horizon = 4

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.sizes = SimpleNamespace(window_size=16, vocab_size=vocabulary.size)

    def prefill(self, ids: Tensor) -> tuple[Tensor, Snapshot]:
        shift = self.vocabulary.values.start - self.vocabulary.keys.start
        logits = torch.nn.functional.one_hot((ids + shift).clamp_max(self.vocabulary.size - 1), self.vocabulary.size)
        return logits.float(), Snapshot((), torch.zeros(len(ids), dtype=torch.int64))

    def resume(self, snapshot: Snapshot, ids: Tensor) -> tuple[Tensor, Snapshot]:
        return self.prefill(ids)


def test_data_that_give_the_answer_away_are_caught(oracle: Callable, vocabulary: Vocabulary) -> None:
    honest = rows_of("data", oracle("memory"), vocabulary)
    assert verdicts(honest) == {"pass"}
    model = Memorised(vocabulary)
    planted = dataclasses.replace(
        bench_of(model, vocabulary), task=FixedMap(vocabulary, n_pairs=PAIRS, distance="fixed:2")
    )
    found = {row.name: row for row in ask_row(planted, "data")}
    assert verdicts(found) == {"fail"}
    assert "keys keep their values" in found["data/episodes"].meaning


def test_an_untrained_model_that_recalls_breaks_the_harness(
    hybrid: Callable, oracle: Callable, vocabulary: Vocabulary
) -> None:
    found = rows_of("untrained", hybrid("GS"), vocabulary)
    assert verdicts(found) == {"pass"}
    assert rows_of("untrained", oracle("memory"), vocabulary)["harness/untrained"].details["not_run"]
    planted = oracle("memory")
    planted.untrained = lambda seed: oracle("memory")
    assert verdicts(rows_of("untrained", planted, vocabulary)) == {"fail"}


@pytest.mark.parametrize(
    ("hits", "n", "verdict"), [(0, 400, "pass"), (12, 60, "info"), (40, 60, "fail"), (150, 400, "fail")]
)
def test_few_episodes_are_called_undecided(
    oracle: Callable, vocabulary: Vocabulary, hits: int, n: int, verdict: str
) -> None:
    questions = bench_of(oracle("memory"), vocabulary).near
    row = harness_row("harness/x", Recalled(Proportion(hits, n), 0, n - hits), questions, "x")
    assert row.verdict == verdict
    assert ("too few" in row.meaning) == (verdict == "info")


class FirstValue(Memorised):
    """Planted salience: says the first stored value, whatever is asked."""

    def prefill(self, ids: Tensor) -> tuple[Tensor, Snapshot]:
        logits = torch.zeros(*ids.shape, self.vocabulary.size)
        logits[torch.arange(len(ids)), -1, ids[:, 2]] = 1
        return logits, Snapshot((), torch.zeros(len(ids), dtype=torch.int64))


def test_salience_is_no_association(oracle: Callable, vocabulary: Vocabulary) -> None:
    for name in ("recall", "confusion"):
        assert verdicts(rows_of(name, oracle("memory"), vocabulary)) == {"pass"}
    bench = bench_of(FirstValue(vocabulary), vocabulary)
    points = [point for point in bench.points if not point.cut]
    for name in ("recall", "confusion"):
        assert {row.verdict for p in points for row in ROWS[name].run(bench, p)} == {"fail"}


def test_the_share_of_the_window_is_no_recall(oracle: Callable, vocabulary: Vocabulary) -> None:
    assert verdicts(rows_of("share", oracle("memory"), vocabulary)) == {"pass"}
    assert verdicts(rows_of("share", oracle("window", horizon=15), vocabulary)) == {"fail"}


def test_a_cliff_at_the_window_is_flagged(oracle: Callable, vocabulary: Vocabulary) -> None:
    assert verdicts(rows_of("distance", oracle("memory"), vocabulary)) == {"info"}
    found = rows_of("distance", oracle("window", horizon=15), vocabulary)["distance-curve"]
    assert found.verdict == "fail"
    assert found.details["cliffs"] == ["from 15 to 16 tokens"]
    assert found.low is None


def test_narrowed_windows_are_those_of_a_narrower_model(hybrid: Callable, vocabulary: Vocabulary) -> None:
    model, ids = hybrid("GSA"), torch.randint(64, (2, 40))
    narrow = HybridForCausalLM(ModelConfig(**{**model.sizes.to_dict(), "window_size": 5})).eval()
    narrow.load_state_dict(model.state_dict())
    with torch.no_grad():
        before = model.prefill(ids)[0]
        with narrowed(model, 5):
            assert torch.equal(model.prefill(ids)[0], narrow.prefill(ids)[0])
        with narrowed(model, 0):
            assert not torch.equal(model.prefill(ids)[0], before)
        assert torch.equal(model.prefill(ids)[0], before)
    assert not any(module._forward_hooks for module in model.modules())
    assert verdicts(rows_of("windows", model, vocabulary)) == {"pass"}


def test_recall_that_hangs_on_the_window_is_caught(oracle: Callable, vocabulary: Vocabulary) -> None:
    @dataclasses.dataclass
    class Config:
        window_size: int = 16

    class Hanging(type(oracle("memory"))):  # type: ignore[misc]
        def resume(self, snapshot: Snapshot, ids: Tensor) -> tuple[Tensor, Snapshot]:
            logits, after = super().resume(snapshot, ids)
            return logits * (self.mixer.config.window_size > 8), after

    model = Hanging("memory")
    model.mixer = nn.Module()
    model.mixer.config, model.mixer.hook_local = Config(), nn.Identity()
    model.blocks = [SimpleNamespace(get_submodule=lambda path: model.mixer.hook_local if "local" in path else None)]
    model.blocks[0].mixer = model.mixer
    found = rows_of("windows", model, vocabulary)
    assert found["windows/8"].verdict == found["windows/4"].verdict == "fail"
    assert found["windows/8"].value == 1
    assert model.mixer.config.window_size == 16


def test_the_factorial_tells_memory_from_windows(oracle: Callable, vocabulary: Vocabulary) -> None:
    expected = {"memory": (1.0, 0.0), "elsewhere": (0.0, 1.0), "half": (0.5, 0.5)}
    for kind, (memory, rest) in expected.items():
        found = rows_of("factorial", oracle(kind), vocabulary)["factorial/phi@8R"]
        assert found.details["phi_S"] == pytest.approx(memory, abs=0.15)  # half of 32 random keys is not half of 120
        assert found.details["phi_rest"] == pytest.approx(rest, abs=0.15)
        assert found.verdict == ("pass" if kind == "memory" else "fail")


class Stubborn:
    """Planted: a leak beside the snapshot, so that whatever is swapped, the old answer stays."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.sizes, self.horizon = inner, inner.sizes, inner.horizon
        self.answers: dict[tuple[int, ...], int] = {}

    def prefill(self, ids: Tensor) -> tuple[Tensor, Snapshot]:
        return self.inner.prefill(ids)

    def resume(self, snapshot: Snapshot, ids: Tensor) -> tuple[Tensor, Snapshot]:
        logits, after = self.inner.resume(snapshot, ids)
        for row, tokens in enumerate(ids.tolist()):
            logits[row, -1, self.answers.setdefault(tuple(tokens), int(logits[row, -1].argmax()))] += 5
        return logits, after


def test_what_stays_when_everything_is_swapped_is_a_leak(oracle: Callable, vocabulary: Vocabulary) -> None:
    assert rows_of("factorial", oracle("memory"), vocabulary)["factorial/leak@8R"].value == 0
    bench = bench_of(Stubborn(oracle("memory")), vocabulary)
    list(ask_row(bench, "recall"))
    found = {row.name: row for row in ask_row(bench, "factorial")}["factorial/leak@8R"]
    assert (found.verdict, found.value) == ("fail", 1)


def test_necessity_comes_with_its_control(vocabulary: Vocabulary) -> None:
    honest = rows_of("necessity", Gated("memory", vocabulary), vocabulary)
    assert verdicts(honest) == {"pass"}, honest
    assert len(honest) == 4
    kept = rows_of("necessity", Gated("elsewhere", vocabulary), vocabulary)
    assert verdicts(kept) == {"fail"}
    assert kept["necessity/zero@8R"].value == 1
    fragile = rows_of("necessity", Gated("fragile", vocabulary), vocabulary)["necessity/zero@8R"]
    assert fragile.value == 0, "zeroing alone would call it a state"
    assert fragile.details["mcnemar"] < 1e-6


def test_blocked_writes_leave_nothing(vocabulary: Vocabulary) -> None:
    honest = rows_of("writes", Gated("memory", vocabulary), vocabulary)
    assert verdicts(honest) == {"pass"}
    assert honest["writes/frozen@8R"].details["gain"] == 0
    assert verdicts(rows_of("writes", Gated("elsewhere", vocabulary), vocabulary), ["writes/blocked"]) == {"fail"}
    fading = rows_of("writes", Gated("forgets", vocabulary), vocabulary, trained_length=70, multiples=(1,))
    assert fading["writes/frozen@1x"].details["gain"] == 1, "what the filler cost"


def test_edits_and_readers_are_asked_at_every_length(vocabulary: Vocabulary) -> None:
    honest, model = {}, Gated("memory", vocabulary)
    for name in ("rewrite", "erase"):
        honest |= rows_of(name, model, vocabulary, trained_length=30, multiples=(1, 2))
        shown = rows_of(name, Gated("elsewhere", vocabulary), vocabulary)
        assert verdicts(shown, [f"{name}/follow", f"{name}/target"]) == {"fail"}
    assert {name.partition("@")[2] for name in honest} == {"1x", "2x"}
    assert verdicts(honest) == {"pass"}
    assert rows_of("readers", model, vocabulary)["readers/none@8R"].verdict == "info"


def test_the_head_that_answers_is_found(vocabulary: Vocabulary) -> None:
    found = rows_of("heads", Gated("memory", vocabulary), vocabulary)["heads@8R"]
    assert found.details["chosen"] == [[0, 1]]
    assert found.details["alone"] == {"(0, 0)": 0.0, "(0, 1)": 1.0}
    assert found.details["left_out"] == {"(0, 0)": 1.0, "(0, 1)": 0.0}
    assert found.details["random"] == [0.0]


def test_rank_and_bits(vocabulary: Vocabulary) -> None:
    found = rows_of("rank", Gated("memory", vocabulary), vocabulary)
    assert found["rank@8R"].value == 8, "six pairs are six directions"
    assert found["rank@8R"].details["effective_rank"] == {"0": [pytest.approx(6), pytest.approx(6)]}
    assert found["bits@8R"].value == 2, "ones and zeros take two"
    assert effective_rank(torch.eye(5)[None]).tolist() == [pytest.approx(5)]
    assert effective_rank(torch.zeros(1, 3, 3)).tolist() == [0]
    assert effective_rank(torch.diag(torch.tensor([1.0, 0, 0]))[None]).tolist() == [pytest.approx(1)]


def test_the_memory_holds_the_fact_from_then_on(vocabulary: Vocabulary) -> None:
    honest = rows_of("time", Gated("memory", vocabulary), vocabulary)["time@8R"]
    assert honest.verdict == "pass"
    assert honest.details["before"]["hits"] == 0
    assert honest.details["before"]["n"] > 20
    assert {share["rate"] for share in honest.details["after"].values()} == {1.0}
    assert verdicts(rows_of("time", Gated("elsewhere", vocabulary), vocabulary)) == {"fail"}


def test_text_is_worth_nothing_to_what_has_no_memory(hybrid: Callable, vocabulary: Vocabulary) -> None:
    ids = torch.randint(16, (3, 400), generator=torch.Generator().manual_seed(1))
    for pattern, memory in (("A", False), ("AA", False), ("GS", True)):
        model = hybrid(pattern)
        fresh = int(model.horizon) + 1
        found = gains(model, ids, [99, 199, 299], fresh)
        assert found.shape == (3, 96)
        # Rotary positions differ between the two readings, so rounding does; a memory moves far more.
        assert (float(found.abs().max()) > 1e-2) == memory
        assert (float(found.abs().max()) < 1e-3) != memory


def test_text_rows_need_text(hybrid: Callable, vocabulary: Vocabulary) -> None:
    model = hybrid("GS")
    assert rows_of("text", model, vocabulary)["text"].details["not_run"] == "no text"
    texts = [torch.randint(16, (300,), generator=torch.Generator().manual_seed(i)) for i in range(4)]
    found = rows_of("text", model, vocabulary, text=texts)
    assert found["text/all"].n == found["text/recalls"].n == 4
    assert found["text/all"].details["fresh_start"] == model.horizon + 1
    short = rows_of("text", model, vocabulary, text=[t[:30] for t in texts])
    assert "fewer than two documents" in short["text"].meaning


class FirstWins(Gated):
    """Planted: what was bound first stays."""

    @staticmethod
    def _write(memory: Tensor, key: Tensor, value: Tensor, beta: Tensor) -> Tensor:
        free = torch.einsum("bhkv,bhk->bhv", memory, key).abs().sum(-1) == 0
        return Gated._write(memory, key, value, beta * free)


def test_tasks_beside(vocabulary: Vocabulary) -> None:
    honest = Gated("memory", vocabulary)
    found = rows_of("overwrite", honest, vocabulary)["overwrite"]
    assert (found.value, found.details["stale"]["rate"]) == (1, 0)
    stale = rows_of("overwrite", FirstWins("memory", vocabulary), vocabulary)["overwrite"]
    assert (stale.value, stale.details["stale"]["rate"]) == (0, 1)
    assert rows_of("absent", honest, vocabulary)["absent"].value == 0
    assert rows_of("slots", honest, vocabulary)["slots@8R"].value == 0
    assert rows_of("shift", honest, vocabulary)["shift"].value == 1
    assert rows_of("capacity", honest, vocabulary)["capacity"].details["n50"] is None
    assert rows_of("compositional", honest, vocabulary)["compositional"].chance == 0.25


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("n", [1, 5, 31, 32, 33, 99, None])
def test_the_first_questions_are_exactly_as_many_as_asked_for(
    vocabulary: Vocabulary, n: int | None, keep: bool
) -> None:
    """Also where they end inside a block, whether its snapshots are kept or made again."""
    questions = ask(KvRecall(vocabulary, n_pairs=PAIRS, distance="fixed:10"), n=33, seed=1)
    prefilled = Prefilled(Gated("memory", vocabulary), questions, at=14, giver=lambda kind: questions)
    assert [len(block.prompts) for block in prefilled.blocks] == [31, 2]
    answers, wanted = prefilled.base(), 33 if n is None else min(n, 33)
    for block in prefilled.blocks:
        block.keep, block.kept = keep, block.kept if keep else {}
    if not keep:
        prefilled.blocks[0].kept = {"decided": prefilled.blocks[0].snapshot("given")}

    def whole(block: Block) -> tuple[Tensor, Tensor, Tensor]:
        rows = len(block.prompts)
        assert block.rows.stop - block.rows.start == block.mine.batch_size == rows
        return block.prompts, block.text("given"), block.said(block.mine)

    prompts, given, said = (torch.cat(parts) for parts in zip(*prefilled.map(whole, n), strict=True))
    assert torch.equal(prompts, questions.prompts[:wanted])
    assert torch.equal(given, prompts)
    assert torch.equal(said, answers[:wanted])
    assert [len(block.prompts) for block in prefilled.blocks] == [31, 2], "cutting changed the blocks"


def test_a_block_that_is_not_cut_is_seen(monkeypatch: pytest.MonkeyPatch, vocabulary: Vocabulary) -> None:
    """Planted fault: the whole block is handed over where the questions end inside it."""
    monkeypatch.setattr(Block, "head", lambda block, n: block)
    with pytest.raises(AssertionError):
        test_the_first_questions_are_exactly_as_many_as_asked_for(vocabulary, 5, keep=True)


def test_the_rank_row_answers_as_the_intervention_does(vocabulary: Vocabulary) -> None:
    bench = bench_of(Gated("memory", vocabulary), vocabulary)
    rows = list(ask_row(bench, "rank"))
    prefilled, n = bench.prefilled(bench.shortest), N // 4
    assert rows[0].n == n

    def never(block: Block) -> Tensor:
        raise AssertionError("the row has asked this already")

    differ = 0
    for rank in (1, 2, 4):
        asked = torch.cat(prefilled.map(lambda b, r=rank: b.said(LowRank(rank=r)(b.mine)), n))  # type: ignore[misc]
        assert torch.equal(prefilled.said(f"rank {rank}", never, n=n), asked)
        differ += int((asked != prefilled.base()[:n]).sum())
    assert differ, "a memory of lower rank changes no answer here, so the check says nothing"
