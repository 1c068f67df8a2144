"""The Triton kernels on small shapes through Triton's interpreter, judged by the float64 token loop.

The interpreter runs the very same kernel source on NumPy arrays; what only a GPU can show (bf16 products, compiled
code, speed) is in tests/gpu.
"""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor

from groundthink.errors import BackendError
from groundthink.ops import _reference
from groundthink.ops._shapes import WriteInputs

# design.md's bar for float32. Sums in another order, a few hundred roundings of 6e-8, give about 2e-7; only gradients
# of log_decay come nearer, where all but one of them are 0 by cancellation.
BAR = 1e-5


@pytest.fixture(scope="module", autouse=True)
def ops() -> Any:
    """The backend's module, its kernels decorated for the interpreter."""
    interpreter = importlib.import_module("triton.runtime.interpreter")
    patch = interpreter._patch_lang_tensor

    def patch_index(tensor: Any, scope: Any) -> None:
        # NumPy >= 2.4 no longer turns an array of one element into an int, which Triton 3.6 relies on
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_index
    yield importlib.import_module("groundthink.ops._triton_ops")
    interpreter._patch_lang_tensor = patch


@pytest.fixture(autouse=True)
def poisoned_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel leaves unwritten is NaN; conftest does the same for `empty` and `empty_like`."""
    real = torch.Tensor.new_empty

    def poisoned(self: Tensor, *size: Any, **options: Any) -> Tensor:
        x = real(self, *size, **options)
        return x.fill_(float("nan")) if x.is_floating_point() and not torch.compiler.is_compiling() else x

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)


def inputs(
    batch: int = 1, length: int = 70, heads: int = 1, value_heads: int = 1, key_dim: int = 16, value_dim: int = 16
) -> dict[str, Tensor]:
    """Random float32 inputs of a write, two sets of queries and an initial state."""
    g = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    keys, queries = (torch.nn.functional.normalize(normal(batch, length, heads, key_dim), dim=-1) for _ in range(2))
    return {
        "keys": keys,
        "values": normal(batch, length, value_heads, value_dim),
        "queries": queries,
        "others": normal(batch, length, value_heads, key_dim),
        "log_decay": -3 * torch.rand(batch, length, value_heads, generator=g) ** 3,
        "beta": torch.rand(batch, length, value_heads, generator=g),
        "initial_state": normal(batch, value_heads, key_dim, value_dim),
    }


def outcome(
    ops: Any, x: dict[str, Tensor], *, raw: bool = False, documents: Tensor | None = None, how: str = "fused"
) -> dict[str, Tensor]:
    """Both reads, the final state and the gradient of every input, from the kernels or (how="truth") from the loop."""
    dtype = torch.float64 if how == "truth" else torch.float32
    x = {name: t.to(dtype).detach().requires_grad_() for name, t in x.items()}
    given = {name: x.get(name) for name in ("log_decay", "beta", "initial_state")} | {
        "documents": documents,
        "raw": raw,
    }
    if how == "truth":
        parts, final = _reference.write(x["keys"], x["values"], **given)
        first = _reference.read(parts, x["queries"], scale=0.5)
        second = _reference.read(parts, x["others"], scale=0.25)
    elif how == "fused":
        parts, final, first = ops.write_and_read(WriteInputs(x["keys"], x["values"], **given), x["queries"], scale=0.5)
        second = ops.read(parts, x["others"], scale=0.25)
    elif how == "alone":
        parts, final = ops.write(WriteInputs(x["keys"], x["values"], **given))
        first, second = ops.read(parts, x["queries"], scale=0.5), ops.read(parts, x["others"], scale=0.25)
    else:  # nobody reads later: backward computes again what was not kept
        _, final, first = ops.write_and_read(
            WriteInputs(x["keys"], x["values"], **given), x["queries"], scale=0.5, keep=False
        )
        second = torch.zeros(())
    g = torch.Generator().manual_seed(3)

    def weight(y: Tensor) -> Tensor:
        return torch.randn(y.shape, generator=g).to(y.dtype)

    loss = (first * weight(first)).sum() + (final * weight(final)).sum()
    if how != "forget":
        loss = loss + (second * weight(second)).sum()
    grads = torch.autograd.grad(loss, list(x.values()), allow_unused=True)
    result = {"first": first, "second": second, "final": final}
    return result | {f"d_{n}": d for n, d in zip(x, grads, strict=True) if d is not None}


def errors(found: dict[str, Tensor], truth: dict[str, Tensor]) -> dict[str, float]:
    """RMS(difference) / RMS(truth) of each tensor; the absolute RMS where the truth is 0."""
    result = {}
    for name, x in found.items():
        t = truth[name].detach()
        difference = (x.detach().double() - t).pow(2).mean().sqrt()
        size = t.pow(2).mean().sqrt()
        result[name] = float(difference / size if size > 0 else difference)
    return result


def assert_close(found: dict[str, Tensor], truth: dict[str, Tensor]) -> None:
    worst = errors(found, truth)
    assert all(e < BAR for e in worst.values()), {n: f"{e:.2g}" for n, e in worst.items()}


@pytest.mark.parametrize("length", [1, 63, 64, 65, 130])
def test_lengths(ops: Any, length: int) -> None:
    x = inputs(length=length)
    assert_close(outcome(ops, x), outcome(ops, x, how="truth"))


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("how", ["fused", "alone"])
def test_grouped_packed_continued(ops: Any, raw: bool, how: str) -> None:
    """Two value heads per key head, documents that start inside and between chunks, an initial state."""
    x = inputs(batch=2, length=140, value_heads=2, key_dim=32)
    starts = torch.zeros(2, 140, dtype=torch.int64)
    starts[0, [5, 64, 70]] = 1
    starts[1, 100] = 3
    documents = starts.cumsum(1)
    found = outcome(ops, x, raw=raw, documents=documents, how=how)
    assert_close(found, outcome(ops, x, raw=raw, documents=documents, how="truth"))


def test_what_is_not_kept_is_computed_again(ops: Any) -> None:
    x = {name: t for name, t in inputs(length=100).items() if name != "others"}
    kept, forgot = outcome(ops, x | {"others": x["queries"]}), outcome(ops, x, how="forget")
    for name in ("first", "final"):
        assert torch.equal(kept[name], forgot[name])
    truth = _reference.write(
        **{n: x[n].double() for n in ("keys", "values", "log_decay", "beta", "initial_state")},
        documents=None,
        raw=False,
    )
    assert_close({"final": forgot["final"]}, {"final": truth[1]})
    assert set(forgot) >= {f"d_{name}" for name in x}
    assert all(bool(torch.isfinite(forgot[f"d_{name}"]).all()) for name in x)


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("case", ["identical keys", "strong decay", "no writes", "a document per token"])
def test_adversarial(ops: Any, case: str, raw: bool) -> None:
    x = inputs(length=100)
    documents = None
    if case == "identical keys":
        x["keys"] = x["keys"][:, :1].expand_as(x["keys"])
        x["beta"], x["log_decay"] = torch.ones_like(x["beta"]), torch.zeros_like(x["log_decay"])
    elif case == "strong decay":
        x["log_decay"] = -20 * torch.rand(x["log_decay"].shape, generator=torch.Generator().manual_seed(0))
    elif case == "no writes":
        x["beta"] = torch.zeros_like(x["beta"])
    else:
        documents = torch.arange(100)[None]
    found = outcome(ops, x, raw=raw, documents=documents)
    assert_close(found, outcome(ops, x, raw=raw, documents=documents, how="truth"))


def test_views_need_no_copy_to_be_right(ops: Any) -> None:
    """Keys, values and queries as slices of one projection, the way a layer hands them in."""
    x = inputs(length=70)
    joined = torch.cat([x["queries"], x["keys"], x["values"]], dim=-1)
    x["queries"], x["keys"], x["values"] = joined.split(16, dim=-1)
    assert not x["keys"].is_contiguous()
    assert_close(outcome(ops, x), outcome(ops, x, how="truth"))


@pytest.mark.parametrize("raw", [False, True])
def test_one_token_steps_equal_the_loop(ops: Any, raw: bool) -> None:
    x = inputs(batch=2, length=5, value_heads=2, key_dim=32)
    state = x["initial_state"]
    parts, final = _reference.write(
        x["keys"].double(), x["values"].double(), log_decay=x["log_decay"].double(), beta=x["beta"].double(),
        initial_state=state.double(), documents=None, raw=raw,
    )  # fmt: skip
    truth = _reference.read(parts, x["queries"].double(), scale=0.5)
    for t in range(5):
        token = {name: x[name][:, t : t + 1] for name in ("keys", "values", "queries", "log_decay", "beta")}
        before = state
        written = {name: part for name, part in token.items() if name != "queries"}
        inputs_ = WriteInputs(**written, initial_state=before, raw=raw)
        parts, state, y = ops.write_and_read(inputs_, token["queries"], scale=0.5)
        again = ops.read(parts, token["queries"], scale=0.5)
        buffer = before.clone()
        in_place = torch.ops.groundthink.triton_step_(*token.values(), buffer, raw, 0.5)
        assert_close({"y": y, "again": again}, {"y": truth[:, t : t + 1], "again": truth[:, t : t + 1]})
        assert torch.equal(in_place, y)
        assert torch.equal(buffer, state)
    assert_close({"final": state}, {"final": final})


@pytest.mark.parametrize("fault", ["raw", "log_decay", "documents"])
def test_a_planted_fault_is_seen(ops: Any, fault: str) -> None:
    x = inputs(length=70)
    truth = outcome(ops, x, how="truth")
    documents = None
    if fault == "log_decay":
        x["log_decay"] = x["log_decay"] * 1.0002
    elif fault == "documents":
        documents = (torch.arange(70)[None] >= 69).int()
    found = outcome(ops, x, raw=fault == "raw", documents=documents)
    with pytest.raises(AssertionError):
        assert_close(found, truth)


def test_operators_are_registered_whole(ops: Any) -> None:
    """Schema, fake kernels and autograd registration, as torch.compile needs them."""
    x = inputs(length=65)
    given = (x["keys"], x["values"], x["queries"], x["log_decay"], x["beta"], x["initial_state"], None)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(ops.triton_write, (*given, False, 0.5, True), test_utils=tests)
    _, _, kept, states, _, _, gamma, gates = ops.triton_write(*given, False, 0.5, True)
    torch.library.opcheck(
        ops.triton_read,
        (x["others"], x["keys"], kept, states, x["log_decay"], x["beta"], gamma, gates, None, 0.5),
        test_utils=tests,
    )


def test_operators_and_eager_calls_agree(ops: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch.compile will see gives the very numbers of an eager call, gradients too."""
    x = inputs(length=70)
    eager = outcome(ops, x)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    through_operators = outcome(ops, x)
    assert eager.keys() == through_operators.keys()
    for name, t in eager.items():
        assert torch.equal(t, through_operators[name]), name


def test_compiled_whole_equals_eager(ops: Any) -> None:
    """No graph break around write or read, and the same numbers."""
    x = inputs(length=65)

    def layer(k: Tensor, v: Tensor, q: Tensor, g: Tensor, b: Tensor) -> Tensor:
        parts, _, out = ops.write_and_read(WriteInputs(k, v, log_decay=g, beta=b), q, scale=0.5)
        return out + ops.read(parts, k, scale=0.5)

    given = [x[n].requires_grad_() for n in ("keys", "values", "queries", "log_decay", "beta")]
    eager, compiled = layer(*given), torch.compile(layer, fullgraph=True, backend="aot_eager")(*given)
    assert torch.equal(eager, compiled)
    for a, b in zip(torch.autograd.grad(eager.sum(), given), torch.autograd.grad(compiled.sum(), given), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("sizes", [(5, 48), (48, 65), (64, 3)])
def test_sizes_between_tiles_are_widened(ops: Any, sizes: tuple[int, int]) -> None:
    x = inputs(length=66, key_dim=sizes[0], value_dim=sizes[1])
    for how in ("fused", "alone"):
        assert_close(outcome(ops, x, how=how), outcome(ops, x, how="truth"))


def test_what_kernels_would_round_or_cannot_hold_is_refused(ops: Any) -> None:
    x = inputs(length=3)
    given = {n: x[n] for n in ("log_decay", "beta", "initial_state")} | {"documents": None, "raw": False}
    with pytest.raises(BackendError, match="float64"):
        ops.write(WriteInputs(x["keys"].double(), x["values"].double(), **given))
    with pytest.raises(BackendError, match="size 257"):
        ops.write(WriteInputs(torch.zeros(1, 3, 1, 257), x["values"], **given))


@pytest.mark.parametrize(("how", "raw"), [("fused", False), ("fused", True), ("alone", False), ("forget", True)])
def test_time_cut_in_segments_is_the_same_memory(
    ops: Any, monkeypatch: pytest.MonkeyPatch, raw: bool, how: str
) -> None:
    """Five chunks, the last one ragged, in segments of two, two and one; documents end inside two of them."""
    x = inputs(length=270, heads=1, value_heads=1)
    documents = (torch.arange(270)[None] >= 100).int() + (torch.arange(270) >= 260).int()
    judge = "forget" if how == "forget" else "truth"
    ids = None if how == "alone" else documents
    truth = outcome(ops, x, raw=raw, documents=ids, how=judge)
    monkeypatch.setattr(ops.launch, "segments", lambda *_: (3, 2))
    assert_close(outcome(ops, x, raw=raw, documents=ids, how=how), truth)


@pytest.mark.parametrize("how", ["fused", "alone"])
def test_offsets_of_64_bits_are_the_same_memory(ops: Any, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """What rows of more than 2^31 numbers take; `tests/gpu` has such a row."""
    x = inputs(length=130)
    plain = outcome(ops, x, how=how)
    asked = []
    monkeypatch.setattr(ops.launch, "_long", lambda *numbers: asked.append(numbers) or True)
    for name, found in outcome(ops, x, how=how).items():
        assert torch.equal(found, plain[name]), name
    assert asked


def test_which_rows_need_offsets_of_64_bits(ops: Any) -> None:
    """A chunk beyond the end is where the scans look ahead to."""
    assert not ops.launch._long(2**20 - 64, 2047, 100)
    assert ops.launch._long(2**20 - 64, 100, 2048)
    assert ops.launch._long(2**20, 2048)


def test_a_wrong_map_of_segments_is_seen(ops: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: segments that begin empty."""
    x = inputs(length=130)
    truth = outcome(ops, x, how="truth")
    monkeypatch.setattr(ops.launch, "segments", lambda *_: (3, 1))
    monkeypatch.setattr(ops.launch, "_chain", lambda maps, updates, first: torch.zeros_like(updates))
    assert errors(outcome(ops, x), truth)["first"] > 0.01


def test_segments_fill_the_chip_and_no_more() -> None:
    """A GPU of 132 multiprocessors holds 264 programs of four warps, 132 of eight."""
    from groundthink.ops import _triton_launch as launch

    class Gpu:
        type = "cuda"

    with pytest.MonkeyPatch.context() as patch:
        properties = type("Properties", (), {"multi_processor_count": 132})
        patch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        assert launch.segments(32, 1024, 4, Gpu()) == (8, 128)  # type: ignore[arg-type]
        assert launch.segments(16, 1000, 8, Gpu()) == (8, 125)  # type: ignore[arg-type]
        assert launch.segments(64, 32, 4, Gpu()) == (1, 32), "two segments of 16 chunks gain nothing"  # type: ignore[arg-type]
        assert launch.segments(512, 1024, 4, Gpu()) == (1, 1024)  # type: ignore[arg-type]
    assert launch.segments(1, 1024, 4, torch.device("cpu")) == (1, 1024)
