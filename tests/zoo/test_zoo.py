"""The cheater zoo: the certificate's word on mechanisms that are known, over three seeds of codes and episodes.

Accuracy alone passes a leak, "beyond the window" passes a relay, zeroing condemns whatever needs a memory of some
size. Each of those mistakes has an animal here.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor

from groundthink.probes import Intervention, Questions, Transplant, Zero, ask, causality, certify
from groundthink.probes.causality import shortest_text, suffix_change
from groundthink.probes.recall import answers_of, top
from groundthink.probes.transplant import donors
from groundthink.probes.verdict import BY_HORIZON, CAUSALLY
from groundthink.records import Certificate
from groundthink.tasks import Query
from groundthink.tasks.kv_recall import KvRecall
from zoo import animals
from zoo.anatomy import N_PAIRS, PAIRS_END, VOCABULARY, WINDOW, Animal
from zoo.leaks import FIVE, plant

SEEDS = (0, 1, 2)
# Mechanisms are exact, so few episodes do: of 60, the bounds of 1 and 0 are 0.94 and 0.06, and of a half 0.37 to 0.63.
N = 60


REWRITE, ERASE, READERS = "rewrite/follow@8R", "erase/target@8R", "readers/follow@8R"
EDITED = {REWRITE: "pass", "rewrite/others@8R": "pass", ERASE: "pass", "erase/others@8R": "pass"}
NOT_EDITED = {REWRITE: "fail", ERASE: "fail"}


@dataclasses.dataclass(frozen=True)
class Exhibit:
    """What the certificate has to say of an animal.

    Attributes:
        build: seed to model.
        verdict: the right one.
        says: words of the sentence: the right verdict for the wrong reason is wrong.
        rows: further rows that must have this verdict.
        by_horizon: whether it follows from distances alone that some state carried the answer; None leaves it open.
    """

    build: Callable[[int], Animal]
    verdict: str
    says: str
    rows: Mapping[str, str] = dataclasses.field(default_factory=dict)
    by_horizon: bool | None = False

    @property
    def name(self) -> str:
        return self.build.__name__


FOLLOWS, KEEPS, CHANCE = "answers from that one in 1.000", "keeps the old answer in 1.000", "is not above chance"
FUTURE = "moves earlier logits"
EXHIBITS = (
    Exhibit(animals.honest_state, "CERTIFIED", FOLLOWS, EDITED, by_horizon=True),
    Exhibit(animals.honest_hybrid, "CERTIFIED", FOLLOWS, {**EDITED, READERS: "pass"}, by_horizon=True),
    Exhibit(animals.window_only, "NOT-PROVEN", CHANCE, {**NOT_EDITED, "window-share": "fail"}),
    Exhibit(animals.relay, "NOT-PROVEN", CHANCE, NOT_EDITED),
    Exhibit(animals.fragile_norm, "NOT-PROVEN", CHANCE, {**NOT_EDITED, READERS: "fail"}),
    Exhibit(animals.memorised_map, "TASK-FAIL", "even inside the window"),
    Exhibit(animals.label_leak, "INVALID", FUTURE),
    Exhibit(animals.late_leak, "INVALID", FUTURE),
    # A table beside the memory is a state too, so "some state" is true; from outside it might be a longer reach.
    Exhibit(animals.side_notes, "REFUTED", KEEPS, NOT_EDITED, by_horizon=None),
    Exhibit(animals.half_leak, "PARTIAL", "of its recall follows the memory", NOT_EDITED, by_horizon=True),
    # Some state carried it, the memory in truth; that a later layer read it there is refuted.
    Exhibit(animals.writer_for_reader, "CERTIFIED", FOLLOWS, {**EDITED, READERS: "fail"}, by_horizon=True),
    # Pairs are not written where they stand, so an edit under the keys heard there misses them; a transplant does not.
    Exhibit(animals.late_writer, "CERTIFIED", FOLLOWS, NOT_EDITED, by_horizon=True),
    # a leak that opens only where a question is answered
    Exhibit(animals.label_leak_at_cues, "INVALID", FUTURE),
    # windows may write an old answer back into memory for R more tokens
    Exhibit(animals.write_back, "CERTIFIED", FOLLOWS, by_horizon=True),
    # refuted, so nothing follows from the horizon that the model states
    Exhibit(animals.understated_horizon, "REFUTED", KEEPS, NOT_EDITED, by_horizon=False),
)
ZOO = {exhibit.name: exhibit for exhibit in EXHIBITS}
NAMES = [exhibit.name for exhibit in EXHIBITS]


@functools.cache
def certificate_of(name: str, seed: int) -> Certificate:
    return certify(ZOO[name].build(seed), vocabulary=VOCABULARY, n_pairs=N_PAIRS, n=N, seed=seed)


def check(found: Certificate, exhibit: Exhibit) -> None:
    """Verdict, reason, rows and statements are those of the exhibit."""
    assert found.verdict == exhibit.verdict, found.sentence
    assert exhibit.says in found.sentence
    assert {name: found.result(name).verdict for name in exhibit.rows} == exhibit.rows
    holds = {name: statement["holds"] for name, statement in found.statements.items()}
    assert holds[CAUSALLY] == (exhibit.verdict == "CERTIFIED"), CAUSALLY
    assert exhibit.by_horizon in (None, holds[BY_HORIZON]), BY_HORIZON


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", NAMES)
def test_every_animal_gets_its_verdict(name: str, seed: int) -> None:
    check(certificate_of(name, seed), ZOO[name])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("leak", FIVE)
def test_every_leak_is_caught(leak: str, seed: int) -> None:
    """By changing the text and by the gradient, and nothing is asked of such a model."""
    model = plant(animals.honest_hybrid(seed), leak)
    length = shortest_text(WINDOW) + 5
    ids = torch.randint(VOCABULARY.size, (2, length), generator=torch.Generator().manual_seed(seed))
    rows = {row.name: row for row in causality(model, ids, seed=seed)}
    for name in ("causality/suffix", "causality/gradient"):
        assert rows[name].verdict == "fail", rows[name]
        assert rows[name].value > 0
    found = certify(model, vocabulary=VOCABULARY, n_pairs=N_PAIRS, n=N, seed=seed)
    assert found.verdict == "INVALID", found.sentence
    assert "moves earlier logits" in found.sentence
    assert not any(row.name.startswith(("recall", "follow")) for row in found.results)


# --- the zoo itself is tested ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["honest_state", "honest_hybrid", "writer_for_reader"])
@pytest.mark.parametrize("cheat", ["NOT-PROVEN", "REFUTED", "INVALID"])
def test_an_honest_model_labelled_as_a_cheater_turns_the_suite_red(name: str, cheat: str) -> None:
    wrong = dataclasses.replace(ZOO[name], verdict=cheat)
    with pytest.raises(AssertionError, match="CERTIFIED"):
        check(certificate_of(name, 0), wrong)


@pytest.mark.parametrize("name", ["side_notes", "label_leak", "relay"])
def test_a_cheater_labelled_as_honest_turns_the_suite_red(name: str) -> None:
    with pytest.raises(AssertionError, match=ZOO[name].verdict):
        check(certificate_of(name, 0), dataclasses.replace(ZOO[name], verdict="CERTIFIED"))
    with pytest.raises(AssertionError, match=FOLLOWS):
        check(certificate_of(name, 0), dataclasses.replace(ZOO[name], says=FOLLOWS))


def test_a_wrong_row_or_statement_turns_the_suite_red() -> None:
    found, exhibit = certificate_of("writer_for_reader", 0), ZOO["writer_for_reader"]
    with pytest.raises(AssertionError, match=READERS):
        check(found, dataclasses.replace(exhibit, rows={READERS: "pass"}))
    with pytest.raises(AssertionError, match=BY_HORIZON):
        check(found, dataclasses.replace(exhibit, by_horizon=False))


def questions_at(distance: int, *, seed: int, accept: Callable | None = None) -> tuple[KvRecall, Questions]:
    task = KvRecall(VOCABULARY, n_pairs=N_PAIRS, distance=f"fixed:{distance}")
    return task, ask(task, n=N, seed=seed, accept=accept)


def share(said: Tensor, answers: Tensor) -> float:
    return float((said == answers).float().mean())


def after(
    model: Animal, distance: int, at: int, change: Intervention, *, seed: int, accept: Callable | None = None
) -> tuple[float, float, float]:
    """Shares of answers that are right untouched, still right after a change at `at`, and the donor's after it."""
    task, questions = questions_at(distance, seed=seed, accept=accept)
    giver = donors(task, questions, kind="values", seed=seed)
    with torch.no_grad():
        mine, theirs = (model.prefill(q.prompts[:, :at])[1] for q in (questions, giver))
        rest = questions.prompts[:, at:]
        plain, changed = (top(model.resume(s, rest)[0][:, -1]) for s in (mine, change(mine, theirs)))
    return share(plain, questions.answers), share(changed, questions.answers), share(changed, giver.answers)


@pytest.mark.parametrize(("name", "zeroed"), [("relay", 1), ("fragile_norm", 0)])
def test_beyond_one_window_is_no_proof(name: str, zeroed: float) -> None:
    """A relay recalls at more than a window, and a zeroed memory stops it if it needs one of some size."""
    model = ZOO[name].build(0)
    reach, at = int(model.horizon), PAIRS_END + 3
    assert reach > 2 * WINDOW

    def within(query: Query) -> bool:
        return WINDOW < (query.distance or 0) < reach  # the last of the reach is the convolution's, for the key

    assert after(model, WINDOW + 1, at, Transplant(), seed=0, accept=within) == (1, 1, 0)
    assert after(model, WINDOW + 1, at, Zero(), seed=0, accept=within) == (1, zeroed, 0)


def test_zeroing_takes_the_half_leak_for_a_memory() -> None:
    model, at = animals.half_leak(0), PAIRS_END + 20
    plain, zeroed, _ = after(model, 40, at, Zero(), seed=0)
    assert plain == 1
    assert 0.3 < zeroed < 0.7  # 3 sigma of 60
    assert after(model, 40, at, Transplant(), seed=0) == pytest.approx((1, zeroed, 1 - zeroed))


def test_a_swap_behind_the_pairs_is_undone_by_a_window() -> None:
    """The window still holds the old pairs and writes them over the donor's: the honest would be condemned."""
    model = animals.late_writer(0)
    reach = int(model.horizon)
    assert after(model, 8 * reach, PAIRS_END, Transplant(), seed=0) == (1, 1, 0)
    assert after(model, 8 * reach, PAIRS_END + reach + 1, Transplant(), seed=0) == (1, 0, 1)


def test_a_window_writes_back_for_one_lag() -> None:
    """R before the question is too late for a swap: what the window wrote since then has not been written over."""
    model = animals.write_back(0)
    reach = int(model.horizon)
    distance = 8 * reach
    end = PAIRS_END + distance - 2  # where the question begins
    assert after(model, distance, end - 2 * reach - 2, Transplant(), seed=0) == (1, 0, 1)
    assert after(model, distance, end - reach, Transplant(), seed=0)[1] > 0.5


def test_a_leak_at_cues_is_caught_where_there_is_an_answer() -> None:
    """Changing the text from an answer on moves the logits of its cue."""
    task = KvRecall(VOCABULARY, n_pairs=8, n_queries=4, distance="fixed:20")
    episodes = list(task.episodes(0, "test", 3))
    ids = torch.stack([torch.from_numpy(episode.tokens) for episode in episodes])
    answers = [query.query_position + 1 for query in episodes[0].queries]
    assert suffix_change(animals.honest_hybrid(0), ids, positions=answers).passed
    leaky = animals.label_leak_at_cues(0)
    assert not suffix_change(leaky, ids, positions=answers).passed
    assert suffix_change(leaky, ids, positions=[at + 1 for at in answers]).passed, "nowhere else"


def test_the_map_is_known_by_heart() -> None:
    """The memoriser answers its own map, and only that one."""
    model = animals.memorised_map(0)
    _, questions = questions_at(40, seed=0)
    keys = torch.tensor([episode.queries[0].key[-1] for episode in questions.episodes]) - VOCABULARY.keys.start
    known = model.blocks[2].mixer.table[keys] + VOCABULARY.values.start - 1  # type: ignore[index, union-attr]
    assert share(answers_of(model, questions.prompts), known) == 1
    assert share(answers_of(model, questions.prompts), questions.answers) < 0.1  # guessing: 1 in 64
