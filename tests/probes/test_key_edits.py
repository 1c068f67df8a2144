"""K3 and K4 on associative memories whose mechanism is known."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from groundthink.errors import ConfigError, StateError, TaskError
from groundthink.layers import freeze
from groundthink.model import Snapshot
from groundthink.probes import Erase, Questions, Rewrite, ask
from groundthink.probes.key_edits import edited, erase_rows, other_questions, rewrite_rows, write_keys
from groundthink.probes.prefilled import Prefilled
from groundthink.probes.transplant import at_boundary, boundary, donors, least_distance
from groundthink.records import ProbeResult, to_json
from groundthink.tasks import Vocabulary
from groundthink.tasks.kv_recall import KvRecall

HORIZON, N = 4, 120  # the upper bound of no change in 120 pairs is 2.3 points: enough for every threshold


class Associative:
    """S = sum of k v^T over pairs, read by the key: the delta rule where keys are orthogonal.

    kind: `memory` is honest; `elsewhere` reads a second matrix that no one edits; `fragile` answers
    only while its memory is as it wrote it; `lost` answers nothing; `fading` keeps half of S at each token of filler.
    """

    horizon = HORIZON

    def __init__(self, kind: str, vocabulary: Vocabulary) -> None:
        self.kind, self.vocabulary = kind, vocabulary
        self.sizes = SimpleNamespace(window_size=16, vocab_size=vocabulary.size)
        self.block = nn.Module()
        self.block.mixer = nn.Module()
        self.block.mixer.hook_k = nn.Identity()
        self.blocks = [self.block]

    def keys(self, tokens: Tensor) -> Tensor:
        """[B,T,1,K] of key tokens."""
        start, count = self.vocabulary.keys.start, len(self.vocabulary.keys)
        return torch.eye(count)[(tokens - start).clamp(0, count - 1)][:, :, None]

    def prefill(self, ids: Tensor) -> tuple[Tensor, Snapshot]:
        rows, keys, values = ids.shape[0], len(self.vocabulary.keys), self.vocabulary.size
        empty = torch.zeros(rows, 1, keys, values)
        state = freeze(memory=empty, notes=empty, last=torch.zeros(rows, 2, dtype=torch.int64))
        return self.resume(Snapshot((state,), torch.zeros(rows, dtype=torch.int64)), ids)

    def resume(self, snapshot: Snapshot, ids: Tensor) -> tuple[Tensor, Snapshot]:
        v, state = self.vocabulary, dict(snapshot.layers[0])
        past = torch.cat([state["last"], ids], 1)
        before = past[:, 1:-1]
        written = self.block.mixer.hook_k(self.keys(before))
        logits = torch.zeros(*ids.shape, v.size)
        for t in range(ids.shape[1]):
            is_key = (past[:, t + 1] >= v.keys.start) & (past[:, t + 1] < v.keys.stop)
            pair = is_key & (past[:, t] != v.query)
            write = torch.einsum("bhk,bv->bhkv", written[:, t], one_hot(ids[:, t], v.size).float() * pair[:, None])
            fade = 0.9 if self.kind == "fading" and int(ids[0, t]) in v.filler else 1.0
            for name in ("memory", "notes"):
                state[name] = fade * state[name] + write
            read = state["notes" if self.kind == "elsewhere" else "memory"]
            sane = (state["memory"] == state["notes"]).flatten(1).all(1) | (self.kind != "fragile")
            if self.kind != "lost":
                answer = torch.einsum("bhkv,bhk->bv", read, self.keys(ids[:, t : t + 1])[:, 0])
                logits[:, t] = answer * sane[:, None]
        state["last"] = past[:, -2:]
        return logits, Snapshot((freeze(**state),), snapshot.position + ids.shape[1])


@pytest.fixture
def task(vocabulary: Vocabulary) -> KvRecall:
    return KvRecall(vocabulary, n_pairs=6, distance=f"fixed:{least_distance(HORIZON)}")


@pytest.fixture
def questions(task: KvRecall) -> Questions:
    return ask(task, n=N, seed=1)


def rows_of(kind: str, task: KvRecall, questions: Questions) -> dict[str, ProbeResult]:
    model = Associative(kind, task.vocabulary)
    found = (
        *rewrite_rows(at_boundary(model, task, questions, horizon=HORIZON, seed=3), seed=3),
        *erase_rows(at_boundary(model, task, questions, horizon=HORIZON, seed=3), seed=3),
    )
    assert not model.block.mixer.hook_k._forward_hooks
    return {row.name: row for row in found}


@pytest.mark.parametrize("kind", ["memory", "fading"])
def test_an_honest_memory_is_edited_one_key_at_a_time(kind: str, task: KvRecall, questions: Questions) -> None:
    rows = rows_of(kind, task, questions)
    assert {row.verdict for row in rows.values()} == {"pass"}, rows
    assert (rows["rewrite/follow"].value, rows["rewrite/others"].value) == (1, 0)
    assert (rows["erase/target"].value, rows["erase/others"].value) == (0, 1)
    assert rows["rewrite/follow"].n == N
    assert json.loads(to_json(rows["rewrite/others"]))["details"]["intervention"] == "rewrite"
    assert not any(row.name.startswith(("follow/", "keep/")) for row in rows.values()), "those names decide verdicts"


def test_a_memory_for_show_does_not_follow(task: KvRecall, questions: Questions) -> None:
    rows = rows_of("elsewhere", task, questions)
    assert rows["rewrite/follow"].verdict == rows["erase/target"].verdict == "fail"
    assert (rows["rewrite/follow"].value, rows["erase/target"].value) == (0, 1)
    assert rows["rewrite/others"].verdict == rows["erase/others"].verdict == "pass"


def test_generic_damage_is_not_specific(task: KvRecall, questions: Questions) -> None:
    """Erasing one key makes it forget the target, as it should, and all the rest, as it should not."""
    rows = rows_of("fragile", task, questions)
    assert rows["erase/target"].verdict == "pass"
    assert rows["erase/others"].verdict == rows["rewrite/others"].verdict == "fail"
    assert rows["rewrite/others"].value == 1
    assert rows["erase/others"].details["other_before"]["rate"] == 1


def test_where_nothing_is_recalled_nothing_is_shown(task: KvRecall, questions: Questions) -> None:
    rows = rows_of("lost", task, questions)
    assert rows["rewrite/follow"].verdict == rows["erase/target"].verdict == rows["erase/others"].verdict == "fail"


def test_the_keys_are_those_of_the_pair(task: KvRecall, questions: Questions) -> None:
    model = Associative("memory", task.vocabulary)
    prompts, answers, places = other_questions(questions, seed=2)
    keys, snapshot = write_keys(model, questions.prompts, places)  # type: ignore[arg-type]
    asked = questions.prompts[:, -1]
    assert torch.equal(keys[0][:, 0].argmax(-1) + task.vocabulary.keys.start, asked)
    assert torch.equal(snapshot.position, torch.full((N,), questions.prompts.shape[1]))
    assert torch.equal(questions.prompts[torch.arange(N), places], questions.answers)
    assert not (prompts[:, -1] == asked).any()
    assert torch.equal(prompts[:, :-1], questions.prompts[:, :-1])
    said = model.prefill(prompts)[0][:, -1].argmax(-1)
    assert torch.equal(said, answers)
    assert torch.equal(other_questions(questions, seed=2)[0], prompts)
    assert not torch.equal(other_questions(questions, seed=3)[0], prompts)


def test_real_hybrids_are_edited(hybrid, task: KvRecall) -> None:  # type: ignore[no-untyped-def]
    """An untrained one recalls nothing, so it fails, but every tensor fits, and nothing is left behind."""
    questions = ask(task, n=6, seed=1)
    model = hybrid("GGS")
    prefilled = at_boundary(model, task, questions, horizon=HORIZON, seed=3)
    follow, _ = rewrite_rows(prefilled, seed=3)
    target, _ = erase_rows(prefilled, seed=3, edit=Erase(layers=(1,), heads=(0,)))
    assert follow.verdict == target.verdict == "fail"
    assert target.details["heads"] == (0,)
    assert not any(module._forward_hooks for module in model.modules())


def test_bad_input_is_one_line(hybrid, task: KvRecall, questions: Questions) -> None:  # type: ignore[no-untyped-def]
    at = boundary(questions, HORIZON)
    honest = Associative("memory", task.vocabulary)
    with pytest.raises(StateError, match="no layer writes"):
        edited(Prefilled(hybrid("A"), questions, at=at), Erase())
    with pytest.raises(ConfigError, match="layer 1 has no"):
        edited(Prefilled(hybrid("GS"), questions, at=at), Erase(layers=(1,)))
    with pytest.raises(TaskError, match="before the pair"):
        edited(Prefilled(honest, questions, at=2), Erase())  # type: ignore[arg-type]
    with pytest.raises(StateError, match="either a donor or values"):
        edited(Prefilled(honest, questions, at=at), Rewrite())  # type: ignore[arg-type]
    with pytest.raises(TaskError, match="there are no donors"):
        edited(Prefilled(honest, questions, at=at), Rewrite(), giver="one_key")  # type: ignore[arg-type]
    others = donors(task, ask(task, n=N, seed=9), kind="one_key", seed=1)
    with pytest.raises(TaskError, match="after the boundary"):
        edited(Prefilled(honest, questions, at=at, giver=lambda kind: others), Rewrite(), giver="one_key")  # type: ignore[arg-type]
    with pytest.raises(TaskError, match="another one"):
        other_questions(ask(task.with_options(n_pairs=1), n=2, seed=1), seed=0)
