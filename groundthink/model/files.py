"""A model on disk: config.json and model.safetensors, in transformers' own form."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save

from groundthink.errors import CheckpointError, ConfigError
from groundthink.model.hf import GroundThinkConfig
from groundthink.model.hybrid import HybridForCausalLM
from groundthink.model.snapshot import write_whole

WEIGHTS = "model.safetensors"


def save_model(model: HybridForCausalLM, folder: Path | str) -> None:
    """Write the model so that `load_model` and transformers' `from_pretrained` both read it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: x.detach().contiguous().cpu() for name, x in model.state_dict().items()}
    if model.sizes.tie_embeddings:
        del tensors["lm_head.weight"]
    write_whole(folder / WEIGHTS, save(tensors, metadata={"format": "pt"}))
    config = model.config.to_diff_dict() | {"architectures": [type(model).__name__]}
    write_whole(folder / "config.json", (json.dumps(config, indent=1, sort_keys=True) + "\n").encode())


def load_model(folder: Path | str) -> HybridForCausalLM:
    """Read a model written by `save_model`; it comes back in evaluation mode, on the CPU.

    Raises:
        CheckpointError: a file is missing, damaged, or of another kind of model.
    """
    folder = Path(folder)
    config = _read_config(folder)
    path = folder / WEIGHTS
    if not path.is_file():
        raise CheckpointError(f"there is no {WEIGHTS}", where=str(folder), fix="give the folder of a saved model")
    try:
        tensors = load_file(str(path))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"is damaged ({error})", where=str(path), fix="use an earlier checkpoint") from error
    model = HybridForCausalLM(config)
    if model.sizes.tie_embeddings and "embed.weight" in tensors:
        tensors["lm_head.weight"] = tensors["embed.weight"]
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        first = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"the weights do not fit the config ({first})",
            where=str(path),
            fix="give a checkpoint of this model",
        ) from error
    return model.eval()


def _read_config(folder: Path) -> GroundThinkConfig:
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf8"))
    except FileNotFoundError:
        raise CheckpointError(
            "there is no config.json", where=str(folder), fix="give the folder of a saved model"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot be read ({error})", where=str(path), fix="use an earlier checkpoint") from error
    if not isinstance(raw, dict) or raw.get("model_type") != "groundthink":
        raise CheckpointError(
            "this is not a GroundThink model", where=str(path), fix="give a model saved by GroundThink"
        )
    try:
        return GroundThinkConfig(**raw)
    except ConfigError as error:
        raise CheckpointError(error.what, where=str(path), fix=error.fix) from error
