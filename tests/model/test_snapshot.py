"""A snapshot is a value: chosen, swapped, saved and continued, never changed; and what does not fit is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from groundthink.errors import StateError
from groundthink.model import HybridForCausalLM, ModelConfig, Snapshot

SIZES = {"vocab_size": 13, "d_model": 16, "n_heads": 2, "head_dim": 4, "value_dim": 6, "d_ff": 16, "window_size": 4}


def _model(pattern: str = "GS", **fields: Any) -> HybridForCausalLM:
    return HybridForCausalLM(ModelConfig(**{"pattern": pattern, "init_std": 0.3, **SIZES, **fields})).eval()


def _ids(length: int, rows: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 13, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def model() -> HybridForCausalLM:
    return _model()


@pytest.fixture
def snapshot(model: HybridForCausalLM) -> Snapshot:
    with torch.no_grad():
        return model.prefill(_ids(9))[1]


def _same(one: Snapshot, other: Snapshot) -> bool:
    mine, theirs = one.tensors(), other.tensors()
    return mine.keys() == theirs.keys() and all(torch.equal(x, theirs[name]) for name, x in mine.items())


def test_names_and_shapes(snapshot: Snapshot) -> None:
    shapes = {name: tuple(x.shape) for name, x in snapshot.tensors().items()}
    assert shapes == {
        "layers.0.memory": (3, 2, 4, 6),
        "layers.0.conv": (3, 3, 28),
        "layers.1.keys": (3, 3, 2, 4),
        "layers.1.values": (3, 3, 2, 4),
        "layers.1.valid": (3, 3),
        "position": (3,),
        "n_layers": (),
    }
    assert snapshot.position.tolist() == [9, 9, 9]
    with pytest.raises(TypeError):
        snapshot.layers[0]["memory"] = torch.zeros(1)  # type: ignore[index]


def test_select_replace_where(snapshot: Snapshot) -> None:
    picked = snapshot.select(torch.tensor([2, 0]))
    assert picked.batch_size == 2
    assert torch.equal(picked.layers[0]["memory"], snapshot.layers[0]["memory"][[2, 0]])
    before = snapshot.layers[0]["memory"].clone()
    emptied = snapshot.replace(0, memory=torch.zeros_like(before))
    assert not emptied.layers[0]["memory"].any()
    assert emptied.layers[0]["conv"] is snapshot.layers[0]["conv"]
    assert torch.equal(snapshot.layers[0]["memory"], before)
    mixed = snapshot.where(torch.tensor([True, False, True]), emptied)
    assert mixed.layers[0]["memory"].flatten(1).any(1).tolist() == [True, False, True]
    with pytest.raises(StateError, match=r"carries no 'memry'.*memory, conv"):
        snapshot.replace(0, memry=before)
    with pytest.raises(StateError, match=r"'memory' of layer 0 is \(3, 2, 4, 6\), not \(2, 2, 4, 6\)"):
        snapshot.replace(0, memory=before[:2])


@torch.no_grad()
def test_a_transplanted_memory_changes_what_follows(model: HybridForCausalLM, snapshot: Snapshot) -> None:
    other = model.prefill(_ids(9, seed=1))[1]
    swapped = snapshot.replace(0, memory=other.layers[0]["memory"])
    own, foreign = (model.resume(s, _ids(2))[0] for s in (snapshot, swapped))
    assert not torch.allclose(own, foreign)


def test_detach_ends_the_history(model: HybridForCausalLM) -> None:
    _, after = model.prefill(_ids(5))
    assert after.layers[0]["memory"].requires_grad
    assert not after.detach().layers[0]["memory"].requires_grad
    assert _same(after.detach().to("cpu"), after.detach())


@torch.no_grad()
def test_save_and_load_continue_to_the_bit(model: HybridForCausalLM, snapshot: Snapshot, tmp_path: Path) -> None:
    snapshot.select(torch.tensor([0, 0, 2])).save(tmp_path / "s.safetensors")
    loaded = Snapshot.load(tmp_path / "s.safetensors")
    assert _same(loaded, snapshot.select(torch.tensor([0, 0, 2])))
    picked = snapshot.select(torch.tensor([0, 0, 2]))
    assert torch.equal(model.resume(loaded, _ids(4))[0], model.resume(picked, _ids(4))[0])


def test_a_damaged_file_is_one_line(snapshot: Snapshot, tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    snapshot.save(path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:5], b"", b"x" * 100):
        path.write_bytes(content)
        with pytest.raises(StateError, match="cannot be read") as caught:
            Snapshot.load(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(StateError, match="cannot be read"):
        Snapshot.load(tmp_path / "absent")


def test_a_full_disk_leaves_the_earlier_file(
    snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.safetensors"
    snapshot.save(path)

    def full(self: Path, data: bytes) -> int:
        with open(self, "wb") as stream:
            stream.write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        snapshot.select(torch.tensor([0])).save(path)
    assert _same(Snapshot.load(path), snapshot)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "named",
    [
        {"weight": torch.zeros(2)},
        {"n_layers": torch.tensor(1), "layers.5.memory": torch.zeros(1), "position": torch.zeros(1)},
        {"n_layers": torch.tensor(1), "layers.-1.memory": torch.zeros(1), "position": torch.zeros(1)},
        {"n_layers": torch.tensor(1), "layers.0.memory": torch.zeros(1)},
        {"n_layers": torch.tensor(1), "memory": torch.zeros(1), "position": torch.zeros(1)},
        {"n_layers": torch.zeros(2), "position": torch.zeros(1)},
    ],
)
def test_a_foreign_file_is_refused(named: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file(named, str(tmp_path / "x"))
    with pytest.raises(StateError, match="not a snapshot"):
        Snapshot.load(tmp_path / "x")


def test_resume_refuses_what_does_not_fit(model: HybridForCausalLM, snapshot: Snapshot) -> None:
    with pytest.raises(StateError, match="holds 3 rows, the input 2"):
        model.resume(snapshot, _ids(2, rows=2))
    with pytest.raises(StateError, match="is of 2 layers, the model has 3"):
        _model("GSA").resume(snapshot, _ids(2))
    for other in (_model("GG"), _model("GS", value_dim=4), _model("GS", window_size=5), _model("GS", conv_width=2)):
        with pytest.raises(StateError, match=r"layer [01] .* of another model") as caught:
            other.resume(snapshot, _ids(2))
        assert "\n" not in str(caught.value)


def test_a_text_longer_than_the_model_was_told_is_refused(snapshot: Snapshot) -> None:
    model = _model(max_length=10)
    model.prefill(_ids(10))
    for call in (
        lambda: model.prefill(_ids(11)),
        lambda: model.resume(snapshot, _ids(2)),
        lambda: model(_ids(11)),
        lambda: model.loss(_ids(11), _ids(11)),
    ):
        with pytest.raises(StateError, match="11 tokens is longer than this model was told \\(10\\)"):
            call()
    model.resume(snapshot, _ids(1))
