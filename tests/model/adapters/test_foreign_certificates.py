"""What the certificate says of models of others: parity breakers, plain attention, bad input. No verdict is a crash."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import BREAKS, CONFIGS, VOCAB, build
from transformers.models.rwkv.configuration_rwkv import RwkvConfig

import groundthink as gt
from groundthink.cli import main
from groundthink.cli.certify import EXIT_CODES
from groundthink.errors import CheckpointError, ConfigError, GroundThinkError, TaskError
from groundthink.model import HybridForCausalLM, ModelConfig, save_model
from groundthink.model.adapters import FAMILIES, Adapter, adapt, is_foreign, model_from
from groundthink.probes import parity
from groundthink.records import certificate_from_dict
from groundthink.studies.certify import describe, parse_vocabulary, vocabulary_for
from groundthink.tasks import Vocabulary

SMALL = Vocabulary(text=0, n_keys=16, n_values=64, n_filler=16)


def certified(model: Any, **options: Any) -> Any:
    return gt.certify(model, vocabulary=SMALL, n=8, n_pairs=4, **options)


@pytest.mark.parametrize("name", BREAKS)
def test_a_release_that_breaks_parity_is_invalid_with_its_gap(name: str) -> None:
    """Several tokens that continue a cache start from an empty state there; token by token all is well."""
    model = build(name)
    text = torch.randint(1, VOCAB, (2, 40))
    broken = parity(adapt(model), text)[0]
    assert broken.verdict == "fail"
    assert broken.value > 1e-3
    assert parity(adapt(model, step=True), text)[0].verdict == "pass"


def test_the_certificate_of_a_breaker_names_gap_and_way_out() -> None:
    found = certified(build("recurrent_gemma"))
    assert found.verdict == "INVALID"
    assert f"{found.result('parity').value:.2g}" in found.sentence
    assert "ask again step by step" in found.sentence
    assert not any(row.name.startswith("recall") for row in found.results)


def test_a_planted_breaker_is_invalid_with_its_gap() -> None:
    class Forgetful(FAMILIES["Mamba2"]):  # type: ignore[misc]
        def set_state(self, cache: Any, layer: int, state: Any) -> None:
            super().set_state(cache, layer, {**state, "conv": torch.zeros_like(state["conv"])})

    found = certified(Forgetful(build("mamba2")))
    assert found.verdict == "INVALID"
    assert found.result("parity").value > 1e-3


def test_an_untrained_model_fails_the_task_and_says_what_it_is() -> None:
    found = certified(build("mamba2"))
    assert found.verdict == "TASK-FAIL", found.sentence
    assert found.horizon == 6, "three taps before the present token in each of two convolutions"
    assert "Family: Mamba2" in found.sentence
    assert found.result("adapter").details["memory_layers"] == [0, 1]
    for name in ("causality/suffix", "parity"):
        assert found.result(name).verdict == "pass"


def test_full_attention_beside_a_memory_has_no_horizon_unless_it_is_limited() -> None:
    model = build("qwen3_5", spread=1.0)
    assert adapt(model).horizon == float("inf")
    found = certified(model, attention_window=4)
    assert found.horizon == 3 * 3 + 3
    assert "limited to 4 tokens" in found.sentence
    assert describe(adapt(model, attention_window=4))["attention_layers"] == [3]


@pytest.mark.parametrize(("name", "reach"), [("llama", None), ("mistral", 14)])
def test_plain_attention_has_no_state_to_certify(name: str, reach: int | None) -> None:
    found = gt.certify(build(name))
    assert found.verdict == "NOT-PROVEN"
    assert "There is no state to certify" in found.sentence
    assert found.horizon == reach


def test_a_checkpoint_on_disk_is_certified_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    saved = build("mamba2")
    saved.save_pretrained(tmp_path / "mine")
    loaded = model_from(tmp_path / "mine")
    assert isinstance(loaded, Adapter)
    ids = torch.randint(1, VOCAB, (2, 9))
    with torch.no_grad():
        assert torch.equal(loaded.prefill(ids)[0], adapt(saved).prefill(ids)[0])
    words = ["certify", str(tmp_path / "mine"), "--n", "8", "--vocabulary", "0,32,64,16"]
    assert main.main(words) == EXIT_CODES["TASK-FAIL"]
    assert "TASK-FAIL" in capsys.readouterr().out
    written = json.loads((tmp_path / "mine.certificate.json").read_text())
    assert certificate_from_dict(written).verdict == "TASK-FAIL"
    build("llama").save_pretrained(tmp_path / "plain")
    assert main.main(["certify", str(tmp_path / "plain")]) == EXIT_CODES["NOT-PROVEN"]
    assert "no state to certify" in " ".join(capsys.readouterr().out.split())


def test_a_model_of_ours_is_told_from_one_of_others(tmp_path: Path) -> None:
    sizes = ModelConfig(pattern="GS", vocab_size=VOCAB, d_model=16, n_heads=1, head_dim=16, value_dim=16)
    save_model(HybridForCausalLM(sizes), tmp_path)
    assert not is_foreign(tmp_path)
    assert isinstance(model_from(tmp_path), HybridForCausalLM)
    with pytest.raises(ConfigError, match="for models of others"):
        model_from(tmp_path, step=True)
    with pytest.raises(ConfigError, match="for models of others"):
        gt.certify(tmp_path, step=True)
    with pytest.raises(ConfigError, match="which ids"):
        gt.certify(tmp_path)
    assert not is_foreign(tmp_path / "nowhere" / "at" / "all")
    assert is_foreign("somebody/model")


def write_config(folder: Path, **fields: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


def test_what_cannot_be_loaded_is_said_in_one_line(tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    build("mamba2").save_pretrained(saved)
    weights = saved / "model.safetensors"
    cases: list[tuple[Any, str]] = [
        ("somebody/model", "the hub cannot be reached"),
        (write_config(tmp_path / "a"), "names no model_type"),
        (write_config(tmp_path / "b", model_type="no_such_type"), "cannot be loaded"),
        (write_config(tmp_path / "c", **RwkvConfig().to_dict()), "no adapter for models of type 'rwkv'"),
        (write_config(tmp_path / "d", **CONFIGS["mamba2"]().to_dict()), "no safetensors weights"),
        (write_config(tmp_path / "e", model_type="gated_deltanet"), "needs flash-linear-attention"),
    ]
    (tmp_path / "a" / "x").mkdir()
    cases.append((tmp_path / "a" / "x", "there is no config.json"))
    for path, says in cases:
        with pytest.raises(GroundThinkError, match=says) as error:
            model_from(path)
        assert "\n" not in str(error.value)
        assert "Fix:" in str(error.value)
    (tmp_path / "d" / "pytorch_model.bin").write_bytes(b"\x80\x04N.")  # a pickle: it must not be read
    with pytest.raises(CheckpointError, match="nothing is unpickled"):
        model_from(tmp_path / "d")
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        model_from(saved)
    with pytest.raises(ConfigError, match="dtype 'int8'"):
        model_from(saved, dtype="int8")


def test_missing_weights_are_not_drawn_at_random(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    build("mamba2").save_pretrained(tmp_path)
    tensors = load_file(str(tmp_path / "model.safetensors"))
    tensors.pop(next(name for name in tensors if "in_proj" in name))
    save_file(tensors, str(tmp_path / "model.safetensors"), metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="1 weights are missing"):
        model_from(tmp_path)


def test_bad_options_and_vocabularies_are_refused() -> None:
    with pytest.raises(ConfigError, match="attention_window is 0"):
        adapt(build("llama"), attention_window=0)
    with pytest.raises(ConfigError, match="no full attention to limit"):
        adapt(build("mamba2"), attention_window=4)
    with pytest.raises(TaskError, match="too small for the task"):
        vocabulary_for(199)
    assert vocabulary_for(200).size <= 200
    assert vocabulary_for(100_000).text == 50_000
    assert parse_vocabulary("16,32,64,16") == Vocabulary(text=16, n_keys=32, n_values=64, n_filler=16)
    with pytest.raises(ConfigError, match="--vocabulary"):
        parse_vocabulary("16,32")


def test_a_model_without_a_cache_is_refused() -> None:
    class Bare(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = CONFIGS["mamba2"]()

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return input_ids

    with pytest.raises(CheckpointError, match="Bare takes no cache"):
        adapt(Bare())
    model = build("mamba2")
    model.forward = lambda input_ids, cache_params=None, use_cache=None: input_ids
    with pytest.raises(CheckpointError, match="does not carry on what the family 'Mamba2' does"):
        adapt(model)
