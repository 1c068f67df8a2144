"""fla's Gated DeltaNet behind its adapter, on a CUDA device: its kernels run nowhere else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from groundthink.model import Snapshot
from groundthink.model.adapters import Adapter, adapt, fla
from groundthink.probes import Noise, Transplant, Zero, causality, parity
from groundthink.probes.intervention import EVERYTHING, carriers

# fla and what it imports of torch warn of their own affairs.
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]
VOCAB, ROWS = 256, 3


@pytest.fixture(scope="module", params=["bfloat16", "float32"])
def model(request: pytest.FixtureRequest) -> Adapter:
    fla.register()
    from fla.models import GatedDeltaNetConfig
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = GatedDeltaNetConfig(
        vocab_size=VOCAB, hidden_size=256, head_dim=64, num_heads=4, num_hidden_layers=2, expand_v=2,
        intermediate_size=256, initializer_range=0.05,
    )  # fmt: skip
    inner: Any = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, request.param))
    return adapt(inner.cuda().eval())


def ids(length: int = 80, seed: int = 0) -> Tensor:
    return torch.randint(1, VOCAB, (ROWS, length), generator=torch.Generator().manual_seed(seed)).cuda()


def changed(a: Snapshot, b: Snapshot) -> set[str]:
    mine, theirs = a.tensors(), b.tensors()
    return {name for name in mine if not torch.equal(mine[name], theirs[name])}


def test_the_face(model: Adapter) -> None:
    assert model.horizon == 6, "three taps in each of two layers"
    with torch.no_grad():
        logits, snapshot = model.prefill(ids())
    assert logits.shape == (ROWS, 80, VOCAB)
    assert carriers(snapshot) == (0, 1)
    assert snapshot.layers[0]["memory"].shape == (ROWS, 4, 64, 128)  # [B,H,K,V]
    assert snapshot.layers[0]["memory"].dtype == torch.float32


def test_parity_is_a_verdict(model: Adapter) -> None:
    """Chunked, recurrent and stepped kernels agree within 16-bit rounding; in float32 tf32 products keep 11 bits."""
    (found,) = parity(model, ids(150))
    limit = 2e-2 if model.embed.weight.dtype == torch.bfloat16 else 5e-3
    assert found.value < limit, found.details


def test_nothing_flows_backwards(model: Adapter) -> None:
    rows = {row.name: row for row in causality(model.eval(), ids(150))}
    assert rows["causality/sensitivity"].verdict == "pass"
    assert rows["causality/rows"].value <= rows["causality/rows"].threshold


def test_a_snapshot_is_everything_and_a_value(model: Adapter) -> None:
    with torch.no_grad():
        mine, theirs = model.prefill(ids())[1], model.prefill(ids(seed=1))[1]
        copy = theirs.map(torch.clone)
        swapped = Transplant(what=EVERYTHING)(mine, theirs)
        for length in (1, 5, 100):
            wanted = model.resume(theirs, ids(length, seed=2))[0]
            torch.testing.assert_close(model.resume(swapped, ids(length, seed=2))[0], wanted, rtol=0, atol=0)
    assert changed(theirs, copy) == set(), "the step kernel writes into its cache"


def test_interventions_act_by_layer_and_head(model: Adapter) -> None:
    with torch.no_grad():
        mine, theirs = model.prefill(ids())[1], model.prefill(ids(seed=1))[1]
        base = model.resume(mine, ids(1, seed=2))[0]
        for one, donor in ((Zero, None), (Noise, None), (Transplant, theirs)):
            cut = one(layers=(1,), heads=(3,))(mine, donor)
            assert changed(mine, cut) == {"layers.1.memory"}
            assert not torch.equal(model.resume(cut, ids(1, seed=2))[0], base)
