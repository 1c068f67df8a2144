"""From a path or a name on the hub to a model with `prefill` and `resume`: nothing unpickled, no remote code."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from groundthink.errors import CheckpointError, ConfigError
from groundthink.model.adapters import fla
from groundthink.model.adapters.base import Adapter
from groundthink.model.adapters.registry import adapt, family_of
from groundthink.model.files import load_model
from groundthink.model.hybrid import HybridForCausalLM

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def is_foreign(path_or_hub_id: Path | str) -> bool:
    """Whether it names a model of others: not a run, not a saved model of ours, and not a folder without a model."""
    folder = Path(path_or_hub_id)
    if not folder.exists():
        return bool(_HUB_ID.fullmatch(str(path_or_hub_id)))
    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf8"))
    except (OSError, ValueError):
        return False
    return isinstance(raw, dict) and raw.get("model_type", "groundthink") != "groundthink"


def model_from(
    path_or_hub_id: Path | str,
    *,
    attention_window: int | None = None,
    step: bool = False,
    dtype: str = "float32",
) -> HybridForCausalLM | Adapter:
    """A saved model of ours, or a transformers causal language model behind an adapter, in evaluation mode on the CPU.

    Args:
        path_or_hub_id: folder of a saved model, or a name on the hub.
        attention_window, step: see `Adapter`; for foreign models only.
        dtype: of a foreign model's weights.

    Raises:
        CheckpointError: there is none, it is damaged or incomplete, it has no safetensors, it needs its own code, or
            no adapter knows it; without a network, a name on the hub that is not in the local cache.
        ConfigError: an option that this model or this function does not have.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r}", fix=f"use one of {', '.join(DTYPES)}")
    name = str(path_or_hub_id)
    raw = _raw_config(name)
    if raw.get("model_type") == "groundthink":
        if attention_window is not None or step:
            raise ConfigError("attention_window and step are for models of others", where=name, fix="leave them out")
        return load_model(name)
    if raw.get("model_type") in fla.FlaGatedDeltaNet.model_types:
        fla.register()
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise _unreadable(name, error) from error
    family_of(config.model_type, config)  # before gigabytes are fetched
    model = _weights(name, config, DTYPES[dtype])
    return adapt(model, attention_window=attention_window, step=step).eval()


def _raw_config(name: str) -> dict[str, Any]:
    folder = Path(name)
    if folder.exists() or not _HUB_ID.fullmatch(name):
        try:
            raw = json.loads((folder / "config.json").read_text(encoding="utf8"))
        except (FileNotFoundError, NotADirectoryError):
            raise CheckpointError(
                "there is no config.json", where=name, fix="give the folder of a saved model, or a name on the hub"
            ) from None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"config.json cannot be read ({error})", where=name, fix="fetch it again") from error
    else:
        try:
            raw, _ = PreTrainedConfig.get_config_dict(name)
        except (OSError, ValueError) as error:
            raise _unreadable(name, error) from error
    if not isinstance(raw, dict) or not raw.get("model_type"):
        raise CheckpointError("its config.json names no model_type", where=name, fix="give a saved language model")
    return cast(dict[str, Any], raw)


def _weights(name: str, config: Any, dtype: torch.dtype) -> Any:
    """The model with all its weights."""
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name,
            config=config,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=dtype,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise _unreadable(name, error) from error
    model, found = loaded
    missing = sorted(found["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{len(missing)} weights are missing, {missing[0]} first", where=name, fix="fetch the whole checkpoint"
        )
    return model.eval()


def _unreadable(name: str, error: Exception) -> CheckpointError:
    """transformers' own complaint, on one line, with what to do."""
    said = " ".join(str(error).split())
    chain, cause = "", error.__cause__ or error.__context__
    while cause is not None:
        chain += type(cause).__name__
        cause = cause.__cause__ or cause.__context__
    offline = any(word in chain for word in ("Offline", "ConnectionError", "ConnectError", "LocalEntryNotFound"))
    if offline or "offline" in said.lower() or "internet connection" in said:
        return CheckpointError(
            "there is no such folder, and the hub cannot be reached", where=name, fix="go online, or give a folder"
        )
    if "trust_remote_code" in said or "custom code" in said:
        return CheckpointError(
            "needs code of its own, which is not run", where=name, fix="certify a model that transformers itself has"
        )
    if "safetensors" in said and isinstance(error, OSError):
        return CheckpointError(
            "has no safetensors weights, and nothing is unpickled", where=name, fix="convert it to safetensors"
        )
    return CheckpointError(f"cannot be loaded ({said[:200]})", where=name, fix="give a complete causal language model")
