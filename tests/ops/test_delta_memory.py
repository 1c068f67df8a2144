"""The memory operator: every backend against the token-by-token judge in float64, and laws that need no judge."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from types import MappingProxyType
from typing import Any

import memory_cases as mc
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from groundthink import ops
from groundthink.errors import BackendError, StateError
from groundthink.model import HybridForCausalLM, ModelConfig
from groundthink.ops import _chunk_factors, backends
from groundthink.ops._shapes import WriteInputs

FEW = settings(deadline=None, max_examples=12, derandomize=True, database=None)
LENGTHS = (1, 2, 63, 64, 65, 100, 130)
FLAVOURS: tuple[dict[str, Any], ...] = (
    {},
    {"initial": True, "value_heads": 4},
    {"initial": True, "documents": "random", "value_heads": 4},
)
CASES = [
    *(mc.Case(t, e, **f) for t, e, f in itertools.product(LENGTHS, ("decayed", "raw"), FLAVOURS)),
    *(
        mc.Case(130, e, initial=True, **f)
        for e in ("decayed", "raw")
        for f in (
            {"gates": "identical"},
            {"gates": "forgetful"},
            {"gates": "shut"},
            {"gates": "cliff"},
            {"documents": "each"},
            {"gates": "forgetful", "documents": "random"},
        )
    ),
    mc.Case(70, gates="shut"),  # an empty memory that nothing is written to: the judge is exactly 0
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_chunked_is_the_reference(case: mc.Case) -> None:
    x = mc.make(case)
    judge = mc.run(case, x, "reference", torch.float64)
    for dtype, fused in itertools.product((torch.float64, torch.float32), (False, True)):
        mc.assert_matches(mc.run(case, x, "chunked", dtype, fused=fused), judge, dtype)


@pytest.mark.parametrize("matrices", [1, 2, 4, 14])
@pytest.mark.parametrize("error", ["decayed", "raw"])
def test_blocks_of_any_size_are_the_reference(error: str, matrices: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """3 rows of 2 heads, 4 chunks of 32 x 6: one row at a time, two and one, two chunks of all rows."""
    monkeypatch.setattr(_chunk_factors, "BUFFER", matrices * 32 * 6 / torch.get_num_threads())
    case = mc.Case(110, error, batch=3, key_heads=1, initial=True, documents="random")
    x = mc.make(case)
    judge = mc.run(case, x, "reference", torch.float64)
    for fused in (False, True):
        mc.assert_matches(mc.run(case, x, "chunked", torch.float64, fused=fused), judge, torch.float64)


@pytest.mark.parametrize("error", ["decayed", "raw"])
def test_negative_eigenvalues_and_bfloat16_inputs(error: str) -> None:
    """Half-precision keys and values, gates in float32: the bounds of design.md section 2."""
    case = mc.Case(100, error, initial=True)
    x = {n: v if n in ("log_decay", "beta", "initial_state") else v.bfloat16() for n, v in mc.make(case).items()}
    if error == "decayed":
        x["beta"] = 2 * x["beta"]
    judge = mc.run(case, x, "reference", torch.float64)
    leaves = {n: v.clone().requires_grad_() for n, v in x.items()}
    memory, y = ops.write_and_read(
        leaves["keys"],
        leaves["values"],
        leaves["queries"],
        log_decay=leaves["log_decay"],
        beta=leaves["beta"],
        initial_state=leaves["initial_state"],
        error=error,
    )
    z = memory.read(leaves["second"], scale=0.7)
    assert (y.dtype, z.dtype, memory.final_state.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    cot = torch.Generator().manual_seed(7)
    outs = (y, z, memory.final_state)
    loss = sum((o.float() * torch.randn(o.shape, generator=cot)).sum() for o in outs)
    grads = torch.autograd.grad(loss, list(leaves.values()))
    got = dict(zip(("y", "z", "final"), outs, strict=True)) | {f"d {n}": g for n, g in zip(leaves, grads, strict=True)}
    for name, truth in judge.items():
        bound = {"y": 0.005, "z": 0.005, "final": 0.005, "d log_decay": 0.015, "d beta": 0.015}.get(name, 0.008)
        error_rms = (got[name].detach().double() - truth).pow(2).mean().sqrt() / truth.pow(2).mean().sqrt()
        assert float(error_rms) <= bound, f"{name}: {float(error_rms):.1e}"


def test_non_contiguous_views() -> None:
    case = mc.Case(70, initial=True)
    x = mc.make(case)
    views = dict(x)
    for name in ("keys", "values", "log_decay", "initial_state"):
        views[name] = x[name].transpose(0, 1).contiguous().transpose(0, 1)
    wide = torch.stack([x["beta"], x["beta"] + 5], -1)
    views["beta"] = wide[..., 0]
    views["queries"] = torch.cat([x["queries"], x["queries"]], -1)[..., : case.key_dim]
    judge = mc.run(case, x, "reference", torch.float64)
    assert not any(views[n].is_contiguous() for n in ("keys", "values", "log_decay", "beta", "queries"))
    mc.assert_matches(mc.run(case, views, "chunked", torch.float32), judge, torch.float32)


@pytest.mark.parametrize("used", ["read", "second", "final"])
def test_gradients_reach_the_writes_through_each_use_alone(used: str) -> None:
    case = mc.Case(70, initial=True)
    grads = {}
    for backend, dtype in (("reference", torch.float64), ("chunked", torch.float32)):
        x = {n: v.to(dtype).requires_grad_() for n, v in mc.make(case).items()}
        memory, y = ops.write_and_read(
            x["keys"],
            x["values"],
            x["queries"],
            log_decay=x["log_decay"],
            beta=x["beta"],
            initial_state=x["initial_state"],
            backend=backend,
        )
        out = {"read": y, "second": memory.read(x["second"]), "final": memory.final_state}[used]
        names = ["keys", "values", "log_decay", "beta", "initial_state"]
        grads[backend] = dict(zip(names, torch.autograd.grad(out.square().sum(), [x[n] for n in names]), strict=True))
    assert all(float(g.abs().max()) > 0 for g in grads["chunked"].values())
    mc.assert_matches(grads["chunked"], grads["reference"], torch.float32)


# --- memories that nobody reads again ------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("length", [1, 70])
def test_a_memory_not_kept_is_the_same_but_for_its_reads(length: int, backend: str) -> None:
    found = []
    for keep in (True, False):
        x = {n: v.requires_grad_() for n, v in mc.make(mc.Case(length, initial=True)).items() if n != "second"}
        memory, y = ops.write_and_read(**x, keep=keep, backend=backend)
        grads = torch.autograd.grad(y.square().sum() + memory.final_state.sum(), list(x.values()))
        found.append((y, memory.final_state, *grads))
        assert bool(memory._parts) is keep
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    with pytest.raises(StateError, match=r"cannot be read again.*keep=True"):
        memory.read(torch.zeros(2, length, 2, 6))


@pytest.mark.parametrize("length", [20, 70])
@pytest.mark.parametrize("error", ["decayed", "raw"])
def test_a_memory_is_the_same_to_the_bit_read_by_its_writer_or_not(error: str, length: int) -> None:
    x = {n: v for n, v in mc.make(mc.Case(length, initial=True)).items() if n != "second"}
    read, _ = ops.write_and_read(**x, error=error)
    queries = x.pop("queries")
    alone = ops.write(**x, error=error)
    assert torch.equal(read.final_state, alone.final_state)
    assert torch.equal(read.read(queries), alone.read(queries))


@pytest.mark.parametrize(
    ("pattern", "sources", "kept"),
    [("GG", "nearest", set()), ("GGSGA", "nearest", {1}), ("GGSGA", "all", {0, 1}), ("GSGGS", "nearest", {0, 3})],
)
def test_a_model_keeps_the_memories_that_a_later_layer_reads(pattern: str, sources: str, kept: set[int]) -> None:
    sizes = {"vocab_size": 11, "d_model": 8, "n_heads": 1, "head_dim": 4, "value_dim": 4, "window_size": 4}
    model = HybridForCausalLM(ModelConfig(pattern=pattern, read_sources=sources, **sizes))  # type: ignore[arg-type]
    memories = {}
    for i, block in enumerate(model.blocks):
        block.register_forward_hook(lambda _m, _i, out, i=i: memories.update({i: out.memory}))
    model(torch.arange(6)[None])
    written = {i: memory for i, memory in memories.items() if memory is not None}
    assert {i for i, memory in written.items() if memory._parts} == kept
    assert set(written) == {i for i, letter in enumerate(pattern) if letter == "G"}


# --- planted faults: the comparison above must see them ------------------------------------------------------


class _DecaysTooLate(backends.Reference):
    """The error is taken from the state before the decay where the decayed form was asked for."""

    def write(self, inputs: WriteInputs, *, keep: bool) -> Any:
        return super().write(dataclasses.replace(inputs, raw=not inputs.raw), keep=keep)


class _ReadsOneEarlier(backends.Reference):
    """A read at t returns the state after t - 1."""

    def read(self, parts: Any, queries: Tensor, *, scale: float) -> Tensor:
        return super().read((parts[0].roll(1, 1),), queries, scale=scale)


class _ForgetsBoundaries(backends.Reference):
    """Documents are ignored."""

    def write(self, inputs: WriteInputs, *, keep: bool) -> Any:
        return super().write(dataclasses.replace(inputs, documents=None), keep=keep)


class _DropsAGradient(backends.Reference):
    """Outputs are right, the gradient of the decay is not."""

    def write(self, inputs: WriteInputs, *, keep: bool) -> Any:
        gate = inputs.log_decay  # what is added is 0, and takes half of the gradient away
        return super().write(dataclasses.replace(inputs, log_decay=gate + (gate.detach() - gate) * 0.5), keep=keep)


@pytest.mark.parametrize("fault", [_DecaysTooLate, _ReadsOneEarlier, _ForgetsBoundaries, _DropsAGradient])
def test_a_wrong_backend_is_caught(fault: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "BACKENDS", MappingProxyType({**backends.BACKENDS, "wrong": fault()}))
    case = mc.Case(65, documents="random", initial=True)
    x = mc.make(case)
    judge = mc.run(case, x, "reference", torch.float64)
    with pytest.raises(AssertionError, match="relative error"):
        mc.assert_matches(mc.run(case, x, "wrong", torch.float32), judge, torch.float32)


# --- laws ----------------------------------------------------------------------------------------------------


def _plain(case: mc.Case, x: dict[str, Any], rows: slice, initial: Tensor | None, ids: Tensor | None) -> Any:
    """(first read, second read, final state) of a stretch of tokens."""
    memory, y = ops.write_and_read(
        x["keys"][:, rows],
        x["values"][:, rows],
        x["queries"][:, rows],
        log_decay=x["log_decay"][:, rows],
        beta=x["beta"][:, rows],
        initial_state=initial,
        error=case.error,
        documents=None if ids is None else ids[:, rows],
        backend="chunked",
    )
    return y, memory.read(x["second"][:, rows]), memory.final_state


@FEW
@given(
    length=st.integers(2, 140),
    data=st.data(),
    error=st.sampled_from(["decayed", "raw"]),
    kind=st.sampled_from(["none", "random"]),
)
def test_split_anywhere_is_the_whole(length: int, data: st.DataObject, error: str, kind: str) -> None:
    """float64, so 1e-12 is rounding alone."""
    case = mc.Case(length, error, initial=True, documents=kind)
    x = {n: v.double() for n, v in mc.make(case, seed=length).items()}
    ids = mc.document_ids(kind, case.batch, length)
    whole = _plain(case, x, slice(0, length), x["initial_state"], ids)
    cuts = sorted(data.draw(st.sets(st.integers(1, length - 1), max_size=3)))
    state, reads = x["initial_state"], []
    for start, stop in itertools.pairwise([0, *cuts, length]):
        if ids is not None and start and bool((ids[:, start] != ids[:, start - 1]).any()):
            fresh = (ids[:, start] != ids[:, start - 1]).view(-1, 1, 1, 1)
            state = torch.where(fresh, 0.0, state)  # a segment's first document continues the state it is given
        y, z, state = _plain(case, x, slice(start, stop), state, ids)
        reads.append((y, z))
    for part, full in zip(zip(*reads, strict=True), whole[:2], strict=True):
        torch.testing.assert_close(torch.cat(part, 1), full, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(state, whole[2], rtol=1e-10, atol=1e-12)


@FEW
@given(lengths=st.lists(st.integers(1, 70), min_size=2, max_size=4), error=st.sampled_from(["decayed", "raw"]))
def test_packed_documents_are_separate_texts(lengths: list[int], error: str) -> None:
    case = mc.Case(sum(lengths), error, initial=True, batch=1)
    x = {n: v.double() for n, v in mc.make(case, seed=sum(lengths)).items()}
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None]
    packed = _plain(case, x, slice(0, case.length), x["initial_state"], ids)
    start = 0
    for i, length in enumerate(lengths):
        rows = slice(start, start + length)
        y, z, final = _plain(case, x, rows, x["initial_state"] if i == 0 else None, None)
        torch.testing.assert_close(packed[0][:, rows], y, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(packed[1][:, rows], z, rtol=1e-10, atol=1e-12)
        start += length
    torch.testing.assert_close(packed[2], final, rtol=1e-10, atol=1e-12)


def test_decayed_is_raw_with_other_strength_and_values() -> None:
    """docs/math.md: (beta, v) decayed is (a beta, v / a) raw. float64, a >= 0.7."""
    case = mc.Case(130, initial=True)
    x = {n: v.double() for n, v in mc.make(case).items()}
    a = x["log_decay"].exp()
    disguised = {**x, "beta": x["beta"] * a, "values": x["values"] / a[..., None]}
    decayed = _plain(case, x, slice(0, 130), x["initial_state"], None)
    raw = _plain(mc.Case(130, "raw"), disguised, slice(0, 130), x["initial_state"], None)
    torch.testing.assert_close(decayed, raw, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("raw", [False, True])
def test_factors_are_exact_next_to_large_sums(raw: bool) -> None:
    """After 48 tokens at -20 the sums are near -960, where float32 alone would leave exp of a difference 3e-5 off."""
    log_decay = torch.where(torch.arange(64)[None, :, None] < 48, -20.0, -0.01 * torch.rand(2, 64, 3))
    whole = _chunk_factors.Block(rows=slice(0, 2), chunks=slice(0, 1), chunk=64)
    got, judge = (
        [
            decays.pairs(whole, whole.of(decays.sums), torch.empty(6, 64, 64, dtype=dtype), of_writes=writes)
            for writes in (False, True)
        ]
        + [decays.out]
        for dtype in (torch.float32, torch.float64)
        for decays in [_chunk_factors.Decays(log_decay, None, chunk=64, raw=raw, dtype=dtype)]
    )
    for ours, exact in zip(got, judge, strict=True):
        # One rounding of the exponent (at most 1e-6 at -16) and one of exp; what is below e^-20 counts for nothing.
        torch.testing.assert_close(ours.double(), exact, rtol=2e-6, atol=2e-9)


def test_a_read_sees_no_later_write() -> None:
    """Exactly: not a bit of an earlier read moves, in either read."""
    case = mc.Case(130, initial=True)
    x = mc.make(case)
    later = {n: v if n == "initial_state" else torch.cat([v[:, :77], v[:, 77:].flip(1)], 1) for n, v in x.items()}
    before, after = (_plain(case, v, slice(0, 130), v["initial_state"], None) for v in (x, later))
    assert torch.equal(before[0][:, :77], after[0][:, :77])
    assert torch.equal(before[1][:, :77], after[1][:, :77])
    assert not torch.equal(before[2], after[2])


@pytest.mark.parametrize("error", ["decayed", "raw"])
def test_a_document_knows_no_bit_of_the_one_before(error: str) -> None:
    """Exactly, although both lie in one chunk: neither reads nor the final state move with what an earlier one says."""
    case = mc.Case(100, error, initial=True)
    x = mc.make(case)
    ids = torch.repeat_interleave(torch.arange(2), torch.tensor([41, 59])).expand(2, -1)
    other = mc.make(case, seed=1)
    changed = {n: v if n == "initial_state" else torch.cat([other[n][:, :41], v[:, 41:]], 1) for n, v in x.items()}
    here, there = (_plain(case, v, slice(0, 100), v["initial_state"], ids) for v in (x, changed))
    assert all(torch.equal(a[:, 41:], b[:, 41:]) for a, b in zip(here[:2], there[:2], strict=True))
    assert torch.equal(here[2], there[2])
    assert not torch.equal(here[0][:, :41], there[0][:, :41])


# --- autograd and the dispatcher -----------------------------------------------------------------------------


@pytest.mark.parametrize("documents", ["none", "random"])
@pytest.mark.parametrize("error", ["decayed", "raw"])
@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_gradcheck(backend: str, error: str, documents: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against finite differences. Chunks of 3 tokens, so that 5 tokens cross a boundary and leave padding."""
    monkeypatch.setattr(_chunk_factors, "CHUNK", 3)
    case = mc.Case(5, error, batch=1, key_heads=1, value_heads=2, key_dim=2, value_dim=2, initial=True)
    x = {n: v.double().requires_grad_() for n, v in mc.make(case).items()}
    ids = None if documents == "none" else torch.tensor([[0, 0, 1, 1, 1]])

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(x, tensors, strict=True))
        queries, second = named.pop("queries"), named.pop("second")
        keys, values = named.pop("keys"), named.pop("values")
        memory = ops.write(keys, values, **named, error=error, documents=ids, backend=backend)
        return memory.read(queries), memory.read(second), memory.final_state

    assert torch.autograd.gradcheck(function, tuple(x.values()))


def _operator_arguments(layout: str) -> dict[str, tuple[Any, ...]]:
    case = mc.Case(70, value_heads=4, initial=True)
    x = mc.make(case)
    if layout == "transposed":
        x = {n: v.transpose(0, 1).contiguous().transpose(0, 1) for n, v in x.items()}
    ids = mc.document_ids("random", case.batch, case.length)
    given = (x["keys"], x["values"], x["queries"], x["log_decay"], x["beta"])
    write = (*given, x["initial_state"], ids, False, 0.5, True, True)
    out, final, pseudo, states = torch.ops.groundthink.chunked_write(*write)
    read = (x["queries"], x["keys"], pseudo, states, x["log_decay"], ids, 0.5)
    gradients = tuple(torch.randn_like(v) for v in (out, final, pseudo, states))
    return {
        "chunked_write": write,
        "chunked_read": read,
        "chunked_write_backward": (*gradients, *given, ids, states, True, 0.5),
        "chunked_read_backward": (torch.randn_like(pseudo), *read),
    }


@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
@pytest.mark.parametrize("name", ["chunked_write", "chunked_read", "chunked_write_backward", "chunked_read_backward"])
def test_opcheck(name: str, layout: str) -> None:
    """Schema, autograd registration, and fake tensors that agree with real ones in shape, dtype and strides."""
    arguments = _operator_arguments(layout)[name]
    if not name.endswith("backward"):
        arguments = tuple(a.clone().requires_grad_() if _is_real(a) else a for a in arguments)
    torch.library.opcheck(getattr(torch.ops.groundthink, name).default, arguments)


def _is_real(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


@pytest.mark.parametrize("length", [1, 70])
def test_autocast_does_not_reach_the_memory(length: int) -> None:
    """Forward and backward under bfloat16 autocast are the same bits as without it."""
    case = mc.Case(length, initial=True)
    x = mc.make(case)
    plain = mc.run(case, x, "chunked", torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = mc.run(case, x, "chunked", torch.float32)
    for name, value in plain.items():
        # One token is plain autograd, whose backward follows the autocast it is called in: call it outside.
        assert torch.equal(under[name], value) or (length == 1 and name.startswith("d ")), name


# --- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keys": torch.zeros(2, 4, 3)}, "keys .* do not fit"),
        ({"values": torch.zeros(2, 5, 2, 3)}, "do not fit"),
        ({"values": torch.zeros(2, 4, 3, 3)}, "not a multiple"),
        ({"keys": torch.zeros(2, 0, 2, 3), "values": torch.zeros(2, 0, 2, 3)}, "at least one token"),
        ({"beta": torch.zeros(2, 4, 1)}, "beta should be"),
        ({"log_decay": torch.zeros(2, 4, 2, 1)}, "log_decay should be"),
        ({"beta": torch.zeros(2, 4, 2).bfloat16()}, "half precision"),
        ({"log_decay": torch.zeros(2, 4, 2).half()}, "half precision"),
        ({"initial_state": torch.zeros(2, 2, 3, 4)}, "initial_state should be"),
        ({"documents": torch.zeros(2, 3, dtype=torch.int32)}, "documents should be"),
        ({"error": "late"}, "'decayed' or 'raw'"),
    ],
)
def test_a_write_names_what_is_wrong(change: dict[str, Any], message: str) -> None:
    good = {
        "keys": torch.zeros(2, 4, 2, 3),
        "values": torch.zeros(2, 4, 2, 3),
        "log_decay": torch.zeros(2, 4, 2),
        "beta": torch.zeros(2, 4, 2),
    }
    ops.write(**good)
    with pytest.raises(ValueError, match=message):
        ops.write(**{**good, **change})


@pytest.mark.parametrize("shape", [(2, 5, 2, 3), (1, 4, 2, 3), (2, 4, 3, 3), (2, 4, 2, 4), (2, 4, 6)])
def test_a_read_names_what_is_wrong(shape: tuple[int, ...]) -> None:
    gates = {"log_decay": torch.zeros(2, 4, 2), "beta": torch.zeros(2, 4, 2)}
    memory = ops.write(torch.zeros(2, 4, 2, 3), torch.zeros(2, 4, 2, 3), **gates)
    with pytest.raises(ValueError, match="queries should be"):
        memory.read(torch.zeros(shape))


@pytest.mark.parametrize("function", [ops.write, ops.write_and_read])
def test_gates_cannot_be_swapped_by_position(function: Any) -> None:
    """log_decay and beta have one shape: a swap by position would be silent."""
    parameters = inspect.signature(function).parameters
    for name in ("log_decay", "beta"):
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
    x = torch.zeros(1, 2, 1, 2)
    gate = torch.zeros(1, 2, 1)
    with pytest.raises(TypeError):
        function(x, x, *([x] if function is ops.write_and_read else []), gate, gate)


def test_backends_are_chosen_by_name_and_device(caplog: pytest.LogCaptureFixture, monkeypatch: Any) -> None:
    cpu = torch.device("cpu")
    assert backends.choose("reference", cpu).name == "reference"
    monkeypatch.setattr(backends, "_said", set())
    with caplog.at_level("INFO", logger=backends.log.name):
        assert {backends.choose("auto", cpu).name for _ in range(3)} == {"chunked"}
    assert [r.getMessage() for r in caplog.records] == ["memory operator: backend chunked on cpu"]
    with pytest.raises(BackendError, match=r"'cuda-magic'.*auto, reference, chunked") as caught:
        backends.choose("cuda-magic", cpu)
    assert "\n" not in str(caught.value)
    first = ops.describe_backends()[0]
    assert (first["device"], first["backend"]) == ("cpu", "chunked")
    assert first["reason"]
