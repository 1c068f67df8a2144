"""A saved model comes back as it was, from us and from transformers; anything else is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from groundthink.errors import CheckpointError, ConfigError
from groundthink.model import GroundThinkConfig, HybridForCausalLM, ModelConfig, load_model, save_model

SIZES: dict[str, Any] = {
    "vocab_size": 13,
    "d_model": 16,
    "n_heads": 2,
    "head_dim": 4,
    "value_dim": 6,
    "d_ff": 16,
    "window_size": 4,
}


def _model(**fields: Any) -> HybridForCausalLM:
    return HybridForCausalLM(ModelConfig(**{"pattern": "GGS", "init_std": 0.3, **SIZES, **fields})).eval()


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(12)[None] % 13).logits


OPTIONS: dict[str, Any] = {"slot_tokens": (3, 5), "key_conv_width": 3, "shifted_value": True, "start": "mimetic"}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tie_embeddings": False},
        {"read_sources": "all", "max_length": 99},
        {**OPTIONS, "beta_floor": 1.0, "embedding_norm": True, "read_query": "shared"},
    ],
)
def test_round_trip(fields: dict[str, Any], tmp_path: Path) -> None:
    model = _model(**fields)
    save_model(model, tmp_path / "m")
    loaded = load_model(tmp_path / "m")
    assert loaded.sizes == model.sizes
    assert not loaded.training
    assert torch.equal(_logits(loaded), _logits(model))
    assert (loaded.lm_head.weight is loaded.embed.weight) == model.sizes.tie_embeddings
    auto = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert isinstance(auto, HybridForCausalLM)
    assert torch.equal(_logits(auto.eval()), _logits(model))
    assert AutoConfig.from_pretrained(tmp_path / "m").model_config == model.sizes
    model.save_pretrained(tmp_path / "hf")
    assert torch.equal(_logits(load_model(tmp_path / "hf")), _logits(model))
    assert [p.name for p in sorted((tmp_path / "m").iterdir())] == ["config.json", "model.safetensors"]


def test_gates_stay_float32_when_loaded_in_half_precision(tmp_path: Path) -> None:
    save_model(_model(), tmp_path)
    auto = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert auto.embed.weight.dtype == torch.bfloat16
    assert {p.dtype for p in auto.blocks[0].mixer.gates.parameters()} == {torch.float32}


def _truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-50])


def _edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _edit_model(folder: Path, **changes: Any) -> None:
    _edit_config(folder, model=json.loads((folder / "config.json").read_text())["model"] | changes)


def _drop_tensor(folder: Path) -> None:
    tensors = load_file(str(folder / "model.safetensors"))
    del tensors["norm.weight"]
    save_file(tensors, str(folder / "model.safetensors"))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_truncate, "is damaged"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "is damaged"),
        (lambda f: (f / "model.safetensors").unlink(), "there is no model.safetensors"),
        (lambda f: (f / "config.json").unlink(), "there is no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "cannot be read"),
        (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), "cannot be read"),
        (lambda f: (f / "config.json").write_text("[]"), "not a GroundThink model"),
        (lambda f: _edit_config(f, model_type="llama"), "not a GroundThink model"),
        (lambda f: _edit_config(f, windw=3), "unknown fields 'windw'"),
        (lambda f: _edit_config(f, model=[]), "model"),
        (lambda f: _edit_config(f, model="GS"), "model"),
        (lambda f: _edit_config(f, model=None), "model"),
        (lambda f: _edit_model(f, pattern="GGQ"), "unknown letters 'Q'"),
        (lambda f: _edit_model(f, window_size="4"), "window_size is '4'"),
        (lambda f: _edit_model(f, d_model=32), "do not fit the config"),
        (lambda f: _edit_model(f, pattern="GG"), "do not fit the config"),
        (_drop_tensor, "do not fit the config"),
    ],
)
def test_a_bad_checkpoint_is_one_line(damage: Any, said: str, tmp_path: Path) -> None:
    save_model(_model(), tmp_path)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=said) as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("where", ["absent", "file"])
def test_no_folder_is_one_line(where: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError):
        load_model(tmp_path / where)


def test_a_full_disk_leaves_the_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model()
    save_model(model, tmp_path)

    def full(self: Path, data: bytes) -> int:
        with open(self, "wb") as stream:
            stream.write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        save_model(_model(d_ff=32), tmp_path)
    monkeypatch.undo()
    assert torch.equal(_logits(load_model(tmp_path)), _logits(model))
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["config.json", "model.safetensors"]


def test_the_holder_refuses_leftovers() -> None:
    with pytest.raises(ConfigError, match=r"unknown fields 'windw_size'.*spelt as in ModelConfig"):
        GroundThinkConfig(model=_model().sizes.to_dict(), windw_size=3)
    config = ModelConfig(pattern="GS", **SIZES)
    holder = GroundThinkConfig.of(config)
    assert GroundThinkConfig.from_dict(holder.to_dict()).model_config == config
    assert holder.layer_types == ["linear_attention", "sliding_attention"]
    assert (holder.vocab_size, holder.hidden_size, holder.num_hidden_layers) == (13, 16, 2)
