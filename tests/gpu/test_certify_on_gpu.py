"""Certificates on a CUDA device: nothing stays on the host, and what is found is what the CPU finds."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import groundthink as gt
from groundthink.cli.main import main
from groundthink.probes import DIAGNOSTICS, PICTURES, ask_row, certify, make_bench
from groundthink.records import ProbeResult
from groundthink.tasks import Vocabulary
from groundthink.tasks.needle import Needle

pytestmark = pytest.mark.gpu

VOCABULARY = Vocabulary(text=16, n_keys=32, n_values=64, n_filler=16)
TEXT = np.random.default_rng(0).integers(0, 16, 1200)
EXAMPLE = Path(__file__).parents[2] / "examples" / "certified"
# Rounding of another order of summation. Each device is held to its own bound, so both must pass.
GAPS = ("causality/suffix", "causality/gradient", "causality/rows", "causality/documents", "parity", "transplant/sham",
        "transplant/complete", "readers/sham")  # fmt: skip
# Nats: logits of some units differ by 1e-5 of themselves, and so does the logarithm of their sum; ten times that.
NATS, WITHIN = ("leak/", "text/"), 1e-3
# An answer changes where two logits are nearer than rounding; of the answers of a row that befalls one or two.
ANSWERS = 2


def hybrid(device: str) -> gt.HybridForCausalLM:
    torch.manual_seed(1)
    config = gt.ModelConfig(
        pattern="GSA", vocab_size=VOCABULARY.size, d_model=128, n_heads=2, head_dim=64, value_dim=64, d_ff=256,
        window_size=16, init_std=0.2, local_drop_prob=0.3, own_read_drop_prob=0.3,
    )  # fmt: skip
    return gt.HybridForCausalLM(config).to(device).eval()  # type: ignore[arg-type]


def asked_of() -> dict[str, Any]:
    return {
        "vocabulary": VOCABULARY, "n_pairs": 4, "n": 20, "seed": 1, "trained_length": 96, "multiples": (1,),
        "needle": Needle(VOCABULARY, dict.fromkeys(("train", "valid", "test"), TEXT), length=96, n_needles=4),
        "text_multiples": (2,), "text": [torch.from_numpy(TEXT[i : i + 400]) for i in (0, 400, 800)],
    }  # fmt: skip


def assert_alike(here: ProbeResult, there: ProbeResult) -> None:
    told = f"{there.name}: {there.value} on the GPU, {here.value} on the CPU"
    if there.name.split("@")[0] in GAPS:
        assert here.verdict == there.verdict == "pass", told
    elif there.name == "causality/sensitivity":  # a change of a logit, of some units
        assert math.isclose(here.value, there.value, rel_tol=WITHIN), told
    elif there.name.startswith(NATS):
        assert abs(here.value - there.value) <= WITHIN, told
    elif math.isnan(here.value):
        assert math.isnan(there.value), told
    else:
        assert here.n == there.n, told
        assert abs(here.value - there.value) <= ANSWERS / (here.n or math.inf), told


def test_every_row_finds_what_it_finds_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Untrained models understand no task; that is overlooked, or most rows would not be asked."""
    monkeypatch.setattr(importlib.import_module("groundthink.probes.certify"), "NEAR", "")
    here, there = (certify(hybrid(device), hybrid(device), rows="full", **asked_of()) for device in ("cpu", "cuda"))
    assert [row.name for row in there.results] == [row.name for row in here.results]
    assert {"causality/documents", "follow/one_key@text-2x", "text/all"} <= {row.name for row in there.results}
    for one, other in zip(here.results, there.results, strict=True):
        assert_alike(one, other)


@pytest.mark.parametrize("name", DIAGNOSTICS)
def test_diagnostics_run(name: str) -> None:
    """Asked only whether they come through: what they say of single gates and keys is tested on the CPU."""
    results = list(ask_row(make_bench(hybrid("cuda"), {}, **asked_of()), name))
    assert results
    assert not any("not_run" in row.details for row in results)


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_run(name: str) -> None:
    assert PICTURES[name][1](make_bench(hybrid("cuda"), {}, **asked_of()))


def test_the_shipped_model_is_certified(tmp_path: Path) -> None:
    """The command of the README, on a GPU; exit code 0 is the verdict CERTIFIED."""
    out = tmp_path / "certificate.json"
    words = ["certify", str(EXAMPLE), "--device", "cuda", "--rows", "core", "--multiples", "2", "--n", "100"]
    assert main([*words, "--quiet", "--out", str(out)]) == 0
    assert json.loads(out.read_text(encoding="utf8"))["verdict"] == "CERTIFIED"
