"""`gt.stream`: the tokens of `generate`, from buffers that stay where they are, without asking the host."""

from __future__ import annotations

import gc
import itertools
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import groundthink as gt
from groundthink.errors import ConfigError, GroundThinkError, StateError
from groundthink.model import stream
from groundthink.model.decoder import Decoder, Mode, choose

# What a CUDA graph cannot hold: numbers for the host, shapes that depend on data.
ASKS_THE_HOST = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "is_nonzero", "lift_fresh")
SIZES = {"vocab_size": 13, "d_model": 16, "n_heads": 2, "head_dim": 4, "value_dim": 6, "d_ff": 16, "window_size": 4}


def make(pattern: str = "GSA", **fields: Any) -> gt.HybridForCausalLM:
    torch.manual_seed(4)
    return gt.HybridForCausalLM(gt.ModelConfig(**{"pattern": pattern, "init_std": 0.5, **SIZES, **fields})).eval()


def some_ids(length: int, rows: int = 2, seed: int = 0) -> Tensor:
    return torch.randint(1, 13, (rows, length), generator=torch.Generator().manual_seed(seed))


def written(model: gt.HybridForCausalLM, ids: Tensor, new: int = 10, **given: Any) -> Tensor:
    return torch.stack(list(gt.stream(model, ids, max_new_tokens=new, **given)), 1)


def generated(model: gt.HybridForCausalLM, ids: Tensor, new: int = 10, **given: Any) -> Tensor:
    out = model.generate(ids, max_new_tokens=new, do_sample=False, pad_token_id=0, **given)
    assert isinstance(out, Tensor)
    return out[:, ids.shape[1] :]


@pytest.mark.parametrize("pattern", ["G", "A", "GSA", "GGS", "GF"])
@pytest.mark.parametrize("segment", [1, 3, 4096])
def test_greedy_is_generate(pattern: str, segment: int) -> None:
    model = make(pattern, read_sources="all", n_value_heads=4)
    for rows in (1, 3):
        ids = some_ids(9, rows)
        want = generated(model, ids)
        assert torch.equal(written(model, ids, segment=segment), want)
    assert len(set(want.flatten().tolist())) > 2, "the test says something only if the text varies"


@pytest.mark.parametrize("segment", [1, 2, 4, 5, 4096])
def test_rows_of_different_lengths_are_padded_on_the_left(segment: int) -> None:
    model = make()
    rows = [some_ids(n, 1, seed=n) for n in (9, 5, 7, 8)]
    ids = torch.cat([F.pad(row, (9 - row.shape[1], 0)) for row in rows])
    mask = torch.cat([F.pad(torch.ones_like(row), (9 - row.shape[1], 0)) for row in rows])
    out = written(model, ids, attention_mask=mask, segment=segment)
    assert torch.equal(out, generated(model, ids, attention_mask=mask))
    assert torch.equal(out, torch.cat([written(model, row) for row in rows]))


def test_a_prompt_is_read_in_segments_and_then_one_token_at_a_time() -> None:
    model, seen = make(), []
    model.embed.register_forward_hook(lambda _m, given, _o: seen.append(given[0].shape[1]))
    written(model, some_ids(11), new=4, segment=4)
    assert seen == [4, 4, 3, 1, 1, 1]


class Listener(TorchDispatchMode):
    """Names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func._schema.name.split("::")[1])
        return func(*args, **(kwargs or {}))


def a_decoder(model: gt.HybridForCausalLM, rule: str = "greedy", rows: int = 2) -> Decoder:
    with torch.no_grad():
        logits, snapshot = model.prefill(some_ids(6, rows))
    decoder = Decoder(snapshot, rule, 13, Mode(torch.device("cpu")))
    decoder.load(snapshot, logits[:, -1], temperature=1.0)
    return decoder


def asked(model: gt.HybridForCausalLM, rule: str = "greedy") -> set[str]:
    decoder = a_decoder(model, rule)
    with Listener() as listener, torch.no_grad():
        decoder.advance(model)
    assert "argmax" in listener.names or "cumsum" in listener.names
    return set(ASKS_THE_HOST) & set(listener.names)


@pytest.mark.parametrize("rule", ["greedy", "sample", "nucleus"])
@pytest.mark.parametrize("limit", [None, 100])
def test_a_step_asks_the_host_nothing(rule: str, limit: int | None) -> None:
    assert asked(make(max_length=limit), rule) == set()


OPTIONS: dict[str, Any] = {"slot_tokens": (3, 5), "key_conv_width": 3, "shifted_value": True, "beta_floor": 1.0}


def test_options_ask_the_host_nothing_either() -> None:
    model = make("GGS", read_query="shared", read_sources="all", embedding_norm=True, **OPTIONS)
    assert asked(model) == set()
    assert torch.equal(written(model, some_ids(9), segment=2), generated(model, some_ids(9)))


def test_a_step_that_asks_is_caught() -> None:
    model = make()
    model.norm.register_forward_hook(lambda _m, _i, out: out * float(out.abs().max()))
    assert asked(model) == {"_local_scalar_dense"}
    model = make()
    model.norm.register_forward_hook(lambda _m, _i, out: out + torch.tensor(1.0))
    assert asked(model) == {"lift_fresh"}


def test_buffers_stay_where_they_are() -> None:
    model = make()
    decoder = a_decoder(model)
    held = [decoder.token, decoder.logits, *decoder.state.tensors().values()][:-1]
    places = [x.data_ptr() for x in held]
    state = decoder.state
    for _ in range(3):
        decoder.step(model)
    assert decoder.state is state
    assert [x.data_ptr() for x in held] == places
    assert decoder.state.position.tolist() == [9, 9]


def test_the_decode_kernel_writes_the_same_tokens() -> None:
    """Through Triton's interpreter: the kernel of one token on the buffers, against plain torch."""
    sizes = {"pattern": "GS", "head_dim": 16, "value_dim": 16, "d_model": 32}
    plain = make(backend="chunked", **sizes)
    decoders = [a_decoder(plain), a_decoder(plain)]
    kernels = make(backend="triton", **sizes)
    kernels.load_state_dict(plain.state_dict())
    for _ in range(4):
        for decoder, model in zip(decoders, (plain, kernels), strict=True):
            decoder.step(model)
        torch.testing.assert_close(*(d.logits for d in decoders), rtol=1e-4, atol=1e-4)  # float32, sums of 32 terms
        torch.testing.assert_close(*(d.state.layers[0]["memory"] for d in decoders), rtol=1e-5, atol=1e-5)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Steps are replayed from a recording of their tensor operations, as a CUDA graph does: Python runs no more."""
    log: list[str] = []

    def capture(self: Decoder, model: gt.HybridForCausalLM) -> None:
        log.append("capture")
        with self.mode.on():
            self.advance(model)
            tape = make_fx(lambda: self.advance(model))()

        def replay() -> None:
            with torch.no_grad():
                tape()

        self.replay = replay

    monkeypatch.setattr(Decoder, "capture", capture)
    monkeypatch.setattr(stream, "_wants_graph", lambda model, graph: graph is not False)
    return log


def test_a_recording_gives_the_same_tokens(recorded: list[str]) -> None:
    model = make()
    for seed in range(3):
        ids = some_ids(5 + seed, seed=seed)
        assert torch.equal(written(model, ids), generated(model, ids))
    assert recorded == ["capture"], "once for a model and a batch"
    assert torch.equal(written(model, some_ids(5, 1)), generated(model, some_ids(5, 1)))
    drawn = [written(model, some_ids(5), temperature=t, top_p=0.9, seed=s) for t, s in ((1, 1), (1, 1), (9, 1), (1, 2))]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[3])
    assert torch.equal(drawn[0], written(model, some_ids(5), temperature=1.0, top_p=0.9, seed=1, graph=False))
    assert recorded == ["capture"] * 3


def test_a_recording_follows_the_weights(recorded: list[str]) -> None:
    model = make()
    ids = some_ids(5)
    before = written(model, ids)
    with torch.no_grad():
        model.embed.weight.mul_(-1.5)  # in place, as an optimizer changes it: the recording reads the same address
    after = generated(model, ids)
    assert not torch.equal(before, after)
    assert torch.equal(written(model, ids), after)
    model.embed.weight.data = model.embed.weight.data * -1  # at another address
    assert torch.equal(written(model, ids), generated(model, ids))
    assert recorded == ["capture"] * 2


def test_two_streams_at_a_time_do_not_share_buffers(recorded: list[str]) -> None:
    model = make()
    prompts = [some_ids(5, seed=s) for s in (1, 2)]
    streams = [gt.stream(model, ids, max_new_tokens=6) for ids in prompts]
    pairs = list(zip(*streams, strict=True))
    for i, ids in enumerate(prompts):
        assert torch.equal(torch.stack([pair[i] for pair in pairs], 1), generated(model, ids, 6))
    left = gt.stream(model, prompts[0], max_new_tokens=6)
    next(left)
    left.close()  # type: ignore[attr-defined]
    assert torch.equal(written(model, prompts[0], 6), generated(model, prompts[0], 6))


def test_an_idle_recording_does_not_keep_its_model(recorded: list[str]) -> None:
    model = make("G")
    written(model, some_ids(3))
    assert model in stream._IDLE
    seen = weakref.ref(model)
    del model
    gc.collect()
    assert seen() is None


def test_a_row_that_has_ended_repeats_its_end() -> None:
    model = make()
    ids = some_ids(9, 3)
    whole = written(model, ids)
    end = int(whole[0, 2])
    out = written(model, ids, eos=end)
    first = [row.tolist().index(end) if end in row.tolist() else None for row in whole]
    assert first[0] is not None
    assert first[0] <= 2
    for row, stop, full in zip(out, first, whole, strict=True):
        n = out.shape[1] if stop is None else min(stop + 1, out.shape[1])
        assert torch.equal(row[:n], full[:n])
        assert set(row[n:].tolist()) <= {end}
    assert written(model, ids[:1], eos=[end, 12]).shape[1] == first[0] + 1


@pytest.mark.parametrize("rule", ["sample", "nucleus"])
def test_chance_follows_the_softmax(rule: str) -> None:
    """4,096 evenly spaced draws hit each token by its share, to one draw at either end."""
    n = 4096
    logits = torch.tensor([1.0, 3.0, -200.0, 2.0, 0.0]).expand(n, -1)
    uniform = ((torch.arange(n, dtype=torch.float64) + 0.5) / n)[:, None]
    chosen = choose(logits, rule, torch.tensor([2.0]), torch.tensor([0.8]), uniform)
    weights = torch.softmax(logits[0].double() / 2, -1)
    if rule == "nucleus":
        assert 0.8 < float(weights[1] + weights[3] + weights[0]) < 1
        weights[4] = weights[2] = 0  # the three most likely hold 0.8
    weights = weights / weights.sum()
    assert (torch.bincount(chosen, minlength=5) - weights * n).abs().max() <= 2
    for edge in (0.0, 1 - 2**-53):
        assert float(weights[choose(logits[:1], rule, torch.ones(1), torch.ones(1) * 0.8, uniform[:1] * 0 + edge)]) > 0


def test_draws_depend_on_the_seed_and_stay_in_the_vocabulary() -> None:
    model, ids = make(), some_ids(4, 1)
    one = written(model, ids, 40, temperature=3.0, seed=1, vocab_size=5)
    assert torch.equal(one, written(model, ids, 40, temperature=3.0, seed=1, vocab_size=5))
    assert not torch.equal(one, written(model, ids, 40, temperature=3.0, seed=2, vocab_size=5))
    assert set(one.flatten().tolist()) == set(range(5))
    assert torch.equal(written(model, ids, temperature=1e-6, top_p=0.5), written(model, ids))


def test_the_caller_keeps_gradients_and_autocast() -> None:
    model, ids = make(), some_ids(4)
    assert torch.is_grad_enabled()
    for token in itertools.islice(gt.stream(model, ids, max_new_tokens=3), 2):
        assert torch.is_grad_enabled()
        assert not torch.is_autocast_enabled("cpu")
        assert not token.requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tokens = gt.stream(model, ids, max_new_tokens=5)
        first = next(tokens)
    assert len(list(tokens)) == 4  # goes on in the autocast it began in
    assert first.shape == (2,)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"segment": 0, "top_p": 0.0, "temperature": -1.0}, "segment is 0.*temperature is -1.*top_p is 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": 1e-9}, "0 or at least 1e-06"),
        ({"vocab_size": 14}, "vocab_size is 14"),
        ({"input_ids": torch.tensor([[13]])}, r"in \[0, 13\)"),
        ({"input_ids": torch.zeros(2, 0, dtype=torch.int64)}, "with a token at least"),
        ({"input_ids": torch.zeros(1, 3)}, "integers"),
        ({"graph": True}, "the model is on cpu"),
        ({"attention_mask": torch.tensor([[1, 1, 0]] * 2)}, "pad on the left"),
    ],
)
def test_bad_input_is_one_line_before_anything_runs(given: dict[str, Any], said: str) -> None:
    words = {"input_ids": some_ids(3), "max_new_tokens": 2, **given}
    with pytest.raises(GroundThinkError, match=said) as caught:
        gt.stream(make(), words.pop("input_ids"), **words)
    assert "\n" not in str(caught.value)


def test_what_a_graph_cannot_do_is_named() -> None:
    model = make("GFAF")
    model.norm.register_forward_hook(lambda *_: None)
    with pytest.raises(ConfigError, match=r"layers 1, 3 grows.*forward hooks"):
        gt.stream(model, some_ids(3), max_new_tokens=2, graph=True)
    with pytest.raises(ConfigError, match=r"training mode: call model.eval\(\)"):
        gt.stream(make().train(), some_ids(3), max_new_tokens=2)


def test_no_more_than_the_model_was_told() -> None:
    model = make(max_length=10)
    assert written(model, some_ids(6), 5).shape == (2, 5)  # the fifth is made and not read
    with pytest.raises(StateError, match="11 tokens is longer than this model was told"):
        gt.stream(model, some_ids(6), max_new_tokens=6)
