"""`groundthink bench` and `groundthink doctor`: no speed without accuracy, and every operation with its reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from groundthink.cli import bench, doctor, main
from groundthink.ops import measure, warm
from groundthink.ops.measure import Sizes

SMALL = ("--head-dim", "16", "--value-dim", "16", "--heads", "1", "--length", "70", "--runs", "2")
SIZES = Sizes(key_dim=16, value_dim=32, heads=1, value_heads=2, dtype=torch.float32)


@pytest.mark.parametrize("more", [(), ("--error", "raw", "--value-heads", "2"), ("--recipe", "demo", "--runs", "1")])
def test_bench_prints_errors_and_then_times(more: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    words = [*SMALL, *more] if "--runs" not in more else [*SMALL[:-2], *more]
    assert main.main(["bench", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("backend chunked on cpu")
    times = {line[:26].strip(): float(line[26:].split()[0]) for line in lines if line.endswith("ms")}
    assert set(times) == {"forward", "a second read", "forward + backward"}
    assert all(time > 0 for time in times.values())
    assert sum("bar 1e-05" in line for line in lines) == len(measure.BARS[torch.float32])
    if "demo" in more:
        assert "K 64" in lines[0]


@pytest.mark.parametrize("wrong", ["read", "gradient", "nan"])
def test_a_wrong_operator_gets_no_speed(
    wrong: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = measure.call

    def call(x: dict[str, torch.Tensor], sizes: Sizes, backend: str, **more: Any) -> Any:
        if backend == "reference":
            return real(x, sizes, backend, **more)
        if wrong == "gradient":  # the same numbers with a detached gate
            return real({**x, "beta": x["beta"] * 0.5 + x["beta"].detach() * 0.5}, sizes, backend, **more)
        memory, read = real(x, sizes, backend, **more)
        return memory, read * (1.0001 if wrong == "read" else float("nan"))

    monkeypatch.setattr(measure, "call", call)
    monkeypatch.setattr(measure, "milliseconds", lambda *_, **__: pytest.fail("timed"))
    assert main.main(["bench", *SMALL]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert "accuracy gate is red" in err
    assert ("dbeta" if wrong == "gradient" else "read") in err


def test_warm_without_a_gpu_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main.main(["bench", "--warm", "--recipe", "demo"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert "groundthink bench --warm" in err
    assert "Fix:" in err


def test_warm_calls_every_step_and_the_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    called: list[Any] = []
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(warm, "require_cuda", lambda: None)
    monkeypatch.setattr(warm, "_train", lambda sizes, **how: called.append((sizes.key_dim, how)))
    monkeypatch.setattr(bench, "_run_model", lambda config, dtype: called.append((config.pattern, dtype)))
    assert main.main(["bench", "--warm", "--recipe", "demo", "--dtype", "bfloat16"]) == 0
    out, err = capsys.readouterr()
    assert out == f"kernel cache  {tmp_path}: empty\n"
    assert "the whole model" in err
    assert called[-1] == ("GS", torch.bfloat16)
    assert len(called) == 7
    assert {how.get("length", 130) for _, how in called[:-1]} == {1, 130}


def test_a_warm_step_runs_forward_and_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps themselves, on the CPU: the device and the backend are replaced, nothing else."""
    real_call, real_inputs, real_arange, real_zeros = warm.call, warm.inputs, torch.arange, torch.zeros
    seen: list[tuple[bool, bool, int]] = []

    def call(x: dict[str, torch.Tensor], sizes: Sizes, backend: str, *, keep: bool) -> Any:
        assert backend == "triton"
        seen.append((keep, torch.is_grad_enabled(), x["keys"].shape[1]))
        return real_call(x, sizes, "chunked", keep=keep)

    def here(real: Any) -> Any:
        return lambda *a, **k: real(*a, **{**k, "device": "cpu"})

    monkeypatch.setattr(warm, "require_cuda", lambda: None)
    monkeypatch.setattr(warm, "call", call)
    monkeypatch.setattr(warm, "inputs", here(real_inputs))
    monkeypatch.setattr(torch, "arange", here(real_arange))
    monkeypatch.setattr(torch, "zeros", here(real_zeros))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    for step in warm.warm_steps(SIZES).values():
        step()
    assert (False, False, 130) in seen
    assert (True, True, 130) in seen
    assert seen[-1] == (True, False, 1)


def test_the_cache_is_where_triton_says(tmp_path: Path) -> None:
    assert warm.kernel_cache({"TRITON_HOME": str(tmp_path)}).folder == tmp_path / ".triton" / "cache"
    assert warm.kernel_cache({}).folder == Path.home() / ".triton" / "cache"
    assert str(warm.kernel_cache({"TRITON_CACHE_DIR": str(tmp_path / "none")})).endswith("none: empty")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "kernel.cubin").write_bytes(b"x" * 2**20)
    (tmp_path / "b.json").write_bytes(b"y" * 2**19)
    assert str(warm.kernel_cache({"TRITON_CACHE_DIR": str(tmp_path)})) == f"{tmp_path}: 2 files, 1.5 MiB"


def test_doctor_names_each_operation_and_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    rows = [{"device": "cuda", "backend": "chunked", "reason": "because"}]
    monkeypatch.setattr(warm, "describe_backends", lambda: rows)
    facts = dict(doctor.facts())
    assert facts["memory on cuda"] == "chunked: because"
    for operation in ("window", "convolution", "cross-entropy"):
        backend, _, reason = facts[f"{operation} on cuda"].partition(": ")
        assert backend
        assert reason
    assert facts["kernel cache"] == f"{tmp_path}: empty"
    assert {"torch", "threads", "hardware"} <= facts.keys()
    assert main.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == len(facts)
    assert "chunked: because" in out
