"""Two memories with the same writes: what one side reads is told from what the other does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from groundthink.errors import ConfigError, StateError
from groundthink.model import HybridForCausalLM, Snapshot
from groundthink.probes import ask, cut_own_reads, cut_reads, transplant
from groundthink.probes.readers import reader_rows, resume_split, second_memory
from groundthink.probes.transplant import at_boundary, donors, least_distance
from groundthink.tasks import Vocabulary
from groundthink.tasks.kv_recall import KvRecall

Hybrid = Callable[..., HybridForCausalLM]
REST = torch.randint(64, (3, 70), generator=torch.Generator().manual_seed(5))  # more than a chunk of 64


def pair(model: HybridForCausalLM) -> tuple[Snapshot, Snapshot]:
    with torch.no_grad():
        return tuple(model.prefill(torch.randint(64, (3, 20)))[1] for _ in range(2))  # type: ignore[return-value]


def split(model: HybridForCausalLM, a: Snapshot, b: Snapshot, side: str) -> Tensor:
    with torch.no_grad():
        return resume_split(model, a, b, REST, side=side)


def whole(model: HybridForCausalLM, snapshot: Snapshot) -> Tensor:
    with torch.no_grad():
        return model.resume(snapshot, REST)[0]


@pytest.mark.parametrize("options", [{}, {"error": "raw"}, {"n_value_heads": 4}, {"backend": "reference"}])
def test_two_equal_memories_are_one(hybrid: Hybrid, options: dict) -> None:
    model = hybrid("GSGS", read_sources="all", **options)
    a, b = pair(model)
    for side in ("readers", "writer"):
        assert torch.equal(split(model, a, a, side), whole(model, a))
        assert not torch.equal(split(model, a, b, side), whole(model, a))
        assert not torch.equal(split(model, a, b, side), whole(model, transplant(a, b)))


def test_each_side_hears_its_own_memory_only(hybrid: Hybrid) -> None:
    """With one kind of read cut, donating to the other kind is donating to both, and to the cut one nothing at all."""
    model = hybrid("GSGS")
    a, b = pair(model)
    for cut, cut_side, live_side in ((cut_reads, "readers", "writer"), (cut_own_reads, "writer", "readers")):
        with cut(model):
            assert torch.equal(split(model, a, b, live_side), whole(model, transplant(a, b)))
            assert torch.equal(split(model, a, b, cut_side), whole(model, a))


def test_the_second_memory_sees_the_same_writes(hybrid: Hybrid) -> None:
    """Read by hand: what later layers get is the donor's state after the recipient's keys, values and gates."""
    model = hybrid("GS", backend="reference")
    a, b = pair(model)
    read: list[Tensor] = []
    handle = model.blocks[1].mixer.reader.register_forward_pre_hook(
        lambda _m, given: read.append(given[1].memories[-1].final_state)
    )
    split(model, a, b, "readers")
    split(model, a, a, "readers")
    zero = transplant(a, b).replace(0, memory=b.layers[0]["memory"] - a.layers[0]["memory"])
    inputs: dict[str, Tensor] = {}
    mixer = model.blocks[0].mixer
    for name in ("hook_k", "hook_beta", "hook_log_decay"):
        getattr(mixer, name).register_forward_hook(lambda _m, _i, out, name=name: inputs.update({name: out}))
    whole(model, a)
    difference = zero.layers[0]["memory"]
    for t in range(REST.shape[1]):
        k, beta, log_decay = (inputs[name][:, t] for name in ("hook_k", "hook_beta", "hook_log_decay"))
        difference = difference * log_decay.exp()[..., None, None]
        gone = torch.einsum("bhkv,bhk->bhv", difference, k)
        difference = difference - torch.einsum("bhk,bhv->bhkv", beta[..., None] * k, gone)
    handle.remove()
    # 70 float32 steps, of two states and of their difference.
    torch.testing.assert_close(read[0] - read[1], difference, rtol=1e-4, atol=1e-5)


def test_the_second_memory_is_carried_on(hybrid: Hybrid) -> None:
    """In two calls or in one."""
    model = hybrid("GS")
    a, b = pair(model)
    with torch.no_grad(), second_memory(model, {0: b.layers[0]["memory"]}):
        first, between = model.resume(a, REST[:, :30])
        second, _ = model.resume(between, REST[:, 30:])
    found = split(model, a, b, "readers")
    # Chunks begin elsewhere: float32 sums in another order.
    torch.testing.assert_close(torch.cat([first, second], 1), found, rtol=1e-4, atol=1e-4)


def test_rows(hybrid: Hybrid, vocabulary: Vocabulary) -> None:
    task = KvRecall(vocabulary, n_pairs=4, distance=f"fixed:{least_distance(18)}")
    questions = ask(task, n=8, seed=1)
    rows = {row.name: row for row in reader_rows(at_boundary(hybrid("GS"), task, questions, horizon=18, seed=2))}
    assert list(rows) == ["readers/follow", "writer/follow", "readers/sham"]
    assert rows["readers/sham"].value == 0
    assert rows["readers/sham"].verdict == "pass"
    assert rows["readers/follow"].verdict == "fail", "an untrained model recalls nothing"
    assert rows["writer/follow"].verdict == "info"
    (none,) = reader_rows(at_boundary(hybrid("GA"), task, questions, horizon=18, seed=2))
    assert none.name == "readers/none"


@pytest.mark.parametrize("answers", ["later layer", "writer"])
def test_the_writers_read_does_not_pass_as_a_later_one(
    hybrid: Hybrid, vocabulary: Vocabulary, answers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cheater: a model that answers by the writer's own read only. Both kinds follow a whole transplant."""
    from groundthink.probes import readers

    task = KvRecall(vocabulary, n_pairs=4, distance=f"fixed:{least_distance(18)}")
    questions = ask(task, n=32, seed=1)
    model = hybrid("GS")
    given = donors(task, questions, kind="deranged", seed=2)
    right = {"mine": questions.answers, "theirs": given.answers}

    def perfect(
        _model: object, mine: Snapshot, theirs: Snapshot, rest: Tensor, *, side: str, last: bool = False
    ) -> Tensor:
        """A perfect reader behind one of the two memories."""
        donor = side == ("readers" if answers == "later layer" else "writer") and mine is not theirs
        logits = torch.zeros(*rest.shape, vocabulary.size)
        logits[torch.arange(len(rest)), -1, right["theirs" if donor else "mine"]] = 1
        return logits[:, -1] if last else logits

    monkeypatch.setattr(readers, "resume_split", perfect)
    monkeypatch.setattr(
        model, "resume", lambda mine, rest, **_: (perfect(model, mine, mine, rest, side="readers"), mine)
    )
    rows = {row.name: row for row in reader_rows(at_boundary(model, task, questions, horizon=18, seed=2))}
    assert (rows["readers/follow"].value, rows["writer/follow"].value) == (
        (1, 0) if answers == "later layer" else (0, 1)
    )
    assert rows["readers/follow"].verdict == ("pass" if answers == "later layer" else "fail")


def test_nothing_stays_behind_and_nothing_is_silent(hybrid: Hybrid) -> None:
    model = hybrid("GS")
    a, b = pair(model)
    split(model, a, b, "readers")
    with pytest.raises(StateError, match="no layer is given"), second_memory(model, {}):
        pass
    with pytest.raises(ConfigError, match="layer 1 has no"), second_memory(model, {1: a.layers[0]["memory"]}):
        pass
    short = {0: a.layers[0]["memory"][:2]}
    with pytest.raises(StateError, match="second memory of layer 0"), second_memory(model, short):
        model.resume(a, REST)
    with pytest.raises(StateError, match="no side"):
        split(model, a, b, "nobody")
    assert not any(module._forward_hooks for module in model.modules())
