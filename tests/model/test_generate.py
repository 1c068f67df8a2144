"""transformers' face: forward, masks, and `generate` carried by snapshots."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from groundthink.errors import ConfigError, StateError
from groundthink.model import HybridForCausalLM, ModelConfig, SnapshotCache

SIZES = {"vocab_size": 13, "d_model": 16, "n_heads": 2, "head_dim": 4, "value_dim": 6, "d_ff": 16, "window_size": 4}
# Float32 sums in another order; logits here are of order 10.
CLOSE = {"rtol": 1e-5, "atol": 1e-4}


@pytest.fixture(params=["GS", "GFAS"])
def model(request: pytest.FixtureRequest) -> HybridForCausalLM:
    torch.manual_seed(4)
    return HybridForCausalLM(ModelConfig(pattern=request.param, init_std=0.5, **SIZES)).eval()


def _ids(length: int, rows: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, 13, (rows, length), generator=torch.Generator().manual_seed(seed))


def _generate(model: HybridForCausalLM, ids: torch.Tensor, new: int = 8, **given: Any) -> torch.Tensor:
    out = model.generate(ids, max_new_tokens=new, pad_token_id=0, **{"do_sample": False, **given})
    assert isinstance(out, torch.Tensor)
    return out[:, ids.shape[1] :]


@torch.no_grad()
def _greedy(model: HybridForCausalLM, ids: torch.Tensor, new: int = 8) -> torch.Tensor:
    """Our own loop over prefill and resume."""
    logits, snapshot = model.prefill(ids)
    tokens = []
    for _ in range(new):
        tokens.append(logits[:, -1].argmax(-1))
        logits, snapshot = model.resume(snapshot, tokens[-1][:, None])
    return torch.stack(tokens, 1)


def test_greedy_is_the_step_loop(model: HybridForCausalLM) -> None:
    ids = _ids(7, rows=3)
    want = _greedy(model, ids)
    assert torch.equal(_generate(model, ids), want)
    assert torch.equal(_generate(model, ids, attention_mask=torch.ones_like(ids)), want)
    assert torch.equal(_generate(model, ids, use_cache=False), want)
    assert len(set(want.flatten().tolist())) > 2, "the test says something only if the text varies"


def test_decoding_reads_one_token_at_a_time(model: HybridForCausalLM) -> None:
    seen: list[int] = []
    model.embed.register_forward_hook(lambda _m, given, _o: seen.append(given[0].shape[1]))
    _generate(model, _ids(7), new=4)
    assert seen == [7, 1, 1, 1]


def test_left_padding_changes_nothing(model: HybridForCausalLM) -> None:
    short, long = _ids(5, rows=1), _ids(9, rows=1, seed=1)
    ids = torch.cat([F.pad(short, (4, 0)), long])
    mask = torch.cat([F.pad(torch.ones_like(short), (4, 0)), torch.ones_like(long)])
    out = _generate(model, ids, attention_mask=mask)
    assert torch.equal(out[:1], _greedy(model, short))
    assert torch.equal(out[1:], _greedy(model, long))
    with torch.no_grad():
        padded = model(ids, attention_mask=mask).logits
        torch.testing.assert_close(padded[:1, 4:], model(short).logits, **CLOSE)


@pytest.mark.parametrize("beams", [2, 4])
def test_beam_search_reorders_snapshots(model: HybridForCausalLM, beams: int) -> None:
    """The judge recomputes every text from its start; wrong rows after a reorder would change it."""
    ids = _ids(6)
    with_cache = _generate(model, ids, num_beams=beams)
    assert torch.equal(with_cache, _generate(model, ids, num_beams=beams, use_cache=False))


def test_sampling_depends_on_the_seed_alone(model: HybridForCausalLM) -> None:
    def sample(seed: int) -> list[list[int]]:
        torch.manual_seed(seed)
        return _generate(model, _ids(6), new=12, do_sample=True).tolist()

    assert sample(1) == sample(1) != sample(2)


@torch.no_grad()
def test_a_cache_can_be_continued(model: HybridForCausalLM) -> None:
    ids = _ids(10)
    whole = model(ids).logits
    first = model(ids[:, :6], use_cache=True)
    assert isinstance(first.past_key_values, SnapshotCache)
    assert first.past_key_values.get_seq_length() == 6
    second = model(ids[:, 6:], past_key_values=first.past_key_values, attention_mask=torch.ones_like(ids))
    torch.testing.assert_close(torch.cat([first.logits, second.logits], 1), whole, **CLOSE)
    assert first.past_key_values.get_seq_length() == 6
    assert second.past_key_values.get_seq_length() == 10
    torch.testing.assert_close(model(ids, logits_to_keep=2).logits, whole[:, -2:], **CLOSE)
    with pytest.raises(StateError, match="not reordered in place"):
        first.past_key_values.reorder_cache(torch.tensor([1, 0]))


@torch.no_grad()
def test_right_padding_needs_no_cache(model: HybridForCausalLM) -> None:
    ids = _ids(8)
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    with pytest.raises(StateError, match="pad on the left") as caught:
        model(ids, attention_mask=mask)
    assert "\n" not in str(caught.value)
    logits = model(ids, attention_mask=mask, use_cache=False).logits
    torch.testing.assert_close(logits[:1, :5], model(ids[:1, :5]).logits, **CLOSE)
    with pytest.raises(StateError, match=r"should be \[B,T\]"):
        model(ids, attention_mask=mask[:, None, None])


@torch.no_grad()
def test_padding_after_a_snapshot_is_refused(model: HybridForCausalLM) -> None:
    """It would be a document between the past and what follows, and the row would silently forget its past."""
    cache = model(_ids(6), use_cache=True).past_key_values
    mask = torch.ones(2, 9, dtype=torch.int64)
    mask[0, 6:8] = 0
    with pytest.raises(StateError, match="padding"):
        model(_ids(3), past_key_values=cache, attention_mask=mask)


def test_loss_is_the_mean_over_labelled_tokens(model: HybridForCausalLM) -> None:
    ids = _ids(9)
    labels = ids.clone()
    labels[:, :3] = -100
    out = model(ids, labels=labels)
    judge = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(out.loss, judge)
    total, valid, _ = model.loss(ids, labels)
    assert int(valid) == 2 * 6
    torch.testing.assert_close(total / valid, judge)
    assert model(ids, labels=torch.full_like(ids, -100)).loss.item() == 0
    with pytest.raises(ConfigError, match="return_dict"):
        model(ids, return_dict=False)


def test_training_mode_returns_no_cache(model: HybridForCausalLM) -> None:
    assert model.train()(_ids(4)).past_key_values is None
